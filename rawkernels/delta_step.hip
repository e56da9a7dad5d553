// A Gated DeltaNet between its projections, of sequences with one token each: the convolution, the gated delta rule,
// the norm of what the heads read, and its gate, in one launch. All is as recurrent.hip has it; value_dim is a multiple
// of 4 up to VALUES.
#include "fours.h"
#include "state_rule.h"

namespace rocforge {

// variants: RF_KEY_DIM=64,128
// LANES have all columns of a head, four each, of a sixteenth of the keys.
constexpr u32 THREADS = 512, LANES = 32, PARTS = THREADS / LANES, KEYS = KEY_DIM / PARTS, VALUES = 4 * LANES;
constexpr u32 WIDTH = 4;
static_assert(2 * KEY_DIM + VALUES <= THREADS, "a thread has a channel of the convolution");

struct DeltaStepParams {
    // y, what heads read, in one of three forms: rows of (value_heads, value_dim)
    RF_NULLABLE float* y;
    RF_NULLABLE f16* fp16;
    RF_NULLABLE u8* quantized;
    const float* x;                     // rows of queries and keys (key_heads, KEY_DIM), and of values
    const float* conv;                  // (channels, conv_width), of a row of x
    const float *beta, *alpha, *decay;  // rows of (value_heads,); (value_heads,)
    RF_NULLABLE const float* bias;      // (value_heads,)
    const float *gate, *norm;           // as a row of y; (value_dim,)
    float *conv_state, *state;          // (slots, conv_width - 1, channels); (slots, value_heads, KEY_DIM, value_dim)
    i32* counters;                      // (sequences, key_heads), zeros before and after
    Sequences sequences;                // of the state
    u64 conv_stride, x_stride, beta_stride, alpha_stride, gate_stride;  // elements between slots, and rows
    u32 key_heads, value_heads, value_dim, repeated, conv_width, width, cells;
    float eps, norm_eps;
};

struct Step {
    alignas(16) float q[KEY_DIM], k[KEY_DIM], v[VALUES], sums[PARTS][VALUES], written[VALUES], scale[VALUES];
    float decay, beta;
    i32 last;
};

// A channel of the convolution: what it keeps of the tokens before, and its weight, filled up with zeros in front.
struct Channel {
    float values[WIDTH], weight[WIDTH];
    float* kept;
    u32 lacking, step;

    RF_MEMBER Channel(const DeltaStepParams& p, const Sequence& s, u32 slot, u32 at) {
        step = 2 * p.key_heads * KEY_DIM + p.value_heads * p.value_dim;
        kept = p.conv_state + slot * p.conv_stride + at, lacking = WIDTH - p.conv_width;
        RF_UNROLL
        for (u32 i = 0; i < WIDTH; ++i) {
            bool there = i >= lacking;
            weight[i] = there ? p.conv[at * p.conv_width + i - lacking] : 0.0f;
            values[i] = there && i + 1 < WIDTH && !s.fresh ? kept[(i - lacking) * u64(step)] : 0.0f;
        }
    }
    RF_MEMBER float convolved(float x) {
        values[WIDTH - 1] = x;
        float sum = 0;
        RF_UNROLL
        for (u32 i = 0; i < WIDTH; ++i) sum += weight[i] * values[i];
        return silu_of(sum);
    }
    // That the token has gone by.
    RF_MEMBER void keep() const {
        RF_UNROLL
        for (u32 i = 0; i + 1 < WIDTH; ++i)
            if (i >= lacking) kept[(i - lacking) * u64(step)] = values[i + 1];
    }
};

// A wave's: a row of KEY_DIM times a factor over its length.
RF_DEVICE void normalize(float* row, float factor, float eps) {
    float sum = 0;
    for (u32 i = lane(); i < KEY_DIM; i += RF_WAVE) sum += row[i] * row[i];
    factor *= fast_rsqrt(wave_sum(sum) + eps);
    for (u32 i = lane(); i < KEY_DIM; i += RF_WAVE) row[i] *= factor;
}

// Several heads' blocks read what the convolution keeps of the key that they share; the last of them writes it.
// Grid: (value_heads, sequences).
RF_KERNEL_BOUND(THREADS, 2 * THREADS) rf_delta_step(DeltaStepParams p) {
    RF_SHARED Step step;
    // what the steps before have left does not change while the launch before this one runs
    u32 head = block_x(), n = p.value_dim, keys = p.key_heads * KEY_DIM, sharers = p.value_heads / p.key_heads;
    u32 key_head = p.repeated ? head / sharers : head % p.key_heads, at = thread_x();
    u32 part = thread_x() / LANES, column = thread_x() % LANES * 4;
    Sequence s = sequence_at(p.sequences, block_y());
    if (s.begin == s.end) return wait_for_previous();
    float* state = p.state + s.state + (u64(head) * KEY_DIM + part * KEYS) * n + column;
    f32x4 own[KEYS];
    RF_UNROLL
    for (u32 k = 0; k < KEYS; ++k)
        own[k] = s.fresh || column >= n ? make_f32x4(0, 0, 0, 0) : load<f32x4>(state + k * n);
    bool of_key = at < 2 * KEY_DIM, has_channel = at < 2 * KEY_DIM + n;
    u32 of_row = at / KEY_DIM * keys + key_head * KEY_DIM + at % KEY_DIM;
    if (!of_key) of_row = 2 * keys + head * n + at - 2 * KEY_DIM;
    Channel channel(p, s, p.sequences.slots[block_y()], has_channel ? of_row : 0);
    bool decays = at == THREADS - 1;
    float norm = at < n ? p.norm[at] : 0.0f, of_head = decays ? p.decay[head] : 0.0f;
    float bias = decays && p.bias ? p.bias[head] : 0.0f;
    wait_for_previous();

    // all loads come first
    u64 row = s.begin;
    float gate = at < n ? p.gate[row * p.gate_stride + head * n + at] : 0.0f;
    float x = has_channel ? p.x[row * p.x_stride + of_row] : 0.0f;
    float alpha = decays ? p.alpha[row * p.alpha_stride + head] : 0.0f;
    float beta = decays ? p.beta[row * p.beta_stride + head] : 0.0f;
    if (at < n) step.scale[at] = norm * silu_of(gate);
    if (has_channel) {
        float value = channel.convolved(x);
        *(at < KEY_DIM ? step.q + at : of_key ? step.k + (at - KEY_DIM) : step.v + (at - 2 * KEY_DIM)) = value;
        if (!of_key) channel.keep();
    }
    if (decays) step.decay = fast_exp(of_head * softplus(alpha + bias)), step.beta = sigmoid(beta);
    barrier();
    if (decays) {
        i32* counter = p.counters + block_y() * p.key_heads + key_head;
        step.last = atomic_add(counter, 1) == i32(sharers) - 1;
        if (step.last) *counter = 0;
    }
    if (wave() == 0) normalize(step.q, fast_rsqrt(float(KEY_DIM)), p.eps);
    if (wave() == 1) normalize(step.k, 1.0f, p.eps);
    barrier();
    float decay = step.decay;
    f32x4 read = make_f32x4(0, 0, 0, 0), y = read;
    RF_UNROLL
    for (u32 k = 0; k < KEYS; ++k) read = plus(read, times(own[k], step.k[part * KEYS + k]));
    *reinterpret_cast<f32x4*>(&step.sums[part][column]) = read;
    if (of_key && step.last) channel.keep();
    barrier();
    if (at < VALUES) {
        float value = at < n ? step.v[at] : 0.0f, sum = 0;
        RF_UNROLL
        for (u32 each = 0; each < PARTS; ++each) sum += step.sums[each][at];
        step.written[at] = (value - decay * sum) * step.beta;
    }
    barrier();
    f32x4 written = load<f32x4>(&step.written[column]);
    RF_UNROLL
    for (u32 k = 0; k < KEYS; ++k) {
        own[k] = plus(times(own[k], decay), times(written, step.k[part * KEYS + k]));
        y = plus(y, times(own[k], step.q[part * KEYS + k]));
    }
    *reinterpret_cast<f32x4*>(&step.sums[part][column]) = y;
    barrier();
    if (column < n) {
        RF_UNROLL
        for (u32 k = 0; k < KEYS; ++k) *reinterpret_cast<f32x4*>(state + k * n) = own[k];
    }
    if (wave() != 0) return;
    bool own_four = lane() < LANES;  // of a wave of 64 half write nothing
    y = make_f32x4(0, 0, 0, 0);
    if (own_four) {
        RF_UNROLL
        for (u32 each = 0; each < PARTS; ++each) y = plus(y, load<f32x4>(&step.sums[each][column]));
    }
    float factor = fast_rsqrt(wave_sum(dot(y, y)) / float(n) + p.norm_eps);
    RowsOut out = {p.y, p.fp16, {p.quantized, p.width, p.cells}, p.value_heads * n};
    y = times(product(y, load<f32x4>(&step.scale[column])), factor);
    out.write(row, head * n, n, own_four ? column : n, y);
}

}  // namespace rocforge
