// RWKV's layers: the token shift, and the state that a head reads, forgets and writes, of versions 6 and 7.
#include "gates.h"
#include "sequences.h"

namespace rocforge {

// variants: RF_HEAD=64 RF_VERSION=6,7

constexpr u32 SHIFT_CHANNELS = 32, SHIFT_ROWS = 8, SHIFT_THREADS = SHIFT_CHANNELS * SHIFT_ROWS;

// y (mixes, tokens, channels): x (tokens, channels), and of what it differs by from the token before the share that mix
// (mixes, channels) plus offsets, of the shape of y or null, say. State (slots, 1, channels) has the token before a
// sequence's; it gets the last one, if `keep`. `size` is tokens * channels.
struct TokenShiftParams {
    float* y;
    const float *x, *mix;
    RF_NULLABLE const float* offsets;
    float* state;
    Sequences sequences;
    u64 size;
    u32 channels, mixes, keep;
};

// Grid: (channels / SHIFT_CHANNELS, sequences).
RF_KERNEL(SHIFT_THREADS) rf_token_shift(TokenShiftParams p) {
    wait_for_previous();
    u32 channel = block_x() * SHIFT_CHANNELS + thread_x() % SHIFT_CHANNELS, rank = thread_x() / SHIFT_CHANNELS;
    Sequence s = sequence_at(p.sequences, block_y());
    bool present = channel < p.channels;
    float* state = p.state + s.state + channel;
    float before = present && !s.fresh ? *state : 0.0f;
    barrier();  // all have read what the last token's thread writes
    if (!present) return;
    for (i32 row = s.begin + i32(rank); row < s.end; row += SHIFT_ROWS) {
        u64 at = u64(row) * p.channels + channel;
        float x = p.x[at], difference = (row == s.begin ? before : p.x[at - p.channels]) - x;
        for (u32 i = 0; i < p.mixes; ++i) {
            u64 to = i * p.size + at;
            float share = p.mix[i * p.channels + channel] + (p.offsets ? p.offsets[to] : 0.0f);
            p.y[to] = x + difference * share;
        }
        if (p.keep && row + 1 == s.end) *state = x;
    }
}

// A block has a head's state: LANES lanes a column, each with KEYS of its rows in registers. Tokens come to LDS in
// tiles.
constexpr u32 HEAD = RF_HEAD, LANES = 4, KEYS = HEAD / LANES, TILE = 8, THREADS = HEAD * LANES;
constexpr u32 TOKEN_LANES = at_most(THREADS / TILE, 32);
constexpr bool SEVEN = RF_VERSION == 7;

// All but y (tokens, heads, HEAD) and k and v (tokens, kv_heads, HEAD) are of the shape of y, or of a row of it.
struct WkvParams {
    float* y;
    const float *r, *k, *v, *decay, *decay_bias;  // decay: the logits of what the state forgets
    RF_NULLABLE const float* gate;
    RF_NULLABLE const float* bonus;  // what a token's own key counts for, beside the state
    RF_NULLABLE const float* norm;   // weight and bias of the norm of heads
    RF_NULLABLE const float* norm_bias;
    // of version 7: logits of the rate at which keys are replaced, which keys that are, and what the rate leaves of
    // keys
    RF_NULLABLE const float* rate;
    RF_NULLABLE const float* rate_bias;
    RF_NULLABLE const float* removed;
    RF_NULLABLE const float* kept;
    // the first layer's values, and logits of their share
    RF_NULLABLE const float* first;
    RF_NULLABLE const float* share;
    RF_NULLABLE const float* share_bias;
    float* state;  // (slots, heads, HEAD keys, HEAD values)
    Sequences sequences;
    u32 heads, kv_heads;
    float scale, eps;
};

struct Tile {
    float r[TILE][HEAD], k[TILE][HEAD], v[TILE][HEAD], decay[TILE][HEAD], y[TILE][HEAD], bonus[TILE];
    float removed[SEVEN ? TILE : 1][HEAD], added[SEVEN ? TILE : 1][HEAD];
};

// Tokens from `row` on, `count` of them, of a head.
RF_DEVICE void load_tile(Tile& tile, const WkvParams& p, i32 row, u32 count, u32 head) {
    u32 kv_head = head / (p.heads / p.kv_heads);
    for (u32 i = thread_x(); i < count * HEAD; i += THREADS) {
        u32 t = i / HEAD, j = i % HEAD, column = head * HEAD + j;
        u64 at = (u64(row + i32(t)) * p.heads + head) * HEAD + j;
        u64 kv = (u64(row + i32(t)) * p.kv_heads + kv_head) * HEAD + j;
        float k = p.k[kv], v = p.v[kv], logit = p.decay[at] + p.decay_bias[column];
        float decay = fast_exp(SEVEN ? -0.606531f * sigmoid(logit) : -fast_exp(logit));
        if (SEVEN) {
            float rate = sigmoid(p.rate[at] + p.rate_bias[column]);
            tile.removed[t][j] = k * p.removed[column], tile.added[t][j] = rate;
            k += k * p.kept[column] * (rate - 1.0f);
            if (p.first) v += (p.first[at] - v) * sigmoid(p.share[at] + p.share_bias[column]);
        } else if (!p.bonus) {
            k -= k * decay;
        }
        tile.r[t][j] = p.r[at], tile.k[t][j] = k, tile.v[t][j] = v, tile.decay[t][j] = decay;
    }
}

// The length of what is removed becomes 1, and a token's bonus is summed: TOKEN_LANES lanes a token.
RF_DEVICE void finish_tile(Tile& tile, const WkvParams& p, u32 count, u32 head) {
    u32 t = thread_x() / TOKEN_LANES, rank = thread_x() % TOKEN_LANES;
    float squares = 0, bonus = 0;
    if (t < count)
        for (u32 j = rank; j < HEAD; j += TOKEN_LANES) {
            if (SEVEN) squares += tile.removed[t][j] * tile.removed[t][j];
            if (p.bonus) bonus += tile.r[t][j] * tile.k[t][j] * p.bonus[head * HEAD + j];
        }
    squares = reduce_lanes<TOKEN_LANES>(squares, Add()), bonus = reduce_lanes<TOKEN_LANES>(bonus, Add());
    if (t >= count) return;
    if (rank == 0) tile.bonus[t] = bonus;
    if (SEVEN) {
        float factor = 1.0f / maximum(square_root(squares), 1e-12f);
        for (u32 j = rank; j < HEAD; j += TOKEN_LANES)
            tile.removed[t][j] *= factor, tile.added[t][j] *= tile.removed[t][j];
    }
}

// What the heads have read, normalized and gated: TOKEN_LANES lanes a token.
RF_DEVICE void store_tile(const Tile& tile, const WkvParams& p, i32 row, u32 count, u32 head) {
    u32 t = thread_x() / TOKEN_LANES, rank = thread_x() % TOKEN_LANES;
    float sum = 0, squares = 0;
    if (t < count)
        for (u32 j = rank; j < HEAD; j += TOKEN_LANES) sum += tile.y[t][j];
    float mean = reduce_lanes<TOKEN_LANES>(sum, Add()) / HEAD;
    if (t < count)
        for (u32 j = rank; j < HEAD; j += TOKEN_LANES) squares += (tile.y[t][j] - mean) * (tile.y[t][j] - mean);
    float factor = fast_rsqrt(reduce_lanes<TOKEN_LANES>(squares, Add()) / HEAD + p.eps);
    if (t >= count) return;
    for (u32 j = rank; j < HEAD; j += TOKEN_LANES) {
        u64 at = (u64(row + i32(t)) * p.heads + head) * HEAD + j;
        float y = tile.y[t][j];
        if (p.norm) y = (y - mean) * factor * p.norm[head * HEAD + j] + p.norm_bias[head * HEAD + j];
        if (SEVEN) y += tile.bonus[t] * tile.v[t][j];
        if (p.gate) y *= SEVEN ? p.gate[at] : p.bonus ? silu_of(p.gate[at]) : sigmoid(p.gate[at]);
        p.y[at] = y;
    }
}

// Grid: (heads, sequences).
RF_KERNEL(THREADS) rf_wkv(WkvParams p) {
    wait_for_previous();
    RF_SHARED Tile tile;
    u32 head = block_x(), rank = thread_x() % LANES, column = thread_x() / LANES;
    Sequence s = sequence_at(p.sequences, block_y());
    float* state = p.state + s.state + u64(head) * HEAD * HEAD + column;
    bool before = !SEVEN && p.bonus;  // a token reads what was there before it, and its own key by the bonus
    float own[KEYS];
    RF_UNROLL
    for (u32 i = 0; i < KEYS; ++i) own[i] = s.fresh ? 0.0f : state[(i * LANES + rank) * HEAD];
    for (i32 row = s.begin; row < s.end; row += TILE) {
        u32 count = minimum(s.end - row, i32(TILE));
        barrier();
        load_tile(tile, p, row, count, head);
        barrier();
        finish_tile(tile, p, count, head);
        barrier();
        for (u32 t = 0; t < count; ++t) {
            float value = tile.v[t][column], read = 0, y = 0;
            if (SEVEN) {
                RF_UNROLL
                for (u32 i = 0; i < KEYS; ++i) read += own[i] * tile.removed[t][i * LANES + rank];
                read = reduce_lanes<LANES>(read, Add());
            }
            RF_UNROLL
            for (u32 i = 0; i < KEYS; ++i) {
                u32 j = i * LANES + rank;
                float next = tile.decay[t][j] * own[i] + tile.k[t][j] * value;
                if (SEVEN) next -= tile.added[t][j] * read;
                y += (before ? own[i] : next) * tile.r[t][j];
                own[i] = next;
            }
            y = reduce_lanes<LANES>(y, Add()) * p.scale;
            if (rank == 0) tile.y[t][column] = before ? y + tile.bonus[t] * value : y;
        }
        barrier();
        store_tile(tile, p, row, count, head);
    }
    if (s.begin == s.end) return;
    RF_UNROLL
    for (u32 i = 0; i < KEYS; ++i) state[(i * LANES + rank) * HEAD] = own[i];
}

}  // namespace rocforge
