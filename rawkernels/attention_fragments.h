// Decode attention on the matrix unit, for groups of up to eight heads: 16 tokens by 8 heads, of which those past the
// group's are zeros. Products cost little here; the time goes to bringing keys and values, which are copied into LDS
// asynchronously, so that many are under way.
#pragma once
#include "target/async_copy.h"
#include "target/fragments.h"

namespace rocforge {

constexpr u32 TILE = 16, SLOTS = RF_SLOTS, STRIDE = RF_HEAD_DIM + 8, PIECES = RF_HEAD_DIM / 8, DEPTH = RF_HEAD_DIM / 16;

constexpr u32 RESIDENT = RF_HEAD_DIM > 128 ? THREADS : 2 * THREADS;

static_assert(SLICES == 1 && RF_GROUP <= 8 && DEPTH * 16 == RF_HEAD_DIM, "a wave has all heads of the group");

// A tile's keys and values. Rows are padded by 16 bytes, so that those of a fragment lie in different banks.
struct Slot {
    f16 keys[TILE][STRIDE], values[TILE][STRIDE];

    // Those that are not seen, or at the end and beyond, become zero.
    RF_MEMBER void copy(const Tokens& tokens, u32 start) {
        u64 step = u64(tokens.kv_heads) * RF_HEAD_DIM, offset = start < tokens.end ? tokens.offset(start) : 0;
        RF_UNROLL
        for (u32 i = 0; i < TILE * PIECES / RF_WAVE; ++i) {
            u32 unit = lane() + i * RF_WAVE, row = unit / PIECES, piece = unit % PIECES * 8, token = start + row;
            bool seen = token >= tokens.first && token < tokens.end;
            u64 at = seen ? offset + row * step + piece : 0;
            copy_async_or_zeros(&keys[row][piece], tokens.keys + at, seen);
            copy_async_or_zeros(&values[row][piece], tokens.values + at, seen);
        }
        end_copy_group();
    }
    // Key and value of one token, from LDS.
    RF_MEMBER void put(const f16 (&pair)[2][RF_HEAD_DIM], u32 row) {
        for (u32 i = lane(); i < 2 * PIECES; i += RF_WAVE) {
            u32 piece = i % PIECES * 8;
            f16* to = i < PIECES ? &keys[row][piece] : &values[row][piece];
            *reinterpret_cast<u32x4*>(to) = load<u32x4>(&pair[i / PIECES][piece]);
        }
    }
};
static_assert(sizeof(Slot) * SLOTS * WAVES == RF_LDS, "the launch's dynamic LDS");

// A wave's ring of tiles: its own of each STRIPES tiles, SLOTS of them under way.
struct Loads {
    Slot* ring;
    RF_MEMBER void begin(const Tokens& tokens) {
        extern RF_SHARED u32x4 dynamic_shared[];
        ring = reinterpret_cast<Slot*>(dynamic_shared) + wave() * SLOTS;
        RF_UNROLL
        for (u32 i = 0; i < SLOTS; ++i) ring[i].copy(tokens, tokens.begin + (i * STRIPES + wave()) * TILE);
    }
};

// Of the heads 2 * (lane() % 4) and the next, and of tokens or elements lane() / 4 and 8 more: element i is of head i %
// 2 of these, and of row 8 * (i / 2).
typedef float Part[4];

// Queries as operands of 8 columns, times a factor, in two parts whose sum is exact to 22 bits.
struct HeadQueries {
    u32 high[DEPTH][2], low[DEPTH][2];

    RF_MEMBER void load_from(const float* q, float factor) {
        u32 head = lane() / 4;
        RF_UNROLL
        for (u32 i = 0; i < 2 * DEPTH; ++i) {
            const float* p = q + head * RF_HEAD_DIM + i * 8 + lane() % 4 * 2;
            float x = head < RF_GROUP ? p[0] * factor : 0.0f, y = head < RF_GROUP ? p[1] * factor : 0.0f;
            u32 rounded = high[i / 2][i % 2] = pack_fp16(x, y);
            low[i / 2][i % 2] = pack_fp16(x - low_half(rounded), y - high_half(rounded));
        }
    }
};

// Combines over the rows of a Part.
template <class Combine>
RF_DEVICE float over_rows(float value, Combine combine) {
    value = combine(value, shuffle_xor<4>(value));
    value = combine(value, shuffle_xor<8>(value));
    return combine(value, shuffle_xor<16>(value));
}

// Attends to the tokens of a split; shared.newest has what belongs to the token `newest`.
RF_DEVICE void accumulate(Shared& shared, const float* q, Loads loads, const Tokens& tokens, u32 newest, float scale,
                          float softcap) {
    HeadQueries queries;
    queries.load_from(q, softcap > 0 ? scale : scale * LOG2E);
    barrier();  // q may lie where results go
    Part sums[DEPTH];
    float highest[2] = {LOWEST, LOWEST}, sum[2] = {0, 0};
    RF_UNROLL
    for (u32 d = 0; d < DEPTH; ++d) {
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i) sums[d][i] = 0;
    }
    u32 turn = 0;
    for (u32 start = tokens.begin + wave() * TILE; start < tokens.end; start += STRIPES * TILE) {
        Slot& slot = loads.ring[turn];
        wait_for_copy_groups<SLOTS - 1>();
        wave_barrier();
        if (newest - start < TILE) {
            slot.put(shared.newest, newest - start);
            wave_barrier();
        }
        Part scores = {0, 0, 0, 0};
        RF_UNROLL
        for (u32 d = 0; d < DEPTH; ++d) {
            Fragment keys = load_fragment(&slot.keys[0][d * 16], STRIDE);
            multiply_add_eight(scores, keys.x, queries.high[d][0], queries.high[d][1]);
            multiply_add_eight(scores, keys.x, queries.low[d][0], queries.low[d][1]);
        }
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i) {
            u32 token = start + lane() / 4 + i / 2 * 8;
            if (softcap > 0) scores[i] = softcap * LOG2E * fast_tanh(scores[i] / softcap);
            if (token < tokens.first || token >= tokens.end) scores[i] = -infinity();
        }
        float rescale[2];
        bool changed = false;
        RF_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            float top = maximum(highest[h], over_rows(maximum(scores[h], scores[2 + h]), Maximum()));
            rescale[h] = fast_exp2(highest[h] - top);
            changed |= top != highest[h];
            highest[h] = top;
            scores[h] = fast_exp2(scores[h] - top), scores[2 + h] = fast_exp2(scores[2 + h] - top);
            sum[h] = sum[h] * rescale[h] + scores[h] + scores[2 + h];
        }
        if (wave_ballot(changed)) {
            RF_UNROLL
            for (u32 d = 0; d < DEPTH; ++d) {
                RF_UNROLL
                for (u32 i = 0; i < 4; ++i) sums[d][i] *= rescale[i % 2];
            }
        }
        u32 weights[2] = {turned(pack_fp16(scores[0], scores[1])), turned(pack_fp16(scores[2], scores[3]))};
        RF_UNROLL
        for (u32 d = 0; d < DEPTH; ++d) {
            Fragment values = load_fragment_turned(&slot.values[0][d * 16], STRIDE);
            multiply_add_eight(sums[d], values.x, weights[0], weights[1]);
        }
        wave_barrier();  // all have read the slot
        slot.copy(tokens, start + SLOTS * STRIPES * TILE);
        turn = turn + 1 == SLOTS ? 0 : turn + 1;
    }
    RF_UNROLL
    for (u32 h = 0; h < 2; ++h) {
        u32 head = lane() % 4 * 2 + h;
        sum[h] = over_rows(sum[h], Add());
        if (head >= RF_GROUP) continue;
        if (lane() < 4) shared.highest[wave()][head] = highest[h], shared.sum[wave()][head] = sum[h];
        RF_UNROLL
        for (u32 d = 0; d < DEPTH; ++d) {
            float* to = &shared.values[wave()][head][d * 16 + lane() / 4];
            to[0] = sums[d][h], to[8] = sums[d][2 + h];
        }
    }
}

}  // namespace rocforge
