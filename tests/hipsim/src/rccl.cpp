// librccl: collectives and messages between processes, each of which has a rank, queued on streams as the library's are.
//
// Ranks have a socket to each other. A collective runs when its stream comes to it, which is as late as can be, and then
// waits for the others: rank 0 gets all parts with the calls that they are of, compares the calls, and sends results. Calls
// that differ are a fault that names them, at all ranks; so is a rank that does not come within HIPSIM_RCCL_SECONDS.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <random>
#include <stdexcept>

#include "sim.h"

using hipsim::format;
using hipsim::hipStream_t;

enum ncclResult_t { ncclSuccess = 0, ncclSystemError = 2, ncclInvalidArgument = 4, ncclInvalidUsage = 5, ncclRemoteError = 6 };
struct ncclUniqueId {
    char internal[128];
};
extern "C" hipError_t hipGetDevice(int*);
extern "C" int hipGetStreamDeviceId(hipStream_t);

namespace {

constexpr size_t type_bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
constexpr const char* type_names[] = {"int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "bfloat16"};
constexpr int types = 10;
thread_local std::string last_error;

struct Call {
    char name[16];
    uint64_t count;
    int type, detail; // detail: the operator, or the rank that it is about

    std::string text() const { return format("%s of %lu %s (%d)", name, count, type_names[type], detail); }
    size_t bytes() const { return count * type_bytes[type]; }
};

struct Failure : std::runtime_error {
    using runtime_error::runtime_error;
};

int milliseconds_left(std::chrono::steady_clock::time_point end) {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    return int(std::max<long>(left, 0));
}

std::chrono::steady_clock::time_point deadline() {
    return std::chrono::steady_clock::now() + std::chrono::seconds(hipsim::setting("HIPSIM_RCCL_SECONDS", 60));
}

struct Communicator {
    int size, rank, device;
    std::vector<int> sockets; // to each rank; its own is -1
    std::atomic<bool> aborted{false};

    ~Communicator() {
        for (int socket : sockets)
            if (socket >= 0) close(socket);
    }

    void send(int to, const void* data, size_t bytes) {
        auto from = static_cast<const char*>(data);
        while (bytes) {
            ssize_t sent = ::send(sockets[to], from, bytes, MSG_NOSIGNAL);
            if (sent <= 0) throw Failure(aborted ? "the communicator was aborted" : format("rank %d has ended", to));
            from += sent, bytes -= sent;
        }
    }

    void receive(int from, void* data, size_t bytes, const std::string& what) {
        auto end = deadline();
        auto to = static_cast<char*>(data);
        while (bytes) {
            pollfd entry{sockets[from], POLLIN, 0};
            if (poll(&entry, 1, milliseconds_left(end)) == 0)
                throw Failure(format("rank %d waits for rank %d in %s, which does not come", rank, from, what.c_str()));
            ssize_t got = recv(sockets[from], to, bytes, 0);
            if (got <= 0) throw Failure(aborted ? "the communicator was aborted" : format("rank %d has ended", from));
            to += got, bytes -= got;
        }
    }

    void send_text(int to, const std::string& text) {
        uint64_t length = text.size();
        send(to, &length, sizeof length);
        send(to, text.data(), length);
    }

    std::string receive_text(int from, const std::string& what) {
        uint64_t length;
        receive(from, &length, sizeof length, what);
        std::string text(length, ' ');
        receive(from, text.data(), length, what);
        return text;
    }
};

template <class T>
void add(T* sum, const T* part, size_t count) {
    for (size_t i = 0; i < count; i++) sum[i] += part[i];
}

void add(const Call& call, char* sum, const char* part) {
    if (call.detail != 0) throw Failure("of reductions only sums are simulated");
    switch (call.type) {
        case 2: return add(reinterpret_cast<int32_t*>(sum), reinterpret_cast<const int32_t*>(part), call.count);
        case 4: return add(reinterpret_cast<int64_t*>(sum), reinterpret_cast<const int64_t*>(part), call.count);
        case 7: return add(reinterpret_cast<float*>(sum), reinterpret_cast<const float*>(part), call.count);
        case 8: return add(reinterpret_cast<double*>(sum), reinterpret_cast<const double*>(part), call.count);
    }
    throw Failure(format("sums of %s are not simulated", type_names[call.type]));
}

// What all ranks get of the parts, at rank 0.
std::vector<char> combined(const Call& call, std::vector<std::vector<char>>& parts) {
    if (!strcmp(call.name, "broadcast")) return parts[call.detail];
    std::vector<char> whole = parts[0];
    for (size_t rank = 1; rank < parts.size(); rank++) {
        if (!strcmp(call.name, "all-reduce")) add(call, whole.data(), parts[rank].data());
        else whole.insert(whole.end(), parts[rank].begin(), parts[rank].end());
    }
    return whole;
}

// Gathers the parts at rank 0, and gives the result to all. A problem is every rank's.
std::vector<char> together(Communicator& comm, const Call& call, const void* source) {
    std::string what = call.text();
    if (comm.rank) {
        comm.send(0, &call, sizeof call);
        comm.send(0, source, call.bytes());
        std::string problem = comm.receive_text(0, what), result = comm.receive_text(0, what);
        if (!problem.empty()) throw Failure(problem);
        return {result.begin(), result.end()};
    }
    std::vector<std::vector<char>> parts(comm.size);
    auto own = static_cast<const char*>(source);
    parts[0].assign(own, own + call.bytes());
    std::string problem, calls = "rank 0 calls " + what;
    bool differ = false;
    try {
        for (int rank = comm.size - 1; rank > 0; rank--) {
            Call theirs;
            comm.receive(rank, &theirs, sizeof theirs, what);
            parts[rank].resize(theirs.bytes());
            comm.receive(rank, parts[rank].data(), theirs.bytes(), what);
            calls += format("; rank %d calls %s", rank, theirs.text().c_str());
            differ |= memcmp(&theirs, &call, sizeof call) != 0;
        }
        if (differ) problem = "the ranks' calls differ: " + calls;
    } catch (const Failure& failure) {
        problem = failure.what();
    }
    std::vector<char> whole;
    if (problem.empty()) whole = combined(call, parts);
    for (int rank = 1; rank < comm.size; rank++) {
        comm.send_text(rank, problem);
        comm.send_text(rank, {whole.begin(), whole.end()});
    }
    if (!problem.empty()) throw Failure(problem);
    return whole;
}

ncclResult_t refuse(ncclResult_t code, std::string text) {
    last_error = "RCCL: " + std::move(text);
    return code;
}

Call described(const char* name, size_t count, int type, int detail) {
    Call call;
    memset(&call, 0, sizeof call);
    strncpy(call.name, name, sizeof call.name - 1);
    call.count = count, call.type = type, call.detail = detail;
    return call;
}

// Queues what a call does: `run` is given the communicator and the call, when the stream comes to it.
template <class Run>
ncclResult_t queue(Communicator* comm, Call call, hipStream_t stream, Run run) {
    if (!comm || call.type < 0 || call.type >= types) return refuse(ncclInvalidArgument, "a bad communicator or type");
    if (comm->aborted) return refuse(ncclInvalidUsage, call.text() + " of a communicator that was aborted");
    if (int device = hipGetStreamDeviceId(stream); device != comm->device)
        return refuse(ncclInvalidUsage, format("%s of device %d on a stream of device %d", call.text().c_str(), comm->device, device));
    hipError_t error = hipsim::submit_call(stream, call.name, [=] {
        try {
            run(*comm, call);
        } catch (const Failure& failure) {
            hipsim::report_fault(format("RCCL: %s: %s", call.text().c_str(), failure.what()));
        }
    });
    return error ? refuse(ncclSystemError, "the stream refuses " + call.text()) : ncclSuccess;
}

ncclResult_t collective(Communicator* comm, Call call, const void* source, void* target, hipStream_t stream) {
    return queue(comm, call, stream, [=](Communicator& comm, const Call& call) {
        if (hipsim::check_range(source, call.bytes(), "RCCL's source")) throw Failure("the source is out of bounds");
        std::vector<char> whole = together(comm, call, source);
        if (hipsim::check_range(target, whole.size(), "RCCL's target")) throw Failure("the target is out of bounds");
        memcpy(target, whole.data(), whole.size());
    });
}

sockaddr_un address_of(const ncclUniqueId& id, int rank, socklen_t& length) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX; // an abstract name, of which no file is left
    std::string name = format("hipsim-rccl-%.32s-%d", id.internal, rank);
    memcpy(address.sun_path + 1, name.data(), name.size());
    length = offsetof(sockaddr_un, sun_path) + 1 + name.size();
    return address;
}

int connected(const ncclUniqueId& id, int to, std::chrono::steady_clock::time_point end) {
    socklen_t length;
    sockaddr_un address = address_of(id, to, length);
    while (milliseconds_left(end)) {
        int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (!connect(socket, reinterpret_cast<sockaddr*>(&address), length)) return socket;
        close(socket);
        usleep(2000);
    }
    return -1;
}

} // namespace

HIPSIM_API ncclResult_t ncclGetVersion(int* version) {
    *version = 22606;
    return ncclSuccess;
}

HIPSIM_API ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    std::random_device random;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "%08x%08x%08x%08x", random(), random(), random(), random());
    return ncclSuccess;
}

HIPSIM_API const char* ncclGetErrorString(ncclResult_t code) { return code && !last_error.empty() ? last_error.c_str() : "RCCL: no error"; }

HIPSIM_API ncclResult_t ncclCommInitRankConfig(Communicator** out, int size, ncclUniqueId id, int rank, void*) {
    if (rank < 0 || rank >= size) return refuse(ncclInvalidArgument, format("rank %d of %d", rank, size));
    auto comm = std::make_unique<Communicator>();
    comm->size = size, comm->rank = rank, comm->sockets.assign(size, -1);
    hipGetDevice(&comm->device);
    auto end = deadline();
    socklen_t length;
    sockaddr_un address = address_of(id, rank, length);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) || listen(listener, size)) {
        close(listener);
        return refuse(ncclInvalidUsage, format("rank %d of this communicator is there already", rank));
    }
    std::string missing;
    for (int other = 0; other < rank; other++) {
        comm->sockets[other] = connected(id, other, end);
        if (comm->sockets[other] < 0 || send(comm->sockets[other], &rank, sizeof rank, MSG_NOSIGNAL) != sizeof rank) missing = format("rank %d", other);
    }
    for (int other = rank + 1; other < size && missing.empty(); other++) {
        pollfd entry{listener, POLLIN, 0};
        int theirs = -1, socket = poll(&entry, 1, milliseconds_left(end)) ? accept4(listener, nullptr, nullptr, SOCK_CLOEXEC) : -1;
        if (socket < 0 || recv(socket, &theirs, sizeof theirs, MSG_WAITALL) != sizeof theirs) missing = format("%d of %d ranks", size - other, size);
        else comm->sockets[theirs] = socket;
    }
    close(listener);
    if (!missing.empty()) return refuse(ncclSystemError, missing + " did not come to make the communicator");
    *out = comm.release();
    return ncclSuccess;
}

HIPSIM_API ncclResult_t ncclCommDestroy(Communicator* comm) {
    (void)comm; // its queued work may still run
    return ncclSuccess;
}

HIPSIM_API ncclResult_t ncclCommAbort(Communicator* comm) {
    comm->aborted = true;
    for (int socket : comm->sockets)
        if (socket >= 0) shutdown(socket, SHUT_RDWR);
    return ncclSuccess;
}

HIPSIM_API ncclResult_t ncclCommGetAsyncError(Communicator* comm, ncclResult_t* error) {
    *error = comm->aborted ? ncclRemoteError : ncclSuccess;
    return ncclSuccess;
}

HIPSIM_API ncclResult_t ncclCommCount(Communicator* comm, int* size) { return *size = comm->size, ncclSuccess; }
HIPSIM_API ncclResult_t ncclCommCuDevice(Communicator* comm, int* device) { return *device = comm->device, ncclSuccess; }
HIPSIM_API ncclResult_t ncclCommUserRank(Communicator* comm, int* rank) { return *rank = comm->rank, ncclSuccess; }
HIPSIM_API ncclResult_t ncclGroupStart() { return ncclSuccess; }
HIPSIM_API ncclResult_t ncclGroupEnd() { return ncclSuccess; }

HIPSIM_API ncclResult_t ncclAllReduce(const void* source, void* target, size_t count, int type, int op, Communicator* comm, hipStream_t stream) {
    return collective(comm, described("all-reduce", count, type, op), source, target, stream);
}

HIPSIM_API ncclResult_t ncclAllGather(const void* source, void* target, size_t count, int type, Communicator* comm, hipStream_t stream) {
    return collective(comm, described("all-gather", count, type, 0), source, target, stream);
}

HIPSIM_API ncclResult_t ncclBroadcast(const void* source, void* target, size_t count, int type, int root, Communicator* comm, hipStream_t stream) {
    if (comm && (root < 0 || root >= comm->size)) return refuse(ncclInvalidArgument, format("broadcast of rank %d", root));
    return collective(comm, described("broadcast", count, type, root), source, target, stream);
}

HIPSIM_API ncclResult_t ncclSend(const void* source, size_t count, int type, int to, Communicator* comm, hipStream_t stream) {
    if (!comm || to < 0 || to >= comm->size || to == comm->rank) return refuse(ncclInvalidArgument, format("send to rank %d", to));
    return queue(comm, described("message", count, type, 0), stream, [=](Communicator& comm, const Call& call) {
        if (hipsim::check_range(source, call.bytes(), "RCCL's source")) throw Failure("the source is out of bounds");
        comm.send(to, &call, sizeof call);
        comm.send(to, source, call.bytes());
    });
}

HIPSIM_API ncclResult_t ncclRecv(void* target, size_t count, int type, int from, Communicator* comm, hipStream_t stream) {
    if (!comm || from < 0 || from >= comm->size || from == comm->rank) return refuse(ncclInvalidArgument, format("receive of rank %d", from));
    return queue(comm, described("message", count, type, 0), stream, [=](Communicator& comm, const Call& call) {
        Call theirs;
        comm.receive(from, &theirs, sizeof theirs, call.text());
        if (memcmp(&theirs, &call, sizeof call))
            throw Failure(format("the ranks' calls differ: rank %d receives %s; rank %d sends %s", comm.rank, call.text().c_str(), from, theirs.text().c_str()));
        if (hipsim::check_range(target, call.bytes(), "RCCL's target")) throw Failure("the target is out of bounds");
        comm.receive(from, target, call.bytes(), call.text());
    });
}
