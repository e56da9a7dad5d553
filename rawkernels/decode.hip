// What a decode step does on its own before the model runs, so that the host need not: it finds each row's place.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = 256;

// A row's token is the one at `next[row]` of its sequence: its position, the cache slot for it by the row's block table
// (rows, width) of blocks of `block_size` tokens, and the sequence's length with it; then `next` goes up by one. A row
// whose `next` is negative has no sequence: position 0, no slot, length 0. `turn` counts the steps.
RF_KERNEL(THREADS)
rf_place_tokens(i32* next, i32* positions, i32* slots, i32* lengths, i32* turn, const i32* tables, u32 rows, u32 width,
                u32 block_size) {
    wait_for_previous();
    u32 row = block_x() * THREADS + thread_x();
    if (row == 0) ++*turn;
    if (row >= rows) return;
    i32 position = next[row];
    bool live = position >= 0;
    u32 at = live ? position : 0;
    positions[row] = at;
    lengths[row] = live ? at + 1 : 0;
    slots[row] = live ? i32(tables[row * width + at / block_size] * block_size + at % block_size) : -1;
    if (live) next[row] = position + 1;
}

}  // namespace rocforge
