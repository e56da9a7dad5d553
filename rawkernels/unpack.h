// Codes of packed weights to float16, for the matrix unit.
#pragma once
#include "formats/quants.h"

namespace rocforge {

// Whether four-bit codes stay where they are in their word, sixteen times as much for the second half of a run.
template <class F>
struct Nibbles {
    static const bool STAY = F::LOW == 4 && F::HIGH == 0 && !F::SIGNED;
};

// Whether codes are floats of 2 + 1 bits, taken as the selectors that they are stored as.
template <class F>
struct SmallFloats {
    static const bool ANY = false;
};
template <>
struct SmallFloats<MXFP4> {
    static const bool ANY = true;
};
template <>
struct SmallFloats<NVFP4> {
    static const bool ANY = true;
};

// Four selectors * scale in float16: elements 0 and 2, and 1 and 3. At the top of float16's fields a code is 2^-14 of
// itself, and the scale is half of what it says.
RF_DEVICE void unpack_floats(u32& first, u32& second, u32 four, u32 scales) {
    // the first and the third, and some bits above these the second and the fourth
#ifdef RF_PLATFORM_NVIDIA
    const u32 STEP = 4;
    four = pick_bytes(0, four, 0x04010400);
#else
    const u32 STEP = 8;
#endif
    const u32 SIZES = 0x0e000e00, SIGNS = 0x80008000, UP = 0x78007800;  // 2^15
    u32 even = (four << 9 & SIZES) | (four << 12 & SIGNS);
    u32 odd = (moved(four, STEP, 9) & SIZES) | (moved(four, STEP, 12) & SIGNS);
    first = fma_fp16(fma_fp16(even, UP, 0), scales, 0);
    second = fma_fp16(fma_fp16(odd, UP, 0), scales, 0);
}

// Four codes * scale + min in float16: elements 0 and 2, and 1 and 3. `codes` are those of half h of a run as
// `codes_of` gives them; scale and min are pairs of the same number. Codes become float16 in the last places of 1024,
// and lose what they are above by there.
template <class F>
RF_DEVICE void unpack_four(u32& first, u32& second, u32 codes, u32 h, u32 scales, u32 mins) {
    if constexpr (SmallFloats<F>::ANY) return unpack_floats(first, second, codes, scales);
    u32 even, odd;
    float unit = 1.0f, above = 1024.0f;
    if constexpr (Nibbles<F>::STAY) {
        even = and_or(codes, 0x000f000f << 4 * h, 0x64006400);
        odd = and_or(codes >> 8, 0x000f000f << 4 * h, 0x64006400);
        unit = h ? 1.0f / 16 : 1.0f;
    } else {
        u32 four = F::values(codes);
        if (F::SIGNED) four ^= 0x80808080, above += 128;
        even = pick_bytes(0x64646464, four, 0x04020400), odd = pick_bytes(0x64646464, four, 0x04030401);
    }
    float zero = -(above * unit + F::OFFSET);
    u32 units = pack_fp16(unit, unit), zeros = pack_fp16(zero, zero);
    first = fma_fp16(fma_fp16(even, units, zeros), scales, mins);
    second = fma_fp16(fma_fp16(odd, units, zeros), scales, mins);
}

// A pair's first or second number, twice. NVIDIA's compiler makes it part of the instruction that takes it, where it is
// told of halves.
#ifdef RF_PLATFORM_NVIDIA
RF_DEVICE u32 low_twice(u32 pair) {
    u32 twice;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {low, low};}" : "=r"(twice) : "r"(pair));
    return twice;
}
RF_DEVICE u32 high_twice(u32 pair) {
    u32 twice;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {high, high};}" : "=r"(twice) : "r"(pair));
    return twice;
}
#else
RF_DEVICE u32 low_twice(u32 pair) { return pick_bytes(pair, pair, 0x01000100); }
RF_DEVICE u32 high_twice(u32 pair) { return pick_bytes(pair, pair, 0x03020302); }
#endif

// Bytes 0 and 1 of a word, or 2 and 3, which are 0 to 255, less `above`, as a pair of float16.
RF_DEVICE u32 bytes_fp16(u32 word, bool upper, float above) {
    u32 zero = pack_fp16(-1024.0f - above, -1024.0f - above), one = pack_fp16(1.0f, 1.0f);
    return fma_fp16(bytes_fp16(word, upper), one, zero);
}

// The scales and minimums of a cell's eight runs of 16 elements, as pairs for unpack_four. Those that are bytes are
// multiplied as float16, to what their product in float32 is rounded to.
template <class F>
struct CellScales {
    u32 scale[8], min[8];
    RF_MEMBER explicit CellScales(const F& w) {
        RF_UNROLL
        for (u32 j = 0; j < 8; ++j) {
            u32 s = j / 2, h = j % 2;
            if (h == 1 && !F::HALVES) {
                scale[j] = scale[j - 1], min[j] = min[j - 1];
                continue;
            }
            float a = w.outer_scale() * w.scale(s, h), b = w.outer_min() * w.min(s, h);
            scale[j] = pack_fp16(a, a), min[j] = F::MINS ? pack_fp16(b, b) : 0;
        }
    }
};
template <u32 HIGH, u32 BYTES, u32 LOW_AT>
RF_DEVICE void byte_scales(u32 (&scale)[8], u32 (&min)[8], const Affine256<HIGH, BYTES, LOW_AT>& w) {
    RF_UNROLL
    for (u32 i = 0; i < 4; i += 2) {
        u32 scales = fma_fp16(bytes_fp16(w.tail.y, i == 2, 0.0f), low_twice(w.tail.x), 0);
        u32 mins = fma_fp16(bytes_fp16(w.tail.z, i == 2, 0.0f), high_twice(w.tail.x) ^ 0x80008000, 0);
        scale[2 * i] = scale[2 * i + 1] = low_twice(scales), scale[2 * i + 2] = scale[2 * i + 3] = high_twice(scales);
        min[2 * i] = min[2 * i + 1] = low_twice(mins), min[2 * i + 2] = min[2 * i + 3] = high_twice(mins);
    }
}
template <>
RF_MEMBER CellScales<Q4_K>::CellScales(const Q4_K& w) {
    byte_scales(scale, min, w);
}
template <>
RF_MEMBER CellScales<Q5_K>::CellScales(const Q5_K& w) {
    byte_scales(scale, min, w);
}
template <>
RF_MEMBER CellScales<Q6_K>::CellScales(const Q6_K& w) {
    u32 d = w.d.bits | u32(w.d.bits) << 16;
    RF_UNROLL
    for (u32 s = 0; s < 4; ++s) {
        u32 bytes = (s < 2 ? w.tail.x : w.tail.y) ^ 0x80808080;  // signed
        u32 scales = fma_fp16(bytes_fp16(bytes, s % 2, 128.0f), d, 0);
        scale[2 * s] = low_twice(scales), scale[2 * s + 1] = high_twice(scales);
        min[2 * s] = min[2 * s + 1] = 0;
    }
}

// What unpack_four takes, of elements 32 s + 16 h + 4 t and following: of a cell in registers, or of cell c in memory.
template <class F>
RF_DEVICE u32 codes_of(const F& w, u32 s, u32 h, u32 t) {
    if constexpr (SmallFloats<F>::ANY) return selectors(element(w.plane[s], 2 * h + t / 2), t % 2);
    if constexpr (Nibbles<F>::STAY) return element(w.plane[s], t);
    return w.four(s, 4 * h + t);
}
template <class F>
RF_DEVICE u32 stored_codes(const u8* row, u32 cells, u32 c, u32 s, u32 h, u32 t) {
    const u8* plane = row + 16 * (s * cells + c);
    if constexpr (SmallFloats<F>::ANY) return selectors(load<u32>(plane + 4 * (2 * h + t / 2)), t % 2);
    if constexpr (Nibbles<F>::STAY) return load<u32>(plane + 4 * t);
    return F::stored_four(row, cells, c, s, 4 * h + t);
}

}  // namespace rocforge
