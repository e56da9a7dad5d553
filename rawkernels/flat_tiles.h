// Which sequence's rows a tile has, where tiles of all sequences are numbered one after another. For sources compiled
// for a RF_GROUP.
#pragma once
#include "target/platform.h"

namespace rocforge {

// The first tile of a sequence: its share of `tokens * RF_GROUP / ROWS + sequences` tiles, up to the next one's first,
// is enough for its rows, RF_GROUP a query, wherever they begin.
template <u32 ROWS>
RF_DEVICE u32 first_tile(const i32* query_starts, u32 sequence) {
    return u32(query_starts[sequence]) * RF_GROUP / ROWS + sequence;
}

// The sequence that has a tile. All lanes of the wave take part: each looks at one of as many sequences as there are
// lanes, evenly spaced, and then at those between two of them.
template <u32 ROWS>
RF_DEVICE u32 sequence_of_tile(const i32* query_starts, u32 sequences, u32 tile) {
    u32 first = 0, count = sequences;
    while (count > 1) {
        u32 step = (count + RF_WAVE - 1) / RF_WAVE, offset = lane() * step;
        bool begun = offset < count && first_tile<ROWS>(query_starts, first + offset) <= tile;
        u32 passed = (set_bits(wave_ballot(begun)) - 1) * step;
        first += passed;
        count = step < count - passed ? step : count - passed;
    }
    return first;
}

}  // namespace rocforge
