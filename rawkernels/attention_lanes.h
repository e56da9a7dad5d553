// Decode attention in vector arithmetic, on any target.
#pragma once
#include "target/platform.h"

namespace rocforge {

// A wave reads rows of RF_HEAD_DIM, 8 elements a lane: TOKEN_LANES lanes a token, ROWS tokens a load, LOADS loads at a
// time.
constexpr u32 TOKEN_LANES = power_of_two(RF_HEAD_DIM / 8);
constexpr u32 ROWS = RF_WAVE / TOKEN_LANES;
constexpr u32 PADDED = power_of_two(SLICE);
constexpr u32 LOADS = at_most(at_most(at_least(8 / PADDED, 2), RF_TUNE_DECODE_LOADS), RF_BLOCK_SIZE / ROWS);
constexpr u32 STEP = LOADS * ROWS;  // tokens a wave takes at a time

// After scatter_sums, a lane holds KEPT of the SCORES of its row's tokens and heads, and COPIES lanes hold the same.
constexpr u32 SCORES = LOADS * PADDED;
constexpr u32 KEPT = SCORES > TOKEN_LANES ? SCORES / TOKEN_LANES : 1;
constexpr u32 COPIES = TOKEN_LANES > SCORES ? TOKEN_LANES / SCORES : 1;
constexpr u32 HEAD_LANES = PADDED / KEPT * COPIES;  // lanes whose numbers agree modulo this hold the same heads

constexpr u32 RESIDENT = SLICE > 4 ? THREADS : at_least(2 * THREADS, RF_TUNE_DECODE_RESIDENT);

static_assert(RF_BLOCK_SIZE % STEP == 0, "a wave's step lies in one block of the cache");
static_assert(KEPT <= PADDED, "");

// Sums COUNT values over 2 * OFFSET lanes, each lane keeping the sums of its share: a butterfly that halves the number
// of values with each exchange, where summing each value over all lanes would exchange all of them each time.
template <u32 COUNT, u32 OFFSET>
RF_DEVICE void scatter_sums(float* v) {
    if constexpr (OFFSET > 0) {
        if constexpr (COUNT > 1) {
            bool upper = lane() & OFFSET;
            RF_UNROLL
            for (u32 i = 0; i < COUNT / 2; ++i) {
                float low = v[i], high = v[i + COUNT / 2];
                materialize(low), materialize(high);  // else the choice of a value becomes that of an address
                v[i] = (upper ? high : low) + shuffle_xor<OFFSET>(upper ? low : high);
            }
        } else {
            v[0] += shuffle_xor<OFFSET>(v[0]);
        }
        scatter_sums<(COUNT > 1 ? COUNT / 2 : 1), OFFSET / 2>(v);
    }
}

// Combines over the lanes whose numbers differ in multiples of FIRST (a power of two).
template <u32 FIRST, class Combine>
RF_DEVICE float reduce_strided(float value, Combine combine) {
    if constexpr (FIRST < RF_WAVE) {
        return reduce_strided<FIRST * 2>(combine(value, shuffle_xor<FIRST>(value)), combine);
    } else {
        return value;
    }
}

RF_DEVICE void unpack8(float* x, u32x4 packed) {
    x[0] = low_half(packed.x), x[1] = high_half(packed.x), x[2] = low_half(packed.y), x[3] = high_half(packed.y);
    x[4] = low_half(packed.z), x[5] = high_half(packed.z), x[6] = low_half(packed.w), x[7] = high_half(packed.w);
}

// What a lane has of the keys and values of a step's tokens, 8 elements of each row.
struct Step {
    u32x4 keys[LOADS], values[LOADS];

    // From `start` on; those that are not seen, or at the end and beyond, are zero.
    RF_MEMBER void load_rows(const Tokens& tokens, u32 start) {
        u32 row = lane() / TOKEN_LANES, dim = lane() % TOKEN_LANES * 8;
        u64 step = u64(tokens.kv_heads) * RF_HEAD_DIM, offset = tokens.offset(start) + row * step + dim;
        RF_UNROLL
        for (u32 l = 0; l < LOADS; ++l) {
            u32 token = start + l * ROWS + row;
            bool seen = dim < RF_HEAD_DIM && token >= tokens.first && token < tokens.end;
            u64 at = offset + l * ROWS * step;
            keys[l] = seen ? load<u32x4>(tokens.keys + at) : make_u32x4(0, 0, 0, 0);
            values[l] = seen ? load<u32x4>(tokens.values + at) : make_u32x4(0, 0, 0, 0);
        }
    }

    // Key and value of one token, from LDS.
    RF_MEMBER void put(const f16 (&pair)[2][RF_HEAD_DIM], u32 start, u32 token) {
        u32 row = lane() / TOKEN_LANES, dim = lane() % TOKEN_LANES * 8;
        RF_UNROLL
        for (u32 l = 0; l < LOADS; ++l) {
            if (start + l * ROWS + row != token || dim >= RF_HEAD_DIM) continue;
            keys[l] = load<u32x4>(pair[0] + dim), values[l] = load<u32x4>(pair[1] + dim);
        }
    }
};

// What a wave asks for before it is at its tokens: its first step.
struct Loads {
    Step next;
    RF_MEMBER void begin(const Tokens& tokens) {
        u32 start = tokens.begin + wave() / SLICES * STEP;
        if (start < tokens.end) next.load_rows(tokens, start);
    }
};

// Attends to the tokens of a split for the wave's heads; shared.newest has what belongs to the token `newest`.
RF_DEVICE void accumulate(Shared& shared, const float* q, Loads loads, const Tokens& tokens, u32 newest, float scale,
                          float softcap) {
    RF_SHARED float weights[WAVES][ROWS][SCORES], rescales[WAVES][PADDED];
    u32 slice = wave() % SLICES, stripe = wave() / SLICES, row = lane() / TOKEN_LANES;
    u32 dim = lane() % TOKEN_LANES * 8;
    bool inside = RF_HEAD_DIM / 8 == TOKEN_LANES || dim < RF_HEAD_DIM;
    float query[SLICE][8], sums[SLICE][8];
    RF_UNROLL
    for (u32 h = 0; h < SLICE; ++h) {
        RF_UNROLL
        for (u32 i = 0; i < 8; ++i) {
            query[h][i] = inside ? q[(slice * SLICE + h) * RF_HEAD_DIM + dim + i] : 0.0f;
            sums[h][i] = 0;
        }
    }
    barrier();  // q may lie where results go
    float highest[KEPT], sum[KEPT];
    RF_UNROLL
    for (u32 i = 0; i < KEPT; ++i) highest[i] = LOWEST, sum[i] = 0;
    // the score that this lane keeps: of this load, of heads kept_head and on
    u32 place = lane() % TOKEN_LANES / COPIES;
    u32 kept_load = place / (PADDED / KEPT), kept_head = place % (PADDED / KEPT) * KEPT;

    u32 start = tokens.begin + stripe * STEP;
    for (; start < tokens.end; start += STRIPES * STEP) {
        Step step = loads.next;
        if (newest != NO_TOKEN) step.put(shared.newest, start, newest);
        // the step after is on its way while this one is computed
        if (start + STRIPES * STEP < tokens.end) loads.next.load_rows(tokens, start + STRIPES * STEP);
        float scores[SCORES];
        RF_UNROLL
        for (u32 l = 0; l < LOADS; ++l) {
            float x[8];
            unpack8(x, step.keys[l]);
            RF_UNROLL
            for (u32 h = 0; h < PADDED; ++h) {
                float score = 0;
                RF_UNROLL
                for (u32 i = 0; i < 8; ++i)
                    if (h < SLICE) score += query[h < SLICE ? h : 0][i] * x[i];
                scores[l * PADDED + h] = score;
            }
        }
        scatter_sums<SCORES, TOKEN_LANES / 2>(scores);
        u32 token = start + kept_load * ROWS + row;
        bool seen = token >= tokens.first && token < tokens.end, changed = false;
        RF_UNROLL
        for (u32 i = 0; i < KEPT; ++i) {
            float score = scores[i] * scale;
            if (softcap > 0) score = softcap * fast_tanh(score / softcap);
            score = seen ? score * LOG2E : LOWEST;
            float before = highest[i];
            highest[i] = maximum(before, reduce_strided<HEAD_LANES>(score, Maximum()));
            float weight = seen ? fast_exp2(score - highest[i]) : 0.0f, rescale = fast_exp2(before - highest[i]);
            sum[i] = sum[i] * rescale + weight;
            changed |= highest[i] != before;
            weights[wave()][row][(kept_load * PADDED) + kept_head + i] = weight;
            rescales[wave()][kept_head + i] = rescale;
        }
        changed = wave_ballot(changed);
        wave_barrier();
        if (changed) {
            RF_UNROLL
            for (u32 h = 0; h < SLICE; ++h) {
                float rescale = rescales[wave()][h];
                RF_UNROLL
                for (u32 i = 0; i < 8; ++i) sums[h][i] *= rescale;
            }
        }
        RF_UNROLL
        for (u32 l = 0; l < LOADS; ++l) {
            float x[8];
            unpack8(x, step.values[l]);
            RF_UNROLL
            for (u32 h = 0; h < SLICE; ++h) {
                float weight = weights[wave()][row][l * PADDED + h];
                RF_UNROLL
                for (u32 i = 0; i < 8; ++i) sums[h][i] += weight * x[i];
            }
        }
        wave_barrier();  // the weights are written again in the next round
    }

    RF_UNROLL
    for (u32 i = 0; i < KEPT; ++i) {
        sum[i] = reduce_strided<HEAD_LANES>(sum[i], Add());
        if (lane() < HEAD_LANES && lane() % COPIES == 0 && kept_head + i < SLICE) {
            shared.highest[stripe][slice * SLICE + kept_head + i] = highest[i];
            shared.sum[stripe][slice * SLICE + kept_head + i] = sum[i];
        }
    }
    RF_UNROLL
    for (u32 h = 0; h < SLICE; ++h) {
        RF_UNROLL
        for (u32 i = 0; i < 8; ++i) {
            float value = reduce_strided<TOKEN_LANES>(sums[h][i], Add());
            if (row == 0 && inside) shared.values[stripe][slice * SLICE + h][dim + i] = value;
        }
    }
}

}  // namespace rocforge
