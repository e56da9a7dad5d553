// Finding, in a row of logits, the element at a rank or at a share of the probability, without sorting.
//
// An element is (id, gap): gap is how far its logit lies below the row's highest, as the bits of a float that is not
// negative, so that more likely elements have smaller gaps as integers. Weights are exp(-gap) in fixed point: sums do
// not depend on their order, so results are the same in every run.
#pragma once
#include "target/platform.h"

namespace rocforge {

constexpr u32 ROW_THREADS = RF_TUNE_SAMPLE_ROW_THREADS;
constexpr u32 BINS = 2 * ROW_THREADS;
constexpr u32 ID_BIN = 256;  // ids in one of the first bins; ids have 19 bits
constexpr u32 LIST = RF_TUNE_SAMPLE_LIST;
constexpr u32 COUNTED = RF_TUNE_SAMPLE_COUNTED;  // elements of a list of which each thread goes over all
constexpr u32 ALL = 0xffffffff;
constexpr u32 FAR = 0x41e00000;  // 28: no element that is further from the first has a weight

// Runs of elements, of which the highest is known, so that few of a row are looked at again.
constexpr u32 RUN_LANES = 32, RUN = 4 * RUN_LANES, MOST_RUNS = (1 << 19) / RUN;
constexpr u32 RUNS_EACH = MOST_RUNS / ROW_THREADS;  // of a thread
static_assert(2 * BINS >= MOST_RUNS, "the runs to be looked at are listed in place of bins");

struct SelectShared {
    union {
        struct {
            u32 low[BINS], high[BINS];  // sums of 64 bits in halves: devices add 32 bits to LDS in one step
        };
        u32 runs[2 * BINS];
        u64 weights[COUNTED];
    };
    u64 totals[ROW_THREADS / RF_WAVE];
    u64 below, inside;
    u32 bin, listed, wanted;
    u32 gaps[LIST], ids[LIST];
};

RF_DEVICE u64 shuffle64(u64 value, u32 from) {
    return u64(shuffle(u32(value >> 32), from)) << 32 | shuffle(u32(value), from);
}
// Every lane gets the sum over its run of LANES lanes.
template <u32 LANES>
RF_DEVICE u64 sum_lanes(u64 value) {
    RF_UNROLL
    for (u32 offset = LANES / 2; offset > 0; offset /= 2) value += shuffle64(value, lane() ^ offset);
    return value;
}

// The sum of the values of the threads before this one, and in `total` of all.
RF_DEVICE u64 block_prefix(SelectShared& shared, u64 value, u64& total) {
    u64 sum = value;
    RF_UNROLL
    for (u32 offset = 1; offset < RF_WAVE; offset *= 2) {
        u64 before = shuffle64(sum, lane() >= offset ? lane() - offset : lane());
        if (lane() >= offset) sum += before;
    }
    barrier();
    if (lane() == RF_WAVE - 1) shared.totals[wave()] = sum;
    barrier();
    u64 mine = lane() < ROW_THREADS / RF_WAVE ? shared.totals[lane()] : 0;
    u64 before = sum_lanes<RF_WAVE>(lane() < wave() ? mine : 0);
    total = sum_lanes<RF_WAVE>(mine);
    return before + sum - value;
}

// exp(-gap) * 2^40; one conversion to 32 bits, since those to 64 are slow.
RF_DEVICE u64 weight_of(u32 gap) {
    float weight = fast_exp(-bits_float(gap));
    bool small = weight < 0.001953125f;  // 2^-9
    return u64(u32(weight * (small ? 1099511627776.0f : 2147483648.0f))) << (small ? 0 : 9);
}

// The four numbers of a row of `size` from `id` on, where id is a multiple of 4; the row is 16-byte aligned where its
// size is one too. -inf past its end.
RF_DEVICE void load_four(float (&v)[4], const float* row, u32 id, u32 size) {
    if (size % 4 == 0 && id < size) {
        f32x4 four = load<f32x4>(row + id);
        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
        return;
    }
    RF_UNROLL
    for (u32 j = 0; j < 4; ++j) v[j] = id + j < size ? row[id + j] : -infinity();
}

// A row of `size` logits in memory, 16-byte aligned where size is a multiple of 4. What counts is each of them over the
// temperature; `highest` is the highest of these.
struct Row {
    static constexpr u32 AT_ONCE = 4;
    const float* values;
    u32 size;
    float temperature, highest;

    RF_MEMBER u32 gap(float value) const { return float_bits(highest - value / temperature); }
    // Of the four elements from `id` on; those past the end are infinitely far.
    RF_MEMBER void load_gaps(u32 (&gaps)[4], u32 id) const {
        float v[4];
        load_four(v, values, id, size);
        RF_UNROLL
        for (u32 j = 0; j < 4; ++j) gaps[j] = gap(v[j]);
    }
    // Calls f(count, id, gaps) with all lanes, for all elements: `count` of them, up to 4, from `id` on.
    template <class F>
    RF_MEMBER void each(F f) const {
        for (u32 base = 0; base < size; base += 4 * ROW_THREADS) {
            u32 id = base + 4 * thread_x(), gaps[4];
            load_gaps(gaps, id);
            f(id + 4 <= size ? 4 : id < size ? size - id : 0, id, gaps);
        }
    }
};

// The likely elements of a row, in LDS, in any order.
struct List {
    static constexpr u32 AT_ONCE = 1;
    const SelectShared& shared;

    template <class F>
    RF_MEMBER void each(F f) const {
        for (u32 base = 0; base < shared.listed; base += ROW_THREADS) {
            u32 i = base + thread_x();
            bool active = i < shared.listed;
            u32 gaps[1] = {active ? shared.gaps[i] : 0};
            f(u32(active), active ? shared.ids[i] : 0, gaps);
        }
    }
};

RF_DEVICE void add_to_bin(SelectShared& shared, u32 bin, u64 value) {
    u32 added = u32(value), old = atomic_add(&shared.low[bin], added);
    u32 high = u32(value >> 32) + (old + added < old);
    if (high) atomic_add(&shared.high[bin], high);
}

// All lanes take part; lanes with a value that share one bin add to it once.
RF_DEVICE void add_together(SelectShared& shared, u32 bin, u64 value) {
    u64 lanes = wave_ballot(value != 0);
    if (!lanes) return;
    u32 first = shuffle(bin, lowest_bit(lanes));
    if (wave_ballot(value != 0 && bin != first)) {
        if (value) add_to_bin(shared, bin, value);
        return;
    }
    value = sum_lanes<RF_WAVE>(value);
    if (lane() == 0) add_to_bin(shared, first, value);
}

// How keys are put in bins: first by `first_bin`, then by equal ranges of the keys in the bin that was found, which
// begin at `start_of` it.
struct ByGap {
    static constexpr bool BY_ID = false;
    static RF_MEMBER u32 key(u32, u32 gap) { return gap; }
    // even in the gap itself, 64 bins for a factor of e, so that few elements share one
    static RF_MEMBER u32 first_bin(u32 gap) {
        float bin = bits_float(gap) * 64.0f;
        return bin < BINS - 1 ? u32(bin) : BINS - 1;
    }
    static RF_MEMBER u32 start_of(u32 bin) { return bin < BINS ? float_bits(float(bin) / 64.0f) : 0x7f800001; }
};
struct ById {
    static constexpr bool BY_ID = true;
    static RF_MEMBER u32 key(u32 id, u32) { return id; }
    static RF_MEMBER u32 first_bin(u32 id) { return id / ID_BIN; }
    static RF_MEMBER u32 start_of(u32 bin) { return bin * ID_BIN; }
};

// What `find` found: the key at which the running sum reaches the limit, the limit less the sum before that key, and
// the sum of all elements with that key.
struct Found {
    u32 key;
    u64 rest, inside;
};

RF_DEVICE void clear_bins(SelectShared& shared) {
    barrier();
    for (u32 i = thread_x(); i < BINS; i += ROW_THREADS) shared.low[i] = shared.high[i] = 0;
    if (thread_x() == 0) shared.bin = 0, shared.below = shared.inside = 0;
    barrier();
}

// Finds the bin at which the running sum, from `base` on, reaches limit_of(sum of all bins), which it returns: its
// number goes to shared.bin, the sum before it to `below`, and its own to `inside`. All are zero where there is none.
template <class LimitOf>
RF_DEVICE u64 find_bin(SelectShared& shared, u64 base, LimitOf limit_of) {
    barrier();
    u32 i = 2 * thread_x();
    u64 first = u64(shared.high[i]) << 32 | shared.low[i];
    u64 second = u64(shared.high[i + 1]) << 32 | shared.low[i + 1], total;
    u64 before = base + block_prefix(shared, first + second, total), limit = limit_of(total);
    for (u32 j = 0; j < 2; ++j) {
        u64 value = j ? second : first;
        if (before < limit && limit <= before + value) shared.bin = i + j, shared.below = before, shared.inside = value;
        before += value;
    }
    barrier();
    return limit;
}

// With elements in the order of their keys, the key of the one at which the sum of their measures reaches
// limit_of(sum of all), or some key where that is more than the sum. Measures of zero count for nothing. The sum is
// taken over bins of keys, then over bins of the keys in the bin that was found, down to single keys.
template <class Key, class Source, class Measure, class LimitOf>
RF_DEVICE Found find(SelectShared& shared, const Source& source, Measure measure, LimitOf limit_of) {
    u32 low = 0, width = 0, shift = 0;  // a width of zero: the first round, whose sum says what the limit is
    u64 base = 0, limit = 0;
    for (;;) {
        clear_bins(shared);
        source.each([&](u32 count, u32 id, const u32* gaps) {
            u64 sum = 0;
            RF_UNROLL
            for (u32 j = 0; j < Source::AT_ONCE; ++j) {
                u32 key = Key::key(id + j, gaps[j]);
                bool inside = j < count && (!width || key - low < width);
                u64 value = inside ? measure(id + j, gaps[j]) : 0;
                u32 bin = inside ? (width ? (key - low) >> shift : Key::first_bin(key)) : 0;
                if (Key::BY_ID && !width) {
                    sum += value;  // neighbours share a bin
                    if (j + 1 == Source::AT_ONCE) add_together(shared, Key::first_bin(id), sum);
                } else if (value) {
                    add_to_bin(shared, bin, value);
                }
            }
        });
        limit = find_bin(shared, base, [&](u64 total) { return width ? limit : limit_of(total); });
        base = shared.below;
        if (width) {
            low += shared.bin << shift;
            width = 1 << shift;
        } else {
            low = Key::start_of(shared.bin);
            width = Key::start_of(shared.bin + 1) - low;
        }
        if (width == 1) return {low, limit - base, shared.inside};
        shift = 0;
        while ((width - 1) >> shift >= BINS) ++shift;
    }
}

// Which elements are kept: gaps below `gap`, and at it, ids up to `id`.
struct Cut {
    u32 gap, id;
    RF_MEMBER bool keeps(u32 i, u32 g) const { return g < gap || (g == gap && i <= id); }
};

// Cuts behind the element at which the sum of measures, most likely first and of equally likely ones the lowest id
// first, reaches the limit.
template <class Source, class Measure, class LimitOf>
RF_DEVICE Cut cut_at(SelectShared& shared, const Source& source, Measure measure, LimitOf limit_of) {
    Found found = find<ByGap>(shared, source, measure, limit_of);
    if (found.rest > found.inside - measure(0, found.key)) return {found.key, ALL};  // up to the last of its equals
    u32 gap = found.key;
    u64 rest = found.rest;
    Found at = find<ById>(
        shared, source, [=](u32 id, u32 g) { return g == gap ? measure(id, g) : 0; }, [=](u64) { return rest; });
    return {gap, at.key};
}

// The highest elements of a row's runs: a thread has some, ROW_THREADS apart. -inf past the last run.
struct Runs {
    float highest[RUNS_EACH];

    RF_MEMBER Runs(const float* of_row, u32 runs) {
        RF_UNROLL
        for (u32 j = 0; j < RUNS_EACH; ++j) highest[j] = number(j) < runs ? of_row[number(j)] : -infinity();
    }
    static RF_MEMBER u32 number(u32 j) { return j * ROW_THREADS + thread_x(); }
    RF_MEMBER float top() const {
        float top = highest[0];
        RF_UNROLL
        for (u32 j = 1; j < RUNS_EACH; ++j) top = maximum(top, highest[j]);
        return block_max<ROW_THREADS>(top);
    }
};

// How far one has to go until the runs that have an element that near reach `limit` together, each by its measure(j), j
// being the thread's number of it. At most FAR.
template <class Measure>
RF_DEVICE u32 reach_of(SelectShared& shared, const Row& row, const Runs& runs, Measure measure, u64 limit) {
    clear_bins(shared);
    RF_UNROLL
    for (u32 j = 0; j < RUNS_EACH; ++j) {
        u32 gap = row.gap(runs.highest[j]);
        if (gap <= FAR) add_to_bin(shared, ByGap::first_bin(gap), measure(j));
    }
    find_bin(shared, 0, [=](u64) { return limit; });
    u32 reach = shared.inside ? ByGap::start_of(shared.bin + 1) - 1 : FAR;
    return reach < FAR ? reach : FAR;
}
// For `count` elements: so many runs have one that near, so at least so many are. Few more are, unless there are hardly
// as many runs.
RF_DEVICE u32 reach_of(SelectShared& shared, const Row& row, const Runs& runs, u32 count) {
    return reach_of(shared, row, runs, [](u32) -> u64 { return 1; }, count);
}

// Lists the elements of a row that `wanted(id, gap)` says, in any order, of the runs that have one within `reach`.
// shared.listed counts all of them, and those past LIST are left out.
template <class Wanted>
RF_DEVICE void list(SelectShared& shared, const Row& row, const Runs& runs, u32 reach, Wanted wanted) {
    barrier();
    if (thread_x() == 0) shared.listed = shared.wanted = 0;
    barrier();
    RF_UNROLL
    for (u32 j = 0; j < RUNS_EACH; ++j)
        if (row.gap(runs.highest[j]) <= reach) shared.runs[atomic_add(&shared.wanted, 1u)] = Runs::number(j);
    barrier();
    for (u32 i = thread_x() / RUN_LANES; i < shared.wanted; i += ROW_THREADS / RUN_LANES) {
        u32 id = RUN * shared.runs[i] + 4 * (thread_x() % RUN_LANES), gaps[4];
        row.load_gaps(gaps, id);
        RF_UNROLL
        for (u32 j = 0; j < 4; ++j) {
            if (id + j >= row.size || !wanted(id + j, gaps[j])) continue;
            u32 at = atomic_add(&shared.listed, 1u);
            if (at < LIST) shared.ids[at] = id + j, shared.gaps[at] = gaps[j];
        }
    }
    barrier();
}

// How many of the first `count` elements of a list come before one, more likely or as likely with a lower id; calls
// f(j, whether it does) for each.
template <class F>
RF_DEVICE u32 rank_of(const SelectShared& shared, u32 count, u32 gap, u32 id, F f) {
    u32 rank = 0;
    for (u32 j = 0; j < count; ++j) {
        u32 other = shared.gaps[j];
        bool before = (other < gap) | ((other == gap) & (shared.ids[j] < id));  // no branches: loads come together
        f(j, before), rank += before;
    }
    return rank;
}

}  // namespace rocforge
