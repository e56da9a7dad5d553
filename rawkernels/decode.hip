// What a decode step does on its own before the model runs, so that the host need not: it takes each row one token on.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// A row's token is the one at `next[row]` of its sequence: its position, the sequence's length with it, and the cache
// slot for it in each group of layers, `slots` (groups, rows), by the row's block table in that group, `tables`
// (groups, rows, width) of blocks of `block_size` tokens; then `next` goes up by one. A row whose `next` is negative
// has no sequence: position 0, no slot, length 0. `step` counts the steps.
RF_KERNEL(THREADS)
rf_advance_decode(i32* next, i32* positions, i32* lengths, i32* step, i32* slots, const i32* tables, u32 groups,
                  u32 rows, u32 width, u32 block_size) {
    wait_for_previous();
    u32 row = block_x() * THREADS + thread_x();
    if (row == 0) ++*step;
    if (row >= rows) return;
    i32 position = next[row];
    bool live = position >= 0;
    u32 at = live ? position : 0;
    positions[row] = at;
    lengths[row] = live ? at + 1 : 0;
    for (u32 i = row; i < groups * rows; i += rows)
        slots[i] = live ? i32(tables[u64(i) * width + at / block_size] * block_size + at % block_size) : -1;
    if (live) next[row] = position + 1;
}

}  // namespace rocforge
