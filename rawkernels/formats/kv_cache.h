// The paged KV cache. For sources compiled for a RF_HEAD_DIM and a RF_BLOCK_SIZE; where values are shorter than
// keys, RF_VALUE_DIM; and, where they are not float16, the RF_KEY_TYPE and RF_VALUE_TYPE of keys and values.
//
// A block is RF_BLOCK_SIZE consecutive slots, and token t of a sequence lies in block table[t / RF_BLOCK_SIZE] of its
// table. Of float16 a layer's keys are (slots, kv_heads, RF_HEAD_DIM), and its values likewise. Packed ones are
// (blocks, kv_heads, bytes): the rows of a block's tokens, one after another, and behind them their scales, which are
// float16, one for 32 elements. So both are read in whole words.
#pragma once
#include "target/platform.h"

namespace rocforge {

#ifndef RF_VALUE_DIM
#define RF_VALUE_DIM RF_HEAD_DIM
#endif
#ifndef RF_KEY_TYPE
#define RF_KEY_TYPE F16
#endif
#ifndef RF_VALUE_TYPE
#define RF_VALUE_TYPE F16
#endif

// A head of one token in the cache.
struct CachedRow {
    u8 *elements, *scales;
};

// Each type, of DIM elements, has its ROW in bytes and how many SCALES a row has, and a Piece: COUNT elements, 8 or 16,
// in registers.
// What `unpack` gives is to be multiplied by `scale`. Those that are INTEGER have four elements in a word of `bytes`,
// as signed bytes once ZERO is subtracted. Of those that SPREAD, keys are multiplied with a Hadamard matrix
// (cached_heads.h).
namespace cached {

template <u32 DIM>
struct F16 {
    static constexpr bool INTEGER = false, SPREAD = false;
    static constexpr u32 ELEMENTS = DIM, ROW = DIM * 2, SCALES = 0;

    static RF_MEMBER u64 block(u32 block, u32 kv_heads, u32 kv_head) {
        return (u64(block) * RF_BLOCK_SIZE * kv_heads + kv_head) * ROW;
    }
    static RF_MEMBER u32 step(u32 kv_heads) { return kv_heads * ROW; }

    template <u32 COUNT>
    struct Piece {
        u32x4 words[COUNT / 8];

        RF_MEMBER void clear() {
            RF_UNROLL
            for (u32 i = 0; i < COUNT / 8; ++i) words[i] = make_u32x4(0, 0, 0, 0);
        }
        RF_MEMBER void load_from(CachedRow row, u32 first) {
            RF_UNROLL
            for (u32 i = 0; i < COUNT / 8; ++i) words[i] = load<u32x4>(row.elements + 2 * first + 16 * i);
        }
        RF_MEMBER void unpack(float* x) const {
            RF_UNROLL
            for (u32 i = 0; i < COUNT / 8; ++i) {
                const u32 pairs[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
                RF_UNROLL
                for (u32 j = 0; j < 4; ++j)
                    x[8 * i + 2 * j] = low_half(pairs[j]), x[8 * i + 2 * j + 1] = high_half(pairs[j]);
            }
        }
        RF_MEMBER float scale() const { return 1; }
        RF_MEMBER u32x4 fp16() const { return words[0]; }
    };
    static RF_MEMBER float element(CachedRow row, u32 i) { return to_float(load<f16>(row.elements + 2 * i)); }
};

// BITS an element, and scales or none.
template <u32 DIM, u32 BITS, bool SCALED>
struct Packed {
    static constexpr u32 ELEMENTS = DIM, ROW = DIM * BITS / 8, SCALES = SCALED ? DIM / 32 : 0;
    static constexpr u32 BLOCK = RF_BLOCK_SIZE * (ROW + 2 * SCALES);

    static RF_MEMBER u64 block(u32 block, u32 kv_heads, u32 kv_head) {
        return (u64(block) * kv_heads + kv_head) * BLOCK;
    }
    static RF_MEMBER u32 step(u32) { return ROW; }
};

// A piece's words, four bytes each. Of 8 elements of a byte it loads 8 bytes at once, of 16 elements 16.
template <u32 WORDS>
struct Words {
    u32 words[WORDS];

    RF_MEMBER void clear() {
        RF_UNROLL
        for (u32 i = 0; i < WORDS; ++i) words[i] = 0;
    }
    RF_MEMBER void load_words(const u8* p) {
        if constexpr (WORDS == 4) {
            u32x4 v = load<u32x4>(p);
            words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
        } else {
            u32x2 v = load<u32x2>(p);
            words[0] = v.x, words[1] = v.y;
        }
    }
};

template <u32 WORDS>
struct ScaledWords : Words<WORDS> {
    u32 scale_bits;

    RF_MEMBER void clear() {
        Words<WORDS>::clear();
        scale_bits = 0;
    }
    RF_MEMBER void load_scale(CachedRow row, u32 first) { scale_bits = load<u16>(row.scales + first / 32 * 2); }
    RF_MEMBER float scale() const { return low_half(scale_bits); }
};

// Eight bytes, of which 1,024 and a byte have `minus` added, times a scale.
RF_DEVICE u32x4 scaled_fp16(u32 first, u32 second, u32 minus, u32 scale_bits) {
    const u32 words[2] = {first, second};
    u32 y[4];
    RF_UNROLL
    for (u32 i = 0; i < 4; ++i)
        y[i] = mul_fp16(fma_fp16(bytes_fp16(words[i / 2], i % 2), FP16_ONES, minus), scale_bits * 0x10001);
    return make_u32x4(y[0], y[1], y[2], y[3]);
}

// A signed byte an element.
template <u32 DIM>
struct Q8_0 : Packed<DIM, 8, true> {
    static constexpr bool INTEGER = true, SPREAD = false;
    static constexpr i32 ZERO = 0;

    template <u32 COUNT>
    struct Piece : ScaledWords<COUNT / 4> {
        RF_MEMBER void load_from(CachedRow row, u32 first) {
            this->load_words(row.elements + first);
            this->load_scale(row, first);
        }
        RF_MEMBER u32 bytes(u32 i) const { return this->words[i]; }
        RF_MEMBER void unpack(float* x) const {
            RF_UNROLL
            for (u32 i = 0; i < COUNT; ++i) x[i] = byte_float<128>(bytes(i / 4) ^ 0x80808080, i % 4);
        }
        RF_MEMBER u32x4 fp16() const {
            return scaled_fp16(bytes(0) ^ 0x80808080, bytes(1) ^ 0x80808080, FP16_MINUS_1152, this->scale_bits);
        }
    };
    static RF_MEMBER float element(CachedRow row, u32 i) {
        return float(i8(row.elements[i])) * to_float(load<f16>(row.scales + i / 32 * 2));
    }
};

// Four bits an element. Byte b of 8 has element b of 16 in its low half and element b + 8 in its high half.
template <u32 DIM>
struct Q4_0 : Packed<DIM, 4, true> {
    static constexpr bool INTEGER = true, SPREAD = true;
    static constexpr i32 ZERO = 8;

    template <u32 COUNT>
    struct Piece : ScaledWords<2> {
        RF_MEMBER void load_from(CachedRow row, u32 first) {
            this->load_words(row.elements + first / 16 * 8);
            if (COUNT == 8) this->words[0] >>= first / 8 % 2 * 4, this->words[1] >>= first / 8 % 2 * 4;
            this->load_scale(row, first);
        }
        RF_MEMBER u32 bytes(u32 i) const { return this->words[i % 2] >> (i / 2 * 4) & 0x0f0f0f0f; }
        RF_MEMBER void unpack(float* x) const {
            RF_UNROLL
            for (u32 i = 0; i < COUNT; ++i) x[i] = byte_float<8>(bytes(i / 4), i % 4);
        }
        RF_MEMBER u32x4 fp16() const { return scaled_fp16(bytes(0), bytes(1), FP16_MINUS_1032, this->scale_bits); }
    };
    static RF_MEMBER float element(CachedRow row, u32 i) {
        i32 code = row.elements[i / 16 * 8 + i % 8] >> i / 8 % 2 * 4 & 15;
        return float(code - ZERO) * to_float(load<f16>(row.scales + i / 32 * 2));
    }
};

// OCP's float of 8 bits with 3 of mantissa, up to 448, without negative zero.
template <u32 DIM>
struct FP8_E4M3 : Packed<DIM, 8, false> {
    static constexpr bool INTEGER = false, SPREAD = false;

    template <u32 COUNT>
    struct Piece : Words<COUNT / 4> {
        RF_MEMBER void load_from(CachedRow row, u32 first) { this->load_words(row.elements + first); }
        RF_MEMBER void unpack(float* x) const {
            RF_UNROLL
            for (u32 i = 0; i < COUNT / 4; ++i) fp8_floats(x + 4 * i, this->words[i]);
        }
        RF_MEMBER float scale() const { return FP8_UNIT; }
        RF_MEMBER u32x4 fp16() const {
            float x[COUNT];
            unpack(x);
            RF_UNROLL
            for (u32 i = 0; i < COUNT; ++i) x[i] *= scale();
            return make_u32x4(pack_fp16(x[0], x[1]), pack_fp16(x[2], x[3]), pack_fp16(x[4], x[5]),
                              pack_fp16(x[6], x[7]));
        }
    };
    static RF_MEMBER float element(CachedRow row, u32 i) {
        float x[4];
        fp8_floats(x, row.elements[i]);
        return x[0] * FP8_UNIT;
    }
};

}  // namespace cached

typedef cached::RF_KEY_TYPE<RF_HEAD_DIM> Keys;
typedef cached::RF_VALUE_TYPE<RF_VALUE_DIM> Values;

// A head's rows in one block of keys or values.
template <class Type>
struct HeadBlock {
    u8* rows;
    u32 step;

    RF_MEMBER HeadBlock(const void* cache, u32 block, u32 kv_heads, u32 kv_head)
        : rows((u8*)cache + Type::block(block, kv_heads, kv_head)), step(Type::step(kv_heads)) {}
    RF_MEMBER CachedRow row(u32 token) const {
        return {rows + token * step, rows + RF_BLOCK_SIZE * Type::ROW + token * Type::SCALES * 2};
    }
};

// Of the block that has a sequence's token.
template <class Type>
RF_DEVICE HeadBlock<Type> block_of(const void* cache, const i32* table, u32 token, u32 kv_heads, u32 kv_head) {
    return HeadBlock<Type>(cache, table[token / RF_BLOCK_SIZE], kv_heads, kv_head);
}

}  // namespace rocforge
