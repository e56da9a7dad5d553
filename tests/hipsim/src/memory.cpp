// Device and pinned memory. Each allocation ends at a page that cannot be touched; freed memory stays reserved and
// untouchable, so that a late use faults; fresh memory is full of NaN bytes. What is left between the end of an
// allocation and the page (alignment) holds canaries that are looked at after every kernel.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <map>

#include "sim.h"

namespace hipsim {

constexpr size_t page = 4096, alignment = 256, quarantine_limit = 4096;
constexpr int poison = 0xFF, canary = 0xA5;

static std::map<const char*, Allocation> live, freed;
static std::map<const char*, Allocation> with_slack;
static std::deque<const char*> quarantine;
static size_t used_bytes[64];
static std::map<const char*, int> files; // of memory that other processes have a handle of

static size_t round_up(size_t size, size_t to) { return (size + to - 1) / to * to; }

static const Allocation* find_in(const std::map<const char*, Allocation>& table, const void* pointer) {
    auto next = table.upper_bound(static_cast<const char*>(pointer));
    if (next == table.begin()) return nullptr;
    const Allocation& a = std::prev(next)->second;
    return pointer < a.map + a.map_size ? &a : nullptr;
}

const Allocation* find_allocation(const void* pointer) {
    const Allocation* a = find_in(live, pointer);
    return a && pointer < a->base + a->size ? a : nullptr;
}

std::string describe_address(const void* pointer) {
    auto place = [&](const Allocation* a) {
        return format("%td bytes into an allocation of %zu at %p", static_cast<const char*>(pointer) - a->base, a->size, a->base);
    };
    if (const Allocation* a = find_in(live, pointer)) return place(a);
    if (const Allocation* a = find_in(freed, pointer)) return place(a) + " that was freed";
    return "not memory that HIP allocated";
}

hipError_t check_range(const void* pointer, size_t size, const char* use) {
    const char* start = static_cast<const char*>(pointer);
    const Allocation* a = find_in(live, pointer);
    bool bad = a ? start + size > a->base + a->size : find_in(freed, pointer) != nullptr;
    if (!bad) return hipSuccess;
    return fail(hipErrorInvalidValue, format("%s of %zu bytes at %p: %s", use, size, pointer, describe_address(pointer).c_str()));
}

void for_each_allocation(const std::function<void(const Allocation&)>& visit) {
    for (const auto& [base, allocation] : live) visit(allocation);
}

static void set_canaries(const Allocation& a) {
    for (char* p = a.base + a.size; p < a.base + round_up(a.size, alignment); p++) *p = char(canary);
}

void check_canaries(const std::string& culprit) {
    for (auto& [base, a] : with_slack)
        for (char* p = a.base + a.size; p < a.base + round_up(a.size, alignment); p++)
            if (*p != char(canary)) {
                report_fault(format("%s wrote past the end of an allocation: %s", culprit.c_str(), describe_address(p).c_str()));
                set_canaries(a);
                break;
            }
}

void mark_workspace(const void* pointer) {
    if (const Allocation* a = find_allocation(pointer)) a->is_workspace = true;
}

void scribble(void* memory, size_t size, const char* what) {
    const Allocation* a = find_allocation(memory);
    if (a && static_cast<char*>(memory) + size <= a->base + a->size)
        memset(memory, poison, size);
    else
        report_fault(format("%s: its workspace of %zu bytes at %p: %s", what, size, memory, describe_address(memory).c_str()));
}

void adopt_variable(void* variable, size_t size) {
    char* base = static_cast<char*>(variable);
    live[base] = {base, size, base, size, hipMemoryTypeDevice, current_device(), 0, false};
}

void disown_variables(const void* start, const void* end) {
    for (auto it = live.lower_bound(static_cast<const char*>(start)); it != live.end() && it->first < end;)
        it = it->second.owned ? std::next(it) : live.erase(it);
}

extern "C" void __asan_poison_memory_region(const volatile void*, size_t) __attribute__((weak));
extern "C" void __asan_unpoison_memory_region(const volatile void*, size_t) __attribute__((weak));

static hipError_t allocate(void** out, size_t size, hipMemoryType type, unsigned flags) {
    *out = nullptr;
    if (hipError_t error = refuse_unsafe("an allocation")) return error;
    if (!size) return hipSuccess;
    int device = current_device();
    size_t padded = round_up(size, alignment), body = round_up(padded, page);
    bool on_device = type != hipMemoryTypeHost;
    if (on_device && used_bytes[device] + padded > device_memory())
        return fail(hipErrorOutOfMemory, format("%zu bytes asked for, %zu of %zu free", size,
                                                device_memory() - used_bytes[device], device_memory()));
    void* map = mmap(nullptr, body + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED || mprotect(static_cast<char*>(map) + page, body, PROT_READ | PROT_WRITE))
        return fail(hipErrorOutOfMemory, format("the host cannot give %zu bytes", size));
    char* end = static_cast<char*>(map) + page + body;
    Allocation a{end - padded, size, static_cast<char*>(map), body + 2 * page, type, device, flags, true};
    memset(a.base, poison, size);
    set_canaries(a);
    live[a.map] = a;
    if (padded != size) {
        with_slack[a.map] = a;
        if (__asan_poison_memory_region) __asan_poison_memory_region(a.base + size, padded - size);
    }
    if (on_device) used_bytes[device] += padded;
    *out = a.base;
    return hipSuccess;
}

static hipError_t release(Guard& guard, void* pointer, bool host) {
    if (hipError_t error = refuse_unsafe("a free")) return error;
    if (!pointer) return hipSuccess;
    const Allocation* found = find_in(live, pointer);
    if (!found || found->base != pointer || !found->owned || (found->type == hipMemoryTypeHost) != host)
        return fail(hipErrorInvalidValue, format("free of %p: %s", pointer, describe_address(pointer).c_str()));
    wait_for_all(guard); // hipFree is an implicit device synchronize
    Allocation a = *find_in(live, pointer);
    if (a.type != hipMemoryTypeHost) used_bytes[a.device] -= round_up(a.size, alignment);
    size_t slack = round_up(a.size, alignment) - a.size;
    if (slack && __asan_unpoison_memory_region) __asan_unpoison_memory_region(a.base + a.size, slack);
    live.erase(a.map);
    with_slack.erase(a.map);
    if (auto file = files.find(a.map); file != files.end()) close(file->second), files.erase(file);
    madvise(a.map, a.map_size, MADV_DONTNEED);
    mprotect(a.map, a.map_size, PROT_NONE);
    freed[a.map] = a;
    quarantine.push_back(a.map);
    if (quarantine.size() > quarantine_limit) {
        const Allocation& oldest = freed[quarantine.front()];
        munmap(oldest.map, oldest.map_size);
        freed.erase(quarantine.front());
        quarantine.pop_front();
    }
    return hipSuccess;
}

} // namespace hipsim

using namespace hipsim;

HIPSIM_API hipError_t hipMalloc(void** pointer, size_t size) {
    Guard guard(state_mutex);
    return allocate(pointer, size, hipMemoryTypeDevice, 0);
}

HIPSIM_API hipError_t hipMallocManaged(void** pointer, size_t size, unsigned flags) {
    Guard guard(state_mutex);
    return allocate(pointer, size, hipMemoryTypeManaged, flags);
}

HIPSIM_API hipError_t hipHostMalloc(void** pointer, size_t size, unsigned flags) {
    Guard guard(state_mutex);
    return allocate(pointer, size, hipMemoryTypeHost, flags);
}

HIPSIM_API hipError_t hipFree(void* pointer) {
    Guard guard(state_mutex);
    return release(guard, pointer, false);
}

HIPSIM_API hipError_t hipHostFree(void* pointer) {
    Guard guard(state_mutex);
    return release(guard, pointer, true);
}

HIPSIM_API hipError_t hipMemGetInfo(size_t* available, size_t* total) {
    Guard guard(state_mutex);
    *total = device_memory();
    *available = *total - used_bytes[current_device()];
    return hipSuccess;
}

HIPSIM_API hipError_t hipPointerGetAttributes(hipPointerAttribute_t* attributes, const void* pointer) {
    Guard guard(state_mutex);
    const Allocation* a = find_allocation(pointer);
    void* address = const_cast<void*>(pointer);
    if (!a)
        *attributes = {hipMemoryTypeUnregistered, -2, nullptr, address, 0, 0};
    else
        *attributes = {a->type, a->device, address, a->type == hipMemoryTypeDevice ? nullptr : address,
                       a->type == hipMemoryTypeManaged, a->flags};
    return hipSuccess;
}

// Memory that other processes have a handle of becomes a file of this process, which has no name, and stays where it is. A
// process that opens the handle maps it, guard pages around it. The memory outlives the process whose it is.
struct IpcHandle {
    int process, file;
    size_t size, offset;
};
struct hipIpcMemHandle_t {
    char reserved[64];
};
static_assert(sizeof(IpcHandle) <= sizeof(hipIpcMemHandle_t));
HIPSIM_API hipError_t hipIpcGetMemHandle(hipIpcMemHandle_t* out, void* pointer) {
    Guard guard(state_mutex);
    const Allocation* a = find_allocation(pointer);
    if (!a || a->type != hipMemoryTypeDevice || a->base != pointer)
        return fail(hipErrorInvalidValue, format("a handle of %p: %s", pointer, describe_address(pointer).c_str()));
    char* body = a->map + page;
    size_t size = a->map_size - 2 * page;
    if (!files.count(a->map)) {
        wait_for_all(guard);
        int file = memfd_create("hipsim", MFD_CLOEXEC);
        if (file < 0 || write(file, body, size) != ssize_t(size) ||
            mmap(body, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != body)
            return fail(hipErrorOutOfMemory, format("the host cannot share %zu bytes", size));
        files[a->map] = file;
    }
    IpcHandle handle{getpid(), files[a->map], size, size_t(a->base - body)};
    memset(out, 0, sizeof *out);
    memcpy(out, &handle, sizeof handle);
    return hipSuccess;
}

HIPSIM_API hipError_t hipIpcOpenMemHandle(void** out, hipIpcMemHandle_t given, unsigned) {
    Guard guard(state_mutex);
    IpcHandle handle;
    memcpy(&handle, &given, sizeof handle);
    if (handle.process == getpid()) return fail(hipErrorInvalidValue, "a handle of this process's own memory");
    int file = open(format("/proc/%d/fd/%d", handle.process, handle.file).c_str(), O_RDWR | O_CLOEXEC);
    if (file < 0) return fail(hipErrorInvalidValue, format("a handle of process %d, which is not there", handle.process));
    char* map = static_cast<char*>(mmap(nullptr, handle.size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    void* body = mmap(map + page, handle.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    close(file);
    if (body == MAP_FAILED) return fail(hipErrorOutOfMemory, format("the host cannot map %zu bytes", handle.size));
    char* base = map + page + handle.offset;
    live[map] = {base, handle.size - handle.offset, map, handle.size + 2 * page, hipMemoryTypeDevice, current_device(), 0, false};
    *out = base;
    return hipSuccess;
}

HIPSIM_API hipError_t hipIpcCloseMemHandle(void* pointer) {
    Guard guard(state_mutex);
    const Allocation* a = find_allocation(pointer);
    if (!a || a->owned) return fail(hipErrorInvalidValue, format("%p is no memory of another process", pointer));
    wait_for_all(guard);
    char* map = a->map;
    munmap(map, a->map_size);
    live.erase(map);
    return hipSuccess;
}

// Memory whose writes other devices see at once: here as any other.
HIPSIM_API hipError_t hipExtMallocWithFlags(void** pointer, size_t size, unsigned flags) {
    Guard guard(state_mutex);
    return allocate(pointer, size, hipMemoryTypeDevice, flags);
}

// Managed memory is plain memory here: there is nothing to advise or to move.
static bool device_or_host(int device) { return device >= -1 && device < device_count(); }

HIPSIM_API hipError_t hipMemAdvise(const void*, size_t, int advice, int device) {
    Guard guard(state_mutex);
    if (hipError_t error = refuse_unsafe("advice")) return error;
    bool known = (advice >= 1 && advice <= 6) || advice == 100 || advice == 101;
    if (!known || !device_or_host(device)) return fail(hipErrorInvalidValue, format("advice %d for device %d", advice, device));
    return hipSuccess;
}

HIPSIM_API hipError_t hipMemPrefetchAsync(const void*, size_t, int device, void*) {
    return device_or_host(device) ? hipSuccess : fail(hipErrorInvalidDevice, format("prefetch to device %d", device));
}
