// libhiprtc: hands the source to compile.py, which drives the host's compiler, and keeps what comes back.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "hip_abi.h"

#define HIPRTC_API extern "C" __attribute__((visibility("default")))

extern "C" hipError_t hipGetDevice(int* device);
extern "C" hipError_t hipGetDevicePropertiesR0600(hipDeviceProp_tR0600* properties, int device);

namespace fs = std::filesystem;

enum hiprtcResult {
    HIPRTC_SUCCESS,
    HIPRTC_ERROR_OUT_OF_MEMORY,
    HIPRTC_ERROR_PROGRAM_CREATION_FAILURE,
    HIPRTC_ERROR_INVALID_INPUT,
    HIPRTC_ERROR_INVALID_PROGRAM,
    HIPRTC_ERROR_INVALID_OPTION,
    HIPRTC_ERROR_COMPILATION,
    HIPRTC_ERROR_BUILTIN_OPERATION_FAILURE,
    HIPRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION,
    HIPRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION,
    HIPRTC_ERROR_NAME_EXPRESSION_NOT_VALID,
    HIPRTC_ERROR_INTERNAL_ERROR,
};

struct Program {
    std::string source, name, log, code;
    std::vector<std::pair<std::string, std::string>> headers;
    std::vector<std::string> expressions;
};

static void write_file(const fs::path& path, const std::string& text) {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
}

static std::string read_file(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
}

// The compiler must not run under what is preloaded into this process (the address sanitizer).
static std::vector<char*> clean_environment() {
    std::vector<char*> kept;
    for (char** variable = environ; *variable; variable++)
        if (strncmp(*variable, "LD_", 3)) kept.push_back(*variable);
    kept.push_back(nullptr);
    return kept;
}

static int run(const std::vector<std::string>& command, const fs::path& log) {
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child;
    int status = -1;
    if (posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), clean_environment().data()) == 0)
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
        }
    posix_spawn_file_actions_destroy(&actions);
    return status;
}

HIPRTC_API hiprtcResult hiprtcCreateProgram(Program** out, const char* source, const char* name, int count,
                                            const char** headers, const char** header_names) {
    *out = new Program{source, name && *name ? fs::path(name).filename().string() : "program.hip"};
    for (int i = 0; i < count; i++) (*out)->headers.emplace_back(header_names[i], headers[i]);
    return HIPRTC_SUCCESS;
}

HIPRTC_API hiprtcResult hiprtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return HIPRTC_SUCCESS;
}

HIPRTC_API hiprtcResult hiprtcAddNameExpression(Program* program, const char* expression) {
    program->expressions.push_back(expression);
    return HIPRTC_SUCCESS;
}

// A name expression is its own lowered name: the compiled module lists its kernels under it.
HIPRTC_API hiprtcResult hiprtcGetLoweredName(Program* program, const char* expression, const char** lowered) {
    for (const std::string& known : program->expressions)
        if (known == expression) {
            *lowered = known.c_str();
            return program->code.empty() ? HIPRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION : HIPRTC_SUCCESS;
        }
    return HIPRTC_ERROR_NAME_EXPRESSION_NOT_VALID;
}

static bool names_target(const std::string& option) {
    return option.rfind("--offload-arch=", 0) == 0 || option.rfind("--gpu-architecture=", 0) == 0;
}

// Where the options name no target it is the current device, and without one there is none.
static bool add_target(std::vector<std::string>& options, std::string& log) {
    if (std::any_of(options.begin(), options.end(), names_target)) return true;
    int device;
    hipDeviceProp_tR0600 properties;
    if (hipGetDevice(&device) || hipGetDevicePropertiesR0600(&properties, device)) {
        log = "Error: Please provide architecture for which code is to be generated.\n";
        return false;
    }
    options.push_back(std::string("--offload-arch=") + properties.gcnArchName);
    return true;
}

HIPRTC_API hiprtcResult hiprtcCompileProgram(Program* program, int count, const char** options) {
    const char *python = getenv("HIPSIM_PYTHON"), *compiler = getenv("HIPSIM_COMPILE");
    if (!python || !compiler) {
        program->log = "hipsim: HIPSIM_PYTHON and HIPSIM_COMPILE are not set: start the program through tests/hipsim/run";
        return HIPRTC_ERROR_INTERNAL_ERROR;
    }
    std::vector<std::string> all(options, options + count);
    if (!add_target(all, program->log)) return HIPRTC_ERROR_COMPILATION;
    std::string pattern = (fs::temp_directory_path() / "hipsim-XXXXXX").string();
    if (!mkdtemp(pattern.data())) return HIPRTC_ERROR_INTERNAL_ERROR;
    fs::path folder = pattern, output = folder / "code.so", log = folder / "log";
    write_file(folder / program->name, program->source);
    for (auto& [name, text] : program->headers) write_file(folder / "headers" / name, text);
    std::vector<std::string> command{python, "-I", "-S", compiler, folder / program->name, output};
    for (const std::string& expression : program->expressions) command.push_back("--expression=" + expression);
    command.push_back("--");
    command.push_back("-I" + (folder / "headers").string());
    command.insert(command.end(), all.begin(), all.end());
    int status = run(command, log);
    program->log = read_file(log);
    program->code = status == 0 ? read_file(output) : "";
    fs::remove_all(folder);
    return status == 0 ? HIPRTC_SUCCESS : HIPRTC_ERROR_COMPILATION;
}

HIPRTC_API hiprtcResult hiprtcGetCodeSize(Program* program, size_t* size) {
    *size = program->code.size();
    return HIPRTC_SUCCESS;
}

HIPRTC_API hiprtcResult hiprtcGetCode(Program* program, char* code) {
    memcpy(code, program->code.data(), program->code.size());
    return HIPRTC_SUCCESS;
}

HIPRTC_API hiprtcResult hiprtcGetProgramLogSize(Program* program, size_t* size) {
    *size = program->log.size() + 1;
    return HIPRTC_SUCCESS;
}

HIPRTC_API hiprtcResult hiprtcGetProgramLog(Program* program, char* log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return HIPRTC_SUCCESS;
}

HIPRTC_API hiprtcResult hiprtcVersion(int* major, int* minor) {
    *major = 7;
    *minor = 0;
    return HIPRTC_SUCCESS;
}

HIPRTC_API const char* hiprtcGetErrorString(hiprtcResult result) {
    switch (result) {
        case HIPRTC_SUCCESS: return "HIPRTC_SUCCESS";
        case HIPRTC_ERROR_COMPILATION: return "HIPRTC_ERROR_COMPILATION";
        case HIPRTC_ERROR_NAME_EXPRESSION_NOT_VALID: return "HIPRTC_ERROR_NAME_EXPRESSION_NOT_VALID";
        case HIPRTC_ERROR_INTERNAL_ERROR: return "HIPRTC_ERROR_INTERNAL_ERROR";
        default: return "HIPRTC_ERROR_UNKNOWN";
    }
}
