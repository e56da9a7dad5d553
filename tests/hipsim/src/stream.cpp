// Streams and the order HIP promises between them; events; host callbacks.
#include <algorithm>
#include <set>

#include "sim.h"

namespace hipsim {

static std::set<Stream*> streams; // created and not destroyed
static Stream* null_stream(int device) {
    static Stream* all[64];
    if (!all[device]) all[device] = new Stream{device, 0, 0};
    return all[device];
}

static Stream* per_thread_stream() {
    thread_local Stream* mine[64];
    int device = current_device();
    if (!mine[device]) {
        mine[device] = new Stream{device, 0, 0};
        streams.insert(mine[device]);
    }
    return mine[device];
}

Stream* resolve(hipStream_t handle, hipError_t& error) {
    error = hipSuccess;
    auto number = reinterpret_cast<uintptr_t>(handle);
    if (number <= 1) return null_stream(current_device());
    if (number == 2) return per_thread_stream();
    if (streams.count(handle)) return handle;
    error = fail(hipErrorInvalidHandle, format("%p is not a stream, or one that was destroyed", (void*)handle));
    return nullptr;
}

bool is_null_stream(const Stream* stream) { return stream == null_stream(stream->device); }

hipError_t strict_stream_check(const Stream* stream, const std::string& what) {
    if (!is_null_stream(stream) || !setting("HIPSIM_STRICT_STREAM", 0)) return hipSuccess;
    return fail(hipErrorInvalidHandle, what + " was put on the null stream (HIPSIM_STRICT_STREAM)");
}

// The legacy null stream and the blocking streams of a device wait for each other; non-blocking streams do not.
static std::vector<OpRef> predecessors(const Stream* stream) {
    std::vector<OpRef> before{stream->last};
    if (is_null_stream(stream)) {
        for (Stream* other : streams)
            if (other->device == stream->device && !(other->flags & hipStreamNonBlocking)) before.push_back(other->last);
    } else if (!(stream->flags & hipStreamNonBlocking)) {
        before.push_back(null_stream(stream->device)->last);
    }
    return before;
}

hipError_t refuse_implicit_capture(const Stream* stream) {
    if (!is_null_stream(stream)) return hipSuccess;
    for (Stream* other : streams)
        if (other->capture && !other->capture->ended && other->device == stream->device && !(other->flags & hipStreamNonBlocking)) {
            other->capture->broken = true;
            return fail(hipErrorStreamCaptureImplicit, "the null stream waits for a blocking stream that is being captured");
        }
    return hipSuccess;
}

template <class Matters>
static hipError_t refuse_while(Matters matters, const char* call, hipError_t code) {
    hipError_t error = hipSuccess;
    for (Stream* stream : streams)
        if (stream->capture && !stream->capture->ended && matters(*stream->capture)) {
            stream->capture->broken = true;
            error = fail(code, std::string(call) + " while a stream is being captured");
        }
    return error;
}

hipError_t refuse_unsafe(const char* call) {
    auto matters = [](const Capture& capture) {
        bool mine = capture.thread == std::this_thread::get_id();
        return capture.mode == hipStreamCaptureModeGlobal || (mine && capture.mode == hipStreamCaptureModeThreadLocal);
    };
    return refuse_while(matters, call, hipErrorStreamCaptureUnsupported);
}

hipError_t refuse_in_any_capture(const char* call, hipError_t error) {
    return refuse_while([](const Capture&) { return true; }, call, error);
}

hipError_t submit(Stream* stream, Work work, OpRef* op, const std::vector<OpRef>& after) {
    if (stream->capture && stream->capture->broken)
        return fail(hipErrorStreamCaptureInvalidated, work.what + " on a stream whose capture has failed");
    if (stream->capture) {
        std::vector<Node>& nodes = stream->capture->graph.nodes;
        nodes.push_back({std::move(work), stream->capture_tail});
        stream->capture_tail = {nodes.size() - 1};
        return hipSuccess;
    }
    if (hipError_t error = refuse_implicit_capture(stream)) return error;
    std::vector<OpRef> before = predecessors(stream);
    before.insert(before.end(), after.begin(), after.end());
    stream->last = enqueue(std::move(work), before);
    if (op) *op = stream->last;
    return hipSuccess;
}

void end_capture(const std::shared_ptr<Capture>& capture) {
    for (Stream* stream : streams)
        if (stream->capture == capture) {
            stream->capture = nullptr;
            stream->capture_tail.clear();
            stream->capture_origin = false;
        }
}

struct Event {
    unsigned flags;
    int device;
    OpRef op;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> capture_tail;
};
static std::set<Event*> events;

static hipError_t check_event(Event* event) {
    if (events.count(event)) return hipSuccess;
    return fail(hipErrorInvalidHandle, format("%p is not an event, or one that was destroyed", (void*)event));
}

static hipError_t refuse_wait(Event* event, const char* call) {
    if (!event->capture) return refuse_unsafe(call);
    event->capture->broken = true;
    return fail(hipErrorCapturedEvent, call);
}

static hipError_t refuse_if_captured(Stream* stream, const char* call) {
    if (!stream->capture) return is_null_stream(stream) ? hipSuccess : refuse_unsafe(call);
    stream->capture->broken = true;
    return fail(hipErrorStreamCaptureUnsupported, std::string(call) + " on a stream that is being captured");
}

static hipError_t synchronize(Guard& guard, Stream* stream) {
    if (hipError_t error = refuse_if_captured(stream, "synchronize")) return error;
    for (const OpRef& op : predecessors(stream))
        if (op == stream->last || is_null_stream(stream)) wait_for(guard, op);
    return take_fault();
}

static hipError_t create_stream(hipStream_t* out, unsigned flags, int priority) {
    Guard guard(state_mutex);
    *out = new Stream{current_device(), flags, priority};
    streams.insert(*out);
    return hipSuccess;
}

} // namespace hipsim

using namespace hipsim;
using hipEvent_t = Event*;


HIPSIM_API hipError_t hipStreamCreate(hipStream_t* out) { return create_stream(out, 0, 0); }
HIPSIM_API hipError_t hipStreamCreateWithFlags(hipStream_t* out, unsigned flags) { return create_stream(out, flags, 0); }
HIPSIM_API hipError_t hipStreamCreateWithPriority(hipStream_t* out, unsigned flags, int priority) {
    return create_stream(out, flags, std::max(-1, std::min(priority, 1))); // the range that HIP clamps to
}

HIPSIM_API hipError_t hipStreamDestroy(hipStream_t handle) {
    RESOLVE_STREAM(stream, handle);
    if (is_null_stream(stream)) return fail(hipErrorInvalidHandle, "the null stream cannot be destroyed");
    if (stream->capture) stream->capture->broken = true;
    streams.erase(stream); // its queued work stays queued
    delete stream;
    return hipSuccess;
}

HIPSIM_API hipError_t hipStreamGetFlags(hipStream_t handle, unsigned* flags) {
    RESOLVE_STREAM(stream, handle);
    *flags = stream->flags;
    return hipSuccess;
}

HIPSIM_API hipError_t hipStreamGetPriority(hipStream_t handle, int* priority) {
    RESOLVE_STREAM(stream, handle);
    *priority = stream->priority;
    return hipSuccess;
}

HIPSIM_API int hipGetStreamDeviceId(hipStream_t handle) {
    RESOLVE_STREAM(stream, handle);
    return stream->device;
}

HIPSIM_API hipError_t hipStreamSynchronize(hipStream_t handle) {
    RESOLVE_STREAM(stream, handle);
    return synchronize(guard, stream);
}

HIPSIM_API hipError_t hipStreamQuery(hipStream_t handle) {
    RESOLVE_STREAM(stream, handle);
    if ((error = refuse_if_captured(stream, "query"))) return error;
    return poll(guard, stream->last) ? take_fault() : hipErrorNotReady;
}

HIPSIM_API hipError_t hipDeviceSynchronize() {
    Guard guard(state_mutex);
    if (hipError_t error = refuse_in_any_capture("device synchronize", hipErrorStreamCaptureUnsupported)) return error;
    wait_for_all(guard);
    return take_fault();
}

HIPSIM_API hipError_t hipStreamWaitEvent(hipStream_t handle, hipEvent_t event, unsigned) {
    RESOLVE_STREAM(stream, handle);
    if ((error = check_event(event))) return error;
    if (event->capture) {
        if (stream->capture && stream->capture != event->capture)
            return fail(hipErrorStreamCaptureIsolation, "an event of one capture, waited for in another");
        stream->capture = event->capture;
        stream->capture_tail.insert(stream->capture_tail.end(), event->capture_tail.begin(), event->capture_tail.end());
        return hipSuccess;
    }
    if (stream->capture) {
        stream->capture->broken = true;
        return fail(hipErrorStreamCaptureIsolation, "a captured stream waits for an event recorded outside the capture");
    }
    return submit(stream, {"wait for event"}, nullptr, {event->op});
}

hipError_t hipsim::submit_call(hipStream_t handle, const char* what, std::function<void()> run) {
    RESOLVE_STREAM(stream, handle);
    if ((error = strict_stream_check(stream, what))) return error;
    return submit(stream, {what, std::move(run)});
}

static hipError_t add_callback(hipStream_t handle, const char* what, std::function<void()> call) {
    RESOLVE_STREAM(stream, handle);
    if ((error = strict_stream_check(stream, what))) return error;
    if (stream->capture && (error = refuse_if_captured(stream, what))) return error;
    return submit(stream, {what, std::move(call), true});
}

HIPSIM_API hipError_t hipLaunchHostFunc(hipStream_t handle, void (*function)(void*), void* data) {
    return add_callback(handle, "host function", [=] { function(data); });
}

HIPSIM_API hipError_t hipStreamAddCallback(hipStream_t handle, void (*function)(hipStream_t, hipError_t, void*), void* data,
                                           unsigned) {
    return add_callback(handle, "stream callback", [=] { function(handle, hipSuccess, data); });
}

HIPSIM_API hipError_t hipEventCreateWithFlags(hipEvent_t* out, unsigned flags) {
    Guard guard(state_mutex);
    *out = new Event{flags, current_device()};
    events.insert(*out);
    return hipSuccess;
}

HIPSIM_API hipError_t hipEventCreate(hipEvent_t* out) { return hipEventCreateWithFlags(out, 0); }

HIPSIM_API hipError_t hipEventDestroy(hipEvent_t event) {
    Guard guard(state_mutex);
    if (hipError_t error = check_event(event)) return error;
    events.erase(event);
    delete event;
    return hipSuccess;
}

HIPSIM_API hipError_t hipEventRecord(hipEvent_t event, hipStream_t handle) {
    RESOLVE_STREAM(stream, handle);
    if ((error = check_event(event))) return error;
    if (event->device != stream->device)
        return fail(hipErrorInvalidHandle, format("event of device %d on a stream of device %d", event->device, stream->device));
    event->capture = stream->capture;
    event->capture_tail = stream->capture_tail;
    if (stream->capture) return hipSuccess;
    return submit(stream, {"event record"}, &event->op);
}

HIPSIM_API hipError_t hipEventSynchronize(hipEvent_t event) {
    Guard guard(state_mutex);
    if (hipError_t error = check_event(event)) return error;
    if (hipError_t error = refuse_wait(event, "event synchronize")) return error;
    wait_for(guard, event->op);
    return take_fault();
}

HIPSIM_API hipError_t hipEventQuery(hipEvent_t event) {
    Guard guard(state_mutex);
    if (hipError_t error = check_event(event)) return error;
    if (hipError_t error = refuse_wait(event, "event query")) return error;
    return poll(guard, event->op) ? take_fault() : hipErrorNotReady;
}

HIPSIM_API hipError_t hipEventElapsedTime(float* milliseconds, hipEvent_t start, hipEvent_t stop) {
    Guard guard(state_mutex);
    for (Event* event : {start, stop}) {
        if (hipError_t error = check_event(event)) return error;
        if (!event->op || event->flags & hipEventDisableTiming)
            return fail(hipErrorInvalidHandle, "elapsed time of an event that was not recorded or takes no time");
        if (!event->op->done) return hipErrorNotReady;
    }
    *milliseconds = stop->op->finished - start->op->finished;
    return hipSuccess;
}
