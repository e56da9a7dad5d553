// Tiles of queries by tiles of keys on Hopper's warpgroups: one warpgroup brings tiles of keys and values into LDS, two
// others multiply them. Those take turns: one works on a tile's softmax while the tensor cores have the other's
// products, and its own of the tile before. Source: Shah et al., FlashAttention-3, https://arxiv.org/abs/2407.08608.
//
// A tile has KEYS tokens and WIDTH of their columns. The output of 64 rows takes a warpgroup's registers, so that of
// values of more than 256 RF_PARTS blocks have the same rows, whose scores each of them computes.
#pragma once
#include "target/fragments.h"
#include "target/warpgroup.h"

namespace rocforge {

constexpr u32 CONSUMERS = 2, ROWS = CONSUMERS * 64, KEYS = RF_KEYS, WIDTH = RF_WIDTH, STAGES = RF_STAGES;
constexpr u32 THREADS = (1 + CONSUMERS) * WARPGROUP, RESIDENT = THREADS;
constexpr u32 COLUMNS = RF_VALUE_DIM / RF_PARTS;  // of the output, those that a block has
constexpr u32 KEY_TILES = RF_HEAD_DIM / WIDTH, VALUE_TILES = COLUMNS / WIDTH, PANELS = WIDTH / PANEL;
constexpr u32 PIECES = RF_HEAD_DIM / 8;  // of 16 bytes, of a head's row
// Tiles of float16 are copied asynchronously; packed ones are unpacked on the way, which takes registers.
constexpr bool COPIED = Keys::ROW == 2 * RF_HEAD_DIM && Values::ROW == 2 * RF_VALUE_DIM;
constexpr u32 PRODUCER_REGISTERS = COPIED ? 56 : COLUMNS > 128 ? 72 : 104;
constexpr u32 CONSUMER_REGISTERS = (504 - PRODUCER_REGISTERS) / CONSUMERS;
// A score higher than what the weights are scaled by rescales them only where they would leave float16's range soon.
constexpr float SLACK = 8;

static_assert(KEY_TILES * WIDTH == RF_HEAD_DIM && VALUE_TILES * WIDTH * RF_PARTS == RF_VALUE_DIM, "tiles are whole");
static_assert(STAGES >= KEY_TILES + VALUE_TILES, "those of keys, and of the values before, are in use together");

// Tiles of keys and values take turns in a ring, in the order of their use: keys 0, keys 1, values 0, keys 2, ...
struct Shared {
    f16 queries[ROWS * RF_HEAD_DIM];
    f16 tiles[STAGES][KEYS * WIDTH];
    u64 full[STAGES], empty[STAGES];  // barriers
};
constexpr u32 ALIGNMENT = 1024;  // of panels
static_assert(sizeof(Shared) + ALIGNMENT <= RF_LDS, "the launch's dynamic LDS");

// A place in the ring, and the parity of the phase there.
struct Place {
    u32 stage = 0, parity = 0;
    RF_MEMBER void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// One warpgroup's lanes bring tiles: eight lanes a row of a panel. Of less than a tile of tokens the last is repeated:
// no query sees those.
struct Producer {
    static constexpr u32 LANES = PANEL / 8, ROWS_AT_ONCE = WARPGROUP / LANES, LOADS = KEYS / ROWS_AT_ONCE;

    Shared& shared;
    u32 kv_heads;
    Place place;

    static RF_MEMBER u32 first_row() { return thread_x() / LANES; }
    static RF_MEMBER u32 piece() { return thread_x() % LANES; }

    // This lane's rows of a sequence's tokens from `start` on.
    template <class Type>
    RF_MEMBER void find_rows(CachedRow (&rows)[LOADS], const void* cache, const BlockRows& sequence, i32 start) const {
        RF_UNROLL
        for (u32 b = 0; b < KEYS / RF_BLOCK_SIZE; ++b) {
            i32 block = minimum(start / RF_BLOCK_SIZE + i32(b), (sequence.length - 1) / RF_BLOCK_SIZE);
            i32 last = minimum(sequence.length - block * RF_BLOCK_SIZE, RF_BLOCK_SIZE) - 1;
            HeadBlock<Type> source(cache, sequence.table[block], kv_heads, sequence.kv_head);
            RF_UNROLL
            for (u32 i = 0; i < RF_BLOCK_SIZE / ROWS_AT_ONCE; ++i)
                rows[b * (RF_BLOCK_SIZE / ROWS_AT_ONCE) + i] =
                    source.row(minimum(i32(i * ROWS_AT_ONCE + first_row()), last));
        }
    }
    // `tiles` of them side by side, from `column` on.
    template <class Type>
    RF_MEMBER void bring_tiles(const void* cache, const BlockRows& sequence, i32 start, u32 column, u32 tiles) {
        CachedRow rows[LOADS];
        find_rows<Type>(rows, cache, sequence, start);
        RF_NO_UNROLL
        for (u32 t = 0; t < tiles; ++t, column += WIDTH) {
            if constexpr (COPIED)
                copy_tile(rows, column + piece() * 8);
            else
                unpack_tile<Type>(rows, column + piece() * 8);
            place.next();
        }
    }
    RF_MEMBER void wait_for_place() const { wait_phase(&shared.empty[place.stage], place.parity ^ 1); }
    RF_MEMBER f16* at_place() const { return shared.tiles[place.stage] + piece_offset(KEYS, first_row(), piece()); }
    RF_MEMBER void copy_tile(const CachedRow (&rows)[LOADS], u32 column) const {
        wait_for_place();
        u32 to = lds_address(at_place());
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            RF_UNROLL
            for (u32 panel = 0; panel < PANELS; ++panel)
                copy_async<16>(to + (panel * KEYS + i * ROWS_AT_ONCE) * PANEL * sizeof(f16),
                               rows[i].elements + (column + panel * PANEL) * sizeof(f16));
        }
        arrive_with_copies(&shared.full[place.stage]);
    }
    // All of a tile's loads are on their way together.
    template <class Type>
    RF_MEMBER void unpack_tile(const CachedRow (&rows)[LOADS], u32 column) const {
        typename Type::template Piece<8> pieces[LOADS][PANELS];
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            RF_UNROLL
            for (u32 panel = 0; panel < PANELS; ++panel) pieces[i][panel].load_from(rows[i], column + panel * PANEL);
        }
        wait_for_place();
        f16* to = at_place();
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            RF_UNROLL
            for (u32 panel = 0; panel < PANELS; ++panel)
                *reinterpret_cast<u32x4*>(to + (panel * KEYS + i * ROWS_AT_ONCE) * PANEL) = pieces[i][panel].fp16();
        }
        publish_to_products();
        arrive(&shared.full[place.stage]);
    }
    // All tiles that a sequence's queries see.
    RF_MEMBER void bring(const PrefillParams& p, const BlockRows& sequence) {
        auto [start, end] = sequence.keys<ROWS, RF_BLOCK_SIZE>();
        if (start >= end) return;
        u32 column = block_z() * COLUMNS;
        bring_tiles<Keys>(p.keys, sequence, start, 0, KEY_TILES);
        for (; start + i32(KEYS) < end; start += KEYS) {
            bring_tiles<Keys>(p.keys, sequence, start + KEYS, 0, KEY_TILES);
            bring_tiles<Values>(p.values, sequence, start, column, VALUE_TILES);
        }
        bring_tiles<Values>(p.values, sequence, start, column, VALUE_TILES);
    }
};

// What one warpgroup has of its 64 rows: softmax numerators times values, their sums, and what scores are scaled by (in
// units of log 2).
struct Rows {
    WarpgroupTile<WIDTH> sums[VALUE_TILES];
    float highest[ROW_SLOTS], sum[ROW_SLOTS];
    i32 position[ROW_SLOTS];

    // Calls change(sum, slot) for each of a lane's sums.
    template <class Change>
    RF_MEMBER void each_sum(Change change) {
        RF_UNROLL
        for (u32 t = 0; t < VALUE_TILES; ++t) {
            RF_UNROLL
            for (u32 i = 0; i < WIDTH / 2; ++i) change(sums[t][i], row_slot(i));
        }
    }
};

typedef WarpgroupTile<KEYS> Scores;

RF_DEVICE void cap(Scores& scores, float softcap) {
    RF_UNROLL
    for (u32 i = 0; i < KEYS / 2; ++i) scores[i] = softcap * LOG2E * fast_tanh(scores[i] * fast_reciprocal(softcap));
}

// Lowers scores of a warp's rows, from `first` on, by the distances of the keys from `start` on.
RF_DEVICE void bias(Scores& scores, const Rows& rows, const PrefillParams& p, const BlockRows& block, i32 first,
                    i32 start) {
    float slopes[ROW_SLOTS];
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) slopes[slot] = slope_of(p, block, first + i32(fragment_row(slot)));
    RF_UNROLL
    for (u32 i = 0; i < KEYS / 2; ++i) {
        i32 distance = rows.position[row_slot(i)] - start - i32(fragment_column(i));
        scores[i] = biased(scores[i], slopes[row_slot(i)], distance);
    }
}

// Hides what a row does not see of the keys from `start` on, of which there are some up to `end`.
RF_DEVICE void mask(Scores& scores, const Rows& rows, i32 start, i32 end, const BlockRows& block) {
    i32 first[ROW_SLOTS];
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot)
        first[slot] = first_seen(rows.position[slot] + block.after, block.window, block.chunked);
    RF_UNROLL
    for (u32 i = 0; i < KEYS / 2; ++i) {
        i32 key = start + i32(fragment_column(i));
        if (key > rows.position[row_slot(i)] + block.after || key < first[row_slot(i)] || key >= end)
            scores[i] = -infinity();
    }
}

// What a row's scores combine to, in four parts: while a warp works on them alone, a chain of all would cost the
// latency of each link.
template <class Combine>
struct RowParts {
    float parts[ROW_SLOTS][4];

    RF_MEMBER RowParts(const Scores& scores, Combine combine) {
        RF_UNROLL
        for (u32 i = 0; i < KEYS / 2; ++i) {
            float& part = parts[row_slot(i)][i / 4 % 2 * 2 + i % 2];
            part = i < 8 ? scores[i] : combine(part, scores[i]);
        }
    }
    RF_MEMBER float of(u32 slot) const {
        const float* p = parts[slot];
        return Combine()(Combine()(p[0], p[1]), Combine()(p[2], p[3]));
    }
};

// Turns scores into weights; what the rows have so far is to be multiplied by `rescale`, if any lane says so.
RF_DEVICE bool weigh(Rows& rows, Scores& scores, float (&rescale)[ROW_SLOTS]) {
    bool rescaled = false;
    RowParts highest(scores, Maximum());
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) {
        float highest_of_row = reduce_lanes<ROW_LANES>(highest.of(slot), Maximum());
        bool higher = highest_of_row > rows.highest[slot] + SLACK;
        float top = higher ? highest_of_row : rows.highest[slot];
        rescale[slot] = fast_exp2(rows.highest[slot] - top);
        rows.highest[slot] = top;
        rescaled |= higher;
    }
    RF_UNROLL
    for (u32 i = 0; i < KEYS / 2; ++i) scores[i] = fast_exp2(scores[i] - rows.highest[row_slot(i)]);
    RowParts sums(scores, Add());
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) rows.sum[slot] = rows.sum[slot] * rescale[slot] + sums.of(slot);
    return rescaled;
}

// One warpgroup's part in the ring.
struct Consumer {
    Shared& shared;
    u32 number;
    Place place, used;  // of the next tile; and of the first one whose products may still read it

    // The next tile, once it is there.
    RF_MEMBER const f16* next_tile() {
        wait_phase(&shared.full[place.stage], place.parity);
        if (COPIED) publish_to_products();
        const f16* tile = shared.tiles[place.stage];
        place.next();
        return tile;
    }
    // Waits for the products of TILES tiles, behind which those of LATER have begun; gives the places back, one by one.
    template <u32 TILES, u32 LATER>
    RF_MEMBER void release() {
        wait_for_products<TILES - 1 + LATER>();
        if (lane() == 0) arrive(&shared.empty[used.stage]);
        used.next();
        if constexpr (TILES > 1) release<TILES - 1, LATER>();
    }

    // Until the other has begun its products, and the other's until this one has.
    RF_MEMBER void wait_for_own_turn() const { wait_at_barrier<CONSUMERS * WARPGROUP>(3 + number); }
    RF_MEMBER void give_turn() const { arrive_at_barrier<CONSUMERS * WARPGROUP>(4 - number); }

    // Begins scores = queries keys^T.
    RF_MEMBER void begin_scores(Scores& scores, const Operands& queries) {
        RF_UNROLL
        for (u32 t = 0; t < KEY_TILES; ++t) {
            Operands keys(next_tile(), 0);
            RF_UNROLL
            for (u32 k = 0; k < WIDTH / 16; ++k) {
                u32 panel = k / 4, column = k % 4 * 16;
                multiply_rows(scores, queries.at((t * PANELS + panel) * PANEL * ROWS + column),
                              keys.at(panel * PANEL * KEYS + column), t + k > 0);
            }
            end_products();
        }
    }
    // Begins sums += weights values.
    RF_MEMBER void begin_sums(Rows& rows, const u32 (&weights)[KEYS / 4]) {
        RF_UNROLL
        for (u32 t = 0; t < VALUE_TILES; ++t) {
            Operands values(next_tile(), KEYS * PANEL * sizeof(f16));
            RF_UNROLL
            for (u32 k = 0; k < KEYS / 16; ++k)
                multiply_columns(rows.sums[t], weights + 4 * k, values.at(k * 16 * PANEL));
            end_products();
        }
    }
};

RF_DEVICE void pack_weights(u32 (&packed)[KEYS / 4], const Scores& weights) {
    RF_UNROLL
    for (u32 i = 0; i < KEYS / 4; ++i) packed[i] = pack_fp16(weights[2 * i], weights[2 * i + 1]);
}

// A warpgroup's rows of the queries, scaled, into LDS. Rows past the sequence's repeat its last one, so that no load
// waits for a branch.
RF_DEVICE void store_queries(f16* queries, const PrefillParams& p, const BlockRows& block, u32 first) {
    constexpr u32 OF_LANE = 64 * PIECES / WARPGROUP, LOADS = OF_LANE > 16 ? OF_LANE / 2 : OF_LANE;  // at a time
    float scale = p.softcap == 0 ? p.scale * LOG2E : p.scale;
    RF_NO_UNROLL
    for (u32 begun = 0; begun < OF_LANE; begun += LOADS) {
        u32 first_unit = begun * WARPGROUP + unknown(thread_x() % WARPGROUP);
        f32x4 x[LOADS][2];
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            u32 unit = first_unit + i * WARPGROUP;
            i32 r = minimum(block.first_row + i32(first + unit / PIECES), block.total - 1);
            const float* q = p.q + block.place(r) * RF_HEAD_DIM + unit % PIECES * 8;
            x[i][0] = load<f32x4>(q), x[i][1] = load<f32x4>(q + 4);
        }
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            u32 unit = first_unit + i * WARPGROUP;
            f32x4 a = x[i][0], b = x[i][1];
            *reinterpret_cast<u32x4*>(queries + piece_offset(ROWS, first + unit / PIECES, unit % PIECES)) =
                make_u32x4(pack_fp16(a.x * scale, a.y * scale), pack_fp16(a.z * scale, a.w * scale),
                           pack_fp16(b.x * scale, b.y * scale), pack_fp16(b.z * scale, b.w * scale));
        }
    }
}

RF_DEVICE void store_results(const Rows& rows, const PrefillParams& p, const BlockRows& block, u32 first) {
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) {
        i32 r = block.first_row + i32(first + fragment_row(slot));
        float factor = normalizer(rows.highest[slot], reduce_lanes<ROW_LANES>(rows.sum[slot], Add()), p, block, r);
        if (r >= block.total) continue;
        u32 first_column = block_z() * COLUMNS + fragment_column(0);
        u64 at = block.place(r) * RF_VALUE_DIM + first_column;
        RowGates gates(p, block, r, first_column);
        RF_UNROLL
        for (u32 t = 0; t < VALUE_TILES; ++t, at += WIDTH) {
            RF_UNROLL
            for (u32 i = 2 * slot; i < WIDTH / 2; i += 4) {
                float x = gates.gated(rows.sums[t][i] * factor, t * WIDTH + i / 4 * 8);
                float y = gates.gated(rows.sums[t][i + 1] * factor, t * WIDTH + i / 4 * 8 + 1);
                if (p.fp16)
                    *reinterpret_cast<u32*>(p.fp16 + at + i / 4 * 8) = pack_fp16(x, y);
                else
                    p.out[at + i / 4 * 8] = x, p.out[at + i / 4 * 8 + 1] = y;
            }
        }
    }
}

RF_DEVICE void consume(Consumer& consumer, const PrefillParams& p, const BlockRows& block) {
    u32 number = consumer.number, first = number * 64 + wave() % 4 * 16;
    wait_at_barrier<WARPGROUP>(1 + number);  // the queries of the sequence before have been used
    store_queries(consumer.shared.queries, p, block, number * 64);
    publish_to_products();
    wait_at_barrier<WARPGROUP>(1 + number);

    Rows rows;
    auto sums_in_place = [&] {
        RF_UNROLL
        for (u32 t = 0; t < VALUE_TILES; ++t) in_place(rows.sums[t]);
    };
    rows.each_sum([](float& sum, u32) { sum = 0; });
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) {
        rows.highest[slot] = LOWEST, rows.sum[slot] = 0;
        rows.position[slot] = block.position(block.first_row + i32(first + fragment_row(slot)));
    }
    Scores scores;
    u32 weights[KEYS / 4];
    float rescale[ROW_SLOTS];
    KeyRange range = block.keys<ROWS, RF_BLOCK_SIZE>();
    i32 lowest = block.seen_by_all(block.first_row + i32(number) * 64);

    auto weights_of = [&](i32 start) {
        if (p.softcap > 0) cap(scores, p.softcap);
        if constexpr (ALIBI) bias(scores, rows, p, block, block.first_row + i32(first), start);
        if (start + i32(KEYS) > lowest + 1 || first_seen(range.end - 1, p.window, p.chunked) > start)
            mask(scores, rows, start, range.end, block);
        return weigh(rows, scores, rescale);
    };

    if (range.start < range.end) {
        Operands queries(consumer.shared.queries + number * 64 * PANEL, 0);
        in_place(scores);
        consumer.wait_for_own_turn();
        begin_products();
        consumer.begin_scores(scores, queries);
        consumer.give_turn();
        consumer.release<KEY_TILES, 0>();
        in_place(scores);
        weights_of(range.start);  // there are no sums yet to rescale
        pack_weights(weights, scores);
        for (i32 start = range.start + i32(KEYS); start < range.end; start += KEYS) {
            in_place(scores), sums_in_place();
            consumer.wait_for_own_turn();
            begin_products();
            consumer.begin_scores(scores, queries);
            consumer.begin_sums(rows, weights);
            consumer.give_turn();
            consumer.release<KEY_TILES, VALUE_TILES>();
            in_place(scores);
            bool rescaled = weights_of(start);
            consumer.release<VALUE_TILES, 0>();
            sums_in_place();
            if (wave_ballot(rescaled)) rows.each_sum([&](float& sum, u32 slot) { sum *= rescale[slot]; });
            pack_weights(weights, scores);
        }
        sums_in_place();
        begin_products();
        consumer.begin_sums(rows, weights);
        consumer.release<VALUE_TILES, 0>();
        sums_in_place();
    }
    store_results(rows, p, block, first);
}

// The whole block takes part.
RF_DEVICE void attend(const PrefillParams& p) {
    extern RF_SHARED u8 dynamic_shared[];
    u32 misaligned = lds_address(dynamic_shared) % ALIGNMENT;
    Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared + (ALIGNMENT - misaligned) % ALIGNMENT);
    if (thread_x() == 0) {
        for (u32 stage = 0; stage < STAGES; ++stage) {
            init_barrier(&shared.full[stage], WARPGROUP);
            init_barrier(&shared.empty[stage], CONSUMERS * WARPGROUP / RF_WAVE);
        }
    }
    barrier();
    if (wave() < WARPGROUP / RF_WAVE) {
        give_registers_back<PRODUCER_REGISTERS>();
        Producer producer = {shared, p.kv_heads, {}};
        each_sequence<ROWS>(p, [&](const BlockRows& block) { producer.bring(p, block); });
    } else {
        take_registers<CONSUMER_REGISTERS>();
        Consumer consumer = {shared, thread_x() / WARPGROUP - 1, {}, {}};
        if (consumer.number == 1) consumer.give_turn();  // the other's is the first
        each_sequence<ROWS>(p, [&](const BlockRows& block) { consume(consumer, p, block); });
    }
}

}  // namespace rocforge
