// Tiles of queries by tiles of keys on each target's matrix unit, by waves that share a tile of keys and values.
#pragma once
#include "target/fragments.h"

namespace rocforge {

// A block takes ROWS rows, 16 a wave. Where a row's output would fill a wave's registers, PARTS waves have the same
// rows and a part of the output each.
constexpr u32 WAVES = RF_TUNE_PREFILL_WAVES, THREADS = WAVES * RF_WAVE, PARTS = RF_PARTS;
constexpr u32 RESIDENT = RF_TUNE_PREFILL_RESIDENT;
constexpr u32 ROWS = WAVES / PARTS * 16;
constexpr u32 KEYS = RF_KEYS;
constexpr u32 COLUMNS = KEYS / 16, DEPTH = RF_HEAD_DIM / 16, DIMS = RF_VALUE_DIM / 16 / PARTS;  // in tiles of fragments

static_assert(DEPTH * 16 == RF_HEAD_DIM && DEPTH % PARTS == 0 && RF_HEAD_DIM <= 512,
              "RF_HEAD_DIM is 16 to 128, or 160 to 256, or 320 to 512, in steps of 16, 32 and 64");
static_assert(DIMS * PARTS * 16 == RF_VALUE_DIM && RF_VALUE_DIM <= RF_HEAD_DIM, "RF_VALUE_DIM is less in such steps");
static_assert(RF_BLOCK_SIZE % KEYS == 0, "a tile of keys lies in one block of the cache");

// Tiles of keys and values on their way from the cache to LDS are in registers, so that their loads overlap arithmetic.
// Of less than a tile of rows the last is repeated: no query sees those. What is packed is unpacked behind the loads.
// Rows in LDS are padded by 16 bytes, so that the rows of a fragment lie in different banks; but for heads that leave
// no room for that in NVIDIA's 48 KiB.
#ifdef RF_FRAGMENTS_NVIDIA
constexpr u32 PAD = RF_HEAD_DIM > 256 ? 0 : 8;
#else
constexpr u32 PAD = 8;
#endif
constexpr u32 STRIDE = RF_HEAD_DIM + PAD, VALUE_STRIDE = RF_VALUE_DIM + PAD, KEY_STRIDE = KEYS + 8;
template <class Type>
struct TileRows {
    static constexpr u32 CHUNKS = Type::ELEMENTS / 8;  // 16-byte pieces of a head's row
    static constexpr u32 LOADS = (KEYS * CHUNKS + THREADS - 1) / THREADS;
    typedef f16 Stored[KEYS][Type::ELEMENTS + PAD];
    typename Type::template Piece<8> x[LOADS];

    // From a block's row `first` on.
    RF_MEMBER void load_rows(const HeadBlock<Type>& block, u32 first, u32 rows) {
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            u32 unit = thread_x() + i * THREADS, row = minimum(i32(unit / CHUNKS), i32(rows - 1));
            x[i].load_from(block.row(first + row), unit % CHUNKS * 8);
        }
    }
    RF_MEMBER void store_rows(Stored& to) const {
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            u32 unit = thread_x() + i * THREADS, row = unit / CHUNKS;
            if (row < KEYS) *reinterpret_cast<u32x4*>(&to[row][unit % CHUNKS * 8]) = x[i].fp16();
        }
    }
};

// The same, turned on the way: the depth of the second product, the keys, runs along rows.
template <class Type>
struct TileColumns {
    static constexpr u32 CHUNKS = Type::ELEMENTS / 8;
    static constexpr u32 LOADS = (KEYS / 2 * CHUNKS + THREADS - 1) / THREADS;
    typedef f16 Stored[Type::ELEMENTS][KEY_STRIDE];
    typename Type::template Piece<8> x[LOADS][2];

    RF_MEMBER void load_rows(const HeadBlock<Type>& block, u32 first, u32 rows) {
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            u32 unit = thread_x() + i * THREADS, row = unit % (KEYS / 2) * 2, chunk = unit / (KEYS / 2);
            chunk = minimum(i32(chunk), i32(CHUNKS - 1));
            RF_UNROLL
            for (u32 j = 0; j < 2; ++j)
                x[i][j].load_from(block.row(first + minimum(i32(row + j), i32(rows - 1))), chunk * 8);
        }
    }
    RF_MEMBER void store_rows(Stored& to) const {
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            u32 unit = thread_x() + i * THREADS, row = unit % (KEYS / 2) * 2, chunk = unit / (KEYS / 2);
            if (chunk >= CHUNKS) continue;
            u32x4 even_row = x[i][0].fp16(), odd_row = x[i][1].fp16();
            const u32 a[4] = {even_row.x, even_row.y, even_row.z, even_row.w};
            const u32 b[4] = {odd_row.x, odd_row.y, odd_row.z, odd_row.w};
            RF_UNROLL
            for (u32 j = 0; j < 4; ++j) {
                u32* even = reinterpret_cast<u32*>(&to[chunk * 8 + 2 * j][row]);
                u32* odd = reinterpret_cast<u32*>(&to[chunk * 8 + 2 * j + 1][row]);
                *even = (a[j] & 0xffff) | b[j] << 16;
                *odd = a[j] >> 16 | (b[j] & 0xffff0000);
            }
        }
    }
};

#ifdef RF_FRAGMENTS_NVIDIA
typedef TileRows<Values> TileValues;
#else
typedef TileColumns<Values> TileValues;
#endif

struct Shared {
    alignas(16) f16 queries[ROWS][STRIDE];
    alignas(16) TileRows<Keys>::Stored keys;
    alignas(16) TileValues::Stored values;
#ifndef RF_FRAGMENTS_NVIDIA
    alignas(16) f16 weights[WAVES][16][KEY_STRIDE];
#endif
};

struct Tile {
    TileRows<Keys> keys;
    TileValues values;

    // Of tokens from `start` on.
    RF_MEMBER void load_rows(const void* cache_keys, const void* cache_values, const i32* table, i32 start, i32 length,
                             u32 kv_heads, u32 kv_head) {
        u32 first = u32(start) % RF_BLOCK_SIZE, rows = minimum(length - start, i32(KEYS));
        keys.load_rows(block_of<Keys>(cache_keys, table, start, kv_heads, kv_head), first, rows);
        values.load_rows(block_of<Values>(cache_values, table, start, kv_heads, kv_head), first, rows);
    }
    RF_MEMBER void store_rows(Shared& shared) const {
        keys.store_rows(shared.keys);
        values.store_rows(shared.values);
    }
};

// The first of a wave's rows among the block's, and the first of its columns of the output.
RF_DEVICE u32 wave_row() { return wave() / PARTS * 16; }
RF_DEVICE u32 wave_column() { return wave() % PARTS * DIMS * 16; }

// A wave's 16 rows: softmax numerators times values, their sums, and the highest scores (in units of log 2).
struct Rows {
    Accumulator sums[DIMS];
    float highest[ROW_SLOTS], sum[ROW_SLOTS];
};

// A wave's queries: in registers, where they take few, else read again for each tile of keys.
struct Queries {
#if RF_HEAD_DIM <= 256 && (defined(RF_FRAGMENTS_NVIDIA) || defined(RF_FRAGMENTS_MFMA))
    Fragment row[DEPTH];
    RF_MEMBER void load_all(const Shared& shared) {
        RF_UNROLL
        for (u32 k = 0; k < DEPTH; ++k) row[k] = load_fragment(&shared.queries[wave_row()][k * 16], STRIDE);
    }
    RF_MEMBER Fragment at(const Shared&, u32 k) const { return row[k]; }
#else
    RF_MEMBER void load_all(const Shared&) {}
    RF_MEMBER Fragment at(const Shared& shared, u32 k) const {
        return load_fragment(&shared.queries[wave_row()][k * 16], STRIDE);
    }
#endif
};

typedef Accumulator Scores[COLUMNS];  // of a wave's rows and a tile of keys

RF_DEVICE void scores_of(Scores& scores, const Queries& queries, const Shared& shared) {
    RF_UNROLL
    for (u32 n = 0; n < COLUMNS; ++n) {
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i) scores[n].x[i] = 0;
    }
    RF_UNROLL_DEPTH
    for (u32 k = 0; k < DEPTH; ++k) {
        Fragment a = queries.at(shared, k);
        RF_UNROLL
        for (u32 n = 0; n < COLUMNS; ++n)
            multiply_add(scores[n], a, load_fragment(&shared.keys[n * 16][k * 16], STRIDE));
    }
}

// From scores to units of log 2.
RF_DEVICE void cap(Scores& scores, float softcap) {
    RF_UNROLL
    for (u32 n = 0; n < COLUMNS; ++n) {
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i)
            scores[n].x[i] = softcap * LOG2E * fast_tanh(scores[n].x[i] * fast_reciprocal(softcap));
    }
}

RF_DEVICE i32 position_of(const BlockRows& block, u32 slot) {
    return block.position(block.first_row + i32(wave_row() + fragment_row(slot)));
}

// Lowers scores by the distances of the keys from `start` on.
RF_DEVICE void bias(Scores& scores, const BlockRows& block, const float (&of_rows)[ROWS], i32 start) {
    float slopes[ROW_SLOTS];
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) slopes[slot] = of_rows[wave_row() + fragment_row(slot)];
    RF_UNROLL
    for (u32 n = 0; n < COLUMNS; ++n) {
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i) {
            i32 distance = position_of(block, row_slot(i)) - start - i32(n * 16 + fragment_column(i));
            scores[n].x[i] = biased(scores[n].x[i], slopes[row_slot(i)], distance);
        }
    }
}

// Hides what a row does not see of the keys from `start` on, of which there are some up to `end`.
RF_DEVICE void mask(Scores& scores, const BlockRows& block, i32 start, i32 end) {
    i32 first[ROW_SLOTS];
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot)
        first[slot] = first_seen(position_of(block, slot) + block.after, block.window, block.chunked);
    RF_UNROLL
    for (u32 n = 0; n < COLUMNS; ++n) {
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i) {
            i32 key = start + i32(n * 16 + fragment_column(i));
            if (key > position_of(block, row_slot(i)) + block.after || key < first[row_slot(i)] || key >= end)
                scores[n].x[i] = -infinity();
        }
    }
}

// Turns scores, in units of log 2, into weights, and scales what the rows have so far to match.
RF_DEVICE void update(Rows& rows, Scores& scores) {
    float rescale[ROW_SLOTS];
    bool higher = false;
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) {
        float highest = rows.highest[slot];
        RF_UNROLL
        for (u32 n = 0; n < COLUMNS; ++n) {
            RF_UNROLL
            for (u32 i = 0; i < ELEMENTS; ++i) {
                if (row_slot(i) != slot) continue;
                highest = maximum(highest, scores[n].x[i]);
            }
        }
        highest = reduce_lanes<ROW_LANES>(highest, Maximum());
        higher |= highest > rows.highest[slot];
        rescale[slot] = fast_exp2(rows.highest[slot] - highest);
        rows.highest[slot] = highest;
        rows.sum[slot] *= rescale[slot];
    }
    RF_UNROLL
    for (u32 n = 0; n < COLUMNS; ++n) {
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i) {
            u32 slot = row_slot(i);
            float& weight = scores[n].x[i];
            weight = fast_exp2(weight - rows.highest[slot]);
            rows.sum[slot] += weight;
        }
    }
    if (!wave_ballot(higher)) return;
    RF_UNROLL
    for (u32 n = 0; n < DIMS; ++n) {
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i) rows.sums[n].x[i] *= rescale[row_slot(i)];
    }
}

#ifdef RF_FRAGMENTS_NVIDIA
RF_DEVICE void add_values(Rows& rows, const Scores& weights, Shared& shared) {
    RF_UNROLL
    for (u32 k = 0; k < COLUMNS; ++k) {
        Fragment a = fragment_of_result(weights[k]);
        RF_UNROLL
        for (u32 n = 0; n < DIMS; ++n)
            multiply_add(rows.sums[n], a,
                         load_fragment_turned(&shared.values[k * 16][wave_column() + n * 16], VALUE_STRIDE));
    }
}
#else
// Weights change lanes by way of LDS.
RF_DEVICE void add_values(Rows& rows, const Scores& weights, Shared& shared) {
    wave_barrier();  // those before have been read
    RF_UNROLL
    for (u32 n = 0; n < COLUMNS; ++n) {
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i)
            shared.weights[wave()][fragment_row(row_slot(i))][n * 16 + fragment_column(i)] =
                from_float<f16>(weights[n].x[i]);
    }
    wave_barrier();
    RF_UNROLL_DEPTH
    for (u32 k = 0; k < COLUMNS; ++k) {
        Fragment a = load_fragment(&shared.weights[wave()][0][k * 16], KEY_STRIDE);
        RF_UNROLL
        for (u32 n = 0; n < DIMS; ++n) {
            multiply_add(rows.sums[n], a, load_fragment(&shared.values[wave_column() + n * 16][k * 16], KEY_STRIDE));
            if (n % 2) fragments_in_order();
        }
    }
}
#endif

RF_DEVICE void store_queries(f16 (&queries)[ROWS][STRIDE], const PrefillParams& p, const BlockRows& block) {
    float scale = p.softcap == 0 ? p.scale * LOG2E : p.scale;
    for (u32 i = thread_x(); i < ROWS * RF_HEAD_DIM; i += THREADS) {
        u32 row = i / RF_HEAD_DIM, element = i % RF_HEAD_DIM;
        i32 r = block.first_row + i32(row);
        queries[row][element] =
            from_float<f16>(r < block.total ? p.q[block.place(r) * RF_HEAD_DIM + element] * scale : 0.0f);
    }
}

// In LDS, where they take no registers from tile to tile.
RF_DEVICE void store_slopes(float (&of_rows)[ROWS], const PrefillParams& p, const BlockRows& block) {
    for (u32 row = thread_x(); row < ROWS; row += THREADS)
        of_rows[row] = slope_of(p, block, block.first_row + i32(row));
}

RF_DEVICE void store_results(const Rows& rows, const PrefillParams& p, const BlockRows& block) {
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) {
        i32 r = block.first_row + i32(wave_row() + fragment_row(slot));
        float factor = normalizer(rows.highest[slot], reduce_lanes<ROW_LANES>(rows.sum[slot], Add()), p, block, r);
        if (r >= block.total) continue;
        u64 at = block.place(r) * RF_VALUE_DIM + wave_column();
        RowGates gates(p, block, r, wave_column());
        RF_UNROLL
        for (u32 n = 0; n < DIMS; ++n) {
            RF_UNROLL
            for (u32 i = 0; i < ELEMENTS; ++i) {
                if (row_slot(i) != slot) continue;
                float value = gates.gated(rows.sums[n].x[i] * factor, n * 16 + fragment_column(i));
                if (p.fp16)
                    p.fp16[at + n * 16 + fragment_column(i)] = from_float<f16>(value);
                else
                    p.out[at + n * 16 + fragment_column(i)] = value;
            }
        }
    }
}

// The whole block takes part.
RF_DEVICE void attend_to(Shared& shared, float (&slopes)[ROWS], const PrefillParams& p, const BlockRows& block) {
    barrier();  // what lies there of the sequence before has been used
    store_queries(shared.queries, p, block);
    if constexpr (ALIBI) store_slopes(slopes, p, block);
    barrier();
    Queries queries;
    queries.load_all(shared);

    Rows rows;
    RF_UNROLL
    for (u32 n = 0; n < DIMS; ++n) {
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i) rows.sums[n].x[i] = 0;
    }
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) {
        rows.highest[slot] = LOWEST, rows.sum[slot] = 0;
    }
    i32 lowest = block.seen_by_all(block.first_row);
    auto [start, end] = block.keys<ROWS, KEYS>();

    Tile tile;
    if (start < end) tile.load_rows(p.keys, p.values, block.table, start, block.length, p.kv_heads, block.kv_head);
    for (; start < end; start += KEYS) {
        barrier();  // the tile before has been used
        tile.store_rows(shared);
        barrier();
        if (start + i32(KEYS) < end)
            tile.load_rows(p.keys, p.values, block.table, start + KEYS, block.length, p.kv_heads, block.kv_head);
        Scores scores;
        scores_of(scores, queries, shared);
        if (p.softcap > 0) cap(scores, p.softcap);
        if constexpr (ALIBI) bias(scores, block, slopes, start);
        if (start + i32(KEYS) > lowest + 1 || first_seen(end - 1, p.window, p.chunked) > start)
            mask(scores, block, start, end);
        update(rows, scores);
        add_values(rows, scores, shared);
    }
    store_results(rows, p, block);
}

RF_DEVICE void attend(const PrefillParams& p) {
    RF_SHARED Shared shared;
    RF_SHARED float slopes[ROWS];
    each_sequence<ROWS>(p, [&](const BlockRows& block) { attend_to(shared, slopes, p, block); });
}

}  // namespace rocforge
