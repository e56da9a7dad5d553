// Normalizations over rows: a block a row, accumulated in float32.
#include "rows.h"

namespace rocforge {

// x / sqrt(mean(x^2) + eps) * weight + residual; weight and residual may be null. Rows are contiguous.
RF_KERNEL(THREADS)
rf_rms_norm(float* out, f16* fp16, u8* quantized, const float* x, const float* weight, const float* residual, u32 width,
            u32 n, float eps) {
    wait_for_previous();
    u64 start = u64(block_x()) * n;
    Row row(x + start, n), weights(weight, n, 1.0f);
    float sum = 0.0f;
    each_four(n, [&](u32 k, u32 i) { sum += squares(row.at(k, i)); });
    float factor = fast_rsqrt(block_sum<THREADS>(sum) / float(n) + eps);
    Output output = {out, fp16, {quantized, width, cells_of(n)}, n};
    each_four(output.end(), [&](u32 k, u32 i) {
        f32x4 added = residual ? load4(residual + start, i, n) : make_f32x4(0, 0, 0, 0);
        output.write(i, scaled(row.at(k, i), factor, weights.at(k, i), added));
    });
}

// The same of a sum, x + y + bias, which is written too; the bias may be null. y is the sum of several parts,
// `part` apart.
RF_KERNEL(THREADS)
rf_rms_norm_of_sum(float* sum, f16* fp16, u8* quantized, const float* x, const float* y, const float* bias,
                   const float* weight, u32 parts, u64 part, u32 width, u32 n, float eps) {
    wait_for_previous();
    u64 start = u64(block_x()) * n;
    Row first(x + start, n), second(y + start, n), biases(bias, n), weights(weight, n, 1.0f);
    Output output = {nullptr, fp16, {quantized, width, cells_of(n)}, n};
    f32x4 kept[KEPT] = {};
    float squared = 0.0f;
    each_four(n, [&](u32 k, u32 i) {
        f32x4 a = first.at(k, i), b = second.at(k, i), c = biases.at(k, i);
        for (u32 p = 1; p < parts; p += PARTS_AHEAD) {
            f32x4 more[PARTS_AHEAD];
            RF_UNROLL
            for (u32 j = 0; j < PARTS_AHEAD; ++j)
                more[j] = load4(y + u32(minimum(i32(p + j), i32(parts - 1))) * part + start, i, n);
            RF_UNROLL
            for (u32 j = 0; j < PARTS_AHEAD; ++j)
                if (p + j < parts) b = plus(b, more[j]);
        }
        f32x4 v = plus(plus(a, b), c);
        if (i >= n) v = make_f32x4(0, 0, 0, 0);
        if (k < KEPT) kept[k < KEPT ? k : 0] = v;
        store4(sum + start, i, n, v);
        squared += squares(v);
    });
    float factor = fast_rsqrt(block_sum<THREADS>(squared) / float(n) + eps);
    each_four(output.end(), [&](u32 k, u32 i) {
        f32x4 v = k < KEPT ? kept[k < KEPT ? k : 0] : load4(sum + start, i, n);
        output.write(i, scaled(v, factor, weights.at(k, i), make_f32x4(0, 0, 0, 0)));
    });
}

// The sum over a token's experts, residual plus weights[pair] times row rank[pair] of y, which is float32 or float16,
// and the norm of it; n is a multiple of 4.
struct NormOfExpertsParams {
    float* sum;
    RF_NULLABLE f16* fp16;
    RF_NULLABLE u8* quantized;
    RF_NULLABLE const float* y;
    RF_NULLABLE const f16* y_fp16;
    const i32* rank;
    const float *weights, *residual;
    RF_NULLABLE const float* weight;
    u32 used, width, n;
    float eps;
};
RF_KERNEL(THREADS)
rf_rms_norm_of_experts(NormOfExpertsParams p) {
    wait_for_previous();
    u64 start = u64(block_x()) * p.n, pairs = u64(block_x()) * p.used;
    Row scales(p.weight, p.n, 1.0f);
    f32x4 kept[KEPT];
    float squared = 0.0f;
    each_four(p.n, [&](u32 k, u32 i) {
        f32x4 v = load4(p.residual + start, i, p.n);
        for (u32 choice = 0; choice < p.used; ++choice) {
            u64 at = u64(p.rank[pairs + choice]) * p.n;
            f32x4 part = p.y ? load4(p.y + at, i, p.n) : load4(p.y_fp16 + at, i, p.n);
            v = scaled(part, p.weights[pairs + choice], make_f32x4(1, 1, 1, 1), v);
        }
        if (k < KEPT) kept[k < KEPT ? k : 0] = v;
        store4(p.sum + start, i, p.n, v);
        squared += squares(v);
    });
    float factor = fast_rsqrt(block_sum<THREADS>(squared) / float(p.n) + p.eps);
    Output output = {nullptr, p.fp16, {p.quantized, p.width, cells_of(p.n)}, p.n};
    each_four(output.end(), [&](u32 k, u32 i) {
        f32x4 v = k < KEPT ? kept[k < KEPT ? k : 0] : load4(p.sum + start, i, p.n);
        if (i >= p.n) v = make_f32x4(0, 0, 0, 0);
        output.write(i, scaled(v, factor, scales.at(k, i), make_f32x4(0, 0, 0, 0)));
    });
}

// (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias; weight and bias may be null. Rows are contiguous.
RF_KERNEL(THREADS)
rf_layer_norm(float* out, u8* quantized, const float* x, const float* weight, const float* bias, u32 width, u32 n,
              float eps) {
    wait_for_previous();
    Row row(x + u64(block_x()) * n, n), weights(weight, n, 1.0f), biases(bias, n);
    float sum = 0.0f;
    each_four(n, [&](u32 k, u32 i) { sum += total(row.at(k, i)); });
    float mean = block_sum<THREADS>(sum) / float(n);
    auto centred = [&](u32 k, u32 i) {
        f32x4 v = row.at(k, i);
        return make_f32x4(i < n ? v.x - mean : 0.0f, i + 1 < n ? v.y - mean : 0.0f, i + 2 < n ? v.z - mean : 0.0f,
                          i + 3 < n ? v.w - mean : 0.0f);
    };
    sum = 0.0f;
    each_four(n, [&](u32 k, u32 i) { sum += squares(centred(k, i)); });
    float factor = fast_rsqrt(block_sum<THREADS>(sum) / float(n) + eps);
    Output output = {out, nullptr, {quantized, width, cells_of(n)}, n};
    each_four(output.end(),
              [&](u32 k, u32 i) { output.write(i, scaled(centred(k, i), factor, weights.at(k, i), biases.at(k, i))); });
}

}  // namespace rocforge
