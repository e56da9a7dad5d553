// Bad addresses in a kernel, and what the address sanitizer says of it: both end the kernel, not the process.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstring>

#include "fiber.h"
#include "sim.h"

extern "C" void __asan_set_error_report_callback(void (*callback)(const char*)) __attribute__((weak));

namespace hipsim {

static sigjmp_buf way_out;
static volatile bool running;
static struct sigaction previous[2];
static const void *bad_address, *program_counter;
static std::string sanitizer_report;

static void on_signal(int signal, siginfo_t* info, void* context) {
    if (!running) {
        sigaction(signal, &previous[signal == SIGBUS], nullptr); // not ours: happens again, for whoever came before
        return;
    }
    bad_address = info->si_addr;
    program_counter = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
    siglongjmp(way_out, 1);
}

bool under_address_sanitizer() { return __asan_set_error_report_callback; }

static void install_handlers() {
    thread_local bool has_signal_stack = false; // an overflow leaves no room on the fiber's own stack
    if (!has_signal_stack) {
        constexpr size_t size = 64 << 10;
        void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        stack_t stack{memory, 0, size};
        has_signal_stack = sigaltstack(&stack, nullptr) == 0;
    }
    struct sigaction action = {}, current;
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int signal : {SIGSEGV, SIGBUS}) {
        sigaction(signal, nullptr, &current);
        if (current.sa_sigaction != on_signal) sigaction(signal, &action, &previous[signal == SIGBUS]);
    }
    if (__asan_set_error_report_callback)
        __asan_set_error_report_callback([](const char* report) {
            if (running && sanitizer_report.empty()) sanitizer_report = report;
        });
}

static std::string describe_signal() {
    std::string line = source_line(program_counter);
    std::string what = in_stack_guard(bad_address) ? "stack overflow" : format("bad address %p: ", bad_address) + describe_address(bad_address);
    return "thread " + place(hipsim_self->index) + (line.empty() ? "" : " at " + line) + ": " + what;
}

// "SUMMARY: AddressSanitizer: use-after-poison /tmp/.../program.hip:5 in k" is what matters of a report.
static std::string summary(const std::string& report) {
    size_t start = report.find("SUMMARY: AddressSanitizer: ");
    if (start == std::string::npos) return report;
    start += strlen("SUMMARY: AddressSanitizer: ");
    std::string line = report.substr(start, report.find('\n', start) - start);
    size_t path = line.find('/'), name = line.rfind('/');
    return path == std::string::npos ? line : line.substr(0, path) + line.substr(name + 1);
}

std::string sanitizer_fault() {
    std::string report;
    report.swap(sanitizer_report);
    return report.empty() ? "" : "address sanitizer: " + summary(report);
}

std::string catch_faults(std::string (*body)()) {
    install_handlers();
    if (sigsetjmp(way_out, 1)) {
        running = false;
        return describe_signal();
    }
    running = true;
    std::string fault = body();
    running = false;
    return fault;
}

} // namespace hipsim
