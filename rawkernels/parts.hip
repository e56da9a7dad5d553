// A card's part of what all cards of a model compute: of the vocabulary, of the experts; and the whole of all parts.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// Rows in a card's part of a table, which has those from `base` on, for ids (tokens,); any row for one of another card,
// which owns what is not from `first` to `end`.
RF_KERNEL(THREADS) rf_rows_of_part(i32* rows, const i32* ids, i32 base, i32 first, i32 end, u32 tokens) {
    wait_for_previous();
    u32 i = block_x() * THREADS + thread_x();
    if (i < tokens) rows[i] = ids[i] >= first && ids[i] < end ? ids[i] - base : 0;
}

// x (tokens, columns) is zero for the ids of other cards. Grid: (tokens, columns / THREADS).
RF_KERNEL(THREADS) rf_keep_part(float* x, const i32* ids, i32 first, i32 end, u32 columns) {
    wait_for_previous();
    u32 row = block_x(), column = block_y() * THREADS + thread_x();
    if (column < columns && (ids[row] < first || ids[row] >= end)) x[u64(row) * columns + column] = 0.0f;
}

// Experts of a card that has `count` from `first` on: those of others, of ids (tokens, used), weigh nothing, and are
// replaced by the last one that the token goes to anyway, if there is one. A thread a token.
RF_KERNEL(THREADS)
rf_experts_of_part(i32* ids, float* weights, const i32* all, const float* given, i32 first, i32 count, u32 used,
                   u32 tokens) {
    wait_for_previous();
    u32 token = block_x() * THREADS + thread_x();
    if (token >= tokens) return;
    i32 stand_in = 0;
    for (u32 i = 0; i < used; ++i) {
        i32 id = all[token * used + i] - first;
        if (id < count && id > stand_in) stand_in = id;
    }
    for (u32 i = 0; i < used; ++i) {
        i32 id = all[token * used + i] - first;
        bool own = id >= 0 && id < count;
        ids[token * used + i] = own ? id : stand_in;
        weights[token * used + i] = own ? given[token * used + i] : 0.0f;
    }
}

// out (rows, columns) of parts (cards, rows, part): card c has `part` columns from c * part on, the last ones the last.
// Grid: (rows, columns / THREADS).
RF_KERNEL(THREADS) rf_join_parts(float* out, const float* parts, u32 part, u32 columns, u32 rows) {
    wait_for_previous();
    u32 column = block_y() * THREADS + thread_x();
    if (column >= columns) return;
    u32 card = column / part, begin = card * part < columns - part ? card * part : columns - part;
    out[u64(block_x()) * columns + column] = parts[(u64(card) * rows + block_x()) * part + column - begin];
}

}  // namespace rocforge
