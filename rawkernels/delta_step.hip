// A Gated DeltaNet between its projections, of sequences with one token each: the convolution, the gated delta rule,
// the norm of what the heads read, and its gate, in one launch. All is as recurrent.hip has it; value_dim is a multiple
// of 4 up to VALUES.
#include "fours.h"
#include "state_rule.h"

namespace rocforge {

// variants: RF_KEY_DIM=64,128
// A wave's worth of lanes has all columns of a head, four each, of a sixteenth of the keys.
constexpr u32 THREADS = 512, LANES = 32, PARTS = THREADS / LANES, KEYS = KEY_DIM / PARTS, VALUES = 4 * LANES;
constexpr u32 WIDTH = 4, MOST_SHARERS = 8;

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
    Sequences sequences;                // of the latter
    u64 conv_stride, x_stride, beta_stride, alpha_stride, gate_stride;  // elements between slots, and rows
    u32 key_heads, value_heads, value_dim, repeated, conv_width, width, cells;
    float eps, norm_eps;
};

// What the heads that share a key have to do with: x after the convolution, and sums of all threads' parts.
struct Step {
    alignas(16) float q[KEY_DIM], k[KEY_DIM], v[MOST_SHARERS * VALUES], sums[PARTS][VALUES], written[VALUES];
    float decay[MOST_SHARERS], beta[MOST_SHARERS];
};

// The value of a channel, `at` of x's row: the convolution's. Its state goes on by a token.
RF_DEVICE float convolved(const DeltaStepParams& p, const Sequence& s, float* kept, u32 channels, u32 at) {
    const float* weight = p.conv + at * p.conv_width;
    u32 before = p.conv_width - 1;
    float values[WIDTH], sum = 0;
    RF_UNROLL
    for (u32 i = 0; i < WIDTH; ++i)
        if (i <= before)
            values[i] = i == before ? p.x[s.begin * p.x_stride + at] : s.fresh ? 0.0f : kept[i * u64(channels) + at];
    RF_UNROLL
    for (u32 i = 0; i < WIDTH; ++i) {
        if (i > before) continue;
        sum += weight[i] * values[i];
        if (i) kept[(i - 1) * u64(channels) + at] = values[i];
    }
    return silu_of(sum);
}

// A wave's: a row of KEY_DIM times a factor over its length.
RF_DEVICE void normalize(float* row, float factor, float eps) {
    float sum = 0;
    for (u32 i = lane(); i < KEY_DIM; i += RF_WAVE) sum += row[i] * row[i];
    factor *= fast_rsqrt(wave_sum(sum) + eps);
    for (u32 i = lane(); i < KEY_DIM; i += RF_WAVE) row[i] *= factor;
}

// Grid: (key_heads, sequences).
RF_KERNEL_BOUND(THREADS, 2 * THREADS) rf_delta_step(DeltaStepParams p) {
    wait_for_previous();
    RF_SHARED Step step;
    Sequence s = sequence_at(p.sequences, block_y());
    if (s.begin == s.end) return;
    u32 group = block_x(), sharers = p.value_heads / p.key_heads, n = p.value_dim, keys = p.key_heads * KEY_DIM;
    u32 part = thread_x() / LANES, column = thread_x() % LANES * 4;
    u64 row = s.begin;
    auto head_of = [&](u32 i) { return p.repeated ? group * sharers + i : i * p.key_heads + group; };
    auto state_of = [&](u32 i) { return p.state + s.state + (u64(head_of(i)) * KEY_DIM + part * KEYS) * n; };
    f32x4 own[KEYS];
    auto load = [&](u32 i) {
        RF_UNROLL
        for (u32 k = 0; k < KEYS; ++k)
            own[k] =
                s.fresh || column >= n ? make_f32x4(0, 0, 0, 0) : rocforge::load<f32x4>(state_of(i) + k * n + column);
    };
    load(0);
    u32 channels = 2 * keys + p.value_heads * n;
    float* kept = p.conv_state + p.sequences.slots[block_y()] * p.conv_stride;
    for (u32 i = thread_x(); i < 2 * KEY_DIM + sharers * n; i += THREADS) {
        u32 within = i % KEY_DIM, value = i - 2 * KEY_DIM;
        if (i < 2 * KEY_DIM)
            (i < KEY_DIM ? step.q : step.k)[within] =
                convolved(p, s, kept, channels, i / KEY_DIM * keys + group * KEY_DIM + within);
        else
            step.v[value] = convolved(p, s, kept, channels, 2 * keys + head_of(value / n) * n + value % n);
    }
    if (thread_x() < sharers) {
        u32 head = head_of(thread_x());
        float time = softplus(p.alpha[row * p.alpha_stride + head] + (p.bias ? p.bias[head] : 0.0f));
        step.decay[thread_x()] = fast_exp(p.decay[head] * time);
        step.beta[thread_x()] = sigmoid(p.beta[row * p.beta_stride + head]);
    }
    barrier();
    if (wave() == 0) normalize(step.q, fast_rsqrt(float(KEY_DIM)), p.eps);
    if (wave() == 1) normalize(step.k, 1.0f, p.eps);
    barrier();
    for (u32 i = 0; i < sharers; ++i) {
        float decay = step.decay[i];
        f32x4 read = make_f32x4(0, 0, 0, 0), y = read;
        RF_UNROLL
        for (u32 k = 0; k < KEYS; ++k) read = plus(read, times(own[k], step.k[part * KEYS + k]));
        *reinterpret_cast<f32x4*>(&step.sums[part][column]) = read;
        barrier();
        if (thread_x() < VALUES) {
            float value = thread_x() < n ? step.v[i * n + thread_x()] : 0.0f, sum = 0;
            for (u32 each = 0; each < PARTS; ++each) sum += step.sums[each][thread_x()];
            step.written[thread_x()] = (value - decay * sum) * step.beta[i];
        }
        barrier();
        f32x4 written = rocforge::load<f32x4>(&step.written[column]);
        float* state = state_of(i);
        RF_UNROLL
        for (u32 k = 0; k < KEYS; ++k) {
            own[k] = plus(times(own[k], decay), times(written, step.k[part * KEYS + k]));
            y = plus(y, times(own[k], step.q[part * KEYS + k]));
            if (column < n) *reinterpret_cast<f32x4*>(state + k * n + column) = own[k];
        }
        *reinterpret_cast<f32x4*>(&step.sums[part][column]) = y;
        barrier();
        if (wave() == 0) {
            bool own_four = lane() < LANES;  // of a wave of 64 half write nothing
            y = make_f32x4(0, 0, 0, 0);
            if (own_four) {
                for (u32 each = 0; each < PARTS; ++each) y = plus(y, rocforge::load<f32x4>(&step.sums[each][column]));
            }
            u32 head = head_of(i);
            float factor = fast_rsqrt(wave_sum(dot(y, y)) / float(n) + p.norm_eps);
            f32x4 gate = silu_of_four(p.gate + row * p.gate_stride + head * n, column, n);
            RowsOut out = {p.y, p.fp16, {p.quantized, p.width, p.cells}, p.value_heads * n};
            y = product(times(product(y, gate), factor), load4(p.norm, column, n));
            out.write(row, head * n, n, own_four ? column : n, y);
        }
        if (i + 1 < sharers) load(i + 1);
        barrier();
    }
}

}  // namespace rocforge
