// What the runtime's parts know of each other. All state is guarded by one mutex, which every entry point takes.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "hip_abi.h"
#include "hipsim/device_abi.h"

#define HIPSIM_API extern "C" __attribute__((visibility("default")))

namespace hipsim {

extern std::mutex state_mutex;
using Guard = std::unique_lock<std::mutex>;

// ---- errors.cpp
__attribute__((visibility("default"))) std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));
hipError_t fail(hipError_t code, const std::string& detail); // detail becomes part of hipGetErrorString on this thread
// For the other libraries too, as all that has the default visibility:
__attribute__((visibility("default"))) void report_fault(const std::string& message); // a failure inside queued work: told to whoever waits next
hipError_t take_fault();
void drop_fault(); // somebody was told of it in another way
__attribute__((visibility("default"))) uint64_t setting(const char* name, uint64_t fallback);
void trace(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

// ---- device.cpp
struct Arch {
    const char *name, *product;
    int major, minor, wave, compute_units, l2_bytes, clock_khz;
    bool integrated = false; // its memory is the host's
};
constexpr int lds_bytes = 64 << 10, max_threads = 1024, threads_per_unit = 2048;
const Arch& arch(int device);
bool runs_code_for(int device, const std::string& target); // such as gfx90a:xnack-
int device_count();
int current_device();
size_t device_memory();

// ---- memory.cpp
struct Allocation {
    char* base;
    size_t size;
    char* map;
    size_t map_size;
    hipMemoryType type;
    int device;
    unsigned flags;
    bool owned; // false: a variable of a module
    mutable bool is_workspace = false; // of a library, whose products alone use it
};
void adopt_variable(void* variable, size_t size);
void disown_variables(const void* start, const void* end);
const Allocation* find_allocation(const void* pointer);
__attribute__((visibility("default"))) hipError_t check_range(const void* pointer, size_t size, const char* use); // known memory must hold the whole range
__attribute__((visibility("default"))) void mark_workspace(const void* pointer);
std::string describe_address(const void* pointer);
void for_each_allocation(const std::function<void(const Allocation&)>& visit);
void check_canaries(const std::string& culprit);
// Work that runs writes this: as a library does into its workspace.
__attribute__((visibility("default"))) void scribble(void* memory, size_t size, const char* what);

// ---- queue.cpp
struct Work {
    std::string what;
    std::function<void()> run; // may be empty: a marker
    bool host = false;         // a host callback: runs without the mutex
    bool kernel = false;
};
struct Op;
using OpRef = std::shared_ptr<Op>;
struct Op {
    uint64_t id;
    Work work;
    int waiting_for = 0;
    bool done = false;
    double finished = 0; // milliseconds
    std::vector<OpRef> followers;
};
OpRef enqueue(Work work, const std::vector<OpRef>& after);
void wait_for(Guard& guard, const OpRef& op);
void wait_for_all(Guard& guard);
bool poll(Guard& guard, const OpRef& op); // is it done? Repeated polling makes the queue advance

// ---- graph.cpp
struct Node {
    Work work;
    std::vector<size_t> after;
};
struct Graph {
    std::vector<Node> nodes;
};
struct Capture {
    uint64_t id;
    hipStreamCaptureMode mode;
    std::thread::id thread = std::this_thread::get_id();
    Graph graph = {};
    bool broken = false, ended = false;
};

// ---- stream.cpp
struct Stream {
    int device;
    unsigned flags;
    int priority;
    OpRef last;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> capture_tail; // nodes that the next captured one follows
    bool capture_origin = false;
};
using hipStream_t = Stream*;
// Null, legacy and per-thread handles resolve to the streams they stand for; a bad handle sets an error and gives nullptr.
Stream* resolve(hipStream_t handle, hipError_t& error);
bool is_null_stream(const Stream* stream);
void end_capture(const std::shared_ptr<Capture>& capture); // in every stream that took part
// What HIP refuses while streams are captured; to try it breaks those captures.
hipError_t refuse_unsafe(const char* call); // unless they are another thread's, or relaxed
hipError_t refuse_in_any_capture(const char* call, hipError_t error);
hipError_t refuse_implicit_capture(const Stream* stream); // the null stream would wait for one that is captured
// Puts work on a stream: queued, or recorded if the stream is being captured. Gives its Op, or nullptr if recorded.
hipError_t submit(Stream* stream, Work work, OpRef* op = nullptr, const std::vector<OpRef>& after = {});
// The same for the other libraries, which hold no lock and have only a handle.
__attribute__((visibility("default"))) hipError_t submit_call(hipStream_t handle, const char* what, std::function<void()> run);
hipError_t strict_stream_check(const Stream* stream, const std::string& what);

extern "C" hipError_t hipStreamSynchronize(hipStream_t handle);
extern "C" hipError_t hipMalloc(void** pointer, size_t size);
extern "C" hipError_t hipFree(void* pointer);

// ---- module.cpp
struct Module;
struct Kernel {
    std::string name;
    const hipsim_entry* entry;
    Module* module;
    std::vector<std::pair<char*, size_t>> static_lds;
    size_t static_lds_bytes = 0;
};
bool under_address_sanitizer();
std::string source_line(const void* program_counter); // "file:line" of an address inside a loaded kernel, or ""

// ---- execute.cpp
struct Launch {
    const Kernel* kernel;
    int device;
    hipsim_dim3 grid, block;
    size_t dynamic_lds;
    std::vector<char> argument_bytes;
    std::vector<void*> arguments;
};
void run_kernel(Launch& launch);

// ---- overlap.cpp
void begin_overlapping(const Kernel& kernel);
void begin_overlapping_block();
std::string end_overlapping_block(); // what the block did wrong, or ""
void end_overlapping();
void end_of_overlap(); // other work has run

// ---- faults.cpp
std::string catch_faults(std::string (*body)()); // what body says went wrong, or the signal that ended it, or ""
std::string sanitizer_fault(); // what the address sanitizer has reported since the last call, or ""
inline std::string place(hipsim_dim3 index) { return format("(%u,%u,%u)", index.x, index.y, index.z); }

} // namespace hipsim

// Opens an entry point that takes a stream: locks, and gives the stream that the handle stands for.
#define RESOLVE_STREAM(stream, handle)                       \
    hipsim::Guard guard(hipsim::state_mutex);                \
    hipError_t error;                                        \
    hipsim::Stream* stream = hipsim::resolve(handle, error); \
    if (!stream) return error
