// Mixture of experts, many tokens, on Hopper's matrix unit: products of each expert's matrix with the tokens that chose
// it, in one launch for all experts, weights unpacked in registers.
//
// Token-expert pairs are sorted by expert, and cut in tiles of up to MOST pairs of one expert, as group_by_expert of
// moe.hip lists them. A work item is a tile of pairs times ROWS rows, and each of the grid's blocks takes several. One
// of its warpgroups brings packed weights, as they are, and x, as the matrix unit reads it, into LDS, item after item,
// as far ahead of their use as there is room. Two others unpack a cell of 64 rows to fragments while the matrix unit
// multiplies the one before with as many columns as the tile has pairs, and write what comes of it from registers.
// Compiled with RF_QTYPE, the weights' format (a struct of quants.h), and RF_LDS, a block's bytes of LDS.
#define RF_WEIGHTS_IN_LDS
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#define RF_TOKENS 1
#include "products.h"
#include "unpack.h"
#include "wide.h"

namespace rocforge {

// variants: RF_QTYPE=WIDE RF_LDS=232448
// targets: sm_90
const u32 GROUPS = 3, WAVES = 4 * GROUPS, ROWS = 64 * GROUPS, THREADS = WARPGROUP * (GROUPS + 1);
const u32 MOST = 160;  // pairs of a tile
const u32 CONSUMER_REGISTERS = 152, PRODUCER_REGISTERS = 56;

using F = RF_QTYPE;
const u32 CELLS = Stage<F>::CELLS, PITCH = Stage<F>::PITCH, WEIGHT_BYTES = ROWS * PITCH;
// A stage of x is 64 elements of all pairs. As many as there is room for beside two of weights, and more of those.
const u32 X_BYTES = 128 * MOST, ROOM = RF_LDS - sizeof(AllBarriers);
const u32 X_STAGES = at_most((ROOM - 2 * WEIGHT_BYTES) / X_BYTES, 6);
const u32 WEIGHT_STAGES = at_most((ROOM - X_STAGES * X_BYTES) / WEIGHT_BYTES, MOST_STAGES);
static_assert(X_STAGES >= 4 && WEIGHT_STAGES >= 2, "a cell is multiplied while another is brought");

struct Shared {
    u8* x;
    u8* weights;
    AllBarriers* barriers;
};
RF_DEVICE Shared shared_memory() {
    extern __shared__ __align__(1024) u8 memory[];
    return {memory, memory + X_STAGES * X_BYTES, reinterpret_cast<AllBarriers*>(memory + ROOM)};
}

// x as `store_swizzled` leaves it for `width` pairs, in the order of the tiles, which begin at multiples of eight; the
// tiles as group_by_expert lists them. The grid's blocks share out the runs of rows of each.
struct SortedPairs {
    const u8* x;
    const i32* tiles;
    u32 width, cells, grid;
};

// ROWS rows of an expert's matrices, and the pairs that they are multiplied with.
struct Item {
    u32 expert, first, count, run;
};
template <class Run>
RF_DEVICE void each_item(const SortedPairs& p, u32 runs, Run run) {
    u32 items = p.tiles[0] * runs;
    RF_NO_UNROLL
    for (u32 i = block_x(); i < items; i += p.grid) {
        u32x4 tile = load<u32x4>(p.tiles + 4 * (1 + i / runs));
        run(Item{tile.x, tile.y, tile.z, i % runs});
    }
}

// The columns that the matrix unit multiplies for so many: those that there are kernels for.
RF_DEVICE u32 columns_of(u32 count) { return (count + 31) / 32 * 32; }

// ---- The warpgroup that brings what the others multiply ----

// `row_of(item, r)` gives where row 0 to ROWS - 1 of an item begins.
template <class RowOf>
RF_DEVICE void bring_weights(const Shared& shared, const SortedPairs& p, u32 runs, RowOf row_of) {
    Barriers& barriers = shared.barriers->weights;
    RingPlace<WEIGHT_STAGES> place;
    u32 number = wave() - WAVES - 1;
    each_item(p, runs, [&](const Item& item) {
        RF_NO_UNROLL
        for (u32 c = 0; c < p.cells; c += CELLS) {
            wait_phase(&barriers.empty[place.stage], place.parity ^ 1);
            RF_NO_UNROLL
            for (u32 run = number; run < ROWS / 16; run += WEIGHT_WAVES)
                copy_cells<F>(shared.weights + place.stage * WEIGHT_BYTES + 16 * run * PITCH,
                              row_of(item, 16 * run + lane() / 2), p.cells, c);
            arrive_with_copies(&barriers.full[place.stage]);
            place.next();
        }
    });
}

RF_DEVICE void bring_x(const Shared& shared, const SortedPairs& p, u32 runs) {
    if (lane() != 0) return;
    Barriers& barriers = shared.barriers->x;
    RingPlace<X_STAGES> place;
    const u64 step = 128 * u64(p.width);  // bytes from tile to tile
    each_item(p, runs, [&](const Item& item) {
        u32 nbytes = 128 * columns_of(item.count);
        const u8* from = p.x + 128 * u64(item.first);
        RF_NO_UNROLL
        for (u32 tile = 0; tile < 2 * p.cells; ++tile) {
            u64* full = &barriers.full[place.stage];
            wait_phase(&barriers.empty[place.stage], place.parity ^ 1);
            expect_bytes(full, nbytes);
            copy_bulk(shared.x + place.stage * X_BYTES, from + tile * step, nbytes, full);
            place.next();
        }
    });
}

// ---- The warpgroups that multiply ----

typedef u32 CellFragments[8][4];  // of 64 rows: a wave's 16 of them

// A warpgroup's part of the products.
struct Consumer {
    const Shared& shared;
    const u8* own;  // the lane's row in the first stage of weights
    RingPlace<X_STAGES> x;
    RingPlace<WEIGHT_STAGES> weights;

    RF_MEMBER explicit Consumer(const Shared& s) : shared(s) { own = s.weights + (16 * wave() + part_row(0)) * PITCH; }

    // Warpgroups multiply in turn, so that not all of them unpack at a time.
    static RF_MEMBER u32 turn_of(u32 group) { return 1 + group % GROUPS; }
    RF_MEMBER void await_turn() { wait_at_barrier<2 * WARPGROUP>(turn_of(wave() / 4)); }
    RF_MEMBER void pass_turn() { arrive_at_barrier<2 * WARPGROUP>(turn_of(wave() / 4 + 1)); }

    RF_MEMBER void wait_for_weights() { wait_phase(&shared.barriers->weights.full[weights.stage], weights.parity); }
    RF_MEMBER void release_weights() {
        wave_barrier();
        if (lane() == 0) arrive(&shared.barriers->weights.empty[weights.stage]);
        weights.next();
    }

    // Cell r of the stage of weights, block number `block`.
    RF_MEMBER void unpack(CellFragments& a, u32 r, u32 block) {
        RF_UNROLL
        for (u32 p = 0; p < 2; ++p) {
            const u8* row = own + weights.stage * WEIGHT_BYTES + 8 * p * PITCH;
            F w;
            load_scales(w, row, r, block);
            w.ready();
            CellScales<F> scales(w);
            RF_UNROLL
            for (u32 j = 0; j < 8; ++j) {
                u32 s = j / 2, h = j % 2, codes = stored_codes<F>(row, CELLS, r, s, h, part_lane());
                unpack_four<F>(a[j][p], a[j][2 + p], codes, h, scales.scale[j], scales.min[j]);
            }
        }
    }

    // Adds the products of a cell, while other warpgroups unpack theirs.
    template <u32 N>
    RF_MEMBER void multiply(float (&sums)[N / 2], const CellFragments& a) {
        u64 halves[2];
        RingPlace<X_STAGES> half = x;
        RF_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            wait_phase(&shared.barriers->x.full[half.stage], half.parity);
            halves[h] = swizzled_rows(lds_address(shared.x) + half.stage * X_BYTES);
            half.next();
        }
        await_turn();
        begin_products();
        RF_UNROLL
        for (u32 j = 0; j < 8; ++j) WarpGroupProduct<N>::add(sums, a[j], halves[j / 4] + j % 4 * 2);
        end_products();
        pass_turn();
        wait_for_products<0>();
        RF_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            if (lane() == 0) arrive(&shared.barriers->x.empty[x.stage]);
            x.next();
        }
    }

    template <u32 N>
    RF_MEMBER void run(float (&sums)[N / 2], u32 cells) {
        RF_UNROLL
        for (u32 i = 0; i < N / 2; ++i) sums[i] = 0.0f;
        CellFragments a;
        RF_NO_UNROLL
        for (u32 c = 0; c < cells; c += 2) {
            wait_for_weights();
            unpack(a, 0, c / 2);
            multiply<N>(sums, a);
            if (c + 1 < cells) unpack(a, 1, c / 2);
            release_weights();
            if (c + 1 < cells) multiply<N>(sums, a);
        }
    }
};

// Calls `store(token, a, b, c, d)` for the lane's sums of two tokens each: of the lane's first row a and b, of its
// second c and d. All lanes of a wave call it together, for tokens past the item's last too.
template <u32 N, class Store>
RF_DEVICE void multiply_item(Consumer& consumer, const Item& item, u32 cells, Store store) {
    float sums[N / 2];
    consumer.run<N>(sums, cells);
    RF_UNROLL
    for (u32 i = 0; i < N / 2; i += 4) {
        if (2 * i < item.count) store(2 * i + part_lane() * 2, sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    }
}

// Of two values that each of two lanes has, one of either's token, the first lane gets both of the first and the second
// those of the second token; the lanes differ in MASK, and `second` says which one this is.
template <u32 MASK>
RF_DEVICE u32 both_of_one(bool second, float first_token, float second_token) {
    float other = shuffle_xor<MASK>(second ? first_token : second_token);
    return pack_fp16(clamp_fp16(second ? other : first_token), clamp_fp16(second ? second_token : other));
}

// The block's work: `row_of(item, r)` as in bring_weights; `finish(item)` gives what stores a token's sums.
template <class RowOf, class Finish>
RF_DEVICE void multiply_pairs(const SortedPairs& p, u32 runs, RowOf row_of, Finish finish) {
    Shared shared = shared_memory();
    init_rings<X_STAGES, WEIGHT_STAGES>(*shared.barriers, WAVES);
    if (wave() >= WAVES) {
        give_registers_back<PRODUCER_REGISTERS>();
        if (wave() == WAVES) {
            wait_for_previous();
            bring_x(shared, p, runs);
        } else {
            bring_weights(shared, p, runs, row_of);  // tiles were listed before the launch before
            wait_for_previous();
        }
    } else {
        take_registers<CONSUMER_REGISTERS>();
        wait_for_previous();
        Consumer consumer(shared);
        if (wave() / 4 == GROUPS - 1) consumer.pass_turn();  // the first one's comes first
        each_item(p, runs, [&](const Item& item) {
            auto store = finish(item);
            u32 n = columns_of(item.count);
            if (n == 32) multiply_item<32>(consumer, item, p.cells, store);
            if (n == 64) multiply_item<64>(consumer, item, p.cells, store);
            if (n == 96) multiply_item<96>(consumer, item, p.cells, store);
            if (n == 128) multiply_item<128>(consumer, item, p.cells, store);
            if (n == 160) multiply_item<160>(consumer, item, p.cells, store);
        });
    }
}

// The gated product of each pair's token and expert, as `store_swizzled` leaves it, in the tiles' order; gate and up
// are (experts, rows, ...), biases (experts, rows). Each wave has eight rows of gate and the same eight of up. Rows
// past the last fill up the last cell with zeros.
struct ExpertsGatedWideParams {
    SortedPairs pairs;
    Gated matrices;
    u8* out;
    u32 out_cells;
};
RF_KERNEL_WIDE(THREADS, THREADS)
rf_experts_gated_wide(ExpertsGatedWideParams p) {
    const Gated& m = p.matrices;
    const u32 height = ROWS / 2;
    auto row_at = [&](const Item& item, u32 r) {
        u32 row = minimum(i32(item.run * height + r / 16 * 8 + r % 8), i32(m.rows - 1));
        return row_of(r % 16 < 8 ? m.gate : m.up, (u64(item.expert) * m.step + row) * F::row_bytes(p.pairs.cells));
    };
    multiply_pairs(p.pairs, (p.out_cells * CELL + height - 1) / height, row_at, [&](const Item& item) {
        u32 row = item.run * height + 8 * wave() + part_row(0);
        bool there = row < m.rows;
        u64 bias_at = u64(item.expert) * m.rows + row;
        float gate_bias = there && m.gate_bias ? m.gate_bias[bias_at] : 0.0f;
        float up_bias = there && m.up_bias ? m.up_bias[bias_at] : 0.0f;
        return [=](u32 token, float gate, float next_gate, float up, float next_up) {
            float value = there ? gated(m.activation, gate + gate_bias, up + up_bias) : 0.0f;
            float next = there ? gated(m.activation, next_gate + gate_bias, next_up + up_bias) : 0.0f;
            bool second = row / 2 % 2;  // elements two apart lie together
            u32 both = both_of_one<8>(second, value, next);
            if (token + second < item.count)
                store_swizzled_two(p.out, p.pairs.width, p.out_cells, item.first + token + second, row & ~2u, both);
        };
    });
}

// y (pairs, rows) = x @ w.T + bias of each pair's expert, in the tiles' order; w is (experts, rows, ...), bias
// (experts, rows) or null.
struct ExpertsDownWideParams {
    SortedPairs pairs;
    const void* w;
    RF_NULLABLE const float* bias;
    f16* y;
    u32 rows;
};
RF_KERNEL_WIDE(THREADS, THREADS)
rf_experts_down_wide(ExpertsDownWideParams p) {
    auto row_at = [&](const Item& item, u32 r) {
        u32 row = minimum(i32(item.run * ROWS + r), i32(p.rows - 1));
        return row_of(p.w, (u64(item.expert) * p.rows + row) * F::row_bytes(p.pairs.cells));
    };
    multiply_pairs(p.pairs, (p.rows + ROWS - 1) / ROWS, row_at, [&](const Item& item) {
        u32 row = item.run * ROWS + 16 * wave() + part_row(0);
        u64 bias_at = u64(item.expert) * p.rows + row;
        float first_bias = p.bias && row < p.rows ? p.bias[bias_at] : 0.0f;
        float second_bias = p.bias && row + 8 < p.rows ? p.bias[bias_at + 8] : 0.0f;
        return [=](u32 token, float a, float next_a, float b, float next_b) {
            bool second = row % 2;
            u32 upper = both_of_one<4>(second, a + first_bias, next_a + first_bias);
            u32 lower = both_of_one<4>(second, b + second_bias, next_b + second_bias);
            if (token + second >= item.count) return;
            f16* at = p.y + u64(item.first + token + second) * p.rows + (row & ~1u);
            if (row < p.rows) *reinterpret_cast<u32*>(at) = upper;
            if (row + 8 < p.rows) *reinterpret_cast<u32*>(at + 8) = lower;
        };
    });
}

}  // namespace rocforge
