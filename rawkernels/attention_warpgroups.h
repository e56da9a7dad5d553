// Tiles of queries by tiles of keys on Hopper's warpgroups, for heads of 128: one warpgroup brings tiles of keys and
// values into LDS, two others multiply them. Those take turns: one works on a tile's softmax while the tensor cores
// have the other's products, and its own of the tile before. Source: Shah et al., FlashAttention-3,
// https://arxiv.org/abs/2407.08608.
#pragma once
#include "target/fragments.h"
#include "target/warpgroup.h"

namespace rocforge {

constexpr u32 CONSUMERS = 2, ROWS = CONSUMERS * 64, KEYS = RF_KEYS, STAGES = RF_STAGES;
constexpr u32 THREADS = (1 + CONSUMERS) * WARPGROUP, RESIDENT = THREADS;
constexpr u32 PIECES = RF_HEAD_DIM / 8;  // of 16 bytes, of a head's row
// Tiles of float16 are copied asynchronously; packed ones are unpacked on the way, which takes registers.
constexpr bool COPIED = Keys::ROW == 2 * RF_HEAD_DIM && Values::ROW == 2 * RF_VALUE_DIM;
constexpr u32 PRODUCER_REGISTERS = COPIED ? 40 : 104, CONSUMER_REGISTERS = COPIED ? 232 : 200;
// A score higher than what the weights are scaled by rescales them only where they would leave float16's range soon.
constexpr float SLACK = 8;

static_assert(RF_HEAD_DIM == 128 && RF_VALUE_DIM == 128 && KEYS == 128, "the products are of 128 columns");

// Tiles of keys and values take turns in a ring, in the order of their use: keys 0, keys 1, values 0, keys 2, ...
struct Shared {
    f16 queries[ROWS * RF_HEAD_DIM];
    f16 tiles[STAGES][KEYS * RF_HEAD_DIM];
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

// One warpgroup's lanes bring tiles. Of less than a tile of tokens the last is repeated: no query sees those.
struct Producer {
    static constexpr u32 ROWS_AT_ONCE = WARPGROUP / PIECES, LOADS = RF_BLOCK_SIZE / ROWS_AT_ONCE;
    static constexpr u32 BLOCKS = KEYS / RF_BLOCK_SIZE;

    Shared& shared;
    u32 kv_heads;
    Place place, arriving;
    u32 under_way = 0;

    // A block of the cache, the number `b` of a tile, and its last row that there is.
    template <class Type>
    struct Source {
        HeadBlock<Type> rows;
        i32 last;

        RF_MEMBER Source(const void* cache, const BlockRows& sequence, i32 start, u32 b, u32 kv_heads)
            : Source(cache, sequence, minimum(start / RF_BLOCK_SIZE + i32(b), (sequence.length - 1) / RF_BLOCK_SIZE),
                     kv_heads) {}
        RF_MEMBER Source(const void* cache, const BlockRows& sequence, i32 block, u32 kv_heads)
            : rows(cache, sequence.table[block], kv_heads, sequence.kv_head),
              last(minimum(sequence.length - block * RF_BLOCK_SIZE, RF_BLOCK_SIZE) - 1) {}
        RF_MEMBER CachedRow row(u32 i) const { return rows.row(minimum(i32(i), last)); }
    };

    // Of a sequence's tokens from `start` on.
    template <class Type>
    RF_MEMBER void bring_tile(const void* cache, const BlockRows& sequence, i32 start) {
        if constexpr (COPIED)
            copy_tile<Type>(cache, sequence, start);
        else
            unpack_tile<Type>(cache, sequence, start);
    }
    RF_MEMBER void wait_for_place() const { wait_phase(&shared.empty[place.stage], place.parity ^ 1); }
    template <class Type>
    RF_MEMBER void copy_tile(const void* cache, const BlockRows& sequence, i32 start) {
        wait_for_place();
        u32 piece = thread_x() % PIECES, row = thread_x() / PIECES;
        u32 to = lds_address(shared.tiles[place.stage] + piece_offset(KEYS, row, piece));
        RF_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            Source<Type> source(cache, sequence, start, b, kv_heads);
            RF_UNROLL
            for (u32 i = 0; i < RF_BLOCK_SIZE; i += ROWS_AT_ONCE)
                copy_async<16>(to + (b * RF_BLOCK_SIZE + i) * PANEL * sizeof(f16),
                               source.row(i + row).elements + piece * 16);
        }
        end_copy_group();
        place.next();
        if (under_way++) wait_for_copy_groups<1>(), publish();
    }
    // All of a tile's loads are on their way together.
    template <class Type>
    RF_MEMBER void unpack_tile(const void* cache, const BlockRows& sequence, i32 start) {
        typename Type::template Piece<8> pieces[BLOCKS][LOADS];
        u32 piece = thread_x() % PIECES, row = thread_x() / PIECES;
        RF_UNROLL
        for (u32 b = 0; b < BLOCKS; ++b) {
            Source<Type> source(cache, sequence, start, b, kv_heads);
            RF_UNROLL
            for (u32 i = 0; i < LOADS; ++i) pieces[b][i].load_from(source.row(i * ROWS_AT_ONCE + row), piece * 8);
        }
        wait_for_place();
        f16* to = shared.tiles[place.stage] + piece_offset(KEYS, row, piece);
        RF_UNROLL
        for (u32 i = 0; i < BLOCKS * LOADS; ++i)
            *reinterpret_cast<u32x4*>(to + i * ROWS_AT_ONCE * PANEL) = pieces[i / LOADS][i % LOADS].fp16();
        place.next();
        publish();
    }
    RF_MEMBER void publish() {
        publish_to_products();
        arrive(&shared.full[arriving.stage]);
        arriving.next();
    }
    // All tiles that a sequence's queries see.
    RF_MEMBER void bring_tiles(const PrefillParams& p, const BlockRows& sequence) {
        auto [start, end] = sequence.keys<ROWS, RF_BLOCK_SIZE>();
        if (start >= end) return;
        bring_tile<Keys>(p.keys, sequence, start);
        for (; start + i32(KEYS) < end; start += KEYS) {
            bring_tile<Keys>(p.keys, sequence, start + KEYS);
            bring_tile<Values>(p.values, sequence, start);
        }
        bring_tile<Values>(p.values, sequence, start);
        if (COPIED) wait_for_copy_groups<0>(), publish();
        under_way = 0;
    }
};

// What one warpgroup has of its 64 rows: softmax numerators times values, their sums, and what scores are scaled by (in
// units of log 2).
struct Rows {
    WarpgroupTile sums;
    float highest[ROW_SLOTS], sum[ROW_SLOTS];
    i32 position[ROW_SLOTS];
};

RF_DEVICE void cap(WarpgroupTile& scores, float softcap) {
    RF_UNROLL
    for (u32 i = 0; i < 64; ++i) scores[i] = softcap * LOG2E * fast_tanh(scores[i] * fast_reciprocal(softcap));
}

// Lowers scores of a warp's rows, from `first` on, by the distances of the keys from `start` on.
RF_DEVICE void bias(WarpgroupTile& scores, const Rows& rows, const PrefillParams& p, const BlockRows& block, i32 first,
                    i32 start) {
    float slopes[ROW_SLOTS];
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) slopes[slot] = slope_of(p, block, first + i32(fragment_row(slot)));
    RF_UNROLL
    for (u32 i = 0; i < 64; ++i) {
        i32 distance = rows.position[row_slot(i)] - start - i32(fragment_column(i));
        scores[i] = biased(scores[i], slopes[row_slot(i)], distance);
    }
}

// Hides what a row does not see of the keys from `start` on, of which there are some up to `end`.
RF_DEVICE void mask(WarpgroupTile& scores, const Rows& rows, i32 start, i32 end, const BlockRows& block) {
    i32 first[ROW_SLOTS];
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot)
        first[slot] = first_seen(rows.position[slot] + block.after, block.window, block.chunked);
    RF_UNROLL
    for (u32 i = 0; i < 64; ++i) {
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

    RF_MEMBER RowParts(const WarpgroupTile& scores, Combine combine) {
        RF_UNROLL
        for (u32 i = 0; i < 64; ++i) {
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
RF_DEVICE bool weigh(Rows& rows, WarpgroupTile& scores, float (&rescale)[ROW_SLOTS]) {
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
    for (u32 i = 0; i < 64; ++i) scores[i] = fast_exp2(scores[i] - rows.highest[row_slot(i)]);
    RowParts sums(scores, Add());
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) rows.sum[slot] = rows.sum[slot] * rescale[slot] + sums.of(slot);
    return rescaled;
}

// One warpgroup's part in the ring.
struct Consumer {
    Shared& shared;
    u32 number;
    Place place;

    // The tile at the place, and until it is there.
    RF_MEMBER const f16* tile() const { return shared.tiles[place.stage]; }
    RF_MEMBER void wait_for_tile() const { wait_phase(&shared.full[place.stage], place.parity); }
    // Gives a tile's place back; the second goes on to the next tile.
    RF_MEMBER void release(u32 stage) const {
        if (lane() == 0) arrive(&shared.empty[stage]);
    }
    RF_MEMBER void release() {
        release(place.stage);
        place.next();
    }

    // Until the other has begun its products, and the other's until this one has.
    RF_MEMBER void wait_for_own_turn() const { wait_at_barrier<CONSUMERS * WARPGROUP>(3 + number); }
    RF_MEMBER void give_turn() const { arrive_at_barrier<CONSUMERS * WARPGROUP>(4 - number); }

    // Begins scores = queries keys^T.
    RF_MEMBER void begin_scores(WarpgroupTile& scores, const Operands& queries, const Operands& keys) const {
        RF_UNROLL
        for (u32 k = 0; k < RF_HEAD_DIM / 16; ++k) {
            u32 panel = k / 4 * PANEL, column = k % 4 * 16;
            multiply_rows(scores, queries.at(panel * ROWS + column), keys.at(panel * KEYS + column), k > 0);
        }
        end_products();
    }
    // Begins sums += weights values.
    RF_MEMBER void begin_sums(WarpgroupTile& sums, const u32 (&weights)[KEYS / 4], const Operands& values) const {
        RF_UNROLL
        for (u32 k = 0; k < KEYS / 16; ++k) multiply_columns(sums, weights + 4 * k, values.at(k * 16 * PANEL));
        end_products();
    }
};

RF_DEVICE void pack_weights(u32 (&packed)[KEYS / 4], const WarpgroupTile& weights) {
    RF_UNROLL
    for (u32 i = 0; i < KEYS / 4; ++i) packed[i] = pack_fp16(weights[2 * i], weights[2 * i + 1]);
}

// A warpgroup's rows of the queries, scaled, into LDS.
RF_DEVICE void store_queries(f16* queries, const PrefillParams& p, const BlockRows& block, u32 first) {
    float scale = p.softcap == 0 ? p.scale * LOG2E : p.scale;
    RF_UNROLL
    for (u32 i = 0; i < 64 * PIECES / WARPGROUP; ++i) {
        u32 unit = thread_x() % WARPGROUP + i * WARPGROUP, row = first + unit / PIECES, piece = unit % PIECES;
        i32 r = block.first_row + i32(row);
        u32x4 packed = make_u32x4(0, 0, 0, 0);
        if (r < block.total) {
            const float* q = p.q + block.place(r) * RF_HEAD_DIM + piece * 8;
            f32x4 a = load<f32x4>(q), b = load<f32x4>(q + 4);
            packed = make_u32x4(pack_fp16(a.x * scale, a.y * scale), pack_fp16(a.z * scale, a.w * scale),
                                pack_fp16(b.x * scale, b.y * scale), pack_fp16(b.z * scale, b.w * scale));
        }
        *reinterpret_cast<u32x4*>(queries + piece_offset(ROWS, row, piece)) = packed;
    }
}

RF_DEVICE void store_results(const Rows& rows, const PrefillParams& p, const BlockRows& block, u32 first) {
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) {
        i32 r = block.first_row + i32(first + fragment_row(slot));
        float factor = normalizer(rows.highest[slot], reduce_lanes<ROW_LANES>(rows.sum[slot], Add()), p, block, r);
        if (r >= block.total) continue;
        u64 at = block.place(r) * RF_VALUE_DIM + fragment_column(0);
        RF_UNROLL
        for (u32 i = 2 * slot; i < 64; i += 4) {
            float x = rows.sums[i] * factor, y = rows.sums[i + 1] * factor;
            if (p.fp16)
                *reinterpret_cast<u32*>(p.fp16 + at + i / 4 * 8) = pack_fp16(x, y);
            else
                p.out[at + i / 4 * 8] = x, p.out[at + i / 4 * 8 + 1] = y;
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
    RF_UNROLL
    for (u32 i = 0; i < 64; ++i) rows.sums[i] = 0;
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) {
        rows.highest[slot] = LOWEST, rows.sum[slot] = 0;
        rows.position[slot] = block.position(block.first_row + i32(first + fragment_row(slot)));
    }
    WarpgroupTile scores;
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

    const u32 PANELS = KEYS * PANEL * sizeof(f16);
    if (range.start < range.end) {
        Operands queries(consumer.shared.queries + number * 64 * PANEL, 0);
        consumer.wait_for_tile();
        in_place(scores);
        consumer.wait_for_own_turn();
        begin_products();
        consumer.begin_scores(scores, queries, Operands(consumer.tile(), 0));
        consumer.give_turn();
        wait_for_products<0>();
        in_place(scores);
        consumer.release();
        weights_of(range.start);  // there are no sums yet to rescale
        pack_weights(weights, scores);
        for (i32 start = range.start + i32(KEYS); start < range.end; start += KEYS) {
            u32 keys_stage = consumer.place.stage;
            consumer.wait_for_tile();
            Operands keys(consumer.tile(), 0);
            consumer.place.next();
            Operands values(consumer.tile(), PANELS);
            in_place(scores), in_place(rows.sums);
            consumer.wait_for_own_turn();
            begin_products();
            consumer.begin_scores(scores, queries, keys);
            consumer.wait_for_tile();
            consumer.begin_sums(rows.sums, weights, values);
            consumer.give_turn();
            wait_for_products<1>();
            in_place(scores);
            consumer.release(keys_stage);
            bool rescaled = weights_of(start);
            wait_for_products<0>();
            in_place(rows.sums);
            consumer.release();
            if (wave_ballot(rescaled)) {
                RF_UNROLL
                for (u32 i = 0; i < 64; ++i) rows.sums[i] *= rescale[row_slot(i)];
            }
            pack_weights(weights, scores);
        }
        consumer.wait_for_tile();
        in_place(rows.sums);
        begin_products();
        consumer.begin_sums(rows.sums, weights, Operands(consumer.tile(), PANELS));
        wait_for_products<0>();
        in_place(rows.sums);
        consumer.release();
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
        Producer producer = {shared, p.kv_heads, {}, {}};
        each_sequence<ROWS>(p, [&](const BlockRows& block) { producer.bring_tiles(p, block); });
    } else {
        take_registers<CONSUMER_REGISTERS>();
        Consumer consumer = {shared, thread_x() / WARPGROUP - 1, {}};
        if (consumer.number == 1) consumer.give_turn();  // the other's is the first
        each_sequence<ROWS>(p, [&](const BlockRows& block) { consume(consumer, p, block); });
    }
}

}  // namespace rocforge
