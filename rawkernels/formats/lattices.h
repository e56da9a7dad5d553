// The formats whose codes are points of a lattice, in planes as quants.h has them: IQ1, IQ2 and IQ3.
//
// A point stands for eight elements (four in IQ3), and its number has BITS bits. Four numbers are a group, which is a
// word of the first planes, and a few bits more that the format keeps elsewhere. IQ2 and IQ3 have signs, in a plane
// whose word s are those of run s: of its eight elements k (0 to 3), sign n is bit 4 n + k. Where the number of minuses
// is even (EVEN), eight signs are a polynomial over GF(2) that 1 + x divides; the quotient is kept, which leaves bit
// 28 + k free, and the format has something else there.
//
// Products read points from LDS, where `load_grid` brings them; all else computes them from the tables in memory.
#pragma once

#include "formats/bytes.h"
#include "formats/grids.h"
#include "formats/quants.h"

namespace rocforge {

// The points of a lattice in LDS, a word each. A point is asked for by the group that its number is in, and by the bit
// where it begins there.
template <class F>
struct Grid {
    static RF_MEMBER u32* memory() { return aligned_lds<F::POINTS>(); }
    static RF_MEMBER u32 point(u64 group, u32 at) {
        return load_masked(memory(), u32((group << 2) >> at), 4 * (F::POINTS - 1));
    }
};
template <class F>
struct GridInMemory {
    static RF_MEMBER u32 point(u32 i) { return F::point_of(F::stored_point(i)); }
    static RF_MEMBER u32 point(u64 group, u32 at) { return point(u32(group >> at) & (F::POINTS - 1)); }
};

// Brings a format's points to LDS; all of a block's threads call it before they multiply. Nothing for other formats.
template <class F>
RF_DEVICE void load_grid(u32 threads) {
    if constexpr (F::POINTS > 0) {
        for (u32 i = thread_x(); i < F::POINTS; i += threads) Grid<F>::memory()[i] = GridInMemory<F>::point(i);
        barrier();
    }
}

// Points of POINT elements, BITS bits each; F is the format, which has what is its own.
template <class F, u32 BITS, u32 POINT_, u32 HIGH, u32 TAIL, u32 SUPER, u32 BYTES_>
struct Lattice : Codes<8 / POINT_, HIGH, TAIL, SUPER> {
    static constexpr u32 ELEMENTS = 256, BYTES = BYTES_, POINT = POINT_, POINTS = 1 << BITS;
    static constexpr u32 GROUPS = CELL / 4 / POINT, HEADER = 2 * TAIL, SUPER_FROM = 0;
    static constexpr i32 OFFSET = 0;
    static constexpr bool SIGNED = true, FIELDS = false, MINS = false, EVEN = false;
    RF_MEMBER const F& own() const { return static_cast<const F&>(*this); }
    RF_MEMBER float min(u32, u32) const { return 0.0f; }
    RF_MEMBER float outer_min() const { return 1.0f; }
    static RF_MEMBER u32 values(u32 four) { return four; }

    // Number j of group g: of run g, or of half a run.
    RF_MEMBER u64 group(u32 g) const {
        u64 group = element(POINT == 8 || g < 4 ? this->plane[0] : this->plane[4 / POINT], g % 4);
        if constexpr (BITS > 8) group |= u64(own().extra(g)) << 32;
        return group;
    }
    RF_MEMBER u32 number(u32 g, u32 j) const { return u32(group(g) >> BITS * j) & (POINTS - 1); }
    RF_MEMBER u32 sign_word(u32 s) const { return element(this->plane[8 / POINT], s); }
    RF_MEMBER u32 signs(u32 s) const {
        u32 word = sign_word(s);
        return F::EVEN ? computed_once((word & 0x0fffffff) ^ word << 4) : word;
    }
    // Elements 32 s + 4 t to 32 s + 4 t + 3, a signed byte each.
    template <class G = Grid<F>>
    RF_MEMBER u32 four(u32 s, u32 t) const {
        u32 g = POINT == 8 ? s : 2 * s + t / 4, j = POINT == 8 ? t / 2 : t % 4;
        return own().with_signs(G::point(group(g), BITS * j), s, t);
    }
    RF_MEMBER u32 four_from_memory(u32 s, u32 t) const { return four<GridInMemory<F>>(s, t); }

    // From and to GGUF's blocks, of which cell `half` is the first or the second part. A format gives point i of a
    // block, its signs i (a bit an element), and, for run s of the cell, what EVEN signs leave room for.
    static RF_MEMBER u64 group_of(const u8* block, u32 half, u32 g) {
        u64 group = 0;
        for (u32 j = 0; j < 4; ++j) group |= u64(F::number_of(block, 4 * (half * GROUPS + g) + j)) << BITS * j;
        return group;
    }
    static RF_MEMBER u32 extra_of(const u8* block, u32 half, u32 g) { return u32(group_of(block, half, g) >> 32); }
    static RF_MEMBER u32 packed_word(const u8* block, u32 half, u32 p, u32 w) {
        if (p < 8 / POINT) return u32(group_of(block, half, 4 * p + w));
        if constexpr (HIGH > 0) {
            u32 word = 0;
            for (u32 k = 0; k < 4; ++k) {
                u32 eight = F::signs_of(block, 16 * half + 4 * w + k), bit = 0;
                for (u32 n = 0; n < 8; ++n) {
                    bit = (F::EVEN ? bit : 0) ^ (eight >> F::sign_element(n) & 1);
                    word |= bit << (4 * n + k);
                }
            }
            if constexpr (F::EVEN) word |= F::rest_of(block, half, w) << 28;
            return word;
        }
        return 0;
    }
    RF_MEMBER u32 eight_signs(u32 s, u32 k) const {
        u32 eight = 0;
        for (u32 n = 0; n < 8; ++n) eight |= (signs(s) >> (4 * n + k) & 1) << F::sign_element(n);
        return eight;
    }
    // Seven signs of each eight, in 28 bits.
    RF_MEMBER u32 sevens(u32 s) const {
        u32 all = 0;
        for (u32 k = 0; k < 4; ++k) all |= (eight_signs(s, k) & 127) << 7 * k;
        return all;
    }
};

// Seven signs and the eighth that makes their number even.
RF_DEVICE u32 even_signs(u32 seven) {
    u32 parity = 0;
    for (u32 i = 0; i < 7; ++i) parity ^= seven >> i & 1;
    return (seven & 127) | parity << 7;
}

// Eight coordinates of three values: selectors of a table, whose third bit says which of two.
template <u32 T0, u32 T1>
struct Octets {
    static RF_MEMBER u32 sign_element(u32 n) {
        u32 i = 0;
        while (selector_at(i) != 4 * n) ++i;
        return i;
    }
    static RF_MEMBER u32 point_of(u32 stored) {
        u32 point = 0;
        RF_UNROLL
        for (u32 i = 0; i < 8; ++i) point |= (stored >> 2 * i & 3) << selector_at(i);
        return point;
    }
    static RF_MEMBER u32 picked(u32 point, u32 half) {
        return pick_selected(T1, in_register(T0), selectors(computed_once(point), half));
    }
};

// ---- IQ1: -1, 0 and 1, each plus or minus 1/8: eight times that ----

template <class F, u32 SUPER, u32 BYTES>
struct IQ1 : Lattice<F, 11, 8, 0, 8, SUPER, BYTES>, Octets<0x000901f9, 0x0007fff7> {
    u32x2 tail;  // 16 bits a run: twelve of its points, and four that are the format's
    static RF_MEMBER u32 stored_point(u32 i) { return IQ1_POINTS[i]; }
    RF_MEMBER void load_tail(const u8* row, u32 cells, u32 c) {
        tail = load_once<u32x2>(row + this->tail_at(cells) + 8 * c);
    }
    RF_MEMBER u32 header(u32 s) const { return (s < 2 ? tail.x : tail.y) >> 16 * (s % 2) & 0xffff; }
    RF_MEMBER u32 extra(u32 s) const { return header(s) & 0xfff; }
    static RF_MEMBER float scale_of(u32 bits) { return small_float((bits & 7) * 2 + 1); }
    static RF_MEMBER u32 tail_byte(const u8* block, u32 i) {
        u32 half = i / 8, s = i % 8 / 2;
        return (F::extra_of(block, half, s) | F::rest_of(block, half, s) << 12) >> 8 * (i % 2) & 255;
    }
    RF_MEMBER u32 minus_mask(u32 bit) const { return 0 - (bit & 1) & 0x44444444; }
};

struct IQ1_S : IQ1<IQ1_S, 2, 50> {
    static constexpr bool HALVES = false;
    f16 d;
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        load_tail(row, cells, c);
        d.bits = load_once<u16>(row + super_at(cells) + 2 * (c / 2));
    }
    RF_MEMBER float scale(u32 s, u32) const { return scale_of(header(s) >> 12); }
    RF_MEMBER float outer_scale() const { return 0.125f * to_float(d); }
    RF_MEMBER u32 with_signs(u32 point, u32 s, u32 t) const {
        return picked(point ^ minus_mask(header(s) >> 15), t % 2);
    }

    static RF_MEMBER u32 number_of(const u8* block, u32 i) {
        return block[2 + i] | (word16(block + 34 + i / 4 * 2) >> i % 4 * 3 & 7) << 8;
    }
    static RF_MEMBER u32 rest_of(const u8* block, u32 half, u32 s) {
        return word16(block + 34 + 8 * half + 2 * s) >> 12;
    }
    RF_MEMBER void to_block(u8* block, u32 half) const {
        for (u32 s = 0; s < 4; ++s) {
            u32 high = header(s) & 0xf000;
            for (u32 j = 0; j < 4; ++j) {
                block[2 + 16 * half + 4 * s + j] = u8(number(s, j));
                high |= number(s, j) >> 8 << 3 * j;
            }
            put16(block + 34 + 8 * half + 2 * s, high);
        }
    }
};

// The high four bits of a run are the signs of its points' eighths; those of super's words are a float16.
struct IQ1_M : IQ1<IQ1_M, 8, 56> {
    static constexpr u32 SUPER_FROM = 48;
    static constexpr bool HALVES = true;
    u32x2 super;  // as loaded; once it is ready the float16, and the cell's scales
    u32 odd;      // which of super's cells it is
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        load_tail(row, cells, c);
        super = load_once<u32x2>(row + super_at(cells) + 8 * (c / 2)), odd = c % 2;
    }
    RF_MEMBER void ready() {
        used_from_here(super), used_from_here(tail);
        u32 low = (super.x >> 12 & 15) | (super.x >> 28) << 4, high = (super.y >> 12 & 15) | (super.y >> 28) << 4;
        super.y = odd ? super.y : super.x, super.x = low | high << 8;
    }
    RF_MEMBER float scale(u32 s, u32 h) const { return scale_of(super.y >> (s / 2 * 16 + s % 2 * 6 + 3 * h)); }
    RF_MEMBER float outer_scale() const { return 0.125f * low_half(super.x); }
    RF_MEMBER u32 with_signs(u32 point, u32 s, u32 t) const {
        return picked(point ^ minus_mask(header(s) >> (12 + t / 2)), t % 2);
    }

    static RF_MEMBER u32 number_of(const u8* block, u32 i) { return block[i] | (nibble(block + 32, i) & 7) << 8; }
    static RF_MEMBER u32 rest_of(const u8* block, u32 half, u32 s) {
        u32 rest = 0;
        for (u32 k = 0; k < 4; ++k) rest |= nibble(block + 32, 16 * half + 4 * s + k) >> 3 << k;
        return rest;
    }
    RF_MEMBER void to_block(u8* block, u32 half) const {
        for (u32 i = 0; i < 16; ++i) {
            u32 at = 16 * half + i, point = number(i / 4, i % 4), minus = header(i / 4) >> (12 + i % 4) & 1;
            block[at] = u8(point), block[32 + at / 2] |= u8((point >> 8 | minus << 3) << at % 2 * 4);
        }
    }
};

// ---- IQ2: 8, 25 and 43, each plus or minus ----

template <class F, u32 BITS, u32 TAIL, u32 BYTES>
struct IQ2 : Lattice<F, BITS, 8, 1, TAIL, 2, BYTES>, Octets<0x002b1908, 0x00d5e7f8> {
    f16 d;
    RF_MEMBER void load_d(const u8* row, u32 cells, u32 c) {
        d.bits = load_once<u16>(row + this->super_at(cells) + 2 * (c / 2));
    }
    RF_MEMBER float outer_scale() const { return 0.125f * to_float(d); }
    static RF_MEMBER float scale_of(u32 bits) { return small_float((bits & 15) * 2 + 1); }
    RF_MEMBER u32 with_signs(u32 point, u32 s, u32 t) const {
        return this->picked(point ^ (moved(this->signs(s), t / 2, 2) & 0x44444444), t % 2);
    }
};

struct IQ2_XXS : IQ2<IQ2_XXS, 8, 0, 66> {
    static constexpr bool HALVES = false, EVEN = true;
    static RF_MEMBER u32 stored_point(u32 i) { return IQ2_XXS_POINTS[i]; }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) { load_d(row, cells, c); }
    RF_MEMBER float scale(u32 s, u32) const { return scale_of(sign_word(s) >> 28); }

    static RF_MEMBER u32 tail_byte(const u8*, u32) { return 0; }
    static RF_MEMBER u32 number_of(const u8* block, u32 i) { return block[2 + i / 4 * 8 + i % 4]; }
    static RF_MEMBER u32 high_word(const u8* block, u32 run) { return word32(block + 6 + 8 * run); }
    static RF_MEMBER u32 signs_of(const u8* block, u32 i) { return even_signs(high_word(block, i / 4) >> i % 4 * 7); }
    static RF_MEMBER u32 rest_of(const u8* block, u32 half, u32 s) { return high_word(block, 4 * half + s) >> 28; }
    RF_MEMBER void to_block(u8* block, u32 half) const {
        for (u32 s = 0; s < 4; ++s) {
            u8* run = block + 2 + 8 * (4 * half + s);
            put32(run, element(plane[0], s)), put32(run + 4, sevens(s) | sign_word(s) >> 28 << 28);
        }
    }
};

struct IQ2_XS : IQ2<IQ2_XS, 9, 4, 74> {
    static constexpr bool HALVES = true, EVEN = true;
    u32 tail;
    static RF_MEMBER u32 stored_point(u32 i) { return IQ2_XS_POINTS[i]; }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        load_d(row, cells, c);
        tail = load_once<u32>(row + tail_at(cells) + 4 * c);
    }
    RF_MEMBER u32 extra(u32 s) const { return sign_word(s) >> 28; }
    RF_MEMBER float scale(u32 s, u32 h) const { return scale_of(tail >> (8 * s + 4 * h)); }

    static RF_MEMBER u32 tail_byte(const u8* block, u32 i) { return block[66 + i]; }
    static RF_MEMBER u32 number_of(const u8* block, u32 i) { return word16(block + 2 + 2 * i) & 511; }
    static RF_MEMBER u32 signs_of(const u8* block, u32 i) { return even_signs(word16(block + 2 + 2 * i) >> 9); }
    static RF_MEMBER u32 rest_of(const u8* block, u32 half, u32 s) { return extra_of(block, half, s); }
    RF_MEMBER void to_block(u8* block, u32 half) const {
        for (u32 i = 0; i < 16; ++i)
            put16(block + 2 + 32 * half + 2 * i, number(i / 4, i % 4) | (eight_signs(i / 4, i % 4) & 127) << 9);
        put32(block + 66 + 4 * half, tail);
    }
};

struct IQ2_S : IQ2<IQ2_S, 10, 8, 82> {
    static constexpr bool HALVES = true;
    u32x2 tail;  // eight bits of each run's points; scales
    static RF_MEMBER u32 stored_point(u32 i) { return IQ2_S_POINTS[i]; }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        load_d(row, cells, c);
        tail = load_once<u32x2>(row + tail_at(cells) + 8 * c);
    }
    RF_MEMBER u32 extra(u32 s) const { return byte_of(tail.x, s); }
    RF_MEMBER float scale(u32 s, u32 h) const { return scale_of(tail.y >> (8 * s + 4 * h)); }

    static RF_MEMBER u32 tail_byte(const u8* block, u32 i) {
        return i % 8 < 4 ? extra_of(block, i / 8, i % 4) : block[74 + i / 8 * 4 + i % 4];
    }
    static RF_MEMBER u32 number_of(const u8* block, u32 i) {
        return block[2 + i] | (block[66 + i / 4] >> i % 4 * 2 & 3) << 8;
    }
    static RF_MEMBER u32 signs_of(const u8* block, u32 i) { return block[34 + i]; }
    RF_MEMBER void to_block(u8* block, u32 half) const {
        for (u32 i = 0; i < 16; ++i) {
            u32 point = number(i / 4, i % 4), at = 16 * half + i;
            block[2 + at] = u8(point), block[34 + at] = u8(eight_signs(i / 4, i % 4));
            block[66 + at / 4] |= u8(point >> 8 << at % 4 * 2);
        }
        put32(block + 74 + 4 * half, tail.y);
    }
};

// ---- IQ3: four coordinates of eight values, a byte each ----

template <class F, u32 BITS, u32 TAIL, u32 SUPER, u32 BYTES, u32 T0, u32 T1>
struct IQ3 : Lattice<F, BITS, 4, 1, TAIL, SUPER, BYTES> {
    static constexpr bool HALVES = false;
    static RF_MEMBER u32 sign_element(u32 n) { return n / 2 + n % 2 * 4; }
    static RF_MEMBER u32 point_of(u32 stored) {
        u32 index = 0;
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i) index |= (stored >> 3 * i & 7) << 8 * i;
        return pick_bytes(T1, T0, index);
    }
    // All bits of each of four elements that is negative.
    RF_MEMBER u32 minus(u32 s, u32 t) const { return byte_signs(this->signs(s) << (7 - t / 2 - t % 2 * 4)); }
};

// 4, 12, 20, 28, 36, 44, 52 and 62.
struct IQ3_XXS : IQ3<IQ3_XXS, 8, 0, 2, 98, 0x1c140c04, 0x3e342c24> {
    static constexpr bool EVEN = true;
    f16 d;
    static RF_MEMBER u32 stored_point(u32 i) { return IQ3_XXS_POINTS[i]; }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        d.bits = load_once<u16>(row + super_at(cells) + 2 * (c / 2));
    }
    RF_MEMBER float scale(u32 s, u32) const { return small_float((sign_word(s) >> 28) * 2 + 1); }
    RF_MEMBER float outer_scale() const { return 0.25f * to_float(d); }
    RF_MEMBER u32 with_signs(u32 point, u32 s, u32 t) const {
        u32 all = minus(s, t);
        return (point ^ all) + (all & 0x01010101);
    }

    static RF_MEMBER u32 tail_byte(const u8*, u32) { return 0; }
    static RF_MEMBER u32 number_of(const u8* block, u32 i) { return block[2 + i]; }
    static RF_MEMBER u32 high_word(const u8* block, u32 run) { return word32(block + 66 + 4 * run); }
    static RF_MEMBER u32 signs_of(const u8* block, u32 i) { return even_signs(high_word(block, i / 4) >> i % 4 * 7); }
    static RF_MEMBER u32 rest_of(const u8* block, u32 half, u32 s) { return high_word(block, 4 * half + s) >> 28; }
    RF_MEMBER void to_block(u8* block, u32 half) const {
        for (u32 g = 0; g < 8; ++g) put32(block + 2 + 32 * half + 4 * g, element(g < 4 ? plane[0] : plane[1], g % 4));
        for (u32 s = 0; s < 4; ++s) put32(block + 66 + 16 * half + 4 * s, sevens(s) | sign_word(s) >> 28 << 28);
    }
};

// Odd numbers to 15, whose lowest bit stays where the sign changes. A block's tail is four words: for each cell four
// bits of each group's points; the scales of both; the float16.
struct IQ3_S : IQ3<IQ3_S, 9, 8, 0, 110, 0x07050301, 0x0f0d0b09> {
    u32x4 tail;
    u32 odd, bits, scales;  // which of the tail's cells it is; once it is ready what that cell has
    static RF_MEMBER u32 stored_point(u32 i) { return IQ3_S_POINTS[i]; }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        tail = load_once<u32x4>(row + tail_at(cells) + 16 * (c / 2)), odd = c % 2;
    }
    RF_MEMBER void ready() {
        used_from_here(tail);
        bits = odd ? tail.y : tail.x, scales = tail.z >> 16 * odd;
    }
    RF_MEMBER u32 extra(u32 g) const { return bits >> 4 * g & 15; }
    RF_MEMBER float scale(u32 s, u32) const { return small_float((scales >> 4 * s & 15) * 2 + 1); }
    RF_MEMBER float outer_scale() const { return low_half(tail.w); }
    RF_MEMBER u32 with_signs(u32 point, u32 s, u32 t) const { return (point ^ minus(s, t)) | 0x01010101; }

    static RF_MEMBER u32 tail_byte(const u8* block, u32 i) {
        if (i < 8) return extra_of(block, i / 4, i % 4 * 2) | extra_of(block, i / 4, i % 4 * 2 + 1) << 4;
        return i < 12 ? block[106 + i - 8] : i < 14 ? block[i - 12] : 0;
    }
    static RF_MEMBER u32 number_of(const u8* block, u32 i) {
        return block[2 + i] | (block[66 + i / 8] >> i % 8 & 1) << 8;
    }
    static RF_MEMBER u32 signs_of(const u8* block, u32 i) { return block[74 + i]; }
    RF_MEMBER void to_block(u8* block, u32 half) const {
        for (u32 i = 0; i < 32; ++i) {
            u32 point = number(i / 4, i % 4), at = 32 * half + i;
            block[2 + at] = u8(point), block[66 + at / 8] |= u8(point >> 8 << at % 8);
        }
        for (u32 i = 0; i < 16; ++i) block[74 + 16 * half + i] = u8(eight_signs(i / 4, i % 4));
        put16(block + 106 + 2 * half, scales), put16(block, tail.w);
    }
};

}  // namespace rocforge
