// Normalizations over rows: a block a row, accumulated in float32.
#include "platform.h"

#ifndef NORM_THREADS
#define NORM_THREADS 256
#endif

// Four elements of a row from i on; those past its end are zero. n is the row's length.
DEVICE f32x4 load4(const float* row, u32 i, u32 n) {
    if (n % 4 == 0) return load<f32x4>(row + i);
    return make_f32x4(row[i], i + 1 < n ? row[i + 1] : 0.0f, i + 2 < n ? row[i + 2] : 0.0f,
                      i + 3 < n ? row[i + 3] : 0.0f);
}
DEVICE void store4(float* row, u32 i, u32 n, f32x4 v) {
    if (n % 4 == 0) {
        *reinterpret_cast<f32x4*>(row + i) = v;
        return;
    }
    row[i] = v.x;
    if (i + 1 < n) row[i + 1] = v.y;
    if (i + 2 < n) row[i + 2] = v.z;
    if (i + 3 < n) row[i + 3] = v.w;
}

// out = x / sqrt(mean(x^2) + eps) * weight + residual; weight and residual may be null. Rows are contiguous.
KERNEL(NORM_THREADS)
rms_norm(float* out, const float* x, const float* weight, const float* residual, u32 n, float eps) {
    u64 start = u64(block_x()) * n;
    x += start, out += start;
    float squares = 0;
    for (u32 i = thread_x() * 4; i < n; i += NORM_THREADS * 4) {
        f32x4 v = load4(x, i, n);
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    float factor = fast_rsqrt(block_sum<NORM_THREADS>(squares) / float(n) + eps);
    for (u32 i = thread_x() * 4; i < n; i += NORM_THREADS * 4) {
        f32x4 v = load4(x, i, n), w = weight ? load4(weight, i, n) : make_f32x4(1, 1, 1, 1);
        f32x4 r = residual ? load4(residual + start, i, n) : make_f32x4(0, 0, 0, 0);
        v = make_f32x4(v.x * factor * w.x + r.x, v.y * factor * w.y + r.y, v.z * factor * w.z + r.z,
                       v.w * factor * w.w + r.w);
        store4(out, i, n, v);
    }
}

// out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias; weight and bias may be null.
KERNEL(NORM_THREADS)
layer_norm(float* out, const float* x, const float* weight, const float* bias, u32 n, float eps) {
    u64 start = u64(block_x()) * n;
    x += start, out += start;
    float sum = 0;
    for (u32 i = thread_x() * 4; i < n; i += NORM_THREADS * 4) {
        f32x4 v = load4(x, i, n);
        sum += v.x + v.y + v.z + v.w;
    }
    float mean = block_sum<NORM_THREADS>(sum) / float(n), squares = 0;
    for (u32 i = thread_x(); i < n; i += NORM_THREADS) squares += (x[i] - mean) * (x[i] - mean);
    float factor = fast_rsqrt(block_sum<NORM_THREADS>(squares) / float(n) + eps);
    for (u32 i = thread_x(); i < n; i += NORM_THREADS)
        out[i] = (x[i] - mean) * factor * (weight ? weight[i] : 1.0f) + (bias ? bias[i] : 0.0f);
}
