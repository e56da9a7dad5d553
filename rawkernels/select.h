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
constexpr float LIST_GAP =
    RF_TUNE_SAMPLE_LIST_GAP;  // elements e^LIST_GAP times less likely than the first are not listed
constexpr u32 ALL = 0xffffffff;

struct SelectShared {
    u32 low[BINS], high[BINS];  // sums of 64 bits in halves: devices add 32 bits to LDS in one step
    u64 totals[ROW_THREADS / RF_WAVE];
    u64 below, inside;
    u32 bin, listed;
    u32 gaps[LIST], ids[LIST];
};

RF_DEVICE u64 shuffle64(u64 value, u32 from) {
    return u64(shuffle(u32(value >> 32), from)) << 32 | shuffle(u32(value), from);
}
RF_DEVICE u64 wave_sum64(u64 value) {
    RF_UNROLL
    for (u32 offset = RF_WAVE / 2; offset > 0; offset /= 2) value += shuffle64(value, lane() ^ offset);
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
    u64 before = wave_sum64(lane() < wave() ? mine : 0);
    total = wave_sum64(mine);
    return before + sum - value;
}

// exp(-gap) * 2^40; one conversion to 32 bits, since those to 64 are slow.
RF_DEVICE u64 weight_of(u32 gap) {
    float weight = fast_exp(-bits_float(gap));
    bool small = weight < 0.001953125f;  // 2^-9
    return u64(u32(weight * (small ? 1099511627776.0f : 2147483648.0f))) << (small ? 0 : 9);
}

// A row of `size` logits in memory, 16-byte aligned where size is a multiple of 4. What counts is each of them over the
// temperature; `highest` is the highest of these.
struct Row {
    static constexpr u32 AT_ONCE = 4;
    const float* values;
    u32 size;
    float temperature, highest;

    // Calls f(count, id, gaps) with all lanes, for the elements from begin (a multiple of 4) to end: `count` of them,
    // up to 4, from `id` on.
    template <class F>
    RF_MEMBER void each(u32 begin, u32 end, F f) const {
        if (end > size) end = size;
        for (u32 base = begin; base < end; base += 4 * ROW_THREADS) {
            u32 id = base + 4 * thread_x();
            float v[4];
            if (size % 4 == 0 && id < end) {
                f32x4 four = load<f32x4>(values + id);
                v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
            } else {
                RF_UNROLL
                for (u32 j = 0; j < 4; ++j) v[j] = id + j < end ? values[id + j] : 0;
            }
            u32 gaps[4], count = id + 4 <= end ? 4 : id < end ? end - id : 0;
            RF_UNROLL
            for (u32 j = 0; j < 4; ++j) gaps[j] = float_bits(highest - v[j] / temperature);
            f(count, id, gaps);
        }
    }
};

// The likely elements of a row, in LDS, in any order.
struct List {
    static constexpr u32 AT_ONCE = 1;
    const SelectShared& shared;

    template <class F>
    RF_MEMBER void each(u32, u32, F f) const {
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
    value = wave_sum64(value);
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

// With elements in the order of their keys, the key of the one at which the sum of their measures reaches
// limit_of(sum of all), or some key where that is more than the sum. Measures of zero count for nothing. The sum is
// taken over bins of keys, then over bins of the keys in the bin that was found, down to single keys. Where the element
// is known to be among the `width` keys from `low` on, at most BINS, `base` is the sum of those before.
template <class Key, class Source, class Measure, class LimitOf>
RF_DEVICE Found find(SelectShared& shared, const Source& source, Measure measure, LimitOf limit_of, u32 low = 0,
                     u32 width = 0, u64 base = 0) {
    u32 shift = 0;
    u64 limit = width ? limit_of(0) : 0;  // a width of zero: the first round, whose sum says what the limit is
    for (;;) {
        barrier();
        for (u32 i = thread_x(); i < BINS; i += ROW_THREADS) shared.low[i] = shared.high[i] = 0;
        if (thread_x() == 0) shared.bin = 0, shared.below = shared.inside = 0;
        barrier();
        bool range = Key::BY_ID && width;
        source.each(range ? low : 0, range ? low + width : ALL, [&](u32 count, u32 id, const u32* gaps) {
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
        barrier();
        u32 i = 2 * thread_x();
        u64 first = u64(shared.high[i]) << 32 | shared.low[i];
        u64 second = u64(shared.high[i + 1]) << 32 | shared.low[i + 1], total;
        u64 before = base + block_prefix(shared, first + second, total);
        if (!width) limit = limit_of(total);
        for (u32 j = 0; j < 2; ++j) {
            u64 value = j ? second : first;
            if (before < limit && limit <= before + value)
                shared.bin = i + j, shared.below = before, shared.inside = value;
            before += value;
        }
        barrier();
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

// Lists the likely elements of a row, up to LIST_GAP, or where they are too many up to half of that, or a quarter.
// Returns the sum of all weights; false in `complete` where those are too many as well.
RF_DEVICE u64 list_likely(SelectShared& shared, const Row& row, bool& complete) {
    u64 total = 0;
    complete = false;
    for (float most = LIST_GAP; !complete && most >= LIST_GAP / 4; most /= 2) {
        barrier();
        if (thread_x() == 0) shared.listed = 0;
        barrier();
        u64 sum = 0;
        row.each(0, row.size, [&](u32 count, u32 id, const u32* gaps) {
            RF_UNROLL
            for (u32 j = 0; j < Row::AT_ONCE; ++j) {
                if (j >= count) continue;
                sum += weight_of(gaps[j]);
                if (gaps[j] > float_bits(most)) continue;
                u32 i = atomic_add(&shared.listed, 1u);
                if (i < LIST) shared.ids[i] = id + j, shared.gaps[i] = gaps[j];
            }
        });
        block_prefix(shared, sum, total);
        complete = shared.listed <= LIST;
    }
    return total;
}

}  // namespace rocforge
