// What a step begins with: what the host says of its tokens and sequences becomes the model's inputs, at addresses that
// captured launches know.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// `staged` is the host's upload: of `tokens` tokens their ids, positions and sequences; of `sequences` sequences, one
// more for query_starts, what the arrays of these names get, and their adapters; the rows of logits; then of each
// table, of each group of layers and each sequence in order, how many blocks it has, how many of these `kept` has
// already, and where among the `blocks` that follow the rest begins.
//
// Where sequences have one token each, `staged` becomes the step after, of the same sequences and blocks, in which each
// goes on with its last token: the same launch, without an upload, is that step's.
//
// An id below zero, -1 - i, is last_tokens[i]. A token's slot in a group follows from its sequence's table; one whose
// sequence has no blocks has none, -1. `kept` (groups, kept_rows, width) has the table of each running request, of a
// sequence in row `kept_row`; blocks that it lacks are added to it. A token has its sequence's adapter, and so has a
// row of logits.
struct StepParams {
    i32* staged;
    const i32* last_tokens;
    i32 *ids, *positions, *query_starts, *lengths, *state_slots, *rows, *adapters, *row_adapters, *slots, *tables,
        *kept;
    u32 tokens, sequences, wanted, groups, width, kept_rows, block_size;
    i32 one_each;  // whether each sequence has one token
};

struct Staged {
    i32 *ids, *positions, *sequence, *query_starts, *lengths, *state_slots, *rows, *kept_row, *adapter, *counts, *known,
        *starts, *blocks;
    RF_MEMBER explicit Staged(const StepParams& p) {
        u32 pairs = p.groups * p.sequences;
        ids = p.staged, positions = ids + p.tokens, sequence = positions + p.tokens;
        query_starts = sequence + p.tokens, lengths = query_starts + p.sequences + 1;
        state_slots = lengths + p.sequences, kept_row = state_slots + p.sequences, adapter = kept_row + p.sequences;
        rows = adapter + p.sequences;
        counts = rows + p.wanted, known = counts + pairs, starts = known + pairs, blocks = starts + pairs;
    }
    // Block i of a table; pair = group * sequences + sequence.
    RF_MEMBER i32 block(const StepParams& p, u32 pair, u32 i) const {
        u32 have = known[pair];
        if (i >= have) return blocks[starts[pair] + i - have];
        return p.kept[(u64(pair / p.sequences) * p.kept_rows + kept_row[pair % p.sequences]) * p.width + i];
    }
};

// Blocks of the grid: enough for a thread for each token and for sequences + 1, and then one for each table.
RF_KERNEL(THREADS)
rf_begin_step(StepParams p) {
    wait_for_previous();
    Staged from(p);
    u32 most = p.tokens > p.sequences ? p.tokens : p.sequences + 1, first = (most + THREADS - 1) / THREADS;
    if (block_x() >= first) {
        u32 pair = block_x() - first, count = from.counts[pair], have = from.known[pair];
        i32* table = p.tables + u64(pair) * p.width;
        i32* kept = p.kept + (u64(pair / p.sequences) * p.kept_rows + from.kept_row[pair % p.sequences]) * p.width;
        for (u32 i = thread_x(); i < count; i += THREADS) {
            i32 block = from.block(p, pair, i);
            table[i] = block;
            if (i >= have) kept[i] = block;
        }
        return;
    }
    u32 i = block_x() * THREADS + thread_x();
    if (i < p.tokens) {
        i32 id = from.ids[i], position = from.positions[i];
        p.ids[i] = id < 0 ? p.last_tokens[-1 - id] : id;
        p.positions[i] = position;
        p.adapters[i] = from.adapter[from.sequence[i]];
        for (u32 g = 0; g < p.groups; ++g) {
            u32 pair = g * p.sequences + from.sequence[i];
            i32 slot = -1;
            if (from.counts[pair])
                slot = from.block(p, pair, position / p.block_size) * p.block_size + position % p.block_size;
            p.slots[u64(g) * p.tokens + i] = slot;
        }
    }
    if (i <= p.sequences) p.query_starts[i] = from.query_starts[i];
    if (i < p.sequences) {
        u32 length = from.lengths[i];
        p.lengths[i] = length, p.state_slots[i] = from.state_slots[i];
        if (p.one_each && length) from.ids[i] = -1 - from.kept_row[i], from.positions[i]++, from.lengths[i]++;
    }
    if (i < p.wanted) p.rows[i] = from.rows[i], p.row_adapters[i] = from.adapter[from.sequence[from.rows[i]]];
}

}  // namespace rocforge
