// Decode attention's sums on the matrix unit of NVIDIA's sm_80 and later: a wave takes 16 tokens at a time, of which it
// has WIDTH elements of keys and values. Packed keys multiply as they are, in bytes; their values, which are unpacked,
// and keys and values that are float16, as such. Where waves share out the elements of a head, they add up their
// scores.
//
// Lane 4 g + t is `row` g and `part` t. In a product c (16, 8) += a (16, depth) b (depth, 8) it has of c the rows g and
// g + 8 of columns 2 t and 2 t + 1.
#pragma once
#include "target/mma.h"

namespace rocforge {

constexpr u32 WIDTH = RF_HEAD_DIM / PARTS;
constexpr u32 RUNS = WIDTH / 32;  // elements that share a scale, in a row
// A score higher than what the weights are scaled by rescales them only where they would leave float16's range soon.
constexpr float SLACK = 8;
static_assert(RF_VALUE_DIM == RF_HEAD_DIM && WIDTH * PARTS == RF_HEAD_DIM, "");
static_assert(WIDTH % 64 == 0 && SLICE <= 8 && (PARTS == 1 || STRIPES * SLICES <= 15), "");

// Of a row, the elements of this wave's.
template <class Type>
RF_DEVICE CachedRow part_of_wave(CachedRow row) {
    u32 part = wave() % PARTS;
    return {row.elements + part * (Type::ROW / PARTS), row.scales + part * (2 * Type::SCALES / PARTS)};
}

// A part of a key: eight elements of each run, in two words of bytes or four of float16.
template <class Type>
struct KeyPart;
template <>
struct KeyPart<cached::F16<RF_HEAD_DIM>> {
    u32x4 words[RUNS];

    RF_MEMBER void load_from(CachedRow row, u32 part) {
        RF_UNROLL
        for (u32 r = 0; r < RUNS; ++r) words[r] = load<u32x4>(row.elements + 64 * r + 16 * part);
    }
    RF_MEMBER u32 pair(u32 r, u32 i) const {
        return i == 0 ? words[r].x : i == 1 ? words[r].y : i == 2 ? words[r].z : words[r].w;
    }
};
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

// Elements of a value: of WIDTH / 16 tiles two each, those of a pair of tiles in a run of four, at `run(tiles / 2)`.
template <class Type>
struct ValuePart;
template <>
struct ValuePart<cached::F16<RF_VALUE_DIM>> {
    u32x4 words[WIDTH / 64];

    RF_MEMBER void load_from(CachedRow row, u32 lanes_row) {
        RF_UNROLL
        for (u32 i = 0; i < WIDTH / 64; ++i) words[i] = load<u32x4>(row.elements + 128 * i + 16 * lanes_row);
    }
    static RF_MEMBER u32 run(u32 lanes_row, u32 i) { return i / 2 * 64 + 8 * lanes_row + i % 2 * 4; }
    // Calls each(tile, pairs of its even and its odd element) for those of two tokens.
    template <class Each>
    static RF_MEMBER void pairs(const ValuePart& a, const ValuePart& b, Each each) {
        RF_UNROLL
        for (u32 i = 0; i < WIDTH / 64; ++i) {
            const u32 x[4] = {a.words[i].x, a.words[i].y, a.words[i].z, a.words[i].w};
            const u32 y[4] = {b.words[i].x, b.words[i].y, b.words[i].z, b.words[i].w};
            RF_UNROLL
            for (u32 j = 0; j < 4; ++j) each(4 * i + j, low_halves(x[j], y[j]), high_halves(x[j], y[j]));
        }
    }
};
// A packed one has 16 elements.
template <class Type>
struct PackedValuePart : Type::template Piece<16> {
    RF_MEMBER void load_from(CachedRow row, u32 lanes_row) { Type::template Piece<16>::load_from(row, 16 * lanes_row); }
    static RF_MEMBER u32 run(u32 lanes_row, u32 i) { return 16 * lanes_row + 4 * i; }
};
template <>
struct ValuePart<cached::Q8_0<RF_VALUE_DIM>> : PackedValuePart<cached::Q8_0<RF_VALUE_DIM>> {
    template <class Each>
    static RF_MEMBER void pairs(const ValuePart& a, const ValuePart& b, Each each) {
        u32 scales = a.scale_bits | b.scale_bits << 16;
        RF_UNROLL
        for (u32 j = 0; j < 4; ++j) {
            u32 x = a.words[j] ^ 0x80808080, y = b.words[j] ^ 0x80808080;
            u32 both[2] = {interleaved_low(x, y), interleaved_high(x, y)};
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
struct ValuePart<cached::Q4_0<RF_VALUE_DIM>> : PackedValuePart<cached::Q4_0<RF_VALUE_DIM>> {
    template <class Each>
    static RF_MEMBER void pairs(const ValuePart& a, const ValuePart& b, Each each) {
        u32 scales = a.scale_bits | b.scale_bits << 16;
        RF_UNROLL
        for (u32 j = 0; j < 2; ++j) {
            u32 both[2] = {interleaved_low(a.words[j], b.words[j]), interleaved_high(a.words[j], b.words[j])};
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

// The wave's queries, as bytes; and of two heads, of whose scores this lane has some, what those are multiplied by
// and begin with, for each run.
template <class KeyType, bool BYTES>
struct Queries {
    u32 bytes[RUNS][2];
    float scales[RUNS][2];
    i32 origins[RUNS][2];

    RF_MEMBER Queries(const float* q, float scale) {
        u32 row = lane() / 4, part = lane() % 4;
        RF_UNROLL
        for (u32 r = 0; r < RUNS; ++r) {
            float x[8], largest = 0;
            RF_UNROLL
            for (u32 i = 0; i < 8; ++i) {
                u32 element = 32 * r + KeyPart<KeyType>::first(part, i / 4) + i % 4;
                x[i] = row < SLICE ? q[row * PLACE + element] : 0.0f;
                largest = maximum(largest, absolute(x[i]));
            }
            largest = reduce_lanes<4>(largest, Maximum());
            float inverse = largest > 0 ? 127 / largest : 0.0f;
            i32 sum = 0;
            RF_UNROLL
            for (u32 word = 0; word < 2; ++word) {
                bytes[r][word] = 0;
                RF_UNROLL
                for (u32 j = 0; j < 4; ++j) bytes[r][word] |= u32(round_int(x[4 * word + j] * inverse) & 255) << 8 * j;
                sum = dot4(bytes[r][word], 0x01010101, sum);
            }
            sum = reduce_lanes<4>(sum, Add());
            RF_UNROLL
            for (u32 h = 0; h < 2; ++h) {
                u32 from = (2 * part + h) * 4;
                scales[r][h] = shuffle(largest, from) * (scale / 127);
                origins[r][h] = FLOAT_ZERO - KeyType::ZERO * shuffle(sum, from);
            }
        }
    }

    // Of the step's tokens `row` and `row` + 8, with two heads each.
    RF_MEMBER void score(float (&scores)[4], const KeyPart<KeyType> (&keys)[2]) const {
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i) scores[i] = 0;
        RF_UNROLL
        for (u32 r = 0; r < RUNS; ++r) {
            i32 c[4];
            RF_UNROLL
            for (u32 i = 0; i < 4; ++i) c[i] = origins[r][i % 2];
            multiply_bytes(c, keys[0].bytes(r, 0), keys[1].bytes(r, 0), keys[0].bytes(r, 1), keys[1].bytes(r, 1),
                           bytes[r][0], bytes[r][1]);
            RF_UNROLL
            for (u32 i = 0; i < 4; ++i) {
                u32 pair = r < 2 ? keys[i / 2].scales.x : keys[i / 2].scales.y;
                float scale = r % 2 ? high_half(pair) : low_half(pair);
                scores[i] += sum_float(c[i]) * (scale * scales[r][i % 2]);
            }
        }
    }
};

// The same as float16.
template <class KeyType>
struct Queries<KeyType, false> {
    u32 pairs[RUNS][4];
    float scale;

    RF_MEMBER Queries(const float* q, float scale) : scale(scale) {
        u32 row = lane() / 4, part = lane() % 4;
        RF_UNROLL
        for (u32 r = 0; r < RUNS; ++r) {
            RF_UNROLL
            for (u32 i = 0; i < 4; ++i) {
                const float* x = q + row * PLACE + 32 * r + 8 * part + 2 * i;
                pairs[r][i] = row < SLICE ? pack_fp16(x[0], x[1]) : 0;
            }
        }
    }
    RF_MEMBER void score(float (&scores)[4], const KeyPart<KeyType> (&keys)[2]) const {
        float sums[2][4] = {};  // a product waits for the one before that adds to the same
        RF_UNROLL
        for (u32 r = 0; r < RUNS; ++r) {
            RF_UNROLL
            for (u32 i = 0; i < 2; ++i) {
                const u32 a[4] = {keys[0].pair(r, 2 * i), keys[1].pair(r, 2 * i), keys[0].pair(r, 2 * i + 1),
                                  keys[1].pair(r, 2 * i + 1)};
                multiply_halves(sums[i], a, pairs[r][2 * i], pairs[r][2 * i + 1]);
            }
        }
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i) scores[i] = (sums[0][i] + sums[1][i]) * scale;
    }
};

// Waits for the waves that have the other parts of the same heads and tokens.
template <u32 NUMBER = 1>
RF_DEVICE void wait_for_parts() {
    if constexpr (NUMBER < STRIPES * SLICES) {
        if (wave() / PARTS >= NUMBER) return wait_for_parts<NUMBER + 1>();
    }
    wait_at_barrier<PARTS * RF_WAVE, NUMBER>();
}

// What a lane has of 16 tokens: parts of the keys of two, and of the values of four.
struct MatrixTokens {
    static constexpr u32 STEP = 16, TILES = WIDTH / 16;
    static constexpr bool PACKED_ROWS = Keys::INTEGER && Values::INTEGER;
    static_assert(PACKED_ROWS ? WIDTH == 128 : (Keys::ROW == 2 * RF_HEAD_DIM && Values::ROW == 2 * RF_VALUE_DIM), "");
    KeyPart<Keys> keys[2];
    ValuePart<Values> values[4];
    // Of the cache: that of the first step, and of the one behind, read a step before its rows are.
    u32 own_block, next_block;

    static RF_MEMBER u32 row() { return lane() / 4; }
    static RF_MEMBER u32 part() { return lane() % 4; }
    // Of the step's tokens, whose value this lane has as its i-th.
    static RF_MEMBER u32 value_token(u32 i) { return 2 * part() + i % 2 + i / 2 * 8; }

    // Of tokens from `start` on, which are in that block of the cache; in place of those that are not seen, others.
    RF_MEMBER void load_keys(const void* cache, const Seen& seen, u32 start, u32 block) {
        HeadBlock<Keys> rows(cache, block, seen.kv_heads, seen.kv_head);
        RF_UNROLL
        for (u32 i = 0; i < 2; ++i)
            keys[i].load_from(part_of_wave<Keys>(rows.row(seen.nearest(start + row() + 8 * i))), part());
    }
    RF_MEMBER void load_values(const void* cache, const Seen& seen, u32 start, u32 block) {
        HeadBlock<Values> rows(cache, block, seen.kv_heads, seen.kv_head);
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i)
            values[i].load_from(part_of_wave<Values>(rows.row(seen.nearest(start + value_token(i)))), row());
    }
    // Where the wave's first step lies, before its rows are loaded.
    RF_MEMBER void find_step(const Seen& seen, u32 start) {
        own_block = seen.table[start / RF_BLOCK_SIZE], next_block = block_at(seen, start + STRIPES * STEP);
    }
    RF_MEMBER void load_step(const DecodeParams& p, const Seen& seen, u32 start) {
        load_keys(p.keys, seen, start, own_block), load_values(p.values, seen, start, own_block);
    }
    static RF_MEMBER u32 block_at(const Seen& seen, u32 start) {
        return start < seen.end ? seen.table[start / RF_BLOCK_SIZE] : 0;
    }
    RF_MEMBER void put(Shared& shared, u32 start, u32 newest) {
        CachedRow key = part_of_wave<Keys>({shared.newest_key, shared.newest_key + Keys::ROW});
        CachedRow value = part_of_wave<Values>({shared.newest_value, shared.newest_value + Values::ROW});
        RF_UNROLL
        for (u32 i = 0; i < 2; ++i)
            if (start + row() + 8 * i == newest) keys[i].load_from(key, part());
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i)
            if (start + value_token(i) == newest) values[i].load_from(value, row());
    }

    // Scores of parts of the elements become those of all, in each wave that has a part.
    static RF_MEMBER void add_parts(float (&scores)[4], Shared& shared, u32 turn) {
        if constexpr (PARTS > 1) {
            u32 first = wave() / PARTS * PARTS;
            shared.scores[turn][wave()][lane()] = make_f32x4(scores[0], scores[1], scores[2], scores[3]);
            wait_for_parts();
            scores[0] = scores[1] = scores[2] = scores[3] = 0;
            RF_UNROLL
            for (u32 i = 0; i < PARTS; ++i) {
                f32x4 part = shared.scores[turn][first + i][lane()];
                scores[0] += part.x, scores[1] += part.y, scores[2] += part.z, scores[3] += part.w;
            }
        }
    }

    // Of a tile's 16 elements the lanes of a row have two.
    RF_MEMBER void add_values(float (&sums)[TILES][4], const u32 (&weights)[2]) const {
        if constexpr (PACKED_ROWS) {
            RF_UNROLL
            for (u32 half = 0; half < 2; ++half)
                ValuePart<Values>::pairs(values[2 * half], values[2 * half + 1], [&](u32 i, u32 even, u32 odd) {
                    multiply_eight_halves(sums[i], even, odd, weights[half]);
                });
        } else {
            u32 pairs[TILES][4];
            RF_UNROLL
            for (u32 half = 0; half < 2; ++half)
                ValuePart<Values>::pairs(values[2 * half], values[2 * half + 1], [&](u32 i, u32 even, u32 odd) {
                    pairs[i][2 * half] = even, pairs[i][2 * half + 1] = odd;
                });
            RF_UNROLL
            for (u32 i = 0; i < TILES; ++i) multiply_halves(sums[i], pairs[i], weights[0], weights[1]);
        }
    }

    RF_MEMBER void accumulate(Shared& shared, const DecodeParams& p, const float* q, const Seen& seen, u32 begin,
                              u32 newest) {
        u32 first_head = slice_of_wave() * SLICE, stripe = stripe_of_wave(), first = wave() % PARTS * WIDTH, turn = 0;
        Queries<Keys, Keys::INTEGER> queries(q + first_head * PLACE + first, p.softcap > 0 ? p.scale : p.scale * LOG2E);
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
            // rows of the next step are on their way as soon as those of this one have been used; loads return in
            // order, and an entry of the table that is read here comes behind this step's values
            u32 next = start + STRIPES * STEP, block = next_block;
            next_block = block_at(seen, next + STRIPES * STEP);
            float scores[4];
            queries.score(scores, keys);
            if (next < seen.end) load_keys(p.keys, seen, next, block);
            add_parts(scores, shared, turn);
            turn ^= 1;
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
            add_values(sums, weights);
            if (next < seen.end) load_values(p.values, seen, next, block);
        }
        if constexpr (PARTS > 1) barrier();  // the scores of other waves may lie where results go
        RF_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            sum[h] = reduce_strided<4>(sum[h], Add());
            u32 head = 2 * part() + h;
            if (head >= SLICE) continue;
            if (row() == 0 && first == 0) shared.highest[stripe][first_head + head] = highest[h];
            if (row() == 0 && first == 0) shared.sum[stripe][first_head + head] = sum[h];
            RF_UNROLL
            for (u32 i = 0; i < TILES; i += 2) {
                float* to = &shared.values[stripe][first_head + head][first + ValuePart<Values>::run(row(), i / 2)];
                *reinterpret_cast<f32x4*>(to) =
                    make_f32x4(sums[i][h], sums[i][2 + h], sums[i + 1][h], sums[i + 1][2 + h]);
            }
        }
    }
};

}  // namespace rocforge
