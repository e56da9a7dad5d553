// Runs a kernel: block after block in a shuffled order, and in a block a fiber per thread. A thread runs until it waits
// at a barrier or in a wave operation. When nothing in the block can run any more and threads still wait, they wait for
// something that will never come: a fault that is reported, where a device would hang or go on with wrong data.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "fiber.h"
#include "sim.h"

extern "C" {
hipsim_thread* hipsim_self;
hipsim_dim3 hipsim_block_index, hipsim_block_dim, hipsim_grid_dim;
int hipsim_wave_size;
alignas(4096) char hipsim_dynamic_lds[hipsim::lds_bytes + 4096];
void __asan_poison_memory_region(const volatile void*, size_t) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void*, size_t) __attribute__((weak));
}

namespace hipsim {

enum class State : uint8_t { fresh, ready, at_barrier, at_named_barrier, in_exchange, done };

struct Wave {
    unsigned first, lanes;
    unsigned long long published[64]; // the values of each lane's last completed exchange
    uint64_t exist() const { return lanes == 64 ? ~0ull : (1ull << lanes) - 1; }
};

struct Thread : hipsim_thread {
    State state;
    Wave* wave;
    char* stack;
    void* stack_pointer;
    uint64_t value; // what it brought to the barrier or the exchange
    uint64_t mask;
    hipsim_site site;
};

static std::vector<Thread> threads;
static std::vector<Wave> waves;
static unsigned barrier_count;
static Launch* launch;
static void* scheduler;
static std::string trapped;
static uint64_t random_state;

static bool coin() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state >> 40 & 1;
}

// ---- inside a fiber

static Thread& self() { return static_cast<Thread&>(*hipsim_self); }

static void leave(State state) {
    Thread& thread = self();
    thread.state = state;
    hipsim_switch(&thread.stack_pointer, scheduler);
}

static void fiber_main() {
    launch->kernel->entry->call(launch->kernel->entry->address, launch->arguments.data());
    leave(State::done);
    __builtin_unreachable();
}

} // namespace hipsim

using namespace hipsim;

unsigned hipsim_barrier(unsigned predicate, hipsim_site site) {
    self().value = predicate;
    self().site = site;
    leave(State::at_barrier);
    return barrier_count;
}

void hipsim_named_barrier(unsigned number, unsigned count, hipsim_site site) {
    self().value = number;
    self().mask = count;
    self().site = site;
    leave(State::at_named_barrier);
}

const unsigned long long* hipsim_exchange(unsigned long long value, unsigned long long mask, hipsim_site site) {
    Thread& thread = self();
    Wave& wave = *thread.wave;
    thread.value = value;
    thread.mask = mask ? mask & wave.exist() : wave.exist();
    thread.site = site;
    if (!(thread.mask >> thread.lane & 1)) hipsim_trap("called by a lane that is not in its mask", site);
    leave(State::in_exchange);
    return wave.published;
}

static std::string describe(const hipsim_site& site) {
    const char* slash = strrchr(site.file, '/');
    return format("%s at %s:%d", site.operation, slash ? slash + 1 : site.file, site.line);
}

void hipsim_trap(const char* message, hipsim_site site) {
    trapped = describe(site) + ": " + message;
    leave(State::done);
    __builtin_unreachable();
}

namespace hipsim {

// ---- the scheduler

static bool same_place(const hipsim_site& a, const hipsim_site& b) {
    if (a.line != b.line) return false;
    if (a.operation == b.operation && a.file == b.file) return true; // as nearly always
    return !strcmp(a.operation, b.operation) && !strcmp(a.file, b.file);
}

static void resume(Thread& thread) {
    hipsim_self = &thread;
    if (thread.state == State::fresh) {
        thread.stack = take_stack();
        thread.stack_pointer = prepare_fiber(thread.stack, fiber_main);
    }
    hipsim_switch(&scheduler, thread.stack_pointer);
    if (thread.state == State::done) {
        give_stack(thread.stack);
        thread.stack = nullptr;
    }
}

// Lets go every group of lanes that has met in full at one exchange.
static void release_exchanges(Wave& wave) {
    Thread* lanes = &threads[wave.first];
    for (unsigned lane = 0; lane < wave.lanes; lane++) {
        Thread& leader = lanes[lane];
        if (leader.state != State::in_exchange) continue;
        bool met = true;
        for (uint64_t rest = leader.mask; rest && met; rest &= rest - 1) {
            const Thread& other = lanes[__builtin_ctzll(rest)];
            met = other.state == State::in_exchange && other.mask == leader.mask && same_place(other.site, leader.site);
        }
        if (!met) continue;
        uint64_t mask = leader.mask;
        for (uint64_t rest = mask; rest; rest &= rest - 1) {
            unsigned other = __builtin_ctzll(rest);
            wave.published[other] = lanes[other].value;
            lanes[other].active = mask;
            lanes[other].state = State::ready;
        }
    }
}

static bool run_wave(Wave& wave) {
    bool any = false, backwards = coin();
    for (unsigned i = 0; i < wave.lanes && trapped.empty(); i++) {
        Thread& thread = threads[wave.first + (backwards ? wave.lanes - 1 - i : i)];
        if (thread.state > State::ready) continue;
        resume(thread);
        any = true;
    }
    if (any && trapped.empty()) release_exchanges(wave);
    return any;
}

// The hardware counts threads that have returned out of a barrier, and CuPy's scan relies on it; in other kernels it is
// taken for the mistake it is on other devices.
static bool excused(const Thread& thread) {
    return thread.state == State::done && !launch->kernel->name.rfind("cupy_", 0);
}

static bool release_barrier() {
    const hipsim_site* site = nullptr;
    for (const Thread& thread : threads) {
        if (excused(thread)) continue;
        if (thread.state != State::at_barrier || (site && !same_place(thread.site, *site))) return false;
        site = &thread.site;
    }
    barrier_count = 0;
    for (Thread& thread : threads)
        if (thread.state == State::at_barrier) {
            barrier_count += thread.value != 0;
            thread.state = State::ready;
        }
    return site != nullptr;
}

// Those at which as many threads wait as they say.
static bool release_named_barriers() {
    bool any = false;
    for (Thread& first : threads) {
        if (first.state != State::at_named_barrier) continue;
        auto is_here = [&](const Thread& t) { return t.state == State::at_named_barrier && t.value == first.value && t.mask == first.mask; };
        if (uint64_t(std::count_if(threads.begin(), threads.end(), is_here)) != first.mask) continue;
        uint64_t number = first.value;
        for (Thread& thread : threads)
            if (thread.state == State::at_named_barrier && thread.value == number) thread.state = State::ready;
        any = true;
    }
    return any;
}

static std::string describe(const Thread& thread) {
    return "thread " + place(thread.index) + " " + (thread.state == State::done ? "has returned" : "waits in " + ::describe(thread.site));
}

// Why a block stands still: one thread that waits, and one that keeps it waiting.
static std::string deadlock() {
    auto waits = [](const Thread& t) { return t.state != State::done; };
    auto waiter = std::find_if(threads.begin(), threads.end(), waits);
    if (waiter == threads.end()) return "";
    auto exchanging = std::find_if(threads.begin(), threads.end(), [](const Thread& t) { return t.state == State::in_exchange; });
    if (exchanging != threads.end()) waiter = exchanging;
    unsigned first = 0, count = threads.size();
    if (waiter->state == State::in_exchange) {
        const Wave& wave = *waiter->wave;
        first = wave.first, count = wave.lanes;
    }
    auto other = std::find_if(threads.begin() + first, threads.begin() + first + count, [&](const Thread& t) {
        bool concerned = waiter->state != State::in_exchange || waiter->mask >> t.lane & 1;
        return concerned && !excused(t) && (t.state != waiter->state || t.mask != waiter->mask || !same_place(t.site, waiter->site));
    });
    return ::describe(waiter->site) + " is not reached by all: " + describe(*waiter) + ", " + describe(*other);
}

static std::string run_block() {
    for (Thread& thread : threads) thread.state = State::fresh;
    for (bool moved = true; moved && trapped.empty();) {
        moved = false;
        bool backwards = coin();
        for (size_t i = 0; i < waves.size(); i++)
            while (run_wave(waves[backwards ? waves.size() - 1 - i : i])) moved = true;
        moved |= trapped.empty() && (release_named_barriers() || release_barrier());
    }
    return trapped.empty() ? deadlock() : "thread " + place(self().index) + ": " + trapped;
}

// ---- LDS

constexpr int lds_canary = 0xA5;
constexpr size_t canary_bytes = 1024;

// Whatever the block before left there: large numbers that are not numbers, or with another seed small ones.
static void fill_lds() {
    int lds_poison = (0xFF - 64 * setting("HIPSIM_SEED", 0)) & 0xFF;
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(hipsim_dynamic_lds, sizeof hipsim_dynamic_lds);
    for (auto [base, size] : launch->kernel->static_lds) memset(base, lds_poison, size);
    memset(hipsim_dynamic_lds, lds_poison, launch->dynamic_lds);
    memset(hipsim_dynamic_lds + launch->dynamic_lds, lds_canary, canary_bytes);
    if (__asan_poison_memory_region)
        __asan_poison_memory_region(hipsim_dynamic_lds + launch->dynamic_lds, sizeof hipsim_dynamic_lds - launch->dynamic_lds);
}

static std::string check_lds() {
    const char* end = hipsim_dynamic_lds + launch->dynamic_lds;
    for (size_t i = 0; i < canary_bytes; i++)
        if (end[i] != char(lds_canary))
            return format("a write %zu bytes past the end of %zu bytes of dynamic LDS", i, launch->dynamic_lds);
    return "";
}

// ---- the grid

static void lay_out_block(hipsim_dim3 block, unsigned wave) {
    unsigned count = block.x * block.y * block.z;
    threads.resize(count);
    for (unsigned i = 0; i < count; i++) {
        threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
        threads[i].linear = i;
        threads[i].lane = i % wave;
        threads[i].stack = nullptr;
    }
    waves.resize((count + wave - 1) / wave);
    for (unsigned i = 0; i < waves.size(); i++) waves[i] = {i * wave, std::min(wave, count - i * wave), {}};
    for (Thread& thread : threads) thread.wave = &waves[thread.linear / wave];
    hipsim_wave_size = wave;
    hipsim_block_dim = block;
}

static void drop_fibers() {
    for (Thread& thread : threads)
        if (thread.stack) {
            if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(thread.stack - stack_bytes / 2, stack_bytes / 2);
            give_stack(thread.stack);
            thread.stack = nullptr;
        }
}

// Runs every block and says what went wrong in the first that failed. Blocks come in the order start, start + step,
// start + 2 step ...: every block once, since step is coprime to their number.
static std::string run_grid() {
    hipsim_dim3 grid = launch->grid;
    uint64_t count = uint64_t(grid.x) * grid.y * grid.z;
    std::mt19937_64 random(random_state);
    uint64_t start = random() % count, step = random() % count | 1;
    while (std::gcd(step, count) != 1) step += 2;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t block = (start + i * step) % count;
        hipsim_block_index = {unsigned(block % grid.x), unsigned(block / grid.x % grid.y), unsigned(block / grid.x / grid.y)};
        fill_lds();
        begin_overlapping_block();
        std::string fault = run_block(), early = end_overlapping_block();
        if (fault.empty()) fault = early;
        if (fault.empty()) fault = check_lds();
        if (fault.empty()) fault = sanitizer_fault();
        if (!fault.empty()) return fault;
    }
    return "";
}

void run_kernel(Launch& work) {
    launch = &work;
    random_state = (setting("HIPSIM_SEED", 0) + 1) * 0x9E3779B97F4A7C15;
    hipsim_grid_dim = work.grid;
    lay_out_block(work.block, arch(work.device).wave);
    begin_overlapping(*work.kernel);
    std::string kernel = "kernel " + work.kernel->name, fault = catch_faults(run_grid);
    if (!fault.empty()) {
        report_fault(kernel + ", block " + place(hipsim_block_index) + ": " + fault);
        drop_fibers();
        trapped.clear();
    }
    end_overlapping();
    check_canaries(kernel);
}

} // namespace hipsim
