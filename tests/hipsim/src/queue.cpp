// Queued work and the order in which it runs. Nothing runs until a thread waits for something. Then, of all the work
// whose predecessors are done, the most recently submitted runs first (HIPSIM_SEED=0), or a random one (another seed),
// until what was waited for is done; the rest stays queued. So two pieces of work that no stream order and no event
// connects run in the opposite order of their submission whenever HIP allows it, and a missing event shows.
#include <chrono>
#include <condition_variable>
#include <map>
#include <random>

#include "sim.h"

namespace hipsim {

static std::map<uint64_t, OpRef> ready; // by id, that is in order of submission
static uint64_t next_id, queued;
static std::condition_variable callback_done;

static double now() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

OpRef enqueue(Work work, const std::vector<OpRef>& after) {
    auto op = std::make_shared<Op>();
    op->id = next_id++;
    op->work = std::move(work);
    for (const OpRef& before : after)
        if (before && !before->done) {
            before->followers.push_back(op);
            op->waiting_for++;
        }
    if (!op->waiting_for) ready[op->id] = op;
    queued++;
    return op;
}

static OpRef choose() {
    static uint64_t seed = 0;
    static std::mt19937_64 random;
    uint64_t wanted = setting("HIPSIM_SEED", 0); // a program may try several, one after another
    if (wanted != seed) random.seed(seed = wanted);
    auto chosen = seed ? std::next(ready.begin(), random() % ready.size()) : std::prev(ready.end());
    OpRef op = chosen->second;
    ready.erase(chosen);
    return op;
}

static void run_one(Guard& guard) {
    if (ready.empty()) { // all that is left waits for a host callback that another thread is running
        callback_done.wait(guard);
        return;
    }
    OpRef op = choose();
    if (op->work.run) {
        trace("run #%lu %s", op->id, op->work.what.c_str());
        if (op->work.host) guard.unlock();
        op->work.run();
        if (!op->work.kernel) end_of_overlap();
        if (op->work.host) guard.lock();
        op->work.run = nullptr;
    }
    op->finished = now();
    op->done = true;
    queued--;
    for (const OpRef& follower : op->followers)
        if (!--follower->waiting_for) ready[follower->id] = follower;
    op->followers.clear();
    if (op->work.host) callback_done.notify_all();
}

void wait_for(Guard& guard, const OpRef& op) {
    while (op && !op->done) run_one(guard);
}

void wait_for_all(Guard& guard) {
    while (queued) run_one(guard);
}

bool poll(Guard& guard, const OpRef& op) {
    constexpr int patience = 16; // polls before a poll begins to count as waiting
    static int polls;
    if (!op || op->done) {
        polls = 0;
        return true;
    }
    if (++polls > patience) run_one(guard);
    return false;
}

} // namespace hipsim
