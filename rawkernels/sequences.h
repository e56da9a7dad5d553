// Sequences of a batch: which a token is of; and where each has its state of a fixed size, in the slot of its number.
// One whose first token here is at position 0 begins with zeros.
#pragma once
#include "target/platform.h"

namespace rocforge {

// The sequence that a token is of: the last one that does not begin after it. All lanes of the wave take part: each
// looks at one of as many sequences as there are lanes, evenly spaced, and then at those between two of them.
RF_DEVICE u32 sequence_of(const i32* query_starts, u32 sequences, i32 token) {
    u32 first = 0, count = sequences;
    while (count > 1) {
        u32 step = (count + RF_WAVE - 1) / RF_WAVE, offset = lane() * step;
        bool begun = offset < count && query_starts[first + offset] <= token;
        u32 passed = (set_bits(wave_ballot(begun)) - 1) * step;
        first += passed;
        count = step < count - passed ? step : count - passed;
    }
    return first;
}

struct Sequences {
    const i32 *slots, *positions, *query_starts;
    u64 slot_stride;  // elements of the state between two slots
};

struct Sequence {
    i32 begin, end;
    u64 state;
    bool fresh;
};

// The one of a number; without tokens or a slot it has no rows.
RF_DEVICE Sequence sequence_at(const Sequences& all, u32 number) {
    i32 begin = all.query_starts[number], end = all.query_starts[number + 1], slot = all.slots[number];
    if (slot < 0 || begin >= end) return {0, 0, 0, true};
    return {begin, end, slot * all.slot_stride, all.positions[begin] == 0};
}

// Calls f(number) for those of `count` sequences that are the block's, each `turns`-th from block_y() on, and of which
// takes(tokens) holds. All threads of a block call it together. There may be many sequences without a token.
template <class Takes, class Each>
RF_DEVICE void each_of_block(const i32* query_starts, u32 count, u32 turns, Takes takes, Each f) {
    for (u32 first = block_y(); first < count; first += turns * RF_WAVE) {
        u32 own = first + lane() * turns;
        u64 found = wave_ballot(own < count && takes(query_starts[own + 1] - query_starts[own]));
        for (; found; found &= found - 1) f(first + lowest_bit(found) * turns);
    }
}

}  // namespace rocforge
