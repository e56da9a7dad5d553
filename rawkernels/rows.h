// Rows of floats, a block each, whose first elements wait in the registers of its threads.
#pragma once
#include "fours.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_NORM_THREADS;
constexpr u32 KEPT = RF_TUNE_NORM_KEPT;

// A row of n floats, or of one number where there is none. A block's first elements wait in registers.
struct Row {
    const float* row;
    u32 n;
    float otherwise;
    f32x4 kept[KEPT];

    RF_MEMBER Row(const float* row, u32 n, float otherwise = 0.0f) : row(row), n(n), otherwise(otherwise) {
        RF_UNROLL
        for (u32 k = 0; k < KEPT; ++k) kept[k] = loaded((k * THREADS + thread_x()) * 4);
    }
    RF_MEMBER f32x4 loaded(u32 i) const {
        return row ? load4(row, i, n) : make_f32x4(otherwise, otherwise, otherwise, otherwise);
    }
    // Four elements from i on, which the thread comes to in its k-th round.
    RF_MEMBER f32x4 at(u32 k, u32 i) const { return k < KEPT ? kept[k < KEPT ? k : 0] : loaded(i); }
};

// Calls f(k, i) for the fours of a row up to `end`; all lanes of a wave go round together.
template <class F>
RF_DEVICE void each_four(u32 end, F f) {
    RF_UNROLL
    for (u32 k = 0; k < KEPT; ++k)
        if (k * THREADS * 4 < end) f(k, (k * THREADS + thread_x()) * 4);
    for (u32 base = KEPT * THREADS * 4; base < end; base += THREADS * 4) f(KEPT, base + thread_x() * 4);
}

// Where the block's row goes: as floats, in float16 or, for the product that follows, as `Quantized` has it; what is
// null is not wanted.
struct Output {
    float* floats;
    f16* fp16;
    Quantized quantized;
    u32 n;

    RF_MEMBER u32 end() const { return quantized.data ? quantized.cells * CELL : n; }
    RF_MEMBER void write(u32 i, f32x4 v) const {
        u64 start = u64(block_x()) * n;
        if (floats) store4(floats + start, i, n, v);
        if (fp16) store4(fp16 + start, i, n, v);
        if (quantized.data) quantized.store(block_x(), i, v);
    }
};

RF_DEVICE float total(f32x4 v) { return v.x + v.y + v.z + v.w; }
RF_DEVICE float squares(f32x4 v) { return dot(v, v); }
// v * factor * w + b
RF_DEVICE f32x4 scaled(f32x4 v, float factor, f32x4 w, f32x4 b) {
    return make_f32x4(v.x * factor * w.x + b.x, v.y * factor * w.y + b.y, v.z * factor * w.z + b.z,
                      v.w * factor * w.w + b.w);
}

}  // namespace rocforge
