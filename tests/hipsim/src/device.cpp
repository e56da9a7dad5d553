// The simulated devices: which architecture, how many, and what they say of themselves.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sim.h"

namespace hipsim {

static const Arch archs[] = {
    {"gfx90a", "AMD Instinct MI210", 9, 0, 64, 104, 8 << 20, 1700000, 2048},
    {"gfx942", "AMD Instinct MI300X", 9, 4, 64, 304, 4 << 20, 2100000, 2048},
    {"gfx1030", "AMD Radeon RX 6800 XT", 10, 3, 32, 36, 4 << 20, 2575000, 2048},
    {"gfx1100", "AMD Radeon RX 7900 XTX", 11, 0, 32, 48, 6 << 20, 2482000, 2048},
    {"gfx1201", "AMD Radeon RX 9070 XT", 12, 0, 32, 32, 8 << 20, 2400000, 2048},
};

static const Arch& find_arch() {
    const char* wanted = getenv("HIPSIM_ARCH");
    if (!wanted || !*wanted) wanted = "gfx942";
    for (const Arch& arch : archs)
        if (!strcmp(arch.name, wanted)) return arch;
    fprintf(stderr, "hipsim: HIPSIM_ARCH=%s: known are gfx90a, gfx942, gfx1030, gfx1100, gfx1201\n", wanted);
    exit(2);
}

const Arch& arch() {
    static const Arch& chosen = find_arch();
    return chosen;
}

int device_count() {
    static const int count = setting("HIPSIM_DEVICES", 1);
    return count;
}

size_t device_memory() {
    static const size_t size = setting("HIPSIM_MEMORY", size_t(8) << 30);
    return size;
}

static thread_local int current = 0;
int current_device() { return current; }

static bool valid(int device) { return device >= 0 && device < device_count(); }

static hipError_t bad_device(int device) {
    return fail(hipErrorInvalidDevice, format("device %d of %d", device, device_count()));
}

static int attribute(int id) {
    const Arch& a = arch();
    switch (id) {
        case hipDeviceAttributeComputeCapabilityMajor: return a.major;
        case hipDeviceAttributeComputeCapabilityMinor: return a.minor;
        case hipDeviceAttributeWarpSize: return a.wave;
        case hipDeviceAttributeMultiprocessorCount: return a.compute_units;
        case hipDeviceAttributeMaxThreadsPerBlock:
        case hipDeviceAttributeMaxBlockDimX:
        case hipDeviceAttributeMaxBlockDimY:
        case hipDeviceAttributeMaxBlockDimZ: return max_threads;
        case hipDeviceAttributeMaxGridDimX: return 2147483647;
        case hipDeviceAttributeMaxGridDimY:
        case hipDeviceAttributeMaxGridDimZ: return 65535;
        case hipDeviceAttributeMaxThreadsPerMultiProcessor: return a.threads_per_unit;
        case hipDeviceAttributeMaxSharedMemoryPerBlock:
        case hipDeviceAttributeMaxSharedMemoryPerMultiprocessor: return lds_bytes;
        case hipDeviceAttributeMaxRegistersPerBlock: return 65536;
        case hipDeviceAttributeClockRate: return a.clock_khz;
        case hipDeviceAttributeL2CacheSize: return a.l2_bytes;
        case hipDeviceAttributeTotalConstantMemory:
        case hipDeviceAttributeTotalGlobalMem: return device_memory() < 2147483647 ? device_memory() : 2147483647;
        case hipDeviceAttributeConcurrentKernels:
        case hipDeviceAttributeCanMapHostMemory:
        case hipDeviceAttributeUnifiedAddressing: return 1;
    }
    return 0;
}

} // namespace hipsim

using namespace hipsim;

HIPSIM_API hipError_t hipGetDeviceCount(int* count) {
    *count = device_count();
    return *count ? hipSuccess : hipErrorNoDevice;
}

HIPSIM_API hipError_t hipGetDevice(int* device) {
    *device = current;
    return hipSuccess;
}

HIPSIM_API hipError_t hipSetDevice(int device) {
    if (!valid(device)) return bad_device(device);
    current = device;
    return hipSuccess;
}

HIPSIM_API hipError_t hipDeviceGetAttribute(int* value, int id, int device) {
    if (!valid(device)) return bad_device(device);
    *value = id == hipDeviceAttributePciBusId ? device + 1 : attribute(id);
    return hipSuccess;
}

HIPSIM_API hipError_t hipGetDevicePropertiesR0600(hipDeviceProp_tR0600* p, int device) {
    if (!valid(device)) return bad_device(device);
    const Arch& a = arch();
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s (simulated)", a.product);
    snprintf(p->gcnArchName, sizeof p->gcnArchName, "%s", a.name);
    p->uuid[0] = char(device + 1);
    p->totalGlobalMem = device_memory();
    p->sharedMemPerBlock = p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = lds_bytes;
    p->maxSharedMemoryPerMultiProcessor = lds_bytes;
    p->regsPerBlock = p->regsPerMultiprocessor = attribute(hipDeviceAttributeMaxRegistersPerBlock);
    p->warpSize = a.wave;
    p->maxThreadsPerBlock = max_threads;
    for (int& limit : p->maxThreadsDim) limit = max_threads;
    for (int i = 0; i < 3; i++) p->maxGridSize[i] = attribute(hipDeviceAttributeMaxGridDimX + i);
    p->clockRate = a.clock_khz;
    p->totalConstMem = attribute(hipDeviceAttributeTotalConstantMemory);
    p->major = a.major;
    p->minor = a.minor;
    p->multiProcessorCount = a.compute_units;
    p->maxThreadsPerMultiProcessor = a.threads_per_unit;
    p->l2CacheSize = a.l2_bytes;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->streamPrioritiesSupported = 1;
    p->pciBusID = device + 1;
    return hipSuccess;
}

HIPSIM_API hipError_t hipDeviceGetPCIBusId(char* text, int size, int device) {
    if (!valid(device)) return bad_device(device);
    snprintf(text, size, "0000:%02x:00.0", device + 1);
    return hipSuccess;
}

HIPSIM_API hipError_t hipDeviceGetByPCIBusId(int* device, const char* text) {
    unsigned domain, bus;
    if (sscanf(text, "%x:%x:", &domain, &bus) != 2 || domain || !valid(int(bus) - 1))
        return fail(hipErrorInvalidValue, format("no device at PCI address %s", text));
    *device = bus - 1;
    return hipSuccess;
}

HIPSIM_API hipError_t hipDriverGetVersion(int* version) {
    *version = 70051831;
    return hipSuccess;
}

HIPSIM_API hipError_t hipRuntimeGetVersion(int* version) { return hipDriverGetVersion(version); }

HIPSIM_API hipError_t hipDeviceCanAccessPeer(int* can, int device, int peer) {
    if (!valid(device) || !valid(peer)) return bad_device(valid(device) ? peer : device);
    *can = device != peer;
    return hipSuccess;
}

// All devices share one address space here, so peer access is only bookkeeping.
static thread_local uint64_t peers_enabled[64];

HIPSIM_API hipError_t hipDeviceEnablePeerAccess(int peer, unsigned) {
    if (!valid(peer) || peer == current) return bad_device(peer);
    if (peers_enabled[current] >> peer & 1) return hipErrorPeerAccessAlreadyEnabled;
    peers_enabled[current] |= uint64_t(1) << peer;
    return hipSuccess;
}

HIPSIM_API hipError_t hipDeviceDisablePeerAccess(int peer) {
    if (!valid(peer)) return bad_device(peer);
    if (!(peers_enabled[current] >> peer & 1)) return hipErrorPeerAccessNotEnabled;
    peers_enabled[current] &= ~(uint64_t(1) << peer);
    return hipSuccess;
}
