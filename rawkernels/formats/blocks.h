// The block formats that are kept as GGUF has them. A format gives the value of element e of a block; `grid` is the
// gguf package's table of the IQ formats (their lattice points, as float32), else null.
#pragma once

#include "target/platform.h"

namespace rocforge {

RF_DEVICE u32 word16(const u8* p) { return p[0] | u32(p[1]) << 8; }
RF_DEVICE u32 word32(const u8* p) { return word16(p) | word16(p + 2) << 16; }
RF_DEVICE float half_at(const u8* p) { return low_half(word16(p)); }
RF_DEVICE u32 nibble(const u8* p, u32 i) { return p[i / 2] >> i % 2 * 4 & 15; }

// Seven sign bits and the eighth that makes their number even.
RF_DEVICE bool even_sign(u32 seven, u32 i) {
    u32 parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (seven | (parity & 1) << 7) >> i & 1;
}
RF_DEVICE float signed_value(float scale, float value, bool minus) {
    return mul_rn(mul_rn(scale, value), minus ? -1.0f : 1.0f);
}
// d * (0.5 + n) * factor
RF_DEVICE float half_step(float d, u32 n, float factor) { return mul_rn(mul_rn(d, 0.5f + float(n)), factor); }

struct F32 {
    static constexpr u32 ELEMENTS = 1, BYTES = 4;
    static RF_MEMBER float value(const u8* b, u32, const float*) { return bits_float(word32(b)); }
};
struct F16 {
    static constexpr u32 ELEMENTS = 1, BYTES = 2;
    static RF_MEMBER float value(const u8* b, u32, const float*) { return half_at(b); }
};
struct BF16 {
    static constexpr u32 ELEMENTS = 1, BYTES = 2;
    static RF_MEMBER float value(const u8* b, u32, const float*) { return bits_float(word16(b) << 16); }
};
struct TQ1_0 {
    static constexpr u32 ELEMENTS = 256, BYTES = 54;
    static RF_MEMBER float value(const u8* b, u32 e, const float*) {
        // runs of 32, 16 and 4 bytes, each byte five (the last: four) base-3 digits
        u32 byte = e < 160 ? e % 32 : e < 240 ? 32 + e % 16 : 48 + e % 4;
        u32 digit = e < 160 ? e / 32 : e < 240 ? (e - 160) / 16 : (e - 240) / 4, v = b[byte];
        for (u32 i = 0; i < digit; ++i) v *= 3;
        return mul_rn(half_at(b + 52), float(i32((v & 255) * 3 >> 8) - 1));
    }
};
struct TQ2_0 {
    static constexpr u32 ELEMENTS = 256, BYTES = 66;
    static RF_MEMBER float value(const u8* b, u32 e, const float*) {
        return mul_rn(half_at(b + 64), float(i32(b[e / 128 * 32 + e % 32] >> e % 128 / 32 * 2 & 3) - 1));
    }
};
struct NVFP4 {
    static constexpr u32 ELEMENTS = 64, BYTES = 36;
    static RF_MEMBER float value(const u8* b, u32 e, const float*) {
        u32 scale = b[e / 16], exponent = scale >> 3 & 15, mantissa = scale & 7;
        // half of unsigned e4m3, whose 0x7f is not a number and counts as zero
        float d = exponent == 0 ? float(mantissa) * 0.0009765625f
                                : (1.0f + float(mantissa) / 8.0f) * bits_float((exponent + 119) << 23);
        if (scale == 0x7f) d = 0.0f;
        u32 code = b[4 + e / 16 * 8 + e % 8] >> e % 16 / 8 * 4 & 15;
        return mul_rn(d, float(i32(i8(lookup16(0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc, code)))));
    }
};
struct IQ2_XXS {
    static constexpr u32 ELEMENTS = 256, BYTES = 66;
    static RF_MEMBER float value(const u8* b, u32 e, const float* grid) {
        const u8* q = b + 2 + e / 32 * 8;
        u32 rest = word32(q + 4), k = e % 32 / 8;
        float scale = half_step(half_at(b), rest >> 28, 0.25f);
        return signed_value(scale, grid[8 * q[k] + e % 8], even_sign(rest >> 7 * k & 127, e % 8));
    }
};
struct IQ2_XS {
    static constexpr u32 ELEMENTS = 256, BYTES = 74;
    static RF_MEMBER float value(const u8* b, u32 e, const float* grid) {
        u32 q = word16(b + 2 + e / 8 * 2);
        float scale = half_step(half_at(b), nibble(b + 66, e / 16), 0.25f);
        return signed_value(scale, grid[8 * (q & 511) + e % 8], even_sign(q >> 9, e % 8));
    }
};
struct IQ2_S {
    static constexpr u32 ELEMENTS = 256, BYTES = 82;
    static RF_MEMBER float value(const u8* b, u32 e, const float* grid) {
        u32 q = b[2 + e / 8] | (b[66 + e / 32] >> e % 32 / 8 * 2 & 3) << 8;
        float scale = half_step(half_at(b), nibble(b + 74, e / 16), 0.25f);
        return signed_value(scale, grid[8 * q + e % 8], b[34 + e / 8] >> e % 8 & 1);
    }
};
struct IQ3_XXS {
    static constexpr u32 ELEMENTS = 256, BYTES = 98;
    static RF_MEMBER float value(const u8* b, u32 e, const float* grid) {
        u32 rest = word32(b + 66 + e / 32 * 4);
        float scale = half_step(half_at(b), rest >> 28, 0.5f);
        return signed_value(scale, grid[4 * b[2 + e / 4] + e % 4], even_sign(rest >> e % 32 / 8 * 7 & 127, e % 8));
    }
};
struct IQ3_S {
    static constexpr u32 ELEMENTS = 256, BYTES = 110;
    static RF_MEMBER float value(const u8* b, u32 e, const float* grid) {
        u32 q = b[2 + e / 4] | (b[66 + e / 32] >> e % 32 / 4 & 1) << 8;
        float scale = mul_rn(half_at(b), float(1 + 2 * nibble(b + 106, e / 32)));
        return signed_value(scale, grid[4 * q + e % 4], b[74 + e / 8] >> e % 8 & 1);
    }
};
struct IQ1_S {
    static constexpr u32 ELEMENTS = 256, BYTES = 50;
    static RF_MEMBER float value(const u8* b, u32 e, const float* grid) {
        u32 high = word16(b + 34 + e / 32 * 2), q = b[2 + e / 8] | (high >> e % 32 / 8 * 3 & 7) << 8;
        float scale = mul_rn(half_at(b), float(2 * (high >> 12 & 7) + 1));
        return mul_rn(scale, grid[8 * q + e % 8] + (high & 0x8000 ? -0.125f : 0.125f));
    }
};
struct IQ1_M {
    static constexpr u32 ELEMENTS = 256, BYTES = 56;
    static RF_MEMBER float value(const u8* b, u32 e, const float* grid) {
        u32 d = 0;
        for (u32 i = 0; i < 4; ++i) d |= (word16(b + 48 + 2 * i) >> 12) << 4 * i;
        u32 high = nibble(b + 32, e / 8), q = b[e / 8] | (high & 7) << 8;
        float scale = mul_rn(low_half(d), float(2 * (word16(b + 48 + e / 64 * 2) >> e % 64 / 16 * 3 & 7) + 1));
        return mul_rn(scale, grid[8 * q + e % 8] + (high & 8 ? -0.125f : 0.125f));
    }
};

}  // namespace rocforge
