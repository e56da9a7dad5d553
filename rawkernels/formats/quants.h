// The block formats, as rows of planes, and int8 activations.
//
// A row of weights is cut in cells of 128 elements; a row that ends inside a cell is filled up with zeros. All that is
// needed for cell c lies at index c of each plane, so lanes that take consecutive cells load consecutive addresses:
//
//     LOW planes, then HIGH planes    16 bytes a cell: the low and the high bits of the codes, LOW + HIGH bits each
//     tail                            TAIL bytes a cell: scales and minimums
//     super                           SUPER bytes for two cells (a block of 256): the scales' own scale and minimum
//
// The tail and super planes are filled up to 16 bytes. In the code planes, byte b of word t/4 or so belongs to element
// 32 s + 4 t + b (`Codes::four`), so that one mask and one shift give four codes for dot4.
// An element is scale * (code - OFFSET) + minimum; the codes of IQ4, MXFP4 and NVFP4 index a table of signed bytes.
#pragma once

#include "formats/bytes.h"

namespace rocforge {

const u32 CELL = 128;

RF_DEVICE u32 cells_of(u32 elements) { return (elements + CELL - 1) / CELL; }
RF_DEVICE constexpr u32 round16(u32 n) { return (n + 15) / 16 * 16; }

// A word of 16 bytes; i is a constant after unrolling.
RF_DEVICE u32 element(u32x4 v, u32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
RF_DEVICE float element(f32x4 v, u32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
RF_DEVICE u32 byte_of(u32 word, u32 i) { return word >> 8 * i & 255; }
RF_DEVICE u32 moved(u32 word, u32 from, u32 to) { return to >= from ? word << (to - from) : word >> (from - to); }

// Where a field of a GGUF block or of a cell begins.
struct Place {
    u32 byte, shift;
};

// Values of four-bit codes, a table of 16 signed bytes. Eight codes are a word of selectors.
template <u32 T0, u32 T1, u32 T2, u32 T3>
struct Table {
    static constexpr bool ANY = true;
    static RF_MEMBER u32 four(u32 word, u32 half) { return select16(T0, T1, T2, T3, word, half); }
    // Codes of a byte each.
    static RF_MEMBER u32 of_bytes(u32 codes) { return lookup16(T0, T1, T2, T3, codes); }
#ifdef RF_PLATFORM_NVIDIA
    // A pick from either half of the table gives 0 or -1 for the other half's codes (`prmt`), for which that one's
    // entries make up. The two are added up by dot products, which run beside the picks: to put them together would
    // take two more of those.
    static RF_COMPILE_TIME i32 entry(u32 i) { return i8((i < 4 ? T0 : i < 8 ? T1 : i < 12 ? T2 : T3) >> 8 * (i % 4)); }
    static RF_COMPILE_TIME i32 low(u32 i) {
        return entry(8 + i) - (entry(i) < 0 ? -1 : 0) < 0 ? entry(i) + 1 : entry(i);
    }
    static RF_COMPILE_TIME i32 high(u32 i) { return low(i) < 0 ? entry(8 + i) + 1 : entry(8 + i); }
    static RF_COMPILE_TIME u32 lows(u32 i) {
        return u8(low(i)) | u8(low(i + 1)) << 8 | u8(low(i + 2)) << 16 | u32(u8(low(i + 3))) << 24;
    }
    static RF_COMPILE_TIME u32 highs(u32 i) {
        return u8(high(i)) | u8(high(i + 1)) << 8 | u8(high(i + 2)) << 16 | u32(u8(high(i + 3))) << 24;
    }
    static RF_MEMBER i32 dot(u32 word, u32 half, u32 x, i32 sum) {
        u32 four = selectors(word, half);
        constexpr u32 low0 = lows(0), low1 = lows(4), high0 = highs(0), high1 = highs(4);
        sum = dot4(prmt(in_register(low0), low1, four), x, sum);
        return dot4(prmt(in_register(high0), high1, four ^ 0x8888), x, sum);
    }
#else
    static RF_MEMBER i32 dot(u32 word, u32 half, u32 x, i32 sum) { return dot4(four(word, half), x, sum); }
#endif
};

struct NoTable {
    static constexpr bool ANY = false;
};
typedef Table<0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535> IQ4Values;
typedef Table<0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc> FP4Values;  // doubled

// ---- Codes: planes of LOW-bit and HIGH-bit fields of 128 elements, in registers ----

// Four-bit codes of a table lie as its selectors, and `four` gives their values.
template <u32 LOW_, u32 HIGH_, u32 TAIL_, u32 SUPER_, class Values_ = NoTable>
struct Codes {
    static constexpr u32 LOW = LOW_, HIGH = HIGH_, PLANES = LOW + HIGH, TAIL = TAIL_, SUPER = SUPER_;
    typedef Values_ Values;
    static constexpr bool SELECTED = Values::ANY;
    static constexpr bool FIELDS = true;                  // whether a block's codes are fields of bits, each of its own
    static constexpr u32 POINTS = 0;                      // of a lattice
    static constexpr bool SIGNED = LOW == 8 || SELECTED;  // whether `values` are
    u32x4 plane[PLANES];

    static RF_MEMBER constexpr u32 tail_at(u32 cells) { return 16 * PLANES * cells; }
    static RF_MEMBER constexpr u32 super_at(u32 cells) { return tail_at(cells) + round16(TAIL * cells); }
    static RF_MEMBER constexpr u32 row_bytes(u32 cells) { return super_at(cells) + round16(SUPER * cells / 2); }

    RF_MEMBER void load_codes(const u8* row, u32 cells, u32 c) {
        RF_UNROLL
        for (u32 p = 0; p < PLANES; ++p) load_plane(row, cells, c, p);
    }
    RF_MEMBER void load_plane(const u8* row, u32 cells, u32 c, u32 p) {
        plane[p] = load_once<u32x4>(row + 16 * (p * cells + c));
    }
    // The first and the last run of 16 elements that need plane p.
    static RF_MEMBER u32 first_use(u32 p) { return p < LOW ? 8 * p / LOW : 8 * (p - LOW) / (HIGH ? HIGH : 1); }
    static RF_MEMBER u32 last_use(u32 p) {
        return p < LOW ? (8 * p + 7) / LOW : (8 * (p - LOW) + 7) / (HIGH ? HIGH : 1);
    }

    // Called once between loading and use: what is computed while loading would wait there for what is loaded.
    RF_MEMBER void ready() {}

    // The codes of elements 32 s + 4 t to 32 s + 4 t + 3, a byte each.
    RF_MEMBER u32 four(u32 s, u32 t) const {
        u32 half = 2 * s + t / 4;
        if constexpr (SELECTED) return Values::four(element(plane[s], t / 2), t % 2);
        if constexpr (LOW == 8) return element(plane[half], t % 4);
        u32 code;
        if constexpr (LOW == 4) code = element(plane[s], t % 4) >> 4 * (t / 4) & 0x0f0f0f0f;
        if constexpr (LOW == 2) code = element(plane[half / 4], half % 4) >> 2 * (t % 4) & 0x03030303;
        if constexpr (LOW == 1) code = element(plane[0], s) >> t & 0x01010101;
        if constexpr (HIGH == 1) code |= moved(element(plane[LOW], s), t, LOW) & 0x01010101 << LOW;
        if constexpr (HIGH == 2)
            code |= moved(element(plane[LOW + half / 4], half % 4), 2 * (t % 4), LOW) & 0x03030303 << LOW;
        return code;
    }

    // Byte i of plane p of a cell, from a function that gives the code of each of its elements.
    template <class CodeOf>
    static RF_MEMBER u32 packed_byte(u32 p, u32 i, CodeOf code) {
        u32 b = i % 4, out = 0;
        if constexpr (LOW == 8) return code(16 * p + i);
        if constexpr (SELECTED) {
            for (u32 n = 0; n < 8; ++n) {
                u32 at = selector_at(n);
                if (at / 8 == b) out |= code(32 * p + i / 4 * 8 + n) << at % 8;
            }
            return out;
        }
        if (p < LOW) {
            if constexpr (LOW == 4) return (code(32 * p + i) & 15) | (code(32 * p + 16 + i) & 15) << 4;
            if constexpr (LOW == 1) {
                for (u32 t = 0; t < 8; ++t) out |= code(32 * (i / 4) + 4 * t + b) << t;
                return out;
            }
            u32 half = 4 * p + i / 4;
            for (u32 r = 0; r < 4; ++r) out |= (code(16 * half + 4 * r + b) & 3) << 2 * r;
        } else if constexpr (HIGH == 1) {
            for (u32 t = 0; t < 8; ++t) out |= (code(32 * (i / 4) + 4 * t + b) >> LOW) << t;
        } else if constexpr (HIGH == 2) {
            u32 half = 4 * (p - LOW) + i / 4;
            for (u32 r = 0; r < 4; ++r) out |= (code(16 * half + 4 * r + b) >> LOW) << 2 * r;
        }
        return out;
    }

    // As `four`, read from the planes in memory, for s and t that are not constants.
    static RF_MEMBER u32 stored_four(const u8* row, u32 cells, u32 c, u32 s, u32 t) {
        u32 half = 2 * s + t / 4;
        auto word = [&](u32 p, u32 i) -> u32 { return rocforge::load<u32>(row + 16 * (p * cells + c) + 4 * i); };
        if constexpr (LOW == 8) return word(half, t % 4);
        if constexpr (SELECTED) return Values::four(word(s, t / 2), t % 2);
        u32 code;
        if constexpr (LOW == 4) code = word(s, t % 4) >> 4 * (t / 4) & 0x0f0f0f0f;
        if constexpr (LOW == 2) code = word(half / 4, half % 4) >> 2 * (t % 4) & 0x03030303;
        if constexpr (LOW == 1) code = word(0, s) >> t & 0x01010101;
        if constexpr (HIGH == 1) code |= (word(LOW, s) >> t & 0x01010101) << LOW;
        if constexpr (HIGH == 2) code |= (word(LOW + half / 4, half % 4) >> 2 * (t % 4) & 0x03030303) << LOW;
        return code;
    }
    // The code of element 32 s + 4 t + b.
    static RF_MEMBER u32 stored_code(const u8* row, u32 cells, u32 c, u32 s, u32 t, u32 b) {
        if constexpr (!SELECTED) return byte_of(stored_four(row, cells, c, s, t), b);
        return rocforge::load<u32>(row + 16 * (s * cells + c) + 4 * (t / 2)) >> selector_at(t % 2 * 4 + b) & 15;
    }
};

// `sum` plus the dot product of four elements with x, but for the format's OFFSET.
template <class F>
RF_DEVICE i32 add_four(const F& w, u32 s, u32 t, u32 x, i32 sum) {
    if constexpr (F::SELECTED) return F::Values::dot(element(w.plane[s], t / 2), t % 2, x, sum);
    return dot4(F::values(w.four(s, t)), x, sum);
}

// ---- Formats of 32 elements a block: the block's header is HEADER bytes at its start, the tail four headers ----

template <u32 LOW, u32 HIGH, u32 HEADER_, class Values = NoTable>
struct Block32 : Codes<LOW, HIGH, 4 * HEADER_, 0, Values> {
    static constexpr u32 ELEMENTS = 32, HEADER = HEADER_, BYTES = HEADER + 4 * (LOW + HIGH);
    static constexpr u32 TAIL_FROM = 0, SUPER_FROM = 0;
    static constexpr bool HALVES = false;
    static RF_MEMBER Place high_place(u32 e) { return {HEADER + e / 8, e % 8}; }
    static RF_MEMBER Place low_place(u32 e) {
        if constexpr (LOW == 8) return {HEADER + e, 0};
        return {HEADER + 4 * HIGH + e % 16, e / 16 * 4};
    }
    static RF_MEMBER u32 tail_byte(const u8* block, u32 i) { return block[i]; }
    static RF_MEMBER u32 header_byte(const u8* tail, u32 i) { return tail[i]; }
    RF_MEMBER float outer_scale() const { return 1.0f; }
    RF_MEMBER float outer_min() const { return 1.0f; }
    RF_MEMBER float min(u32, u32) const { return 0.0f; }
    static RF_MEMBER u32 values(u32 codes) { return codes; }
};

template <u32 LOW, u32 HIGH, i32 OFFSET_, class Values = NoTable>
struct Scaled32 : Block32<LOW, HIGH, 2, Values> {
    static constexpr i32 OFFSET = OFFSET_;
    static constexpr bool MINS = false;
    u32x2 tail;
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        tail = load_once<u32x2>(row + this->tail_at(cells) + 8 * c);
    }
    RF_MEMBER float scale(u32 s, u32) const {
        u32 pair = s < 2 ? tail.x : tail.y;
        return s % 2 ? high_half(pair) : low_half(pair);
    }
};

template <u32 HIGH>
struct Affine32 : Block32<4, HIGH, 4> {
    static constexpr i32 OFFSET = 0;
    static constexpr bool MINS = true;
    u32x4 tail;
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        tail = load_once<u32x4>(row + this->tail_at(cells) + 16 * c);
    }
    RF_MEMBER float scale(u32 s, u32) const { return low_half(element(tail, s)); }
    RF_MEMBER float min(u32 s, u32) const { return high_half(element(tail, s)); }
};

struct Q4_0 : Scaled32<4, 0, 8> {};
struct Q5_0 : Scaled32<4, 1, 16> {};
struct Q8_0 : Scaled32<8, 0, 0> {};
struct Q4_1 : Affine32<0> {};
struct Q5_1 : Affine32<1> {};
struct IQ4_NL : Scaled32<4, 0, 0, IQ4Values> {};
struct MXFP4 : Block32<4, 0, 1, FP4Values> {
    static constexpr i32 OFFSET = 0;
    static constexpr bool MINS = false;
    u32 tail;
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) { tail = load_once<u32>(row + tail_at(cells) + 4 * c); }
    RF_MEMBER void ready() { used_from_here(tail); }
    // A power of two, 2^(e - 128): half of what the exponent says, since the table's values are doubled.
    RF_MEMBER float scale(u32 s, u32) const {
        u32 e = byte_of(tail, s);
        return bits_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    }
};

// ---- A format of 64 elements a block, half a cell: fp4, and a scale of eight bits for each 16 ----

struct NVFP4 : Codes<4, 0, 8, 0, FP4Values> {
    static constexpr u32 ELEMENTS = 64, BYTES = 36, HEADER = 4, TAIL_FROM = 0, SUPER_FROM = 0;
    static constexpr i32 OFFSET = 0;
    static constexpr bool HALVES = true, MINS = false;
    u32x2 tail;
    static RF_MEMBER Place low_place(u32 e) { return {4 + e / 16 * 8 + e % 8, e % 16 / 8 * 4}; }
    static RF_MEMBER Place high_place(u32) { return {0, 0}; }
    static RF_MEMBER u32 tail_byte(const u8* block, u32 i) { return block[i]; }
    static RF_MEMBER u32 header_byte(const u8* tail, u32 i) { return tail[i]; }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        tail = load_once<u32x2>(row + tail_at(cells) + 8 * c);
    }
    // Half of unsigned e4m3, since the table's values are doubled; 0x7f is not a number, and counts as zero.
    RF_MEMBER float scale(u32 s, u32 h) const {
        u32 bits = byte_of(s < 2 ? tail.x : tail.y, 2 * (s % 2) + h);
        return bits == 127 ? 0.0f : to_float(f16{u16((bits & 127) << 7)}) * 128;  // float16's exponent bias is 8 more
    }
    RF_MEMBER float min(u32, u32) const { return 0.0f; }
    RF_MEMBER float outer_scale() const { return 1.0f; }
    RF_MEMBER float outer_min() const { return 1.0f; }
    static RF_MEMBER u32 values(u32 four) { return four; }
};

// ---- A format of 128 elements a block, one cell: signs, and a float16 that is the size of all ----

struct Q1_0 : Codes<1, 0, 2, 0> {
    static constexpr u32 ELEMENTS = 128, BYTES = 18, HEADER = 2, TAIL_FROM = 0, SUPER_FROM = 0;
    static constexpr i32 OFFSET = 0;
    static constexpr bool HALVES = false, MINS = false, SIGNED = true;
    f16 d;
    static RF_MEMBER Place low_place(u32 e) { return {HEADER + e / 8, e % 8}; }
    static RF_MEMBER Place high_place(u32) { return {0, 0}; }
    static RF_MEMBER u32 tail_byte(const u8* block, u32 i) { return block[i]; }
    static RF_MEMBER u32 header_byte(const u8* tail, u32 i) { return tail[i]; }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        d.bits = load_once<u16>(row + tail_at(cells) + 2 * c);
    }
    RF_MEMBER float scale(u32, u32) const { return to_float(d); }
    RF_MEMBER float min(u32, u32) const { return 0.0f; }
    RF_MEMBER float outer_scale() const { return 1.0f; }
    RF_MEMBER float outer_min() const { return 1.0f; }
    static RF_MEMBER u32 values(u32 codes) {
        return ~(codes * 0xfe);
    }  // 1 for a bit that is set, -1 for one that isn't
};

// ---- Formats of 256 elements a block, two cells; scales are small integers times the block's float16 ----

template <u32 LOW, u32 HIGH, u32 TAIL, u32 SUPER, u32 BYTES_, u32 LOW_AT, u32 HIGH_AT, class Values = NoTable>
struct Block256 : Codes<LOW, HIGH, TAIL, SUPER, Values> {
    static constexpr u32 ELEMENTS = 256, BYTES = BYTES_;
    static RF_MEMBER Place low_place(u32 e) {
        constexpr u32 run = 256 / LOW;  // elements that share their bytes, 32 apart
        return {LOW_AT + e / run * 32 + e % 32, e % run / 32 * LOW};
    }
    static RF_MEMBER Place high_place(u32 e) { return {HIGH_AT + e % 32, e / 32}; }
    RF_MEMBER float min(u32, u32) const { return 0.0f; }
    RF_MEMBER float outer_min() const { return 1.0f; }
    static RF_MEMBER u32 values(u32 codes) { return codes; }
};

// The tail and super planes hold bytes of the block as they are: TAIL_BYTES from TAIL_FROM, SUPER from SUPER_FROM.
template <u32 TAIL_FROM_, u32 TAIL_BYTES_, u32 SUPER_FROM_>
struct CopiedScales {
    static constexpr u32 TAIL_FROM = TAIL_FROM_, HEADER = TAIL_BYTES_, SUPER_FROM = SUPER_FROM_;
    static RF_MEMBER u32 tail_byte(const u8* block, u32 i) { return block[TAIL_FROM + i]; }
    static RF_MEMBER u32 header_byte(const u8* tail, u32 i) { return tail[i]; }
};

struct Q2_K : Block256<2, 0, 8, 4, 84, 16, 0>, CopiedScales<0, 16, 80> {
    static constexpr i32 OFFSET = 0;
    static constexpr bool HALVES = true, MINS = true;
    u32x2 tail;
    u32 super;
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        tail = load_once<u32x2>(row + tail_at(cells) + 8 * c);
        super = load_once<u32>(row + super_at(cells) + 4 * (c / 2));
    }
    RF_MEMBER u32 both(u32 s, u32 h) const { return byte_of(s < 2 ? tail.x : tail.y, 2 * (s % 2) + h); }
    RF_MEMBER float scale(u32 s, u32 h) const { return float(both(s, h) & 15); }
    RF_MEMBER float min(u32 s, u32 h) const { return float(both(s, h) >> 4); }
    RF_MEMBER float outer_scale() const { return low_half(super); }
    RF_MEMBER float outer_min() const { return -high_half(super); }
};

struct Q3_K : Block256<2, 1, 8, 0, 110, 32, 0>, CopiedScales<96, 14, 0> {
    static constexpr i32 OFFSET = 4;
    static constexpr bool HALVES = true, MINS = false;
    u32x4 tail;  // as loaded; once it is ready the scales of two runs of 32 each come first
    u32 shift;
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        tail = load_once<u32x4>(row + tail_at(cells) + 16 * (c / 2));
        shift = 4 * (c % 2);
    }
    RF_MEMBER void ready() {
        used_from_here(tail);
        u32 high = tail.z >> shift;
        tail.x = (tail.x >> shift & 0x0f0f0f0f) | (high << 4 & 0x30303030);
        tail.y = (tail.y >> shift & 0x0f0f0f0f) | (high << 2 & 0x30303030);
    }
    RF_MEMBER float scale(u32 s, u32 h) const {
        return float(i32(byte_of(s < 2 ? tail.x : tail.y, 2 * (s % 2) + h)) - 32);
    }
    RF_MEMBER float outer_scale() const { return low_half(tail.w); }
};

// Scales and minimums of 6 bits. A block's tail is four words: d and dmin; for each cell four bytes, each a scale and
// the two low bits of its minimum; and four bytes with the high bits of both cells' minimums.
template <u32 HIGH, u32 BYTES, u32 LOW_AT>
struct Affine256 : Block256<4, HIGH, 8, 0, BYTES, LOW_AT, 16> {
    static constexpr i32 OFFSET = 0;
    static constexpr bool HALVES = false, MINS = true;
    static constexpr u32 TAIL_FROM = 0, HEADER = 16, SUPER_FROM = 0;
    u32x4 tail;  // as loaded; once it is ready d and dmin, the cell's scales, and its minimums
    u32 odd;     // which of the tail's cells it is
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        tail = load_once<u32x4>(row + this->tail_at(cells) + 16 * (c / 2));
        odd = c % 2;
    }
    RF_MEMBER void ready() {
        u32 own = odd ? tail.z : tail.y;
        tail.y = own & 0x3f3f3f3f;
        tail.z = (own >> 6 & 0x03030303) | (tail.w >> 4 * odd & 0x0f0f0f0f) << 2;
    }
    RF_MEMBER float scale(u32 s, u32) const { return byte_float(tail.y, s); }
    RF_MEMBER float min(u32 s, u32) const { return byte_float(tail.z, s); }
    RF_MEMBER float outer_scale() const { return low_half(tail.x); }
    RF_MEMBER float outer_min() const { return -high_half(tail.x); }

    static RF_MEMBER u32 scale_of(const u8* block, u32 j) {
        return j < 4 ? block[4 + j] & 63 : (block[8 + j] & 15) | (block[j] >> 6) << 4;
    }
    static RF_MEMBER u32 min_of(const u8* block, u32 j) {
        return j < 4 ? block[8 + j] & 63 : block[8 + j] >> 4 | (block[4 + j] >> 6) << 4;
    }
    static RF_MEMBER u32 tail_byte(const u8* block, u32 i) {
        if (i < 4) return block[i];
        if (i < 12) return scale_of(block, i - 4) | (min_of(block, i - 4) & 3) << 6;
        return min_of(block, i - 12) >> 2 | min_of(block, i - 8) >> 2 << 4;
    }
    static RF_MEMBER u32 header_byte(const u8* tail, u32 i) {
        auto scale = [&](u32 j) -> u32 { return tail[4 + j] & 63; };
        auto min = [&](u32 j) -> u32 { return tail[4 + j] >> 6 | (tail[12 + j % 4] >> 4 * (j / 4) & 15) << 2; };
        if (i < 4) return tail[i];
        if (i < 8) return scale(i - 4) | (scale(i) >> 4) << 6;
        if (i < 12) return min(i - 8) | (min(i - 4) >> 4) << 6;
        return (scale(i - 8) & 15) | (min(i - 8) & 15) << 4;
    }
};
struct Q4_K : Affine256<0, 144, 16> {};
struct Q5_K : Affine256<1, 176, 48> {};

struct Q6_K : Block256<4, 2, 8, 2, 210, 0, 128>, CopiedScales<192, 16, 208> {
    static constexpr i32 OFFSET = 32;
    static constexpr bool HALVES = true, MINS = false;
    u32x2 tail;
    f16 d;
    static RF_MEMBER Place low_place(u32 e) { return {e / 128 * 64 + e % 64, e % 128 / 64 * 4}; }
    static RF_MEMBER Place high_place(u32 e) { return {128 + e / 128 * 32 + e % 32, e % 128 / 32 * 2}; }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) { load_scales(row, cells, c, c / 2); }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c, u32 block) {
        tail = load_once<u32x2>(row + tail_at(cells) + 8 * c);
        d.bits = load_once<u16>(row + super_at(cells) + 2 * block);
    }
    RF_MEMBER float scale(u32 s, u32 h) const { return float(i8(byte_of(s < 2 ? tail.x : tail.y, 2 * (s % 2) + h))); }
    RF_MEMBER float outer_scale() const { return to_float(d); }
};

struct IQ4_XS : Block256<4, 0, 4, 0, 136, 0, 0, IQ4Values>, CopiedScales<0, 8, 0> {
    static constexpr i32 OFFSET = 0;
    static constexpr bool HALVES = false, MINS = false;
    u32x2 tail;
    u32 odd, low, high;  // which of the tail's cells it is; once it is ready that cell's bits
    static RF_MEMBER Place low_place(u32 e) { return {8 + e / 32 * 16 + e % 16, e % 32 / 16 * 4}; }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        tail = load_once<u32x2>(row + tail_at(cells) + 8 * (c / 2));
        odd = c % 2;
    }
    RF_MEMBER void ready() {
        used_from_here(tail);
        high = tail.x >> (16 + 8 * odd);
        low = tail.y >> 16 * odd;
    }
    RF_MEMBER float scale(u32 s, u32) const { return float(i32((low >> 4 * s & 15) | (high >> 2 * s & 3) << 4) - 32); }
    RF_MEMBER float outer_scale() const { return low_half(tail.x); }
};

// Codes of two bits and a float16, no other scales.
struct TQ2_0 : Block256<2, 0, 0, 2, 66, 0, 0>, CopiedScales<0, 0, 64> {
    static constexpr i32 OFFSET = 1;
    static constexpr bool HALVES = false, MINS = false;
    f16 d;
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        d.bits = load_once<u16>(row + super_at(cells) + 2 * (c / 2));
    }
    RF_MEMBER float scale(u32, u32) const { return 1.0f; }
    RF_MEMBER float outer_scale() const { return to_float(d); }
};

// Digits of base 3, five in a byte, the byte being 256/243 of their number. A block has runs of 32, 16 and 4 bytes, of
// the last four digits alone, and each digit of a run makes up elements in a row: the first cell has four digits of the
// run of 32, the second all others. Both cells' planes are needed for either: byte i of a run is theirs in a row. The
// tail has the run of 16, super the run of 4 and the float16.
struct TQ1_0 : Codes<1, 0, 8, 6>, CopiedScales<32, 16, 48> {
    static constexpr u32 ELEMENTS = 256, BYTES = 54;
    static constexpr i32 OFFSET = 1;
    static constexpr bool HALVES = false, MINS = false, FIELDS = false;
    u32x4 second, tail;
    u32 last;
    f16 d;
    bool odd;

    RF_MEMBER void load_plane(const u8* row, u32, u32 c, u32) {
        plane[0] = load_once<u32x4>(row + 32 * (c / 2)), second = load_once<u32x4>(row + 32 * (c / 2) + 16);
    }
    RF_MEMBER void load_codes(const u8* row, u32 cells, u32 c) { load_plane(row, cells, c, 0); }
    RF_MEMBER void load_scales(const u8* row, u32 cells, u32 c) {
        tail = load_once<u32x4>(row + tail_at(cells) + 16 * (c / 2)), odd = c % 2;
        const u8* super = row + super_at(cells) + 6 * (c / 2);
        last = load_once<u16>(super) | u32(load_once<u16>(super + 2)) << 16, d.bits = load_once<u16>(super + 4);
    }
    RF_MEMBER float scale(u32, u32) const { return 1.0f; }
    RF_MEMBER float min(u32, u32) const { return 0.0f; }
    RF_MEMBER float outer_scale() const { return to_float(d); }
    RF_MEMBER float outer_min() const { return 1.0f; }

    // 3^i
    static RF_MEMBER u32 power(u32 i) { return i == 0 ? 1 : i == 1 ? 3 : i == 2 ? 9 : i == 3 ? 27 : 81; }
    // The digit behind the first `power` of four bytes.
    static RF_MEMBER u32 digits(u32 word, u32 power) {
        u32 even = (word & 0x00ff00ff) * power & 0x00ff00ff, odd = (word >> 8 & 0x00ff00ff) * power & 0x00ff00ff;
        return (even * 3 >> 8 & 0x00030003) | (odd * 3 & 0x03000300);
    }
    RF_MEMBER u32 four(u32 s, u32 t) const {
        u32 first = t < 4 ? element(plane[0], t % 4) : element(second, t % 4);
        bool of_last = s == 3 && t >= 4;  // of the second cell
        u32 other = s == 0 ? first : of_last ? last : element(tail, t % 4);
        u32 digit = s == 0 ? 4 : of_last ? t - 4 : 2 * s - 2 + t / 4;
        return digits(odd ? other : first, odd ? power(digit) : power(s));
    }
    static RF_MEMBER u32 values(u32 codes) { return codes; }
    RF_MEMBER u32 four_from_memory(u32 s, u32 t) const { return four(s, t); }

    static RF_MEMBER u32 packed_word(const u8* block, u32 half, u32, u32 w) {
        return word32(block + 16 * half + 4 * w);
    }
    RF_MEMBER void to_block(u8* block, u32 half) const {
        for (u32 i = 0; i < 4; ++i) {
            put32(block + 16 * half + 4 * i, element(half ? second : plane[0], i));
            put32(block + 32 + 4 * i, element(tail, i));
        }
    }
};

// ---- Values with the bits that the gguf package gives: of a code, less OFFSET, of half h of run s ----

template <class W>
RF_DEVICE float value_of(const W& w, u32 s, u32 h, i32 q) {
    float scale = w.scale(s, h);
    if constexpr (W::ELEMENTS == 256) scale = mul_rn(w.outer_scale(), scale);
    float value = mul_rn(scale, float(q));
    if constexpr (W::MINS) value = add_rn(value, W::ELEMENTS == 256 ? mul_rn(w.outer_min(), w.min(s, h)) : w.min(s, h));
    return value;
}

// Small powers of two by their bits, since the device may take subnormal factors for zero.
RF_DEVICE float value_of(const MXFP4& w, u32 s, u32 h, i32 q) {
    u32 e = byte_of(w.tail, s), size = q < 0 ? -q : q, sign = q < 0 ? 0x80000000u : 0;
    if (e >= 8) return mul_rn(w.scale(s, h), float(q));
    if (size << e < 8) return bits_float(sign | size << (21 + e));
    return bits_float(sign | (float_bits(float(size)) - ((128 - e) << 23)));
}

// A cell in memory, of which few elements are wanted.
template <class F>
struct StoredCell {
    const u8* row;
    u32 cells, c;
    F w;
    RF_MEMBER StoredCell(const u8* row_, u32 cells_, u32 c_) : row(row_), cells(cells_), c(c_) {
        if constexpr (!F::FIELDS) w.load_codes(row, cells, c);
        w.load_scales(row, cells, c);
        w.ready();
    }
    RF_MEMBER u32 four(u32 s, u32 t) const {
        if constexpr (F::FIELDS)
            return F::stored_four(row, cells, c, s, t);
        else
            return w.four_from_memory(s, t);
    }
    // Byte b of these.
    RF_MEMBER float value(u32 s, u32 t, u32 four, u32 b) const {
        return value_of(w, s, t / 4, i32(i8(byte_of(F::values(four), b))) - F::OFFSET);
    }
};

// ---- Activations: rows of int8, one a token, with a float32 scale for each 32 elements ----
//
// A row of `cells` cells is ACTIVATION_PLANES planes of 16 bytes a cell: planes 0 to 7 the values, 16 elements each;
// plane 8 the four scales; plane 9 the sums of the values, for each 32 elements a pair of int16: first and second half.

const u32 ACTIVATION_PLANES = 10;

RF_DEVICE u32 activation_bytes(u32 cells) { return 16 * ACTIVATION_PLANES * cells; }

struct Activation {
    u32x4 q[8];
    f32x4 scale;
    u32x4 sums;
    RF_MEMBER void load(const u8* row, u32 cells, u32 c) {
        RF_UNROLL
        for (u32 p = 0; p < 8; ++p) q[p] = rocforge::load<u32x4>(row + 16 * (p * cells + c));
        scale = rocforge::load<f32x4>(row + 16 * (8 * cells + c));
        sums = rocforge::load<u32x4>(row + 16 * (9 * cells + c));
    }
    RF_MEMBER i32 sum(u32 s, u32 h) const { return h ? i32(element(sums, s)) >> 16 : i32(i16(element(sums, s))); }
};

// Quantizes elements k to k + 3 of a row, which is filled up to whole cells with zeros; k past that writes nothing.
// All lanes of the wave call it together, eight consecutive lanes (the first a multiple of 8) with 32 consecutive
// elements, k % 32 == 0 first. The largest is found by its bits, of which a NaN has more than an infinity, and that
// more than any number: the scale of 32 elements is what is not finite among them, and with it all their products.
RF_DEVICE void store_activation(u8* row, u32 cells, u32 k, f32x4 v) {
    auto size = [](float x) { return i32(float_bits(x) & 0x7fffffff); };
    i32 bits = maximum(maximum(size(v.x), size(v.y)), maximum(size(v.z), size(v.w)));
    float most = bits_float(reduce_lanes<8>(bits, Maximum()));
    float scale = most * (1.0f / 127.0f), inverse = most > 1e-30f ? 127.0f * fast_reciprocal(most) : 0.0f;
    i32 a = round_int(v.x * inverse), b = round_int(v.y * inverse);
    i32 c = round_int(v.z * inverse), d = round_int(v.w * inverse);
    i32 sum = reduce_lanes<4>(a + b + c + d, Add());
    i32 second = shuffle_xor<4>(sum);
    u32 cell = k / CELL, within = k % CELL;
    if (cell >= cells) return;
    u32 q = (a & 255) | (b & 255) << 8 | (c & 255) << 16 | u32(d) << 24;
    *reinterpret_cast<u32*>(row + 16 * (within / 16 * cells + cell) + within % 16) = q;
    if (k % 32 == 0) {
        u32 s = within / 32;
        *reinterpret_cast<float*>(row + 16 * (8 * cells + cell) + 4 * s) = scale;
        *reinterpret_cast<u32*>(row + 16 * (9 * cells + cell) + 4 * s) = (sum & 0xffff) | u32(second) << 16;
    }
}

// ---- Activations in float16 fragments, for products of many tokens on the matrix unit ----
//
// `width` tokens (a power of two, 8 at least) of `cells` cells. A chunk is eight elements of a token: 16 bytes, which
// hold elements 0 2 1 3 4 6 5 7, since weights are unpacked in that order. FRAGMENT_CELLS consecutive cells are what
// the lanes of a wave that share a token multiply at a time; chunk j of all tokens' cells lies together:
//
//     chunk j of cell c of token k at ((c / FRAGMENT_CELLS * 16 + j) * width + k) * FRAGMENT_CELLS + c % FRAGMENT_CELLS

const u32 FRAGMENT_CELLS = FRAGMENT_LANES;
const u32 MOST_FRAGMENTS = 128;  // tokens

RF_DEVICE u32 fragment_at(u32 width, u32 k, u32 c, u32 j) {
    return ((c / FRAGMENT_CELLS * 16 + j) * width + k) * FRAGMENT_CELLS + c % FRAGMENT_CELLS;
}
// Of more tokens than MOST_FRAGMENTS, each so many follow each other.
RF_DEVICE u32 fragments_bytes(u32 width, u32 cells) {
    return (cells + FRAGMENT_CELLS - 1) / FRAGMENT_CELLS * FRAGMENT_CELLS * 256 * width;
}
RF_DEVICE u8* fragment_of_token(u8* x, u32 width, u32 cells, u32 k, u32 c, u32 j) {
    u32 run = width == MOST_FRAGMENTS ? k / MOST_FRAGMENTS : 0;
    return x + run * u64(fragments_bytes(width, cells)) + u64(fragment_at(width, k - run * width, c, j)) * 16;
}

// Four values in float16, to an address of whole eight bytes.
RF_DEVICE void store_fp16(f16* to, f32x4 v) {
    u32x2 pairs;
    pairs.x = pack_fp16(clamp_fp16(v.x), clamp_fp16(v.y)), pairs.y = pack_fp16(clamp_fp16(v.z), clamp_fp16(v.w));
    *reinterpret_cast<u32x2*>(to) = pairs;
}

// Elements i to i + 3 of token k, i being a multiple of 4; i past the cells writes nothing.
RF_DEVICE void store_fragments(u8* x, u32 width, u32 cells, u32 k, u32 i, f32x4 v) {
    if (i >= cells * CELL) return;
    u32x2 pairs;
    pairs.x = pack_fp16(clamp_fp16(v.x), clamp_fp16(v.z)), pairs.y = pack_fp16(clamp_fp16(v.y), clamp_fp16(v.w));
    *reinterpret_cast<u32x2*>(fragment_of_token(x, width, cells, k, i / CELL, i % CELL / 8) + i % 8 * 2) = pairs;
}
// Element i alone.
RF_DEVICE void store_fragment(u8* x, u32 width, u32 cells, u32 k, u32 i, float v) {
    if (i >= cells * CELL) return;
    u32 place = i / 4 % 2 * 4 + i % 2 * 2 + i / 2 % 2;
    f16* chunk = reinterpret_cast<f16*>(fragment_of_token(x, width, cells, k, i / CELL, i % CELL / 8));
    chunk[place] = from_float<f16>(clamp_fp16(v));
}

// ---- The same for more tokens, as Hopper's matrix unit reads them from LDS ----
//
// Tiles of 64 elements of all tokens, 128 bytes a token: of each 16 elements a chunk with 0 2 4 6 8 10 12 14 and one
// with the others. Chunk c of token k lies at c ^ k % 8. `width` is a multiple of 8 tokens.

// Elements i to i + 3 of token k, i being a multiple of 4; i past the cells writes nothing.
RF_DEVICE void store_swizzled(u8* x, u32 width, u32 cells, u32 k, u32 i, f32x4 v) {
    if (i >= cells * CELL) return;
    u8* token = x + (u64(i / 64) * width + k) * 128 + i % 16;
    u32 chunk = i % 64 / 16 * 2;
    *reinterpret_cast<u32*>(token + 16 * (chunk ^ k % 8)) = pack_fp16(clamp_fp16(v.x), clamp_fp16(v.z));
    *reinterpret_cast<u32*>(token + 16 * ((chunk + 1) ^ k % 8)) = pack_fp16(clamp_fp16(v.y), clamp_fp16(v.w));
}

// Elements i and i + 2, i % 4 being 0 or 1, which lie together, as a pair.
RF_DEVICE void store_swizzled_two(u8* x, u32 width, u32 cells, u32 k, u32 i, u32 pair) {
    if (i >= cells * CELL) return;
    u32 chunk = i % 64 / 16 * 2 + i % 2;
    *reinterpret_cast<u32*>(x + (u64(i / 64) * width + k) * 128 + 16 * (chunk ^ k % 8) + i % 16 / 4 * 4) = pair;
}

// Where activations for the next product go, in the form that it takes: fragments for `width` tokens, or, where that is
// 0, int8. All lanes of the wave call `store` together, as store_activation has it.
struct Quantized {
    u8* data;
    u32 width, cells;
    RF_MEMBER void store(u32 k, u32 i, f32x4 v) const {
        if (width > MOST_FRAGMENTS) return store_swizzled(data, width, cells, k, i, v);
        if (width) return store_fragments(data, width, cells, k, i, v);
        store_activation(data + u64(k) * activation_bytes(cells), cells, i, v);
    }
};

}  // namespace rocforge
