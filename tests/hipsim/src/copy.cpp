// memcpy and memset. A copy is work on a stream like any other, with what HIP says of host memory: a copy from pageable
// memory takes its source at the call, a copy into pageable memory is done when the call returns, and copies to and from
// pinned memory are as late as everything else.
#include <cstring>

#include "sim.h"

namespace hipsim {

static bool pageable(const void* pointer) { return !find_allocation(pointer); }

static hipError_t check_side(const void* pointer, size_t size, const char* use, bool must_be_device) {
    if (must_be_device && pageable(pointer))
        return fail(hipErrorInvalidValue, format("%s at %p: %s", use, pointer, describe_address(pointer).c_str()));
    return check_range(pointer, size, use);
}

static hipError_t copy(Guard& guard, void* to, const void* from, size_t size, hipMemcpyKind kind, Stream* stream, bool wait) {
    if (!size) return hipSuccess;
    if (kind > hipMemcpyDefault) return fail(hipErrorInvalidMemcpyDirection, format("kind %d", kind));
    bool to_device = kind == hipMemcpyHostToDevice || kind == hipMemcpyDeviceToDevice;
    bool from_device = kind == hipMemcpyDeviceToHost || kind == hipMemcpyDeviceToDevice;
    if (hipError_t error = check_side(to, size, "copy to", to_device)) return error;
    if (hipError_t error = check_side(from, size, "copy from", from_device)) return error;
    std::string what = format("copy of %zu bytes from %p to %p", size, from, to);
    if (hipError_t error = strict_stream_check(stream, what)) return error;

    std::function<void()> run = [=] { memcpy(to, from, size); };
    if (pageable(from)) {
        auto staged = std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + size);
        run = [=] { memcpy(to, staged->data(), size); };
    }
    OpRef op;
    if (hipError_t error = submit(stream, {what, run}, &op)) return error;
    if (!op) return hipSuccess; // captured
    if (!wait && !pageable(to)) return hipSuccess;
    wait_for(guard, op);
    return take_fault();
}

static hipError_t fill(void* to, int value, size_t size, Stream* stream) {
    if (!size) return hipSuccess;
    if (hipError_t error = check_side(to, size, "memset", true)) return error;
    std::string what = format("memset of %zu bytes at %p", size, to);
    if (hipError_t error = strict_stream_check(stream, what)) return error;
    return submit(stream, {what, [=] { memset(to, value, size); }});
}

} // namespace hipsim

using namespace hipsim;


HIPSIM_API hipError_t hipMemcpyAsync(void* to, const void* from, size_t size, hipMemcpyKind kind, hipStream_t handle) {
    RESOLVE_STREAM(stream, handle);
    return copy(guard, to, from, size, kind, stream, false);
}

HIPSIM_API hipError_t hipMemcpy(void* to, const void* from, size_t size, hipMemcpyKind kind) {
    RESOLVE_STREAM(stream, nullptr);
    if ((error = refuse_in_any_capture("a synchronous copy", hipErrorStreamCaptureImplicit))) return error;
    bool inside_device = find_allocation(to) && find_allocation(from) && find_allocation(to)->type == hipMemoryTypeDevice &&
                         find_allocation(from)->type == hipMemoryTypeDevice;
    return copy(guard, to, from, size, kind, stream, !inside_device);
}

HIPSIM_API hipError_t hipMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, hipStream_t handle) {
    return hipMemcpyAsync(to, from, size, hipMemcpyDeviceToDevice, handle);
}

HIPSIM_API hipError_t hipMemcpyPeer(void* to, int, const void* from, int, size_t size) {
    return hipMemcpy(to, from, size, hipMemcpyDeviceToDevice);
}

HIPSIM_API hipError_t hipMemsetAsync(void* to, int value, size_t size, hipStream_t handle) {
    RESOLVE_STREAM(stream, handle);
    return fill(to, value, size, stream);
}

HIPSIM_API hipError_t hipMemset(void* to, int value, size_t size) {
    RESOLVE_STREAM(stream, nullptr);
    if ((error = refuse_in_any_capture("a synchronous memset", hipErrorStreamCaptureImplicit))) return error;
    return fill(to, value, size, stream);
}
