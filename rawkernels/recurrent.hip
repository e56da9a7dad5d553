// Layers that keep a state of fixed size: a causal convolution, the gated delta rule, Mamba-2's state space, and
// Mamba's selective scan.
#include "fours.h"
#include "state_rule.h"

namespace rocforge {

// variants: RF_KEY_DIM=16,64,128
// variants: RF_KEY_DIM=64,128,256 RF_STATE_SPACE=1
// variants: RF_KEY_DIM=128 RF_CHANNELS=1
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
    u32 channels, width, silu, count, height;
};

// A channel of a convolution.
struct Channel {
    const CausalConvParams& p;
    u32 channel;
    float weight[WIDTH], bias;  // the last place is the token's own; those that a narrower window lacks are zero

    RF_MEMBER Channel(const CausalConvParams& p, u32 channel) : p(p), channel(channel) {
        bias = p.bias ? p.bias[channel] : 0.0f;
        RF_UNROLL
        for (u32 i = 0; i < WIDTH; ++i) weight[i] = i < lacking() ? 0.0f : p.weight[channel * p.width + i - lacking()];
    }
    RF_MEMBER u32 lacking() const { return WIDTH - p.width; }
    RF_MEMBER float* kept(const Sequence& s, u32 place) const {
        return p.state + s.state + u64(place) * p.channels + channel;
    }
    // A token's; that of one of the width - 1 before the sequence's first one here is kept.
    RF_MEMBER float value(const Sequence& s, i32 row) const {
        u64 at = row * p.x_stride + channel;
        if (row >= s.begin) return p.before ? p.x[at] * p.before[at] : p.x[at];
        i32 place = row - s.begin + i32(p.width) - 1;
        return s.fresh || place < 0 ? 0.0f : *kept(s, place);
    }
    // Those of the WIDTH - 1 tokens before one.
    RF_MEMBER void values_before(float (&values)[WIDTH], const Sequence& s, i32 row) const {
        RF_UNROLL
        for (u32 i = 0; i + 1 < WIDTH; ++i) values[i] = value(s, row + i32(i) - i32(WIDTH - 1));
    }
    // Of a sequence's tokens from `row` to `end`; with its first one, what is to be kept of it.
    RF_MEMBER void run(const Sequence& s, i32 row, i32 end) const {
        float values[WIDTH];
        values_before(values, s, row);
        if (row == s.begin) {
            float last[WIDTH];
            values_before(last, s, s.end);
            RF_UNROLL
            for (u32 i = 0; i + 1 < WIDTH; ++i)
                if (i >= lacking()) *kept(s, i - lacking()) = last[i];
        }
        for (; row < end; ++row) {
            values[WIDTH - 1] = value(s, row);
            float sum = bias;
            RF_UNROLL
            for (u32 i = 0; i < WIDTH; ++i) sum += weight[i] * values[i];
            if (p.silu) sum = silu_of(sum);
            p.y[row * p.y_stride + channel] = p.after ? sum * p.after[row * p.x_stride + channel] : sum;
            RF_UNROLL
            for (u32 i = 0; i + 1 < WIDTH; ++i) values[i] = values[i + 1];
        }
    }
};

// A block has `height` tokens. Those that need what is kept of a sequence, its first WIDTH - 1, are all of the block
// that has the first one, which alone reads and writes that. Grid: (channels / CONV_THREADS, tokens / height).
RF_KERNEL(CONV_THREADS) rf_causal_conv(CausalConvParams p) {
    wait_for_previous();
    const i32 HEAD = WIDTH - 1, *starts = p.sequences.query_starts;
    i32 first = block_y() * p.height, end = minimum(first + i32(p.height), starts[p.count]);
    if (first >= end) return;
    // where every sequence has a token, it is the one of that number
    bool one_each = first < i32(p.count) && starts[first] == first && starts[first + 1] > first;
    u32 sequence = one_each ? u32(first) : sequence_of(starts, p.count, first);
    u32 channel = block_x() * CONV_THREADS + thread_x();
    if (channel >= p.channels) return;
    Channel own(p, channel);
    for (;;) {
        Sequence s = sequence_at(p.sequences, sequence);
        bool begins = s.begin >= first;
        i32 row = begins ? s.begin : maximum(first, s.begin + HEAD);
        i32 until = minimum(s.end, begins ? maximum(end, s.begin + HEAD) : end);
        if (row < until) own.run(s, row, until);
        i32 next = starts[sequence + 1];
        if (next >= end) return;
        while (starts[++sequence + 1] <= next) {}
    }
}

// The rules, token by token: LANES lanes have OWN of a block's columns, each with KEYS of their key_dim rows in
// registers. Tokens come to LDS in tiles.
constexpr u32 LANES = 16, OWN = 4, KEYS = KEY_DIM / LANES, TILE = 8;
constexpr u32 THREADS = LANES * COLUMNS / OWN, NORM_LANES = THREADS / (2 * TILE), RUN = KEYS < 4 ? KEYS : 4;
static_assert(KEY_DIM % LANES == 0 && KEYS % RUN == 0, "every lane has as many keys");

// What decays by itself: with RF_CHANNELS each row of a head's state, else all of it.
constexpr u32 DECAYS = RF_CHANNELS ? KEY_DIM : 1;

struct Tile {
    alignas(16) float q[TILE][KEY_DIM], k[TILE][KEY_DIM], v[TILE][COLUMNS], decay[TILE][DECAYS], beta[TILE];
};

// The row of a lane's key, of KEYS: runs of RUN lie side by side.
RF_DEVICE u32 key_of(u32 i) { return i / RUN * (LANES * RUN) + thread_x() % LANES * RUN + i % RUN; }

// A lane's numbers of a row of a tile.
struct OwnKeys {
    float x[KEYS];
    RF_MEMBER explicit OwnKeys(const float* row) {
        RF_UNROLL
        for (u32 i = 0; i < KEYS; i += RUN) {
            if constexpr (RUN == 4) {
                f32x4 four = load<f32x4>(row + key_of(i));
                x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
            } else {
                RF_UNROLL
                for (u32 j = 0; j < RUN; ++j) x[i + j] = row[key_of(i + j)];
            }
        }
    }
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

// A thread's share of a tile on its way to LDS: of tokens from `row` on, `count` of them, of the block's head and
// columns. It is loaded while the tile before is worked on.
struct Share {
    static constexpr u32 ROWS = (TILE * KEY_DIM + THREADS - 1) / THREADS, VALUES = TILE * COLUMNS / THREADS;
    static constexpr u32 STEPS = (TILE * DECAYS + THREADS - 1) / THREADS;
    float q[ROWS], k[ROWS], v[VALUES], alpha[STEPS], beta[STEPS];

    RF_MEMBER void load(const RuleParams& p, i32 row, u32 count, u32 head, u32 first) {
        u32 key_head = key_head_of(p, head);
        RF_UNROLL
        for (u32 j = 0; j < ROWS; ++j) {
            u32 i = j * THREADS + thread_x(), token = i / KEY_DIM;
            if (token >= count) continue;
            u64 from = row + token, at = key_head * KEY_DIM + i % KEY_DIM;
            q[j] = p.q[from * p.q_stride + at], k[j] = p.k[from * p.k_stride + at];
        }
        RF_UNROLL
        for (u32 j = 0; j < VALUES; ++j) {
            u32 i = j * THREADS + thread_x(), token = i / COLUMNS, column = first + i % COLUMNS;
            if (token >= count) continue;
            const float* from = p.v + u64(row + token) * p.v_stride + head * p.value_dim;
            v[j] = column < p.value_dim ? from[column] : 0.0f;
        }
        RF_UNROLL
        for (u32 j = 0; j < STEPS; ++j) {
            u32 i = j * THREADS + thread_x(), token = i / DECAYS, at = head * DECAYS + i % DECAYS;
            if (token >= count) continue;
            alpha[j] = p.alpha[(row + token) * p.alpha_stride + at] + (p.bias ? p.bias[at] : 0.0f);
            if (!RF_STATE_SPACE && i % DECAYS == 0) beta[j] = p.beta[(row + token) * p.beta_stride + head];
        }
    }

    RF_MEMBER void store(Tile& tile, u32 count, float decay) const {
        RF_UNROLL
        for (u32 j = 0; j < ROWS; ++j) {
            u32 i = j * THREADS + thread_x(), token = i / KEY_DIM;
            if (token < count) tile.q[token][i % KEY_DIM] = q[j], tile.k[token][i % KEY_DIM] = k[j];
        }
        RF_UNROLL
        for (u32 j = 0; j < VALUES; ++j) {
            u32 i = j * THREADS + thread_x();
            if (i / COLUMNS < count) tile.v[i / COLUMNS][i % COLUMNS] = v[j];
        }
        RF_UNROLL
        for (u32 j = 0; j < STEPS; ++j) {
            u32 i = j * THREADS + thread_x(), token = i / DECAYS;
            if (token >= count) continue;
            float step = softplus(alpha[j]);
            tile.decay[token][i % DECAYS] = fast_exp(decay * step);
            if (i % DECAYS == 0) tile.beta[token] = RF_STATE_SPACE ? step : sigmoid(beta[j]);
        }
    }
};

RF_DEVICE f32x4 sum_over_lanes(f32x4 v) {
    return make_f32x4(reduce_lanes<LANES>(v.x, Add()), reduce_lanes<LANES>(v.y, Add()), reduce_lanes<LANES>(v.z, Add()),
                      reduce_lanes<LANES>(v.w, Add()));
}

// Of one sequence.
RF_DEVICE void apply_rule(Tile& tile, const RuleParams& p, const Sequence& s) {
    u32 runs = runs_of(p), head = block_x() / runs, first = block_x() % runs * COLUMNS;
    u32 column = thread_x() / LANES * OWN, n = p.value_dim;  // of the block's
    float* state = p.state + s.state + u64(head) * KEY_DIM * n;
    f32x4 own[KEYS];
    RF_UNROLL
    for (u32 i = 0; i < KEYS; ++i)
        own[i] = s.fresh ? make_f32x4(0, 0, 0, 0) : load4(state + u64(key_of(i)) * n, first + column, n);
    Share next;
    next.load(p, s.begin, minimum(s.end - s.begin, i32(TILE)), head, first);
    float head_decay = p.decay[head], skip = p.skip ? p.skip[head] : 0.0f;
    for (i32 row = s.begin; row < s.end; row += TILE) {
        u32 count = minimum(s.end - row, i32(TILE));
        barrier();
        next.store(tile, count, head_decay);
        next.load(p, row + TILE, maximum(minimum(s.end - row - i32(TILE), i32(TILE)), 0), head, first);
        barrier();
        if (!RF_STATE_SPACE) {
            normalize(tile, count, fast_rsqrt(float(KEY_DIM)), p.eps);
            barrier();
        }
        for (u32 t = 0; t < count; ++t) {
            OwnKeys k(tile.k[t]), q(tile.q[t]);
            f32x4 value = load<f32x4>(&tile.v[t][column]), read = make_f32x4(0, 0, 0, 0), y = read;
            float decay = RF_CHANNELS ? 1.0f : tile.decay[t][0], beta = tile.beta[t];
            if constexpr (RF_CHANNELS) {
                OwnKeys decays(tile.decay[t]);
                RF_UNROLL
                for (u32 i = 0; i < KEYS; ++i) own[i] = times(own[i], decays.x[i]);
            }
            if (!RF_STATE_SPACE) {
                RF_UNROLL
                for (u32 i = 0; i < KEYS; ++i) read = plus(read, times(own[i], k.x[i]));
                read = times(sum_over_lanes(read), decay);
            }
            f32x4 written = times(plus(value, times(read, -1.0f)), beta);
            RF_UNROLL
            for (u32 i = 0; i < KEYS; ++i) {
                own[i] = plus(times(own[i], decay), times(written, k.x[i]));
                y = plus(y, times(own[i], q.x[i]));
            }
            y = plus(sum_over_lanes(y), times(value, skip));
            if (thread_x() % LANES == 0) store4(p.y + (u64(row + t) * p.value_heads + head) * n, first + column, n, y);
        }
    }
    RF_UNROLL
    for (u32 i = 0; i < KEYS; ++i) store4(state + u64(key_of(i)) * n, first + column, n, own[i]);
}

// Whether a block takes one sequence after another. Where a lane has most registers a loop around it all would spill.
constexpr bool TAKES_TURNS = KEY_DIM <= 128 && !RF_CHANNELS;

// Of sequences of up to `few` tokens. Grid: (value_heads times value_dim / COLUMNS, turns), of which there are as many
// as sequences where a block takes one.
RF_KERNEL(THREADS) rf_state_rule(RuleParams p) {
    wait_for_previous();
    RF_SHARED Tile tile;
    auto apply = [&](u32 number) {
        Sequence s = sequence_at(p.sequences, number);
        if (s.begin < s.end) apply_rule(tile, p, s);
    };
    if constexpr (TAKES_TURNS) {
        auto takes = [&](i32 tokens) { return tokens > 0 && tokens <= p.few; };
        each_of_block(p.sequences.query_starts, p.count, p.turns, takes, apply);
    } else {
        apply(block_y());
    }
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
    Sequence s = sequence_at(p.sequences, block_y());
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

// Of x (tokens, heads, dim) with a gate, whose rows are gate_stride apart: to one of y, fp16 and quantized, of rows of
// heads times dim; dim is a multiple of 32 where it is the last.
struct GatedNormParams {
    RF_NULLABLE float* y;
    RF_NULLABLE f16* fp16;
    RF_NULLABLE u8* quantized;
    const float *x, *gate, *weight;
    u64 gate_stride;
    u32 rows, heads, dim, width, cells;
    float eps;
};

// A wave's head. Calls f(i, gate) for fours of its elements, all lanes together.
constexpr u32 NORM_THREADS = 256;
struct GatedHead {
    const GatedNormParams& p;
    u32 row, head;
    const float *x, *gate;
    RF_MEMBER explicit GatedHead(const GatedNormParams& p)
        : p(p), row(block_x() * (NORM_THREADS / RF_WAVE) + wave()), head(row % p.heads) {
        x = p.x + u64(row) * p.dim, gate = p.gate + row / p.heads * p.gate_stride + head * p.dim;
    }
    RF_MEMBER bool there() const { return row < p.rows; }
    template <class Each>
    RF_MEMBER void each_four(Each f) const {
        for (u32 base = 0; base < p.dim; base += 4 * RF_WAVE) {
            u32 i = base + 4 * lane();
            f(i, silu_of_four(gate, i, p.dim));
        }
    }
    RF_MEMBER f32x4 at(u32 i) const { return load4(x, i, p.dim); }
    RF_MEMBER float factor(float squares) const { return fast_rsqrt(wave_sum(squares) / float(p.dim) + p.eps); }
    RF_MEMBER void write(u32 i, f32x4 v) const {
        RowsOut out = {p.y, p.fp16, {p.quantized, p.width, p.cells}, p.heads * p.dim};
        out.write(row / p.heads, head * p.dim, p.dim, i, v);
    }
};

// x normalized over the last axis, times weight (dim,), times silu of the gate. A wave a head. Grid: tokens * heads /
// (NORM_THREADS / RF_WAVE).
RF_KERNEL(NORM_THREADS)
rf_norm_then_gate(GatedNormParams p) {
    wait_for_previous();
    GatedHead own(p);
    if (!own.there()) return;
    float sum = 0;
    own.each_four([&](u32 i, f32x4) { sum += dot(own.at(i), own.at(i)); });
    float factor = own.factor(sum);
    own.each_four([&](u32 i, f32x4 gate) {
        own.write(i, product(times(product(own.at(i), gate), factor), load4(p.weight, i, p.dim)));
    });
}

// x times silu of the gate, normalized over the last axis, times weight (heads, dim). A wave a head. Grid: as above.
RF_KERNEL(NORM_THREADS)
rf_gate_then_norm(GatedNormParams p) {
    wait_for_previous();
    GatedHead own(p);
    if (!own.there()) return;
    float sum = 0;
    own.each_four([&](u32 i, f32x4 gate) {
        f32x4 v = product(own.at(i), gate);
        sum += dot(v, v);
    });
    float factor = own.factor(sum);
    own.each_four([&](u32 i, f32x4 gate) {
        f32x4 weight = load4(p.weight + own.head * p.dim, i, p.dim);
        own.write(i, product(times(product(own.at(i), gate), factor), weight));
    });
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
