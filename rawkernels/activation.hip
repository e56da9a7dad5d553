// Elementwise activations, gated products, and softmax.
#include "fours.h"
#include "gates.h"
#include "formats/quants.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// Elements of contiguous arrays, a thread each.
#define RF_ELEMENTWISE(name, expression, ...)                               \
    RF_KERNEL(THREADS) rf_##name(float* out, const float* x, __VA_ARGS__) { \
        wait_for_previous();                                                \
        u64 i = u64(block_x()) * THREADS + thread_x();                      \
        if (i < size) out[i] = expression;                                  \
    }
RF_ELEMENTWISE(silu, silu_of(x[i]), u64 size)
RF_ELEMENTWISE(gelu, gelu_of(x[i]), u64 size)
RF_ELEMENTWISE(softplus, softplus(x[i]), u64 size)
RF_ELEMENTWISE(sigmoid, sigmoid(x[i]), u64 size)
RF_ELEMENTWISE(relu_squared, maximum(x[i], 0.0f) * maximum(x[i], 0.0f), u64 size)
// fast_exp(x) - 1 has no digits left near zero, where the first terms of its series are exact
RF_DEVICE float exp_less_one(float x) {
    return x > -0.01f ? x * (1.0f + x * (0.5f + x * (1.0f / 6 + x * (1.0f / 24)))) : fast_exp(x) - 1.0f;
}
RF_DEVICE float xielu_of(float x, float n, float p, float beta, float eps) {
    return beta * x + (x > 0 ? p * x * x : n * (exp_less_one(minimum(x, eps)) - x));
}
RF_ELEMENTWISE(xielu, xielu_of(x[i], n, p, beta, eps), float n, float p, float beta, float eps, u64 size)
RF_ELEMENTWISE(softcap, cap * fast_tanh(x[i] / cap), float cap, u64 size)
RF_ELEMENTWISE(scale, x[i] * factor, float factor, u64 size)
RF_ELEMENTWISE(add, x[i] + y[i], const float* y, u64 size)
RF_ELEMENTWISE(sigmoid_gate, x[i] * sigmoid(gate[i]), const float* gate, u64 size)

// x (rows, columns) times the sigmoid of its row's gate; `size` elements.
RF_KERNEL(THREADS) rf_sigmoid_gate_rows(float* out, const float* x, const float* gate, u32 columns, u64 size) {
    wait_for_previous();
    u64 i = u64(block_x()) * THREADS + thread_x();
    if (i < size) out[i] = x[i] * sigmoid(gate[i / columns]);
}

// x, whose rows of `columns` are `stride` apart, times its row's factor; `size` elements.
RF_KERNEL(THREADS)
rf_scale_rows(float* out, const float* x, const float* factors, u32 columns, u64 stride, u64 size) {
    wait_for_previous();
    u64 i = u64(block_x()) * THREADS + thread_x();
    if (i < size) out[i] = x[i / columns * stride + i % columns] * factors[i / columns];
}

// x, whose rows of `columns` are `stride` apart, and runs of `run` columns in these `run_stride`, cut to +-limit;
// `size` elements.
RF_KERNEL(THREADS)
rf_clip(float* out, const float* x, float limit, u32 columns, u64 stride, u32 run, u64 run_stride, u64 size) {
    wait_for_previous();
    u64 i = u64(block_x()) * THREADS + thread_x();
    if (i >= size) return;
    u32 column = i % columns;
    float value = x[i / columns * stride + column / run * run_stride + column % run];
    out[i] = value != value ? value : maximum(minimum(value, limit), -limit);  // as NumPy's, a NaN stays
}

// x times factors, of which there is one for each of the last axis' columns, or one for all; `size` elements.
RF_KERNEL(THREADS) rf_scale_columns(float* out, const float* x, const float* factors, u32 columns, u64 size) {
    wait_for_previous();
    u64 i = u64(block_x()) * THREADS + thread_x();
    if (i < size) out[i] = x[i] * factors[i % columns];
}

// y += bias + residual: rows of y are `stride` apart, bias is (columns,), residual (rows, columns); either may be null.
// y is the first of several parts, `part` apart, and gets the others too. Grid: (rows, columns / THREADS).
RF_KERNEL(THREADS)
rf_add_to_rows(float* y, const float* bias, const float* residual, u32 columns, u64 stride, u32 parts, u64 part) {
    wait_for_previous();
    u32 column = block_y() * THREADS + thread_x();
    if (column >= columns) return;
    u64 row = block_x(), at = row * stride + column;
    float more = bias ? bias[column] : 0.0f;
    for (u32 i = 1; i < parts; i += PARTS_AHEAD) {
        float others[PARTS_AHEAD];
        RF_UNROLL
        for (u32 j = 0; j < PARTS_AHEAD; ++j) others[j] = y[at + u32(minimum(i32(i + j), i32(parts - 1))) * part];
        RF_UNROLL
        for (u32 j = 0; j < PARTS_AHEAD; ++j)
            if (i + j < parts) more += others[j];
    }
    if (residual) more += residual[row * columns + column];
    y[at] += more;
}

// Rows of gate and up, floats or float16, which may be columns of wider arrays; out, or fp16 where that is not null, is
// contiguous. A thread takes the columns of 16 bytes: as one load of each, where they lie at multiples of that. Grid:
// (rows, columns / COLUMNS<T> / THREADS).
template <class T>
constexpr u32 COLUMNS = 16 / sizeof(T);
template <u32 N>
struct Run {
    float x[N];
};
RF_DEVICE Run<4> load_whole(const float* p) {
    f32x4 v = load<f32x4>(p);
    return {{v.x, v.y, v.z, v.w}};
}
RF_DEVICE float widened(float x) { return x; }
// A sum that float16 does not hold has become infinite in the product: it counts as the largest number.
RF_DEVICE float widened(f16 x) {
    float value = to_float(x);
    return absolute(value) == infinity() ? (value > 0 ? 65504.0f : -65504.0f) : value;
}
RF_DEVICE Run<8> load_whole(const f16* p) {
    u32x4 v = load<u32x4>(p);
    f16 halves[8];
    RF_MEMCPY(halves, &v, sizeof v);
    Run<8> run;
    RF_UNROLL
    for (u32 i = 0; i < 8; ++i) run.x[i] = widened(halves[i]);
    return run;
}
template <class T>
RF_DEVICE Run<COLUMNS<T>> load_run(const T* row, u32 column, u32 columns, bool whole) {
    if (whole) return load_whole(row + column);
    Run<COLUMNS<T>> run;
    RF_UNROLL
    for (u32 i = 0; i < COLUMNS<T>; ++i) run.x[i] = column + i < columns ? widened(row[column + i]) : 0.0f;
    return run;
}
template <u32 N>
RF_DEVICE void store_run(float* out, f16* fp16, u64 at, u32 left, const Run<N>& v, bool whole) {
    if (whole) {
        RF_UNROLL
        for (u32 i = 0; i < N; i += 4) {
            f32x4 four = make_f32x4(v.x[i], v.x[i + 1], v.x[i + 2], v.x[i + 3]);
            if (fp16)
                store_fp16(fp16 + at + i, four);
            else
                *reinterpret_cast<f32x4*>(out + at + i) = four;
        }
        return;
    }
    RF_UNROLL
    for (u32 i = 0; i < N; ++i) {
        if (i >= left) continue;
        if (fp16)
            fp16[at + i] = from_float<f16>(clamp_fp16(v.x[i]));
        else
            out[at + i] = v.x[i];
    }
}
#define RF_GATED(name, T, expression, ...)                                                                     \
    RF_KERNEL(THREADS)                                                                                         \
    rf_##name(float* out, f16* fp16, const T* gate, const T* up, u32 columns, u64 gate_stride,                 \
              u64 up_stride __VA_ARGS__) {                                                                     \
        wait_for_previous();                                                                                   \
        u32 column = COLUMNS<T> * (block_y() * THREADS + thread_x());                                          \
        u64 row = block_x(), at = row * columns + column;                                                      \
        if (column >= columns) return;                                                                         \
        bool whole = (columns | gate_stride | up_stride) % COLUMNS<T> == 0 && (u64(gate) | u64(up)) % 16 == 0; \
        Run<COLUMNS<T>> gates = load_run(gate + row * gate_stride, column, columns, whole);                    \
        Run<COLUMNS<T>> ups = load_run(up + row * up_stride, column, columns, whole), result;                  \
        RF_UNROLL                                                                                              \
        for (u32 i = 0; i < COLUMNS<T>; ++i) {                                                                 \
            float g = gates.x[i], u = ups.x[i];                                                                \
            result.x[i] = expression;                                                                          \
        }                                                                                                      \
        store_run(out, fp16, at, columns - column, result, whole);                                             \
    }
#define RF_COMMA ,
RF_GATED(swiglu, float, swiglu_of(g, u))
RF_GATED(swiglu_of_fp16, f16, swiglu_of(g, u))
RF_GATED(geglu, float, geglu_of(g, u))
RF_GATED(geglu_of_fp16, f16, geglu_of(g, u))
RF_GATED(reglu, float, reglu_of(g, u))
RF_GATED(reglu_of_fp16, f16, reglu_of(g, u))
RF_GATED(swiglu_clipped, float, swiglu_clipped_of(g, u, limit), RF_COMMA float limit)
RF_GATED(swiglu_clipped_of_fp16, f16, swiglu_clipped_of(g, u, limit), RF_COMMA float limit)
RF_GATED(swiglu_oai, float, swiglu_oai_of(g, u, alpha, limit), RF_COMMA float alpha RF_COMMA float limit)
RF_GATED(swiglu_oai_of_fp16, f16, swiglu_oai_of(g, u, alpha, limit), RF_COMMA float alpha RF_COMMA float limit)

// What stands out of rows of n, which are `stride` apart: max(x - (mean + deviations * deviation), 0), with the
// deviation of a sample. A block a row.
RF_KERNEL(THREADS)
rf_sparsify(float* out, const float* x, float deviations, u32 n, u64 stride) {
    wait_for_previous();
    x += block_x() * stride, out += u64(block_x()) * n;
    float sum = 0, squares = 0;
    for (u32 i = thread_x(); i < n; i += THREADS) sum += x[i];
    float mean = block_sum<THREADS>(sum) / n;
    for (u32 i = thread_x(); i < n; i += THREADS) squares += (x[i] - mean) * (x[i] - mean);
    float variance = block_sum<THREADS>(squares) / (n - 1);
    float limit = mean + deviations * (variance > 0 ? variance * fast_rsqrt(variance) : 0.0f);
    for (u32 i = thread_x(); i < n; i += THREADS) out[i] = maximum(x[i] - limit, 0.0f);
}

// exp(x) / sum(exp(x)) over contiguous rows of n, a block each.
RF_KERNEL(THREADS)
rf_softmax(float* out, const float* x, u32 n) {
    wait_for_previous();
    u64 start = u64(block_x()) * n;
    x += start, out += start;
    float highest = -infinity(), sum = 0;
    for (u32 i = thread_x(); i < n; i += THREADS) highest = maximum(highest, x[i]);
    highest = block_max<THREADS>(highest);
    for (u32 i = thread_x(); i < n; i += THREADS) sum += fast_exp(x[i] - highest);
    float factor = 1.0f / block_sum<THREADS>(sum);
    for (u32 i = thread_x(); i < n; i += THREADS) out[i] = fast_exp(x[i] - highest) * factor;
}

}  // namespace rocforge
