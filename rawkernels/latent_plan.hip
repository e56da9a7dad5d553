// Latent attention of a batch in which prompts make keys and values of latents (latent_expand.hip), and tokens that are
// alone in their sequence attend to the latents themselves: which is which, and where their blocks and rows are.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = 256;

// Sequences with several tokens have their blocks expanded, one sequence after another. Of the room for `room` blocks
// `sources` says which cache block is expanded there, -1 for none, and `expanded` (sequences, width) is the sequences'
// table. Of the other sequences `alone` has the row of the one token, and `alone_lengths` how many tokens there are; -1
// and 0 of those that are expanded or have none. `alone_starts` (sequences + 1) counts up from 0.
struct LatentPlanParams {
    i32 *expanded, *sources, *alone, *alone_lengths, *alone_starts;
    const i32 *tables, *lengths, *query_starts;
    u32 table_stride, width, sequences, room, block_size;
};

RF_DEVICE i32 queries_of(const LatentPlanParams& p, u32 sequence) {
    return p.query_starts[sequence + 1] - p.query_starts[sequence];
}
RF_DEVICE u32 blocks_of(const LatentPlanParams& p, u32 sequence) {
    return queries_of(p, sequence) > 1 ? (p.lengths[sequence] + p.block_size - 1) / p.block_size : 0;
}

// A block a sequence.
RF_KERNEL(THREADS)
rf_latent_plan(LatentPlanParams p) {
    wait_for_previous();
    u32 sequence = block_x(), count = blocks_of(p, sequence), first = 0;
    for (u32 s = thread_x(); s < sequence; s += THREADS) first += blocks_of(p, s);
    first = block_sum<THREADS>(first);
    for (u32 i = thread_x(); i < count && first + i < p.room && i < p.width; i += THREADS) {
        p.expanded[u64(sequence) * p.width + i] = first + i;
        p.sources[first + i] = p.tables[u64(sequence) * p.table_stride + i];
    }
    if (thread_x() == 0) {
        bool single = queries_of(p, sequence) == 1;
        p.alone[sequence] = single ? p.query_starts[sequence] : -1;
        p.alone_lengths[sequence] = single ? p.lengths[sequence] : 0;
        p.alone_starts[sequence] = sequence;
    }
    if (sequence + 1 < p.sequences) return;
    if (thread_x() == 0) p.alone_starts[p.sequences] = p.sequences;
    for (u32 i = first + count + thread_x(); i < p.room; i += THREADS) p.sources[i] = -1;
}

// What attention gave the sequences' one token, y (sequences, size), to its row of out (tokens, size). A block a
// sequence.
RF_KERNEL(THREADS)
rf_latent_alone(float* out, const float* y, const i32* alone, u32 size) {
    wait_for_previous();
    i32 row = alone[block_x()];
    if (row < 0) return;
    for (u32 i = thread_x() * 4; i < size; i += THREADS * 4)
        *reinterpret_cast<f32x4*>(out + u64(row) * size + i) = load<f32x4>(y + u64(block_x()) * size + i);
}

}  // namespace rocforge
