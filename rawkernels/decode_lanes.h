// Decode attention's sums in the lanes of waves, on every target.
#pragma once

namespace rocforge {

// A wave reads rows of RF_HEAD_DIM, PIECE elements a lane: TOKEN_LANES lanes a token, ROWS tokens a load, LOADS loads
// at a time, of packed rows, whose pieces of 8 are half as long, twice as many.
constexpr u32 PIECE = RF_HEAD_DIM > 8 * RF_WAVE ? 16 : 8;
constexpr u32 TOKEN_LANES = power_of_two(RF_HEAD_DIM / PIECE);
constexpr u32 ROWS = RF_WAVE / TOKEN_LANES;
constexpr u32 PADDED = power_of_two(SLICE);
constexpr bool PACKED = Keys::ROW < 2 * RF_HEAD_DIM && Values::ROW < 2 * RF_VALUE_DIM;
constexpr u32 WANTED_LOADS = at_least(8 / PADDED, 2) * (PACKED && PIECE == 8 ? 2 : 1);
constexpr u32 LOADS = at_most(at_most(WANTED_LOADS, RF_TUNE_DECODE_LOADS), RF_BLOCK_SIZE / ROWS);

// After scatter_sums, a lane holds KEPT of the SCORES of its row's tokens and heads, and COPIES lanes hold the same.
constexpr u32 SCORES = LOADS * PADDED;
constexpr u32 KEPT = SCORES > TOKEN_LANES ? SCORES / TOKEN_LANES : 1;
constexpr u32 COPIES = TOKEN_LANES > SCORES ? TOKEN_LANES / SCORES : 1;
constexpr u32 HEAD_LANES = PADDED / KEPT * COPIES;  // lanes whose numbers agree modulo this hold the same heads
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

// What a lane has of the keys, or values, of a step's tokens: a piece of each row.
template <class Type>
struct StepRows {
    typename Type::template Piece<PIECE> pieces[LOADS];

    // Tokens from `start` on; those that are not seen are zero.
    RF_MEMBER void load_rows(const void* cache, const Seen& seen, u32 start) {
        u32 row = lane() / TOKEN_LANES, dim = lane() % TOKEN_LANES * PIECE;
        auto rows = block_of<Type>(cache, seen.table, start, seen.kv_heads, seen.kv_head);
        RF_UNROLL
        for (u32 l = 0; l < LOADS; ++l) {
            u32 token = start + l * ROWS + row;
            pieces[l].clear();
            if (dim < Type::ELEMENTS && token >= seen.first && token < seen.end)
                pieces[l].load_from(rows.row(token % RF_BLOCK_SIZE), dim);
        }
    }

    // One token's row, from LDS.
    RF_MEMBER void put(u8* newest, u32 start, u32 token) {
        u32 row = lane() / TOKEN_LANES, dim = lane() % TOKEN_LANES * PIECE;
        RF_UNROLL
        for (u32 l = 0; l < LOADS; ++l)
            if (start + l * ROWS + row == token && dim < Type::ELEMENTS)
                pieces[l].load_from({newest, newest + Type::ROW}, dim);
    }
};

// A lane's piece of a query, and of a key, as they are multiplied: as floats, or as signed bytes.
struct FloatKey {
    float x[PIECE], scale;
    RF_MEMBER FloatKey(const Keys::Piece<PIECE>& piece) : scale(piece.scale()) { piece.unpack(x); }
};
struct FloatQuery {
    float x[PIECE];
    RF_MEMBER void load_from(const float* q) {
        RF_UNROLL
        for (u32 i = 0; i < PIECE; ++i) x[i] = q ? q[i] : 0.0f;
    }
    RF_MEMBER float dot(const FloatKey& key) const {
        float sum = 0;
        RF_UNROLL
        for (u32 i = 0; i < PIECE; ++i) sum += x[i] * key.x[i];
        return sum * key.scale;
    }
};

template <class Type>
struct IntegerKey {
    u32 bytes[PIECE / 4];
    float scale;
    RF_MEMBER IntegerKey(const typename Type::template Piece<PIECE>& piece) : scale(piece.scale()) {
        RF_UNROLL
        for (u32 i = 0; i < PIECE / 4; ++i) bytes[i] = piece.bytes(i);
    }
};
// Rounded to steps of a 127th of the largest of 32.
template <class Type>
struct IntegerQuery {
    u32 bytes[PIECE / 4];
    float scale;
    i32 origin;  // what makes up for the bytes' zero
    RF_MEMBER void load_from(const float* q) {
        float x[PIECE], largest = 0;
        RF_UNROLL
        for (u32 i = 0; i < PIECE; ++i) x[i] = q ? q[i] : 0.0f, largest = maximum(largest, absolute(x[i]));
        largest = reduce_lanes<32 / PIECE>(largest, Maximum());
        float inverse = largest > 0 ? 127 / largest : 0.0f;
        scale = largest / 127;
        i32 sum = 0;
        RF_UNROLL
        for (u32 i = 0; i < PIECE / 4; ++i) {
            bytes[i] = 0;
            RF_UNROLL
            for (u32 j = 0; j < 4; ++j) bytes[i] |= u32(round_int(x[4 * i + j] * inverse) & 255) << 8 * j;
            sum = dot4(bytes[i], 0x01010101, sum);
        }
        origin = FLOAT_ZERO - Type::ZERO * sum;
    }
    RF_MEMBER float dot(const IntegerKey<Type>& key) const {
        i32 sum = origin;
        RF_UNROLL
        for (u32 i = 0; i < PIECE / 4; ++i) sum = dot4(key.bytes[i], bytes[i], sum);
        return sum_float(sum) * (key.scale * scale);
    }
};

template <class Type, bool INTEGER>
struct Products {
    typedef FloatKey Key;
    typedef FloatQuery Query;
};
template <class Type>
struct Products<Type, true> {
    typedef IntegerKey<Type> Key;
    typedef IntegerQuery<Type> Query;
};
typedef Products<Keys, Keys::INTEGER>::Key Key;
typedef Products<Keys, Keys::INTEGER>::Query Query;

// What a lane has of a step's tokens.
struct LaneTokens {
    static constexpr u32 STEP = LOADS * ROWS;
    StepRows<Keys> keys;
    StepRows<Values> values;

    RF_MEMBER void find_step(const Seen&, u32) {}  // where it lies is found with its rows
    RF_MEMBER void load_step(const DecodeParams& p, const Seen& seen, u32 start) {
        keys.load_rows(p.keys, seen, start), values.load_rows(p.values, seen, start);
    }

    // Keys and values of the tokens of one split, from `begin` on, a multiple of STEP, for the wave's heads. The wave's
    // first step is loaded, and shared has what belongs to the token `newest`. The whole block takes part.
    RF_MEMBER void accumulate(Shared& shared, const DecodeParams& p, const float* q, const Seen& seen, u32 begin,
                              u32 newest) {
        RF_SHARED float weights[WAVES][ROWS][SCORES], rescales[WAVES][PADDED];
        u32 slice = slice_of_wave(), stripe = stripe_of_wave(), row = lane() / TOKEN_LANES;
        u32 dim = lane() % TOKEN_LANES * PIECE;
        bool inside = RF_HEAD_DIM / PIECE == TOKEN_LANES || dim < RF_HEAD_DIM;
        bool inside_value = RF_VALUE_DIM / PIECE == TOKEN_LANES || dim < RF_VALUE_DIM;
        Query query[SLICE];
        float sums[SLICE][PIECE];
        RF_UNROLL
        for (u32 h = 0; h < SLICE; ++h) {
            query[h].load_from(inside ? q + (slice * SLICE + h) * PLACE + dim : nullptr);
            RF_UNROLL
            for (u32 i = 0; i < PIECE; ++i) sums[h][i] = 0;
        }
        barrier();  // q may lie where results go
        float highest[KEPT], sum[KEPT];
        RF_UNROLL
        for (u32 i = 0; i < KEPT; ++i) highest[i] = LOWEST, sum[i] = 0;
        // the score that this lane keeps: of this load, of heads kept_head and on
        u32 place = lane() % TOKEN_LANES / COPIES;
        u32 kept_load = place / (PADDED / KEPT), kept_head = place % (PADDED / KEPT) * KEPT;
        float slopes[KEPT] = {};
        if constexpr (ALIBI) {
            const float* of_heads = p.slopes + seen.kv_head * RF_GROUP + slice * SLICE;
            RF_UNROLL
            for (u32 i = 0; i < KEPT; ++i) slopes[i] = kept_head + i < SLICE ? of_heads[kept_head + i] * LOG2E : 0.0f;
        }

        for (u32 start = begin + stripe * STEP; start < seen.end; start += STRIPES * STEP) {
            LaneTokens now = *this;
            if (newest != NO_TOKEN) {
                now.keys.put(shared.newest_key, start, newest);
                now.values.put(shared.newest_value, start, newest);
            }
            // the step after is on its way while this one is computed
            if (start + STRIPES * STEP < seen.end) load_step(p, seen, start + STRIPES * STEP);
            float scores[SCORES];
            RF_UNROLL
            for (u32 l = 0; l < LOADS; ++l) {
                Key key(now.keys.pieces[l]);
                RF_UNROLL
                for (u32 h = 0; h < PADDED; ++h)
                    scores[l * PADDED + h] = h < SLICE ? query[h < SLICE ? h : 0].dot(key) : 0.0f;
            }
            scatter_sums<SCORES, TOKEN_LANES / 2>(scores);
            u32 token = start + kept_load * ROWS + row;
            bool visible = token >= seen.first && token < seen.end, changed = false;
            RF_UNROLL
            for (u32 i = 0; i < KEPT; ++i) {
                float score = scores[i] * p.scale;
                if (p.softcap > 0) score = p.softcap * fast_tanh(score / p.softcap);
                score = visible ? biased(score * LOG2E, slopes[i], i32(seen.position - token)) : LOWEST;
                float before = highest[i];
                highest[i] = maximum(before, reduce_strided<HEAD_LANES>(score, Maximum()));
                float weight = visible ? fast_exp2(score - highest[i]) : 0.0f, rescale = fast_exp2(before - highest[i]);
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
                    for (u32 i = 0; i < PIECE; ++i) sums[h][i] *= rescale;
                }
            }
            RF_UNROLL
            for (u32 l = 0; l < LOADS; ++l) {
                float x[PIECE];
                now.values.pieces[l].unpack(x);
                RF_UNROLL
                for (u32 h = 0; h < SLICE; ++h) {
                    float weight = weights[wave()][row][l * PADDED + h] * now.values.pieces[l].scale();
                    RF_UNROLL
                    for (u32 i = 0; i < PIECE; ++i) sums[h][i] += weight * x[i];
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
            for (u32 i = 0; i < PIECE; ++i) {
                float value = reduce_strided<TOKEN_LANES>(sums[h][i], Add());
                if (row == 0 && inside_value) shared.values[stripe][slice * SLICE + h][dim + i] = value;
            }
        }
    }
};

}  // namespace rocforge
