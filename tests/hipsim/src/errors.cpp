// Error codes, their texts, and the settings that come from the environment.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "sim.h"

namespace hipsim {

std::mutex state_mutex;

static thread_local std::map<hipError_t, std::string> details;
static thread_local hipError_t last_error = hipSuccess;
static std::string pending_fault;

std::string format(const char* pattern, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

static const char* error_text(hipError_t code) {
    switch (code) {
#define X(name, value, text) \
    case name: return text;
        HIP_ERRORS(X)
#undef X
    }
    return "unknown error";
}

hipError_t fail(hipError_t code, const std::string& detail) {
    details[code] = std::string(error_text(code)) + ": " + detail;
    last_error = code;
    return code;
}

void report_fault(const std::string& message) {
    fprintf(stderr, "hipsim: %s\n", message.c_str());
    if (pending_fault.empty()) pending_fault = message;
}

hipError_t take_fault() {
    if (pending_fault.empty()) return hipSuccess;
    std::string message;
    message.swap(pending_fault);
    return fail(hipErrorLaunchFailure, message);
}

void drop_fault() { pending_fault.clear(); }

uint64_t setting(const char* name, uint64_t fallback) {
    const char* text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 0) : fallback;
}

void trace(const char* pattern, ...) {
    static const bool enabled = setting("HIPSIM_TRACE", 0) != 0;
    if (!enabled) return;
    va_list arguments;
    va_start(arguments, pattern);
    fputs("hipsim: ", stderr);
    vfprintf(stderr, pattern, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

} // namespace hipsim

using namespace hipsim;

HIPSIM_API const char* hipGetErrorName(hipError_t code) {
    switch (code) {
#define X(name, value, text) \
    case name: return #name;
        HIP_ERRORS(X)
#undef X
    }
    return "hipErrorUnknown";
}

HIPSIM_API const char* hipGetErrorString(hipError_t code) {
    auto found = details.find(code);
    return found == details.end() ? error_text(code) : found->second.c_str();
}

// hipLaunchKernel of AMD code leaves a fault behind for callers that never look; this one looks.
static hipError_t look() {
    Guard guard(state_mutex);
    if (last_error == hipErrorNotSupported) drop_fault();
    return last_error;
}

HIPSIM_API hipError_t hipPeekAtLastError() { return look(); }

HIPSIM_API hipError_t hipGetLastError() {
    hipError_t error = look();
    last_error = hipSuccess;
    return error;
}

// The generated stubs end here. Each says its name once under HIPSIM_TRACE.
HIPSIM_API int hipsim_unsupported(const char* function, int code, int* said) {
    if (!*said) trace("%s is not simulated", function);
    *said = 1;
    fail(hipErrorNotSupported, std::string(function) + " is not simulated");
    return code;
}
