// Decode attention's sums on the matrix unit of NVIDIA's sm_80 and later, for packed keys and values and heads of 128:
// a wave takes 16 tokens at a time. Keys multiply as they are, in bytes; values as float16, which they are unpacked to.
//
// Lane 4 g + t is `row` g and `part` t. In a product c (16, 8) += a (16, depth) b (depth, 8) it has of c the rows g and
// g + 8 of columns 2 t and 2 t + 1.
#pragma once
#include "target/platform.h"

namespace rocforge {

constexpr u32 RUNS = RF_HEAD_DIM / 32;  // elements that share a scale, in a row
// A score higher than what the weights are scaled by rescales them only where they would leave float16's range soon.
constexpr float SLACK = 8;

// c += a b, signed bytes, 32 in depth.
RF_DEVICE void multiply_bytes(i32 (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// c += a b, pairs of float16, 8 in depth.
RF_DEVICE void multiply_pairs(float (&c)[4], u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}
// A matrix (8, 8) of float16, of which each lane has a pair of its row, turned.
RF_DEVICE u32 turned(u32 pair) {
    u32 y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(pair));
    return y;
}
// A part of a key: eight elements of each run, in two words of bytes.
template <class Type>
struct KeyPart;
template <>
struct KeyPart<cached::Q8_0<RF_HEAD_DIM>> {
    u32x2 words[RUNS], scales;

    RF_MEMBER void load_from(CachedRow row, u32 part) {
        RF_UNROLL
        for (u32 r = 0; r < RUNS; ++r) words[r] = load<u32x2>(row.elements + 32 * r + 8 * part);
        scales = load<u32x2>(row.scales);
    }
    RF_MEMBER u32 bytes(u32 r, u32 word) const { return word ? words[r].y : words[r].x; }
    // The first of a word's elements in their run.
    static RF_MEMBER u32 first(u32 part, u32 word) { return 8 * part + 4 * word; }
};
template <>
struct KeyPart<cached::Q4_0<RF_HEAD_DIM>> {
    u32 words[RUNS];
    u32x2 scales;

    RF_MEMBER void load_from(CachedRow row, u32 part) {
        RF_UNROLL
        for (u32 r = 0; r < RUNS; ++r) words[r] = load<u32>(row.elements + 16 * r + 4 * part);
        scales = load<u32x2>(row.scales);
    }
    RF_MEMBER u32 bytes(u32 r, u32 word) const { return words[r] >> 4 * word & 0x0f0f0f0f; }
    static RF_MEMBER u32 first(u32 part, u32 word) { return part / 2 * 16 + part % 2 * 4 + 8 * word; }
};

// 16 elements of a value.
template <class Type>
struct ValuePart;
template <>
struct ValuePart<cached::Q8_0<RF_VALUE_DIM>> : cached::Q8_0<RF_VALUE_DIM>::Piece<16> {
    // Calls each(element, pair), the pair of two tokens' elements with their scales.
    template <class Each>
    static RF_MEMBER void pairs(const ValuePart& a, const ValuePart& b, Each each) {
        u32 scales = a.scale_bits | b.scale_bits << 16;
        RF_UNROLL
        for (u32 j = 0; j < 4; ++j) {
            u32 x = a.words[j] ^ 0x80808080, y = b.words[j] ^ 0x80808080;
            u32 both[2] = {__byte_perm(x, y, 0x5140), __byte_perm(x, y, 0x7362)};
            u32 pair[4];
            RF_UNROLL
            for (u32 k = 0; k < 4; ++k) {
                u32 codes = bytes_fp16(both[k / 2], k % 2);
                pair[k] = mul_fp16(fma_fp16(codes, FP16_ONES, FP16_MINUS_1152), scales);
            }
            each(2 * j, pair[0], pair[1]), each(2 * j + 1, pair[2], pair[3]);
        }
    }
};
template <>
struct ValuePart<cached::Q4_0<RF_VALUE_DIM>> : cached::Q4_0<RF_VALUE_DIM>::Piece<16> {
    template <class Each>
    static RF_MEMBER void pairs(const ValuePart& a, const ValuePart& b, Each each) {
        u32 scales = a.scale_bits | b.scale_bits << 16;
        RF_UNROLL
        for (u32 j = 0; j < 2; ++j) {
            u32 both[2] = {__byte_perm(a.words[j], b.words[j], 0x5140), __byte_perm(a.words[j], b.words[j], 0x7362)};
            u32 low[4], high[4];
            RF_UNROLL
            for (u32 k = 0; k < 4; ++k) {
                u32 codes = bytes_fp16(both[k / 2], k % 2);
                // 16 codes above 1,024 are a code above 64
                low[k] = mul_fp16(fma_fp16(codes & 0xff0fff0f, FP16_ONES, FP16_MINUS_1032), scales);
                high[k] = mul_fp16(fma_fp16(codes & 0xfff0fff0, FP16_SIXTEENTHS, FP16_MINUS_72), scales);
            }
            each(2 * j, low[0], low[1]), each(2 * j + 1, low[2], low[3]);
            each(4 + 2 * j, high[0], high[1]), each(5 + 2 * j, high[2], high[3]);
        }
    }
};

// What a lane has of 16 tokens: parts of the keys of two, and of the values of four.
template <class KeyType, class ValueType>
struct MatrixTokens {
    static constexpr u32 STEP = 16, TILES = RF_HEAD_DIM / 16;
    static constexpr bool MANY_REGISTERS = false;
    KeyPart<KeyType> keys[2];
    ValuePart<ValueType> values[4];

    static RF_MEMBER u32 row() { return lane() / 4; }
    static RF_MEMBER u32 part() { return lane() % 4; }
    // Of the step's tokens, whose value this lane has as its i-th.
    static RF_MEMBER u32 value_token(u32 i) { return 2 * part() + i % 2 + i / 2 * 8; }

    // Of tokens from `start` on; in place of those that are not seen, others.
    RF_MEMBER void load_keys(const void* cache, const Seen& seen, u32 start) {
        auto rows = block_of<KeyType>(cache, seen.table, start, seen.kv_heads, seen.kv_head);
        RF_UNROLL
        for (u32 i = 0; i < 2; ++i) keys[i].load_from(rows.row(seen.nearest(start + row() + 8 * i)), part());
    }
    RF_MEMBER void load_values(const void* cache, const Seen& seen, u32 start) {
        auto rows = block_of<ValueType>(cache, seen.table, start, seen.kv_heads, seen.kv_head);
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i) values[i].load_from(rows.row(seen.nearest(start + value_token(i))), row() * 16);
    }
    RF_MEMBER void load_step(const DecodeParams& p, const Seen& seen, u32 start) {
        load_keys(p.keys, seen, start), load_values(p.values, seen, start);
    }
    RF_MEMBER void put(Shared& shared, u32 start, u32 newest) {
        RF_UNROLL
        for (u32 i = 0; i < 2; ++i)
            if (start + row() + 8 * i == newest)
                keys[i].load_from({shared.newest_key, shared.newest_key + KeyType::ROW}, part());
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i)
            if (start + value_token(i) == newest)
                values[i].load_from({shared.newest_value, shared.newest_value + ValueType::ROW}, row() * 16);
    }

    // The wave's queries, as bytes; and of two heads, of whose scores this lane has some, what those are multiplied by
    // and begin with, for each run.
    struct Queries {
        u32 bytes[RUNS][2];
        float scales[RUNS][2];
        i32 origins[RUNS][2];

        RF_MEMBER Queries(const float* q, float scale) {
            RF_UNROLL
            for (u32 r = 0; r < RUNS; ++r) {
                float x[8], largest = 0;
                RF_UNROLL
                for (u32 i = 0; i < 8; ++i) {
                    u32 element = 32 * r + KeyPart<KeyType>::first(part(), i / 4) + i % 4;
                    x[i] = row() < SLICE ? q[row() * RF_HEAD_DIM + element] : 0.0f;
                    largest = maximum(largest, absolute(x[i]));
                }
                largest = reduce_lanes<4>(largest, Maximum());
                float inverse = largest > 0 ? 127 / largest : 0.0f;
                i32 sum = 0;
                RF_UNROLL
                for (u32 word = 0; word < 2; ++word) {
                    bytes[r][word] = 0;
                    RF_UNROLL
                    for (u32 j = 0; j < 4; ++j)
                        bytes[r][word] |= u32(round_int(x[4 * word + j] * inverse) & 255) << 8 * j;
                    sum = dot4(bytes[r][word], 0x01010101, sum);
                }
                sum = reduce_lanes<4>(sum, Add());
                RF_UNROLL
                for (u32 h = 0; h < 2; ++h) {
                    u32 from = (2 * part() + h) * 4;
                    scales[r][h] = shuffle(largest, from) * (scale / 127);
                    origins[r][h] = FLOAT_ZERO - KeyType::ZERO * shuffle(sum, from);
                }
            }
        }
    };

    // Of the step's tokens `row` and `row` + 8, with two heads each.
    RF_MEMBER void score(float (&scores)[4], const Queries& queries) const {
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i) scores[i] = 0;
        RF_UNROLL
        for (u32 r = 0; r < RUNS; ++r) {
            i32 c[4];
            RF_UNROLL
            for (u32 i = 0; i < 4; ++i) c[i] = queries.origins[r][i % 2];
            multiply_bytes(c, keys[0].bytes(r, 0), keys[1].bytes(r, 0), keys[0].bytes(r, 1), keys[1].bytes(r, 1),
                           queries.bytes[r][0], queries.bytes[r][1]);
            RF_UNROLL
            for (u32 i = 0; i < 4; ++i) {
                u32 pair = r < 2 ? keys[i / 2].scales.x : keys[i / 2].scales.y;
                float scale = r % 2 ? high_half(pair) : low_half(pair);
                scores[i] += sum_float(c[i]) * (scale * queries.scales[r][i % 2]);
            }
        }
    }

    RF_MEMBER void accumulate(Shared& shared, const DecodeParams& p, const float* q, const Seen& seen, u32 begin,
                              u32 newest) {
        u32 first_head = wave() % SLICES * SLICE, stripe = wave() / SLICES;
        Queries queries(q + first_head * RF_HEAD_DIM, p.softcap > 0 ? p.scale : p.scale * LOG2E);
        barrier();  // q may lie where results go
        float slopes[2] = {};
        if constexpr (ALIBI) {
            RF_UNROLL
            for (u32 h = 0; h < 2; ++h)
                if (2 * part() + h < SLICE)
                    slopes[h] = p.slopes[seen.kv_head * RF_GROUP + first_head + 2 * part() + h] * LOG2E;
        }
        float sums[TILES][4], highest[2] = {LOWEST, LOWEST}, sum[2] = {0, 0};
        RF_UNROLL
        for (u32 i = 0; i < TILES; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0;
        for (u32 start = begin + stripe * STEP; start < seen.end; start += STRIPES * STEP) {
            if (newest - start < STEP) put(shared, start, newest);
            // rows of the next step are on their way as soon as those of this one have been used
            u32 next = start + STRIPES * STEP;
            float scores[4];
            score(scores, queries);
            if (next < seen.end) load_keys(p.keys, seen, next);
            bool higher = false;
            RF_UNROLL
            for (u32 i = 0; i < 4; ++i) {
                if (p.softcap > 0) scores[i] = p.softcap * LOG2E * fast_tanh(scores[i] / p.softcap);
                u32 token = start + row() + i / 2 * 8;
                scores[i] = biased(scores[i], slopes[i % 2], i32(seen.position - token));
                if (token < seen.first || token >= seen.end) scores[i] = -infinity();
                higher |= scores[i] > highest[i % 2] + SLACK;
            }
            if (wave_ballot(higher)) {
                RF_UNROLL
                for (u32 h = 0; h < 2; ++h) {
                    float top = maximum(scores[h], scores[2 + h]);
                    top = maximum(reduce_strided<4>(top, Maximum()), highest[h]);
                    float rescale = fast_exp2(highest[h] - top);
                    highest[h] = top, sum[h] *= rescale;
                    RF_UNROLL
                    for (u32 i = 0; i < TILES; ++i) sums[i][h] *= rescale, sums[i][2 + h] *= rescale;
                }
            }
            RF_UNROLL
            for (u32 i = 0; i < 4; ++i) {
                scores[i] = fast_exp2(scores[i] - highest[i % 2]);
                sum[i % 2] += scores[i];
            }
            u32 weights[2] = {turned(pack_fp16(scores[0], scores[1])), turned(pack_fp16(scores[2], scores[3]))};
            // of a tile's 16 elements the lanes of a row have two, which are at 2 i and 2 i + 1 of their 16
            RF_UNROLL
            for (u32 half = 0; half < 2; ++half) {
                ValuePart<ValueType>::pairs(values[2 * half], values[2 * half + 1], [&](u32 i, u32 even, u32 odd) {
                    multiply_pairs(sums[i], even, odd, weights[half]);
                });
            }
            if (next < seen.end) load_values(p.values, seen, next);
        }
        RF_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            sum[h] = reduce_strided<4>(sum[h], Add());
            u32 head = 2 * part() + h;
            if (head >= SLICE) continue;
            if (row() == 0) shared.highest[stripe][first_head + head] = highest[h];
            if (row() == 0) shared.sum[stripe][first_head + head] = sum[h];
            RF_UNROLL
            for (u32 i = 0; i < TILES; ++i) {
                float* to = &shared.values[stripe][first_head + head][16 * row() + 2 * i];
                to[0] = sums[i][h], to[1] = sums[i][2 + h];
            }
        }
    }
};

}  // namespace rocforge
