// Stream capture and graphs: a graph is the captured work with its order; launching queues a copy of every node.
#include <cstdio>
#include <set>

#include "sim.h"

namespace hipsim {

struct GraphExec {
    Graph graph;
};
static std::set<Graph*> graphs;
static std::set<GraphExec*> executables;
static uint64_t next_capture = 1;

// Every node must be reachable from where the origin stream now stands, or a forked stream was never joined.
static bool joined(const Capture& capture, const std::vector<size_t>& tail) {
    std::vector<bool> reached(capture.graph.nodes.size());
    std::vector<size_t> open = tail;
    while (!open.empty()) {
        size_t node = open.back();
        open.pop_back();
        if (reached[node]) continue;
        reached[node] = true;
        for (size_t before : capture.graph.nodes[node].after) open.push_back(before);
    }
    for (bool node : reached)
        if (!node) return false;
    return true;
}

} // namespace hipsim

using namespace hipsim;


HIPSIM_API hipError_t hipStreamBeginCapture(hipStream_t handle, hipStreamCaptureMode mode) {
    RESOLVE_STREAM(stream, handle);
    if (is_null_stream(stream)) return fail(hipErrorStreamCaptureUnsupported, "the null stream cannot be captured");
    if (stream->capture && !stream->capture->broken) return fail(hipErrorIllegalState, "the stream is being captured already");
    stream->capture = std::make_shared<Capture>(Capture{next_capture++, mode});
    stream->capture_origin = true;
    stream->capture_tail.clear();
    return hipSuccess;
}

HIPSIM_API hipError_t hipStreamEndCapture(hipStream_t handle, Graph** out) {
    RESOLVE_STREAM(stream, handle);
    *out = nullptr;
    if (!stream->capture) return fail(hipErrorIllegalState, "the stream is not being captured");
    if (!stream->capture_origin) return fail(hipErrorStreamCaptureUnmatched, "end of a capture that did not begin in this stream");
    std::shared_ptr<Capture> capture = stream->capture;
    if (capture->mode != hipStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
        return fail(hipErrorStreamCaptureWrongThread, "a capture ends in the thread where it began, unless it is relaxed");
    if (capture->broken) { // and ROCm's runtime leaves the stream so: nothing can be put on it any more
        capture->ended = true;
        return fail(hipErrorStreamCaptureInvalidated, "something that cannot be captured was tried");
    }
    std::vector<size_t> tail = std::move(stream->capture_tail);
    end_capture(capture);
    if (!joined(*capture, tail)) return fail(hipErrorStreamCaptureUnjoined, "a stream that was forked from the captured one");
    *out = new Graph{std::move(capture->graph)};
    graphs.insert(*out);
    return hipSuccess;
}

static hipStreamCaptureStatus status_of(const Stream* stream) {
    if (!stream->capture) return hipStreamCaptureStatusNone;
    return stream->capture->broken ? hipStreamCaptureStatusInvalidated : hipStreamCaptureStatusActive;
}

HIPSIM_API hipError_t hipStreamIsCapturing(hipStream_t handle, hipStreamCaptureStatus* status) {
    RESOLVE_STREAM(stream, handle);
    if ((error = refuse_implicit_capture(stream))) return error;
    *status = status_of(stream);
    return hipSuccess;
}

HIPSIM_API hipError_t hipStreamGetCaptureInfo(hipStream_t handle, hipStreamCaptureStatus* status, unsigned long long* id) {
    RESOLVE_STREAM(stream, handle);
    if ((error = refuse_implicit_capture(stream))) return error;
    *status = status_of(stream);
    if (id && stream->capture) *id = stream->capture->id;
    return hipSuccess;
}

HIPSIM_API hipError_t hipGraphInstantiate(GraphExec** out, Graph* graph, void*, char*, size_t) {
    Guard guard(state_mutex);
    if (!graphs.count(graph)) return fail(hipErrorInvalidValue, "not a graph");
    *out = new GraphExec{*graph};
    executables.insert(*out);
    return hipSuccess;
}

HIPSIM_API hipError_t hipGraphLaunch(GraphExec* executable, hipStream_t handle) {
    RESOLVE_STREAM(stream, handle);
    if (!executables.count(executable)) return fail(hipErrorInvalidValue, "not an instantiated graph");
    if ((error = strict_stream_check(stream, "a graph"))) return error;
    if (stream->capture) return fail(hipErrorNotSupported, "a graph launch inside a capture is not simulated");
    OpRef start;
    if ((error = submit(stream, {"graph start"}, &start))) return error;
    std::vector<OpRef> ops;
    for (const Node& node : executable->graph.nodes) {
        std::vector<OpRef> after{start};
        for (size_t before : node.after) after.push_back(ops[before]);
        ops.push_back(enqueue(node.work, after));
    }
    return submit(stream, {"graph end"}, nullptr, ops);
}

HIPSIM_API hipError_t hipGraphDestroy(Graph* graph) {
    Guard guard(state_mutex);
    if (!graphs.erase(graph)) return fail(hipErrorInvalidValue, "not a graph");
    delete graph;
    return hipSuccess;
}

HIPSIM_API hipError_t hipGraphExecDestroy(GraphExec* executable) {
    Guard guard(state_mutex);
    if (!executables.erase(executable)) return fail(hipErrorInvalidValue, "not an instantiated graph");
    delete executable;
    return hipSuccess;
}

HIPSIM_API hipError_t hipGraphDebugDotPrint(Graph* graph, const char* path, unsigned) {
    Guard guard(state_mutex);
    if (!graphs.count(graph)) return fail(hipErrorInvalidValue, "not a graph");
    FILE* file = fopen(path, "w");
    if (!file) return fail(hipErrorInvalidValue, format("cannot write %s", path));
    fputs("digraph {\n", file);
    for (size_t i = 0; i < graph->nodes.size(); i++) {
        fprintf(file, "  n%zu [label=\"%s\"]\n", i, graph->nodes[i].work.what.c_str());
        for (size_t before : graph->nodes[i].after) fprintf(file, "  n%zu -> n%zu\n", before, i);
    }
    fputs("}\n", file);
    fclose(file);
    return hipSuccess;
}
