// Attention in two parts, with the pattern between them in memory, for those who look at it or change it.
//
// Compiled for RF_HEAD_DIM, RF_BLOCK_SIZE (tokens of a cache block) and the cache's types. A pattern is (heads, tokens,
// columns): what each token's query sees of the tokens of its own sequence, by their positions; it is zero where there
// is none to see.
#include "attention.h"
#include "formats/kv_cache.h"
#include "sequences.h"

namespace rocforge {

// variants: RF_HEAD_DIM=80,128,256,512 RF_BLOCK_SIZE=32
// variants: RF_HEAD_DIM=128 RF_BLOCK_SIZE=32 RF_KEY_TYPE=Q8_0 RF_VALUE_TYPE=Q4_0
constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// A query's sequence: its tokens, the query's position, and what it sees of them: from `first` up to `end`.
struct Seen {
    const i32* table;
    i32 length, position, first, end;
};

// Of `window` tokens that a query sees, 0 for all, its own is the last, or if not `causal` that in the middle. Tokens
// that fill up a step, whose sequence has the length zero, see none.
template <class Params>
RF_DEVICE Seen seen_by(const Params& p, i32 token) {
    u32 sequence = sequence_of(p.query_starts, p.sequences, token);
    i32 length = p.lengths[sequence], position = length - (p.query_starts[sequence + 1] - token), half = p.window / 2;
    i32 last = p.causal ? position : p.window ? minimum(position + half, length - 1) : length - 1;
    i32 first = p.causal ? first_seen(position, p.window, p.chunked) : p.window ? maximum(position - half, 0) : 0;
    return {p.tables + u64(sequence) * p.table_stride, length, position, first, length ? last + 1 : 0};
}

// From q (tokens, heads, RF_HEAD_DIM).
struct PatternParams {
    float* pattern;
    const float* q;
    const void* keys;
    const i32 *tables, *lengths, *query_starts;
    RF_NULLABLE const float *sinks, *slopes;
    u32 table_stride, sequences, tokens, heads, kv_heads, columns;
    float scale, softcap;
    i32 window, chunked, causal;
};

// Grid: (tokens, heads).
RF_KERNEL(THREADS)
rf_attention_pattern(PatternParams p) {
    wait_for_previous();
    RF_SHARED float query[RF_HEAD_DIM];
    u32 token = block_x(), head = block_y();
    Seen seen = seen_by(p, token);
    float* row = p.pattern + (u64(head) * p.tokens + token) * p.columns;
    const float* q = p.q + (u64(token) * p.heads + head) * RF_HEAD_DIM;
    for (u32 i = thread_x(); i < RF_HEAD_DIM; i += THREADS) query[i] = q[i] * p.scale;
    barrier();
    u32 kv_head = head / (p.heads / p.kv_heads);
    i32 end = minimum(seen.end, i32(p.columns));
    float highest = -infinity();
    for (i32 key = seen.first + i32(thread_x()); key < end; key += THREADS) {
        CachedRow cached = block_of<Keys>(p.keys, seen.table, key, p.kv_heads, kv_head).row(key % RF_BLOCK_SIZE);
        float score = 0;
        RF_NO_UNROLL
        for (u32 i = 0; i < RF_HEAD_DIM; i += 8) {
            Keys::Piece<8> piece;
            piece.load_from(cached, i);
            float x[8], sum = 0;
            piece.unpack(x);
            RF_UNROLL
            for (u32 j = 0; j < 8; ++j) sum += query[i + j] * x[j];
            score += sum * piece.scale();
        }
        if (p.softcap > 0) score = p.softcap * fast_tanh(score / p.softcap);
        if (p.slopes) score -= p.slopes[head] * float(maximum(seen.position - key, key - seen.position));
        row[key] = score;
        highest = maximum(highest, score);
    }
    float sink = p.sinks ? p.sinks[head] : -infinity();
    highest = maximum(block_reduce<THREADS>(highest, Maximum()), sink);
    float sum = 0;
    for (i32 key = seen.first + i32(thread_x()); key < end; key += THREADS)
        sum += row[key] = fast_exp(row[key] - highest);
    sum = block_reduce<THREADS>(sum, Add());
    if (p.sinks) sum += fast_exp(sink - highest);
    for (i32 key = thread_x(); key < i32(p.columns); key += THREADS)
        row[key] = key >= seen.first && key < end ? row[key] / sum : 0.0f;
}

// To out (tokens, heads, RF_HEAD_DIM).
struct HeadsParams {
    float* out;
    const float* pattern;
    const void* values;
    const i32 *tables, *lengths, *query_starts;
    u32 table_stride, sequences, tokens, heads, kv_heads, columns;
    i32 window, chunked, causal;
};

// Sums of values by any pattern, over the tokens that there are from the window's first one on. Threads share out the
// elements, and where there are more threads, the tokens. Grid: (tokens, heads).
RF_KERNEL(THREADS)
rf_attention_heads(HeadsParams p) {
    constexpr u32 PARTS = THREADS > RF_HEAD_DIM ? THREADS / RF_HEAD_DIM : 1;
    wait_for_previous();
    RF_SHARED float sums[PARTS][RF_HEAD_DIM];
    u32 token = block_x(), head = block_y();
    Seen seen = seen_by(p, token);
    const float* row = p.pattern + (u64(head) * p.tokens + token) * p.columns;
    u32 kv_head = head / (p.heads / p.kv_heads);
    i32 end = minimum(seen.length, i32(p.columns));
    for (u32 i = thread_x(); i < PARTS * RF_HEAD_DIM; i += THREADS) {
        u32 part = i / RF_HEAD_DIM, element = i % RF_HEAD_DIM;
        float sum = 0;
        for (i32 key = seen.first + i32(part); key < end; key += PARTS)
            sum +=
                row[key] *
                Values::element(
                    block_of<Values>(p.values, seen.table, key, p.kv_heads, kv_head).row(key % RF_BLOCK_SIZE), element);
        sums[part][element] = sum;
    }
    barrier();
    for (u32 i = thread_x(); i < RF_HEAD_DIM; i += THREADS) {
        float sum = 0;
        for (u32 part = 0; part < PARTS; ++part) sum += sums[part][i];
        p.out[(u64(token) * p.heads + head) * RF_HEAD_DIM + i] = sum;
    }
}

}  // namespace rocforge
