// Attention of many queries over the paged cache: tiles of queries by tiles of keys, with an online softmax.
//
// Compiled for RF_HEAD_DIM, RF_GROUP (heads / kv_heads), RF_BLOCK_SIZE (tokens of a cache block), the cache's types,
// RF_ALIBI where scores are biased by distance, RF_GATE and RF_GATE_STEP where results have gates (head_gates.h),
// RF_VALUE_DIM where values are shorter than keys, and, by the card's tuning, RF_PARTS (waves with the same rows) and
// RF_KEYS (keys of a tile); on warpgroups RF_PARTS is of blocks, and there are RF_WIDTH (columns of a tile), RF_STAGES
// (tiles in LDS) and RF_LDS. Source: Dao, FlashAttention-2, https://arxiv.org/abs/2307.08691.
#include "attention.h"
#include "head_gates.h"
#include "sequences.h"
#include "formats/kv_cache.h"
#include "target/fragments.h"

namespace rocforge {

// variants: RF_HEAD_DIM=64,80,96,128,256,512 RF_GROUP=4 RF_BLOCK_SIZE=32
// variants: RF_HEAD_DIM=128 RF_GROUP=1,7,8 RF_BLOCK_SIZE=32
// variants: RF_HEAD_DIM=128,256 RF_GROUP=8 RF_BLOCK_SIZE=32 RF_GATE=sigmoid RF_GATE_STEP=1
// variants: RF_HEAD_DIM=128 RF_GROUP=4 RF_BLOCK_SIZE=32 RF_KEY_TYPE=Q8_0 RF_VALUE_TYPE=Q8_0
// variants: RF_HEAD_DIM=256 RF_GROUP=4 RF_BLOCK_SIZE=32 RF_KEY_TYPE=Q4_0 RF_VALUE_TYPE=FP8_E4M3
// variants: RF_HEAD_DIM=128 RF_GROUP=1 RF_BLOCK_SIZE=32 RF_ALIBI=1
// variants: RF_HEAD_DIM=192 RF_GROUP=1,16 RF_BLOCK_SIZE=32 RF_VALUE_DIM=128

// From q (tokens, heads, RF_HEAD_DIM), `out` or `fp16` (tokens, heads, RF_VALUE_DIM), the other null: what heads give,
// times their gates. Queries are the last of their sequence. Of `window` keys that one sees, 0 for all, its own is the
// last, or without `causal` that in the middle. Rows of the queries of a sequence of length zero become zeros. A
// sequence with one query is left to attention_decode.
struct PrefillParams {
    RF_NULLABLE float* out;
    RF_NULLABLE f16* fp16;
    const float* q;
    const void *keys, *values;
    const i32 *tables, *lengths, *query_starts;
    RF_NULLABLE const float *sinks, *slopes;
    HeadGates gates;
    u32 table_stride, kv_heads, sequences, tiles;
    float scale, softcap;
    i32 window, chunked, causal;
};

// Of keys: from `start` up to `end`.
struct KeyRange {
    i32 start, end;
};

const i32 EVERY_TOKEN = 1 << 30;  // more than there are, of a sequence

// What a block has of a sequence: rows from first_row up to `total`. A row is a query of one head: row r of a sequence
// is head r % RF_GROUP of the group of query r / RF_GROUP, so that keys and values are read once for the whole group.
struct BlockRows {
    const i32* table;
    u32 base, query_step, kv_head;
    i32 first_row, total, length, before;  // of the sequence: its tokens, and those before the first query
    i32 window, chunked, after;            // of the tokens behind a query, those that it sees

    // A row's place among all queries' heads, in q and in the output.
    RF_MEMBER u64 place(i32 r) const { return base + u32(r) / RF_GROUP * query_step + u32(r) % RF_GROUP; }
    // Where a row's query is; of rows past the sequence's, the last one.
    RF_MEMBER i32 position(i32 r) const { return before + i32(u32(minimum(r, total - 1)) / RF_GROUP); }
    // What ROWS rows see of the keys, from a multiple of STEP on.
    template <u32 ROWS, u32 STEP>
    RF_MEMBER KeyRange keys() const {
        i32 first = first_seen(position(first_row) + after, window, chunked);
        return {first / i32(STEP) * i32(STEP), minimum(position(first_row + i32(ROWS) - 1) + after + 1, length)};
    }
    // The last token that row r and all after it see; -1, which has all tiles masked, in a window that is not causal.
    RF_MEMBER i32 seen_by_all(i32 r) const { return after && window ? -1 : minimum(position(r) + after, length - 1); }
};

// Calls attend(BlockRows) for each sequence with several queries in the block's tile: ROWS of the rows of all
// sequences, one after another. Tiles go from the last to the first, since of a sequence the last have most keys to
// see.
template <u32 ROWS, class Attend>
RF_DEVICE void each_sequence(const PrefillParams& p, Attend attend) {
    i32 start = i32((p.tiles - 1 - block_x()) * ROWS), end = start + i32(ROWS), token = start / RF_GROUP;
    u32 query_step = p.kv_heads * RF_GROUP;
    while (token < minimum((end + RF_GROUP - 1) / RF_GROUP, p.query_starts[p.sequences])) {
        u32 sequence = sequence_of(p.query_starts, p.sequences, token), each = sequence + lane();
        bool several = each < p.sequences && p.query_starts[each + 1] > p.query_starts[each] + 1;
        u64 found = wave_ballot(several && p.query_starts[each < p.sequences ? each : 0] * RF_GROUP < end);
        if (!found) {
            token = p.query_starts[minimum(i32(sequence + RF_WAVE), i32(p.sequences))];
            continue;
        }
        sequence += lowest_bit(found);
        i32 query = p.query_starts[sequence], next = p.query_starts[sequence + 1], length = p.lengths[sequence];
        BlockRows block;
        block.table = p.tables + u64(sequence) * p.table_stride;
        block.base = query * query_step + block_y() * RF_GROUP, block.query_step = query_step;
        block.kv_head = block_y();
        block.first_row = maximum(start - query * RF_GROUP, 0),
        block.total = minimum(next * RF_GROUP, end) - query * RF_GROUP;
        block.length = length, block.before = length - (next - query);
        block.window = p.window, block.chunked = p.chunked;
        block.after = p.causal ? 0 : p.window ? p.window / 2 : EVERY_TOKEN;
        attend(block);
        token = next;
    }
}

// What a row's sums are to be multiplied by: one over the softmax's denominator, with its head's sink among the scores.
RF_DEVICE float normalizer(float highest, float sum, const PrefillParams& p, const BlockRows& block, i32 r) {
    float sink = p.sinks && r < block.total ? p.sinks[block.kv_head * RF_GROUP + r % RF_GROUP] * LOG2E : LOWEST;
    float top = maximum(highest, sink), factor = fast_exp2(highest - top);
    return factor / (sum * factor + fast_exp2(sink - top));
}

// A row's gates, from an element of its head on.
struct RowGates {
    const PrefillParams& p;
    const float* own = nullptr;

    RF_MEMBER RowGates(const PrefillParams& p, const BlockRows& block, i32 r, u32 first) : p(p) {
        u64 place = block.place(r);
        u32 heads = block.query_step;
        if constexpr (GATED) own = gates_of(p.gates, place / heads, u32(place % heads)) + first * RF_GATE_STEP;
    }
    // A result times its gate; where it is rounded to float16, cut to that.
    RF_MEMBER float gated(float x, u32 element) const {
        if constexpr (!GATED) return x;
        x *= gate_unit(own[element * RF_GATE_STEP]);
        return p.fp16 ? clamp_fp16(x) : x;
    }
};

// The slope of a row's head, in units of log 2.
RF_DEVICE float slope_of(const PrefillParams& p, const BlockRows& block, i32 r) {
    return p.slopes[block.kv_head * RF_GROUP + r % RF_GROUP] * LOG2E;
}

}  // namespace rocforge

#ifdef RF_STAGES
#include "attention_warpgroups.h"
#else
#include "attention_waves.h"
#endif

namespace rocforge {

// Grid: (tokens * RF_GROUP / ROWS, kv_heads, RF_PARTS, or 1 on waves), whatever the lengths, so that a launch can be
// replayed.
RF_KERNEL_BOUND(THREADS, RESIDENT)
rf_attention_prefill(PrefillParams p) {
    wait_for_previous();
    attend(p);
}

}  // namespace rocforge
