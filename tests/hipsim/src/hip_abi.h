// The part of ROCm 7's C interface that the wheel was compiled against: error codes, enums and struct layouts.
#pragma once
#include <cstddef>
#include <cstdint>

// X(name, value, text): numbers and words are those of hip_runtime_api.h.
#define HIP_ERRORS(X)                                                             \
    X(hipSuccess, 0, "no error")                                                  \
    X(hipErrorInvalidValue, 1, "invalid argument")                                \
    X(hipErrorOutOfMemory, 2, "out of memory")                                    \
    X(hipErrorNotInitialized, 3, "initialization error")                          \
    X(hipErrorInvalidConfiguration, 9, "invalid configuration argument")          \
    X(hipErrorInvalidDevicePointer, 17, "invalid device pointer")                 \
    X(hipErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")    \
    X(hipErrorInvalidDeviceFunction, 98, "invalid device function")               \
    X(hipErrorNoDevice, 100, "no ROCm-capable device is detected")                \
    X(hipErrorInvalidDevice, 101, "invalid device ordinal")                       \
    X(hipErrorInvalidImage, 200, "device kernel image is invalid")                \
    X(hipErrorInvalidContext, 201, "invalid device context")                      \
    X(hipErrorNoBinaryForGpu, 209, "no kernel image is available for execution on the device") \
    X(hipErrorFileNotFound, 301, "file not found")                                \
    X(hipErrorInvalidHandle, 400, "invalid resource handle")                      \
    X(hipErrorIllegalState, 401, "the operation cannot be performed in the present state") \
    X(hipErrorNotFound, 500, "named symbol not found")                            \
    X(hipErrorNotReady, 600, "device not ready")                                  \
    X(hipErrorPeerAccessAlreadyEnabled, 704, "peer access is already enabled")    \
    X(hipErrorPeerAccessNotEnabled, 705, "peer access has not been enabled")      \
    X(hipErrorLaunchFailure, 719, "unspecified launch failure")                   \
    X(hipErrorNotSupported, 801, "operation not supported")                       \
    X(hipErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing") \
    X(hipErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture") \
    X(hipErrorStreamCaptureUnmatched, 903, "capture was not initiated in this stream") \
    X(hipErrorStreamCaptureUnjoined, 904, "attempt to terminate a thread-local capture sequence with unjoined work") \
    X(hipErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream") \
    X(hipErrorStreamCaptureImplicit, 906, "operation would make the legacy stream depend on a capturing blocking stream") \
    X(hipErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream") \
    X(hipErrorStreamCaptureWrongThread, 908, "attempt to terminate a thread-local capture sequence from another thread")

enum hipError_t {
#define X(name, value, text) name = value,
    HIP_ERRORS(X)
#undef X
};

struct hipDim3 {
    uint32_t x, y, z;
};

enum hipMemcpyKind { hipMemcpyHostToHost, hipMemcpyHostToDevice, hipMemcpyDeviceToHost, hipMemcpyDeviceToDevice, hipMemcpyDefault };
enum hipMemoryType { hipMemoryTypeUnregistered, hipMemoryTypeHost, hipMemoryTypeDevice, hipMemoryTypeManaged };

struct hipPointerAttribute_t {
    hipMemoryType type;
    int device;
    void* devicePointer;
    void* hostPointer;
    int isManaged;
    unsigned allocationFlags;
};

constexpr unsigned hipStreamNonBlocking = 1;
constexpr unsigned hipEventDisableTiming = 2;

enum hipStreamCaptureMode { hipStreamCaptureModeGlobal, hipStreamCaptureModeThreadLocal, hipStreamCaptureModeRelaxed };
enum hipStreamCaptureStatus { hipStreamCaptureStatusNone, hipStreamCaptureStatusActive, hipStreamCaptureStatusInvalidated };

// hipFunction_attribute
enum {
    HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK,
    HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
    HIP_FUNC_ATTRIBUTE_CONST_SIZE_BYTES,
    HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
    HIP_FUNC_ATTRIBUTE_NUM_REGS,
    HIP_FUNC_ATTRIBUTE_PTX_VERSION,
    HIP_FUNC_ATTRIBUTE_BINARY_VERSION,
    HIP_FUNC_ATTRIBUTE_CACHE_MODE_CA,
    HIP_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
    HIP_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
};

// hipDeviceAttribute_t of ROCm 6 and 7: the attributes that the simulator answers.
enum {
    hipDeviceAttributeCanMapHostMemory = 3,
    hipDeviceAttributeClockRate = 5,
    hipDeviceAttributeConcurrentKernels = 8,
    hipDeviceAttributeIntegrated = 16,
    hipDeviceAttributeL2CacheSize = 19,
    hipDeviceAttributeComputeCapabilityMajor = 23,
    hipDeviceAttributeMaxBlockDimX = 26,
    hipDeviceAttributeMaxBlockDimY = 27,
    hipDeviceAttributeMaxBlockDimZ = 28,
    hipDeviceAttributeMaxGridDimX = 29,
    hipDeviceAttributeMaxGridDimY = 30,
    hipDeviceAttributeMaxGridDimZ = 31,
    hipDeviceAttributeMaxThreadsPerBlock = 56,
    hipDeviceAttributeMaxThreadsPerMultiProcessor = 57,
    hipDeviceAttributeComputeCapabilityMinor = 61,
    hipDeviceAttributeMultiprocessorCount = 63,
    hipDeviceAttributePciBusId = 67,
    hipDeviceAttributePciDeviceId = 68,
    hipDeviceAttributeMaxRegistersPerBlock = 71,
    hipDeviceAttributeMaxSharedMemoryPerBlock = 74,
    hipDeviceAttributeMaxSharedMemoryPerMultiprocessor = 76,
    hipDeviceAttributeTotalConstantMemory = 83,
    hipDeviceAttributeTotalGlobalMem = 84,
    hipDeviceAttributeUnifiedAddressing = 85,
    hipDeviceAttributeWarpSize = 87,
};

struct hipDeviceProp_tR0600 {
    char name[256];
    char uuid[16];
    char luid[8];
    unsigned luidDeviceNodeMask;
    size_t totalGlobalMem, sharedMemPerBlock;
    int regsPerBlock, warpSize;
    size_t memPitch;
    int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3], clockRate;
    size_t totalConstMem;
    int major, minor;
    size_t textureAlignment, texturePitchAlignment;
    int deviceOverlap, multiProcessorCount, kernelExecTimeoutEnabled, integrated, canMapHostMemory, computeMode;
    int textures[26], surfaces[14];
    size_t surfaceAlignment;
    int concurrentKernels, ECCEnabled, pciBusID, pciDeviceID, pciDomainID, tccDriver, asyncEngineCount;
    int unifiedAddressing, memoryClockRate, memoryBusWidth, l2CacheSize, persistingL2CacheMaxSize;
    int maxThreadsPerMultiProcessor, streamPrioritiesSupported, globalL1CacheSupported, localL1CacheSupported;
    size_t sharedMemPerMultiprocessor;
    int regsPerMultiprocessor, managedMemory, isMultiGpuBoard, multiGpuBoardGroupID, hostNativeAtomicSupported;
    int singleToDoublePrecisionPerfRatio, pageableMemoryAccess, concurrentManagedAccess, computePreemptionSupported;
    int canUseHostPointerForRegisteredMem, cooperativeLaunch, cooperativeMultiDeviceLaunch;
    size_t sharedMemPerBlockOptin;
    int pageableMemoryAccessUsesHostPageTables, directManagedMemAccessFromHost;
    int maxBlocksPerMultiProcessor, accessPolicyMaxWindowSize;
    size_t reservedSharedMemPerBlock;
    int flags[13], reserved[63], hipReserved[32];
    char gcnArchName[256];
    size_t maxSharedMemoryPerMultiProcessor;
    int clockInstructionRate;
    unsigned arch;
    unsigned *hdpMemFlushCntl, *hdpRegFlushCntl;
    int cooperativeMultiDeviceUnmatched[4], isLargeBar, asicRevision;
};
static_assert(sizeof(hipDeviceProp_tR0600) == 1472, "the wheel's layout");
