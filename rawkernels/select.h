// Finding, in a row of logits, the element at a rank or at a share of the probability, without sorting.
//
// An element is (id, gap): gap is how far its logit lies below the row's highest, as the bits of a float that is not
// negative, so that more likely elements have smaller gaps as integers. Weights are exp(-gap) in fixed point: sums do
// not depend on their order, so results are the same in every run.
#pragma once
#include "platform.h"

constexpr u32 ROW_THREADS = 1024;
constexpr u32 BINS = 2048, BIN_BITS = 11;
constexpr u32 GAP_SHIFT = 20, ID_SHIFT = 8;  // of the widest bins: gaps have 31 bits, ids 19
constexpr u32 LIST = 3072;
constexpr float LIST_GAP = 10.0f;  // elements e^10 times less likely than the first are not listed
constexpr u32 ALL = 0xffffffff;

struct SelectShared {
    u64 bins[BINS];
    u64 totals[ROW_THREADS / WAVE];
    u64 below, inside;
    u32 bin, listed;
    u32 gaps[LIST], ids[LIST];
};

DEVICE u64 shuffle64(u64 value, u32 from) {
    return u64(shuffle(u32(value >> 32), from)) << 32 | shuffle(u32(value), from);
}
DEVICE u64 wave_sum64(u64 value) {
    UNROLL
    for (u32 offset = WAVE / 2; offset > 0; offset /= 2) value += shuffle64(value, lane() ^ offset);
    return value;
}

// The sum of the values of the threads before this one, and in `total` of all.
DEVICE u64 block_prefix(SelectShared& shared, u64 value, u64& total) {
    u64 sum = value;
    UNROLL
    for (u32 offset = 1; offset < WAVE; offset *= 2) {
        u64 before = shuffle64(sum, lane() >= offset ? lane() - offset : lane());
        if (lane() >= offset) sum += before;
    }
    barrier();
    if (lane() == WAVE - 1) shared.totals[wave()] = sum;
    barrier();
    u64 prefix = sum - value;
    total = 0;
    for (u32 i = 0; i < ROW_THREADS / WAVE; ++i) {
        if (i < wave()) prefix += shared.totals[i];
        total += shared.totals[i];
    }
    return prefix;
}

DEVICE u64 weight_of(u32 gap) { return u64(fast_exp(-bits_float(gap)) * 1099511627776.0f); }

// A row of `size` floats in memory; 16-byte aligned where size is a multiple of 4.
struct Row {
    const float* values;
    float highest;
    u32 size;

    // Calls f(active, id, gap) with all lanes, for the elements from begin (a multiple of 4) to end.
    template <class F>
    MEMBER void each(u32 begin, u32 end, F f) const {
        if (end > size) end = size;
        for (u32 base = begin; base < end; base += 4 * ROW_THREADS) {
            u32 id = base + 4 * thread_x();
            float v[4];
            if (size % 4 == 0 && id < end) {
                f32x4 four = load<f32x4>(values + id);
                v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
            } else {
                UNROLL
                for (u32 j = 0; j < 4; ++j) v[j] = id + j < end ? values[id + j] : highest;
            }
            UNROLL
            for (u32 j = 0; j < 4; ++j) f(id + j < end, id + j, float_bits(highest - v[j]));
        }
    }
};

// The likely elements of a row, in LDS, in any order.
struct List {
    const SelectShared& shared;

    template <class F>
    MEMBER void each(u32, u32, F f) const {
        for (u32 base = 0; base < shared.listed; base += ROW_THREADS) {
            u32 i = base + thread_x();
            bool active = i < shared.listed;
            f(active, active ? shared.ids[i] : 0, active ? shared.gaps[i] : 0);
        }
    }
};

// All lanes take part; neighbours that share a bin add to it once.
DEVICE void add_to_bin(SelectShared& shared, bool active, u32 bin, u64 value) {
    u64 lanes = wave_ballot(active);
    if (!lanes) return;
    u32 first = shuffle(bin, lowest_bit(lanes));
    if (wave_ballot(active && bin != first)) {
        if (active) atomic_add(&shared.bins[bin], value);
        return;
    }
    value = wave_sum64(active ? value : 0);
    if (lane() == 0) atomic_add(&shared.bins[first], value);
}

struct ByGap {
    static constexpr u32 SHIFT = GAP_SHIFT;
    static constexpr bool RANGE = false;
    MEMBER u32 operator()(u32, u32 gap) const { return gap; }
};
struct ById {
    static constexpr u32 SHIFT = ID_SHIFT;
    static constexpr bool RANGE = true;  // only ids in the bins' range need be looked at
    MEMBER u32 operator()(u32 id, u32) const { return id; }
};

// What `find` found: the key at which the running sum reaches the limit, the limit less the sum before that key, and
// the sum of all elements with that key.
struct Found {
    u32 key;
    u64 rest, inside;
};

// With elements in the order of their keys, the key of the one at which the sum of their measures reaches
// limit_of(sum of all). Measures of zero count for nothing. The sum is taken over bins of keys, then over bins of the
// keys in the bin that was found, down to single keys.
template <class Source, class Key, class Measure, class LimitOf>
DEVICE Found find(SelectShared& shared, const Source& source, Key key, Measure measure, LimitOf limit_of) {
    u32 low = 0;
    u64 base = 0, limit = 0;
    for (u32 shift = Key::SHIFT;; shift = shift > BIN_BITS ? shift - BIN_BITS : 0) {
        barrier();
        for (u32 i = thread_x(); i < BINS; i += ROW_THREADS) shared.bins[i] = 0;
        barrier();
        bool narrowed = Key::RANGE && shift != Key::SHIFT;
        source.each(narrowed ? low : 0, narrowed ? low + (1 << Key::SHIFT) : ALL, [&](bool active, u32 id, u32 gap) {
            u32 k = key(id, gap) - low;
            u64 value = active && k >> shift < BINS ? measure(id, gap) : 0;
            add_to_bin(shared, value != 0, k >> shift, value);
        });
        barrier();
        u64 first = shared.bins[2 * thread_x()], second = shared.bins[2 * thread_x() + 1], total;
        u64 before = base + block_prefix(shared, first + second, total);
        if (shift == Key::SHIFT) limit = limit_of(total);
        for (u32 j = 0; j < 2; ++j) {
            u64 value = j ? second : first;
            if (before < limit && limit <= before + value)
                shared.bin = 2 * thread_x() + j, shared.below = before, shared.inside = value;
            before += value;
        }
        barrier();
        low += shared.bin << shift;
        base = shared.below;
        if (shift == 0) return {low, limit - base, shared.inside};
    }
}

// Which elements are kept: gaps below `gap`, and at it, ids up to `id`.
struct Cut {
    u32 gap, id;
    MEMBER bool keeps(u32 i, u32 g) const { return g < gap || (g == gap && i <= id); }
};

// Cuts behind the element at which the sum of measures, most likely first and of equally likely ones the lowest id
// first, reaches the limit.
template <class Source, class Measure, class LimitOf>
DEVICE Cut cut_at(SelectShared& shared, const Source& source, Measure measure, LimitOf limit_of) {
    Found found = find(shared, source, ByGap(), measure, limit_of);
    if (found.rest > found.inside - measure(0, found.key)) return {found.key, ALL};  // up to the last of its equals
    u32 gap = found.key;
    u64 rest = found.rest;
    Found at = find(
        shared, source, ById(), [=](u32 id, u32 g) { return g == gap ? measure(id, g) : 0; },
        [=](u64) { return rest; });
    return {gap, at.key};
}

// Lists the likely elements of a row; returns the sum of all weights. False in `complete` where they are too many.
DEVICE u64 list_likely(SelectShared& shared, const Row& row, bool& complete) {
    barrier();
    if (thread_x() == 0) shared.listed = 0;
    barrier();
    u64 sum = 0, total;
    row.each(0, row.size, [&](bool active, u32 id, u32 gap) {
        if (!active) return;
        sum += weight_of(gap);
        if (gap > float_bits(LIST_GAP)) return;
        u32 i = atomic_add(&shared.listed, 1u);
        if (i < LIST) shared.ids[i] = id, shared.gaps[i] = gap;
    });
    block_prefix(shared, sum, total);
    complete = shared.listed <= LIST;
    return total;
}
