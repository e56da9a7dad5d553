// Rows of floats, four elements at a time.
#pragma once
#include "formats/quants.h"

namespace rocforge {

// Four elements of a row of n, a multiple of 4, from i on; those past its end are zero.
RF_DEVICE f32x4 four_of(const float* row, u32 i, u32 n) {
    return i < n ? load<f32x4>(row + i) : make_f32x4(0, 0, 0, 0);
}
// Of a row of any n, in more code; those past its end are zero, and are not written.
RF_DEVICE f32x4 load4(const float* row, u32 i, u32 n) {
    if (n % 4 == 0 && i < n) return load<f32x4>(row + i);
    return make_f32x4(i < n ? row[i] : 0.0f, i + 1 < n ? row[i + 1] : 0.0f, i + 2 < n ? row[i + 2] : 0.0f,
                      i + 3 < n ? row[i + 3] : 0.0f);
}
RF_DEVICE f32x4 load4(const f16* row, u32 i, u32 n) {
    if (i >= n) return make_f32x4(0, 0, 0, 0);
    u32x2 v = load<u32x2>(row + i);  // n is a multiple of 4
    return make_f32x4(low_half(v.x), high_half(v.x), low_half(v.y), high_half(v.y));
}
RF_DEVICE void store4(float* row, u32 i, u32 n, f32x4 v, bool aligned = true) {
    if (aligned && n % 4 == 0 && i < n) {
        *reinterpret_cast<f32x4*>(row + i) = v;
        return;
    }
    RF_UNROLL
    for (u32 j = 0; j < 4; ++j)
        if (i + j < n) row[i + j] = element(v, j);
}
RF_DEVICE void store4(f16* row, u32 i, u32 n, f32x4 v, bool aligned = true) {
    if (aligned && n % 4 == 0 && i < n) return store_fp16(row + i, v);
    RF_UNROLL
    for (u32 j = 0; j < 4; ++j)
        if (i + j < n) row[i + j] = from_float<f16>(clamp_fp16(element(v, j)));
}

// Of a sum that comes in parts, as many as are loaded together: all that wide.hip makes; others make none.
#ifdef RF_PLATFORM_NVIDIA
const u32 PARTS_AHEAD = 7;
#else
const u32 PARTS_AHEAD = 1;
#endif

RF_DEVICE f32x4 plus(f32x4 a, f32x4 b) { return make_f32x4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
RF_DEVICE f32x4 times(f32x4 v, float factor) {
    return make_f32x4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
}
RF_DEVICE f32x4 product(f32x4 a, f32x4 b) { return make_f32x4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
RF_DEVICE float dot(f32x4 a, f32x4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// Where rows of n elements go, in the form that what takes them does: one of the three is not null.
struct RowsOut {
    float* floats;
    f16* fp16;
    Quantized quantized;
    u32 n;

    // Elements i to i + 3 of a part of a row, of `size` from `first` on, which are multiples of 32 where it is
    // quantized. All lanes of the wave call it together; i past the part writes nothing.
    RF_MEMBER void write(u64 row, u32 first, u32 size, u32 i, f32x4 v) const {
        if (floats) store4(floats + row * n + first, i, size, v, (first | n) % 4 == 0);
        if (fp16) store4(fp16 + row * n + first, i, size, v, (first | n) % 4 == 0);
        if (quantized.data) quantized.store(row, i < size ? first + i : quantized.cells * CELL, v);
    }
};

}  // namespace rocforge
