// Normalizations over rows: a block a row, accumulated in float32.
#include "quants.h"

#define THREADS 512
#define KEPT 2

// Four elements of a row of n from i on; those past its end are zero, and are not written.
DEVICE f32x4 load4(const float* row, u32 i, u32 n) {
    if (n % 4 == 0 && i < n) return load<f32x4>(row + i);
    return make_f32x4(i < n ? row[i] : 0.0f, i + 1 < n ? row[i + 1] : 0.0f, i + 2 < n ? row[i + 2] : 0.0f,
                      i + 3 < n ? row[i + 3] : 0.0f);
}
DEVICE void store4(float* row, u32 i, u32 n, f32x4 v) {
    if (n % 4 == 0 && i < n) {
        *reinterpret_cast<f32x4*>(row + i) = v;
        return;
    }
    if (i < n) row[i] = v.x;
    if (i + 1 < n) row[i + 1] = v.y;
    if (i + 2 < n) row[i + 2] = v.z;
    if (i + 3 < n) row[i + 3] = v.w;
}

DEVICE void store4(f16* row, u32 i, u32 n, f32x4 v) {
    v = make_f32x4(held(v.x), held(v.y), held(v.z), held(v.w));
    if (n % 4 == 0 && i < n) {
        u32x2 pairs;
        pairs.x = pack_halves(v.x, v.y), pairs.y = pack_halves(v.z, v.w);
        *reinterpret_cast<u32x2*>(row + i) = pairs;
        return;
    }
    UNROLL
    for (u32 j = 0; j < 4; ++j)
        if (i + j < n) row[i + j] = from_float<f16>(element(v, j));
}

DEVICE float square(f32x4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// x / sqrt(mean(x^2) + eps) * weight + residual, into `out`, or, for the product that follows, in float16 into `halves`,
// or into `quantized` as `Rounded` has it; those that are null are not wanted. Weight and residual may be null. Rows are
// contiguous.
KERNEL(THREADS)
rms_norm(float* out, f16* halves, u8* quantized, const float* x, const float* weight, const float* residual, u32 columns, u32 n,
         float eps) {
    wait_for_previous();
    u64 start = u64(block_x()) * n;
    u32 cells = cells_of(n), end = quantized ? cells * CELL : n;
    Rounded rounded = {quantized, columns, cells};
    x += start;
    // the first elements of the row, and their weights, wait in registers for the sum
    f32x4 kept[KEPT], weights[KEPT];
    float squares = 0;
    UNROLL
    for (u32 k = 0; k < KEPT; ++k) {
        u32 i = (k * THREADS + thread_x()) * 4;
        kept[k] = load4(x, i, n);
        weights[k] = weight ? load4(weight, i, n) : make_f32x4(1, 1, 1, 1);
    }
    UNROLL
    for (u32 k = 0; k < KEPT; ++k) squares += square(kept[k]);
    for (u32 i = (KEPT * THREADS + thread_x()) * 4; i < n; i += THREADS * 4) squares += square(load4(x, i, n));
    float factor = fast_rsqrt(block_sum<THREADS>(squares) / float(n) + eps);
    // all lanes of a wave go round together
    auto write = [&](u32 i, f32x4 v, f32x4 w) {
        f32x4 r = residual ? load4(residual + start, i, n) : make_f32x4(0, 0, 0, 0);
        v = make_f32x4(v.x * factor * w.x + r.x, v.y * factor * w.y + r.y, v.z * factor * w.z + r.z,
                       v.w * factor * w.w + r.w);
        if (out) store4(out + start, i, n, v);
        if (halves) store4(halves + start, i, n, v);
        if (quantized) rounded.store(block_x(), i, v);
    };
    UNROLL
    for (u32 k = 0; k < KEPT; ++k)
        if (k * THREADS * 4 < end) write((k * THREADS + thread_x()) * 4, kept[k], weights[k]);
    for (u32 base = KEPT * THREADS * 4; base < end; base += THREADS * 4) {
        u32 i = base + thread_x() * 4;
        write(i, load4(x, i, n), weight ? load4(weight, i, n) : make_f32x4(1, 1, 1, 1));
    }
}

// out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias; weight and bias may be null.
KERNEL(THREADS)
layer_norm(float* out, const float* x, const float* weight, const float* bias, u32 n, float eps) {
    wait_for_previous();
    u64 start = u64(block_x()) * n;
    x += start, out += start;
    float sum = 0;
    for (u32 i = thread_x() * 4; i < n; i += THREADS * 4) {
        f32x4 v = load4(x, i, n);
        sum += v.x + v.y + v.z + v.w;
    }
    float mean = block_sum<THREADS>(sum) / float(n), squares = 0;
    for (u32 i = thread_x(); i < n; i += THREADS) squares += (x[i] - mean) * (x[i] - mean);
    float factor = fast_rsqrt(block_sum<THREADS>(squares) / float(n) + eps);
    for (u32 i = thread_x(); i < n; i += THREADS)
        out[i] = (x[i] - mean) * factor * (weight ? weight[i] : 1.0f) + (bias ? bias[i] : 0.0f);
}
