// The simulated devices: which architecture, how many, and what they say of themselves.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "sim.h"

namespace hipsim {

// Names are the runtime's own, with the features that these cards have. The last two are there to be refused.
static const Arch known[] = {
    {"gfx908:sramecc+:xnack-", "AMD Instinct MI100", 9, 0, 64, 120, 8 << 20, 1502000},
    {"gfx90a:sramecc+:xnack-", "AMD Instinct MI210", 9, 0, 64, 104, 8 << 20, 1700000},
    {"gfx942:sramecc+:xnack-", "AMD Instinct MI300X", 9, 4, 64, 304, 4 << 20, 2100000},
    {"gfx950:sramecc+:xnack-", "AMD Instinct MI355X", 9, 5, 64, 256, 4 << 20, 2400000},
    {"gfx1030", "AMD Radeon RX 6800 XT", 10, 3, 32, 36, 4 << 20, 2575000},
    {"gfx1031", "AMD Radeon RX 6700 XT", 10, 3, 32, 20, 3 << 20, 2725000},
    {"gfx1032", "AMD Radeon RX 6600 XT", 10, 3, 32, 16, 2 << 20, 2900000},
    {"gfx1033", "AMD Custom GPU 0405", 10, 3, 32, 4, 1 << 20, 1600000, true},
    {"gfx1034", "AMD Radeon RX 6500 XT", 10, 3, 32, 8, 1 << 20, 2975000},
    {"gfx1035", "AMD Radeon 680M", 10, 3, 32, 6, 2 << 20, 2400000, true},
    {"gfx1036", "AMD Radeon Graphics", 10, 3, 32, 1, 256 << 10, 2200000, true},
    {"gfx1100", "AMD Radeon RX 7900 XTX", 11, 0, 32, 48, 6 << 20, 2482000},
    {"gfx1101", "AMD Radeon RX 7800 XT", 11, 0, 32, 30, 4 << 20, 2565000},
    {"gfx1102", "AMD Radeon RX 7600", 11, 0, 32, 16, 2 << 20, 2755000},
    {"gfx1103", "AMD Radeon 780M", 11, 0, 32, 6, 2 << 20, 2700000, true},
    {"gfx1150", "AMD Radeon 890M", 11, 5, 32, 8, 2 << 20, 2900000, true},
    {"gfx1151", "AMD Radeon 8060S", 11, 5, 32, 20, 2 << 20, 2900000, true},
    {"gfx1152", "AMD Radeon 860M", 11, 5, 32, 4, 1 << 20, 3000000, true},
    {"gfx1200", "AMD Radeon RX 9060 XT", 12, 0, 32, 16, 4 << 20, 3290000},
    {"gfx1201", "AMD Radeon RX 9070 XT", 12, 0, 32, 32, 8 << 20, 2970000},
    {"gfx906:sramecc+:xnack-", "AMD Instinct MI50", 9, 0, 64, 60, 4 << 20, 1725000},
    {"gfx1010:xnack-", "AMD Radeon RX 5700 XT", 10, 1, 32, 20, 4 << 20, 2100000},
};

static std::string base_name(const std::string& name) { return name.substr(0, name.find(':')); }

static const Arch& find_arch(const std::string& wanted) {
    std::string names;
    for (const Arch& arch : known) {
        if (base_name(arch.name) == wanted) return arch;
        names += " " + base_name(arch.name);
    }
    fprintf(stderr, "hipsim: HIPSIM_ARCH: %s is not one of:%s\n", wanted.c_str(), names.c_str());
    exit(2);
}

// One device for each name of a list; HIPSIM_DEVICES of them where there is one name.
static std::vector<const Arch*> find_devices() {
    const char* setting_text = getenv("HIPSIM_ARCH");
    std::istringstream list(setting_text && *setting_text ? setting_text : "gfx942");
    std::vector<const Arch*> devices;
    for (std::string name; std::getline(list, name, ',');) devices.push_back(&find_arch(name));
    if (devices.size() == 1) devices.assign(setting("HIPSIM_DEVICES", 1), devices[0]);
    return devices;
}

static const std::vector<const Arch*>& devices() {
    static const std::vector<const Arch*> all = find_devices();
    return all;
}

const Arch& arch(int device) { return *devices()[device]; }
int device_count() { return devices().size(); }

// As ROCm's runtime decides it: a feature that the code does not name may be either.
bool runs_code_for(int device, const std::string& target) {
    std::string own = std::string(arch(device).name) + ":", feature;
    std::istringstream parts(target);
    std::getline(parts, feature, ':');
    if (feature != base_name(arch(device).name)) return false;
    while (std::getline(parts, feature, ':'))
        if (own.find(":" + feature + ":") == std::string::npos) return false;
    return true;
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

static int attribute(int id, int device) {
    const Arch& a = arch(device);
    switch (id) {
        case hipDeviceAttributeComputeCapabilityMajor: return a.major;
        case hipDeviceAttributeComputeCapabilityMinor: return a.minor;
        case hipDeviceAttributeWarpSize: return a.wave;
        case hipDeviceAttributeMultiprocessorCount: return a.compute_units;
        case hipDeviceAttributeIntegrated: return a.integrated;
        case hipDeviceAttributePciBusId: return device + 1;
        case hipDeviceAttributeMaxThreadsPerBlock:
        case hipDeviceAttributeMaxBlockDimX:
        case hipDeviceAttributeMaxBlockDimY:
        case hipDeviceAttributeMaxBlockDimZ: return max_threads;
        case hipDeviceAttributeMaxGridDimX: return 2147483647;
        case hipDeviceAttributeMaxGridDimY:
        case hipDeviceAttributeMaxGridDimZ: return 65535;
        case hipDeviceAttributeMaxThreadsPerMultiProcessor: return threads_per_unit;
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
    return device_count() ? hipSuccess : fail(hipErrorNoDevice, "HIPSIM_DEVICES is 0");
}

HIPSIM_API hipError_t hipSetDevice(int device) {
    if (!valid(device)) return bad_device(device);
    current = device;
    return hipSuccess;
}

HIPSIM_API hipError_t hipDeviceGetAttribute(int* value, int id, int device) {
    if (!valid(device)) return bad_device(device);
    *value = attribute(id, device);
    return hipSuccess;
}

HIPSIM_API hipError_t hipGetDevicePropertiesR0600(hipDeviceProp_tR0600* p, int device) {
    if (!valid(device)) return bad_device(device);
    const Arch& a = arch(device);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s (simulated)", a.product);
    snprintf(p->gcnArchName, sizeof p->gcnArchName, "%s", a.name);
    p->uuid[0] = char(device + 1);
    p->totalGlobalMem = device_memory();
    p->sharedMemPerBlock = p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = lds_bytes;
    p->maxSharedMemoryPerMultiProcessor = lds_bytes;
    p->regsPerBlock = p->regsPerMultiprocessor = attribute(hipDeviceAttributeMaxRegistersPerBlock, device);
    p->warpSize = a.wave;
    p->maxThreadsPerBlock = max_threads;
    for (int& limit : p->maxThreadsDim) limit = max_threads;
    for (int i = 0; i < 3; i++) p->maxGridSize[i] = attribute(hipDeviceAttributeMaxGridDimX + i, device);
    p->clockRate = a.clock_khz;
    p->totalConstMem = attribute(hipDeviceAttributeTotalConstantMemory, device);
    p->major = a.major;
    p->minor = a.minor;
    p->multiProcessorCount = a.compute_units;
    p->maxThreadsPerMultiProcessor = threads_per_unit;
    p->integrated = a.integrated;
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
