// Layers that keep a state of fixed size: a causal convolution, the gated delta rule, Mamba-2's state space, and
// Mamba's selective scan.
#include "gates.h"
#include "sequences.h"

namespace rocforge {

// variants: RF_KEY_DIM=16,64,128
// variants: RF_KEY_DIM=64,128,256 RF_STATE_SPACE=1
// variants: RF_KEY_DIM=128 RF_CHANNELS=1
#ifndef RF_STATE_SPACE
#define RF_STATE_SPACE 0
#endif
#ifndef RF_CHANNELS
#define RF_CHANNELS 0
#endif

constexpr u32 CONV_THREADS = 64, WIDTH = 4;

// y (tokens, channels): the sum over i of weight (channels, width) times the values that the channel had
// width - 1 - i tokens before, plus bias, through silu if asked. Values are those of x, times those of `before`; the
// sum is multiplied by `after`; both, and bias, may be null. Rows of these three are `x_stride` apart, those of y
// `y_stride`; state is (slots, width - 1, channels). Width is at most WIDTH.
struct CausalConvParams {
    float* y;
    const float *x, *weight;
    RF_NULLABLE const float* bias;
    RF_NULLABLE const float* before;
    RF_NULLABLE const float* after;
    float* state;
    Sequences sequences;
    u64 x_stride, y_stride;
    u32 channels, width, silu;
};

// Grid: (channels / CONV_THREADS, sequences).
RF_KERNEL(CONV_THREADS) rf_causal_conv(CausalConvParams p) {
    wait_for_previous();
    u32 channel = block_x() * CONV_THREADS + thread_x();
    if (channel >= p.channels) return;
    Sequence s = sequence_of(p.sequences);
    float* state = p.state + s.state + channel;
    // the window's last place is the token's own; what a narrower one lacks is multiplied with zero
    float weight[WIDTH], kept[WIDTH] = {}, bias = p.bias ? p.bias[channel] : 0.0f;
    u32 lacking = WIDTH - p.width;
    RF_UNROLL
    for (u32 i = 0; i < WIDTH; ++i) weight[i] = i < lacking ? 0.0f : p.weight[channel * p.width + i - lacking];
    RF_UNROLL
    for (u32 i = 0; i + 1 < WIDTH; ++i)
        if (i >= lacking && !s.fresh) kept[i] = state[u64(i - lacking) * p.channels];
    for (i32 row = s.begin; row < s.end; ++row) {
        u64 at = row * p.x_stride + channel;
        kept[WIDTH - 1] = p.before ? p.x[at] * p.before[at] : p.x[at];
        float sum = bias;
        RF_UNROLL
        for (u32 i = 0; i < WIDTH; ++i) sum += weight[i] * kept[i];
        if (p.silu) sum = silu_of(sum);
        p.y[row * p.y_stride + channel] = p.after ? sum * p.after[at] : sum;
        RF_UNROLL
        for (u32 i = 0; i + 1 < WIDTH; ++i) kept[i] = kept[i + 1];
    }
    if (s.begin == s.end) return;
    RF_UNROLL
    for (u32 i = 0; i + 1 < WIDTH; ++i)
        if (i >= lacking) state[u64(i - lacking) * p.channels] = kept[i];
}

// The rules: a block has COLUMNS of the value_dim columns of a head's state, LANES lanes a column, each with KEYS of
// its key_dim rows in registers. Tokens come to LDS in tiles.
constexpr u32 KEY_DIM = RF_KEY_DIM, LANES = 4, COLUMNS = 32, KEYS = KEY_DIM / LANES, TILE = 8;
constexpr u32 THREADS = LANES * COLUMNS, NORM_LANES = THREADS / (2 * TILE);

// What decays by itself: with RF_CHANNELS each row of a head's state, else all of it.
constexpr u32 DECAYS = RF_CHANNELS ? KEY_DIM : 1;

struct Tile {
    float q[TILE][KEY_DIM], k[TILE][KEY_DIM], v[TILE][COLUMNS], decay[TILE][DECAYS], beta[TILE];
};

struct RuleParams {
    float* y;  // (tokens, value_heads, value_dim)
    const float *q, *k, *v;
    RF_NULLABLE const float* beta;
    const float *alpha, *decay;     // rows of (value_heads, DECAYS); (value_heads,)
    RF_NULLABLE const float* bias;  // as a row of alpha
    RF_NULLABLE const float* skip;  // (value_heads,): what a value adds to its y, times this
    float* state;                   // (slots, value_heads, KEY_DIM, value_dim)
    Sequences sequences;
    u64 q_stride, k_stride, v_stride, beta_stride, alpha_stride;  // elements between rows
    u32 key_heads, value_heads, value_dim, repeated;
    float eps;
};

// A row of q or k in a tile, times one over its length: NORM_LANES lanes a row.
RF_DEVICE void normalize(Tile& tile, u32 count, float scale, float eps) {
    u32 which = thread_x() / NORM_LANES, rank = thread_x() % NORM_LANES, token = which % TILE;
    float* row = which < TILE ? tile.q[token] : tile.k[token];
    float sum = 0;
    if (token < count)
        for (u32 i = rank; i < KEY_DIM; i += NORM_LANES) sum += row[i] * row[i];
    sum = reduce_lanes<NORM_LANES>(sum, Add());
    float factor = fast_rsqrt(sum + eps) * (which < TILE ? scale : 1.0f);
    if (token < count)
        for (u32 i = rank; i < KEY_DIM; i += NORM_LANES) row[i] *= factor;
}

// Tokens from `row` on, `count` of them, of the block's head and columns.
RF_DEVICE void load_tile(Tile& tile, const RuleParams& p, i32 row, u32 count, u32 head, u32 first) {
    u32 key_head = p.repeated ? head / (p.value_heads / p.key_heads) : head % p.key_heads;
    for (u32 i = thread_x(); i < count * KEY_DIM; i += THREADS) {
        u32 token = i / KEY_DIM, at = i % KEY_DIM;
        u64 from = row + token;
        tile.q[token][at] = p.q[from * p.q_stride + key_head * KEY_DIM + at];
        tile.k[token][at] = p.k[from * p.k_stride + key_head * KEY_DIM + at];
    }
    for (u32 i = thread_x(); i < count * COLUMNS; i += THREADS) {
        u32 token = i / COLUMNS, column = first + i % COLUMNS;
        const float* from = p.v + u64(row + token) * p.v_stride + head * p.value_dim;
        tile.v[token][i % COLUMNS] = column < p.value_dim ? from[column] : 0.0f;
    }
    for (u32 i = thread_x(); i < count * DECAYS; i += THREADS) {
        u32 token = i / DECAYS, at = head * DECAYS + i % DECAYS;
        float step = softplus(p.alpha[(row + token) * p.alpha_stride + at] + (p.bias ? p.bias[at] : 0.0f));
        tile.decay[token][i % DECAYS] = fast_exp(p.decay[head] * step);
        if (i % DECAYS == 0)
            tile.beta[token] = RF_STATE_SPACE ? step : sigmoid(p.beta[(row + token) * p.beta_stride + head]);
    }
}

// The gated delta rule; with RF_STATE_SPACE, what is written does not depend on what is there, and queries and keys are
// as they are. Grid: (value_heads times value_dim / COLUMNS, sequences).
RF_KERNEL(THREADS) rf_state_rule(RuleParams p) {
    wait_for_previous();
    RF_SHARED Tile tile;
    u32 runs = (p.value_dim + COLUMNS - 1) / COLUMNS, head = block_x() / runs, first = block_x() % runs * COLUMNS;
    u32 rank = thread_x() % LANES, column = thread_x() / LANES;
    bool present = first + column < p.value_dim;
    Sequence s = sequence_of(p.sequences);
    float* state = p.state + s.state + u64(head) * KEY_DIM * p.value_dim + first + column;
    float own[KEYS];
    RF_UNROLL
    for (u32 i = 0; i < KEYS; ++i) own[i] = present && !s.fresh ? state[u64(i * LANES + rank) * p.value_dim] : 0.0f;
    for (i32 row = s.begin; row < s.end; row += TILE) {
        u32 count = minimum(s.end - row, i32(TILE));
        barrier();
        load_tile(tile, p, row, count, head, first);
        barrier();
        if (!RF_STATE_SPACE) {
            normalize(tile, count, fast_rsqrt(float(KEY_DIM)), p.eps);
            barrier();
        }
        for (u32 t = 0; t < count; ++t) {
            float read = 0, decay = RF_CHANNELS ? 1.0f : tile.decay[t][0], value = tile.v[t][column];
            if (RF_CHANNELS) {
                RF_UNROLL
                for (u32 i = 0; i < KEYS; ++i) own[i] *= tile.decay[t][(i * LANES + rank) % DECAYS];
            }
            if (!RF_STATE_SPACE) {
                RF_UNROLL
                for (u32 i = 0; i < KEYS; ++i) read += own[i] * tile.k[t][i * LANES + rank];
                read = reduce_lanes<LANES>(read, Add());
            }
            float written = (value - decay * read) * tile.beta[t], y = 0;
            RF_UNROLL
            for (u32 i = 0; i < KEYS; ++i) {
                own[i] = decay * own[i] + tile.k[t][i * LANES + rank] * written;
                y += own[i] * tile.q[t][i * LANES + rank];
            }
            y = reduce_lanes<LANES>(y, Add());
            if (p.skip) y += p.skip[head] * value;
            if (rank == 0 && present) p.y[(u64(row + t) * p.value_heads + head) * p.value_dim + first + column] = y;
        }
    }
    if (!present || s.begin == s.end) return;
    RF_UNROLL
    for (u32 i = 0; i < KEYS; ++i) state[u64(i * LANES + rank) * p.value_dim] = own[i];
}

constexpr u32 STATE_DIM = KEY_DIM <= 32 ? KEY_DIM : 32;  // a channel has all in registers

// y (tokens, channels): each channel has STATE_DIM numbers, which decay by exp(decay * t), get t x k, and are summed
// times q, for t = softplus(step); and skip times x. Keys and queries are (tokens, STATE_DIM), in rows that are strides
// apart.
struct SelectiveScanParams {
    float* y;
    const float *x, *step, *keys, *queries;
    const float* decay;  // (channels, STATE_DIM)
    const float* skip;   // (channels,)
    float* state;        // (slots, STATE_DIM, channels)
    Sequences sequences;
    u64 key_stride, query_stride;
    u32 channels;
};

// A thread a channel. Grid: (channels / CONV_THREADS, sequences).
RF_KERNEL(CONV_THREADS) rf_selective_scan(SelectiveScanParams p) {
    wait_for_previous();
    u32 channel = block_x() * CONV_THREADS + thread_x();
    if (channel >= p.channels) return;
    Sequence s = sequence_of(p.sequences);
    float* state = p.state + s.state + channel;
    float own[STATE_DIM], decay[STATE_DIM], skip = p.skip[channel];
    RF_UNROLL
    for (u32 i = 0; i < STATE_DIM; ++i) {
        decay[i] = p.decay[channel * STATE_DIM + i];
        own[i] = s.fresh ? 0.0f : state[u64(i) * p.channels];
    }
    for (i32 row = s.begin; row < s.end; ++row) {
        u64 at = u64(row) * p.channels + channel;
        const float *key = p.keys + row * p.key_stride, *query = p.queries + row * p.query_stride;
        float x = p.x[at], step = softplus(p.step[at]), y = skip * x;
        RF_UNROLL
        for (u32 i = 0; i < STATE_DIM; ++i) {
            own[i] = fast_exp(decay[i] * step) * own[i] + step * x * key[i];
            y += own[i] * query[i];
        }
        p.y[at] = y;
    }
    if (s.begin == s.end) return;
    RF_UNROLL
    for (u32 i = 0; i < STATE_DIM; ++i) state[u64(i) * p.channels] = own[i];
}

// y (tokens, heads, value_dim): x normalized over the last axis, times weight, times silu of the gate, whose rows are
// gate_stride apart. A wave a head. Grid: tokens * heads / (NORM_THREADS / RF_WAVE).
constexpr u32 NORM_THREADS = 256;
RF_KERNEL(NORM_THREADS)
rf_norm_then_gate(float* y, const float* x, const float* gate, const float* weight, u64 gate_stride, u32 rows,
                  u32 heads, u32 dim, float eps) {
    wait_for_previous();
    u32 row = block_x() * (NORM_THREADS / RF_WAVE) + wave();
    if (row >= rows) return;
    x += u64(row) * dim, y += u64(row) * dim, gate += row / heads * gate_stride + row % heads * dim;
    float sum = 0;
    for (u32 i = lane(); i < dim; i += RF_WAVE) sum += x[i] * x[i];
    float factor = fast_rsqrt(wave_sum(sum) / float(dim) + eps);
    for (u32 i = lane(); i < dim; i += RF_WAVE) y[i] = x[i] * factor * weight[i] * silu_of(gate[i]);
}

// y (tokens, groups, dim): x times silu of the gate, whose rows are gate_stride apart, normalized over the last axis,
// times weight (groups, dim). A wave a group. Grid: tokens * groups / (NORM_THREADS / RF_WAVE).
RF_KERNEL(NORM_THREADS)
rf_gate_then_norm(float* y, const float* x, const float* gate, const float* weight, u64 gate_stride, u32 rows,
                  u32 groups, u32 dim, float eps) {
    wait_for_previous();
    u32 row = block_x() * (NORM_THREADS / RF_WAVE) + wave();
    if (row >= rows) return;
    x += u64(row) * dim, y += u64(row) * dim, gate += row / groups * gate_stride + row % groups * dim;
    weight += row % groups * dim;
    float sum = 0;
    for (u32 i = lane(); i < dim; i += RF_WAVE) {
        float v = x[i] * silu_of(gate[i]);
        y[i] = v, sum += v * v;
    }
    float factor = fast_rsqrt(wave_sum(sum) / float(dim) + eps);
    for (u32 i = lane(); i < dim; i += RF_WAVE) y[i] *= factor * weight[i];
}

// Queries and gates that lie head by head, q then gate, in a row of x: both (tokens, heads, dim), contiguous.
RF_KERNEL(NORM_THREADS)
rf_split_gate(float* q, float* gate, const float* x, u64 x_stride, u32 heads, u32 dim, u32 tokens) {
    wait_for_previous();
    u32 width = heads * dim;
    u64 i = u64(block_x()) * NORM_THREADS + thread_x();
    if (i >= u64(tokens) * width) return;
    u32 at = i % width;
    const float* from = x + i / width * x_stride + at / dim * 2 * dim + at % dim;
    q[i] = from[0], gate[i] = from[dim];
}

}  // namespace rocforge
