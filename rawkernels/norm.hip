// Normalizations over rows: a block a row, accumulated in float32.
#include "rows.h"

namespace rocforge {

// x / sqrt(mean(x^2) + eps) * weight + residual; weight and residual may be null. Rows are contiguous.
RF_KERNEL(THREADS)
rf_rms_norm(float* out, f16* fp16, u8* quantized, const float* x, const float* weight, const float* residual, u32 width,
            u32 n, float eps) {
    u64 start = u64(block_x()) * n;
    auto normalize = [&](bool waited) {
        Row row(waited ? x + start : weight, n), weights(weight, n, 1.0f);
        float sum = 0.0f;
        each_four(n, [&](u32 k, u32 i) { sum += squares(row.at(k, i)); });
        float factor = fast_rsqrt(block_sum<THREADS>(sum) / float(n) + eps);
        Output output = {out, fp16, {quantized, width, cells_of(n)}, n};
        each_four(output.end(), [&](u32 k, u32 i) {
            f32x4 added = residual && waited ? load4(residual + start, i, n) : make_f32x4(0, 0, 0, 0);
            output.write(waited ? i : output.end(), scaled(row.at(k, i), factor, weights.at(k, i), added));
        });
    };
    rehearsed(normalize, weight != nullptr);
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

// The residual stream x past what a layer adds to it, and what the next products take of it.
//
// Each y goes through a norm of its own, of two their sum goes through a third:
//   v = norm_0(y_0), or norm_2(norm_0(y_0) + norm_1(y_1));  s = (x + v) * factor, which is written.
// Without any y, s is x, and is not written. Each of `next` is a norm of s, times a scale, or s itself.
struct RowNorm {
    RF_NULLABLE const float* weight;
    float eps;
};
struct NextNorm {
    RF_NULLABLE float* floats;
    RF_NULLABLE f16* fp16;
    RF_NULLABLE u8* quantized;
    u32 width;
    RF_NULLABLE const float* weight;
    float eps, scale;
    u32 normalizes;
};
struct AddNormedParams {
    RF_NULLABLE float* sum;
    const float* x;
    RF_NULLABLE const float *y, *other;
    RowNorm norms[3];
    RF_NULLABLE const float* factor;
    NextNorm next[3];
    u32 nexts, n;
};

// With TWO there may be `other`, with SEVERAL up to three in `next`, else one.
template <bool TWO, bool SEVERAL>
RF_DEVICE void add_normed(const AddNormedParams& p) {
    u32 n = p.n, nexts = SEVERAL ? p.nexts : minimum(i32(p.nexts), 1);
    u64 start = u64(block_x()) * n;
    const float* second = TWO ? p.other : nullptr;
    f32x4 zero = make_f32x4(0, 0, 0, 0);
    // weights come while the kernel before still runs
    Row weight(p.norms[0].weight, n, 1.0f), other_weight(TWO ? p.norms[1].weight : nullptr, n, 1.0f);
    Row both(TWO ? p.norms[2].weight : nullptr, n, 1.0f), next(p.next[0].weight, n, 1.0f);
    for (u32 which = 1; SEVERAL && which < nexts; ++which)
        for (u32 i = 4 * thread_x(); p.next[which].weight && i < n; i += 4 * THREADS)
            prefetch(p.next[which].weight + i);
    float of_layer = p.factor ? load_early(p.factor) : 1.0f;
    const float* some = p.next[0].weight ? p.next[0].weight : p.norms[0].weight;
    auto add = [&](bool waited) {
        auto of_launch = [&](const float* row) { return !row ? nullptr : waited ? row + start : some; };
        Row x(of_launch(p.x), n), y(of_launch(p.y), n), other(of_launch(second), n);
        auto factor_of = [&](float squared, float eps) {
            return fast_rsqrt(block_sum<THREADS>(squared) / float(n) + eps);
        };
        auto factor_of_row = [&](const Row& row, float eps) {
            float squared = 0.0f;
            each_four(n, [&](u32 k, u32 i) { squared += squares(row.at(k, i)); });
            return factor_of(squared, eps);
        };
        float factor = p.y ? factor_of_row(y, p.norms[0].eps) : 0.0f, other_factor = 0.0f, both_factor = 0.0f;
        auto two = [&](u32 k, u32 i) {
            f32x4 v = scaled(y.at(k, i), factor, weight.at(k, i), zero);
            return scaled(other.at(k, i), other_factor, other_weight.at(k, i), v);
        };
        f32x4 kept[KEPT] = {};
        float squared = 0.0f;
        if (second) {
            other_factor = factor_of_row(other, p.norms[1].eps);
            each_four(n, [&](u32 k, u32 i) {
                f32x4 v = two(k, i);
                if (k < KEPT) kept[k < KEPT ? k : 0] = v;
                squared += squares(v);
            });
            both_factor = factor_of(squared, p.norms[2].eps);
            squared = 0.0f;
        }
        each_four(n, [&](u32 k, u32 i) {
            f32x4 s = x.at(k, i);
            if (second) {
                s = scaled(k < KEPT ? kept[k < KEPT ? k : 0] : two(k, i), both_factor, both.at(k, i), s);
            } else if (p.y) {
                s = scaled(y.at(k, i), factor, weight.at(k, i), s);
            }
            s = times(s, of_layer);
            if (k < KEPT) kept[k < KEPT ? k : 0] = s;
            if (p.sum && waited) store4(p.sum + start, i, n, s);
            squared += squares(s);
        });
        if (nexts == 0) return;
        float mean = block_sum<THREADS>(squared) / float(n);
        const float* stream = of_launch(p.sum ? p.sum : p.x);
        Row of_next = next;
        RF_NO_UNROLL
        for (u32 which = 0;;) {
            NextNorm to = p.next[which];
            Output output = {to.floats, to.fp16, {to.quantized, to.width, cells_of(n)}, n};
            float f = to.normalizes ? fast_rsqrt(mean + to.eps) * to.scale : to.scale;
            each_four(output.end(), [&](u32 k, u32 i) {
                f32x4 s = k < KEPT ? kept[k < KEPT ? k : 0] : load4(stream, i, n);
                output.write(waited ? i : output.end(), scaled(s, f, of_next.at(k, i), zero));
            });
            if (!SEVERAL || ++which == nexts) break;
            of_next = Row(p.next[which].weight, n, 1.0f);
        }
    };
    rehearsed(add, TWO && some);  // of the others the launch before ends soon after it has waited
}

RF_KERNEL(THREADS) rf_add_normed(AddNormedParams p) { add_normed<false, false>(p); }
RF_KERNEL_BOUND(THREADS, 1024) rf_add_normed_for_several(AddNormedParams p) { add_normed<false, true>(p); }
RF_KERNEL(THREADS) rf_add_two_normed(AddNormedParams p) { add_normed<true, true>(p); }

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
