// Products of 64 and more tokens with packed weights on Hopper's matrix unit: y = x @ w.T, weights unpacked in
// registers.
//
// Compiled with RF_QTYPE, the weights' format (a struct of quants.h), RF_QTYPE_LAST, that of the last matrix of a
// launch, where it differs, RF_TOKENS, the tokens of a block (64, 128 or 256; x as `store_swizzled` leaves it),
// RF_SPLIT and RF_SHARE, the blocks of a cluster, and RF_LDS, a block's bytes of LDS.
//
// A block multiplies ROWS rows with RF_TOKENS tokens. One of its warpgroups brings packed weights, as they are, and x,
// as the matrix unit reads it, into LDS, each ahead of its use as far as there is room. Two others unpack a cell of 64
// rows to fragments while the matrix unit multiplies the one before. Of a cluster, RF_SPLIT blocks share out the depth
// of the same rows; in the end each adds up, from all their LDS, the sums of a part of the tokens. RF_SHARE blocks have
// different rows and the same x, of which each brings a part to all.
#define RF_WEIGHTS_IN_LDS
#include "target/fragments.h"
#include "target/warpgroup.h"
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "fours.h"
#include "products.h"
#include "unpack.h"

namespace rocforge {

// variants: RF_QTYPE=PLANAR RF_TOKENS=128 RF_SPLIT=1 RF_SHARE=1 RF_LDS=232448
// variants: RF_QTYPE=Q4_K RF_TOKENS=64 RF_SPLIT=2 RF_SHARE=1 RF_LDS=232448
// variants: RF_QTYPE=Q8_0,Q4_K,Q6_K RF_TOKENS=256 RF_SPLIT=1 RF_SHARE=2 RF_LDS=232448
// variants: RF_QTYPE=Q4_K RF_QTYPE_LAST=Q6_K RF_TOKENS=128 RF_SPLIT=2 RF_SHARE=2 RF_LDS=232448
// targets: sm_90
// Warpgroups that multiply, and tiles of 64 rows of each. Of 64 tokens the matrix unit takes no longer than unpacking:
// four hide that behind each other, where two hide it behind their own products.
const bool FOUR = RF_TOKENS == 64;
const u32 GROUPS = FOUR ? 4 : 2, TILES = RF_TOKENS == 128 ? 2 : 1;
const u32 WAVES = 4 * GROUPS, ROWS = 64 * TILES * GROUPS, THREADS = WARPGROUP * (GROUPS + 1);
const u32 CONSUMER_REGISTERS = FOUR ? 104 : 232, PRODUCER_REGISTERS = 40;
const u32 PITCH = ROWS + 4;  // of sums: so that a wave's columns lie in different LDS banks

const u32 MOST_STAGES = 8;
struct Barriers {
    u64 full[MOST_STAGES], empty[MOST_STAGES];
};
struct AllBarriers {
    Barriers x, weights;
};

// A stage of weights is CELLS cells of all rows. Each row lies there as a row of CELLS cells lies in memory, of which
// PITCH leaves every lane of a wave that reads the same word of eight rows its own bank.
template <class F>
struct Stage {
    static const u32 CELLS = 2, PITCH = 16 * (F::row_bytes(CELLS) / 16 | 1), BYTES = ROWS * PITCH;
};

// A stage of x is 64 elements of all tokens. As many as there is room for beside two of weights, and more of those.
const u32 X_BYTES = 128 * RF_TOKENS, ROOM = RF_LDS - sizeof(AllBarriers);
RF_DEVICE constexpr u32 at_most(u32 n, u32 most) { return n < most ? n : most; }
#ifdef RF_QTYPE_LAST
const u32 LAST_BYTES = Stage<RF_QTYPE_LAST>::BYTES;
#else
const u32 LAST_BYTES = 0;
#endif
const u32 WEIGHT_BYTES = LAST_BYTES > Stage<RF_QTYPE>::BYTES ? LAST_BYTES : Stage<RF_QTYPE>::BYTES;
const u32 X_STAGES = at_most((ROOM - 2 * WEIGHT_BYTES) / X_BYTES, 6);
const u32 WEIGHT_STAGES = at_most((ROOM - X_STAGES * X_BYTES) / WEIGHT_BYTES, 4);
static_assert(4 * PITCH * RF_TOKENS <= ROOM, "the sums fit in LDS");
static_assert(X_STAGES >= 4 && WEIGHT_STAGES >= 2, "a cell is multiplied while another is brought");

// A place in a ring of stages, and the parity of the phase there.
template <u32 COUNT>
struct RingPlace {
    u32 stage = 0, parity = 0;
    RF_MEMBER void next() {
        if (++stage == COUNT) stage = 0, parity ^= 1;
    }
};

struct Shared {
    u8* x;
    u8* weights;
    AllBarriers* barriers;
};
RF_DEVICE Shared shared_memory() {
    extern __shared__ __align__(1024) u8 memory[];
    return {memory, memory + X_STAGES * X_BYTES, reinterpret_cast<AllBarriers*>(memory + ROOM)};
}

// The block's place in the grid: clusters are RF_SPLIT blocks that share out the depth, times RF_SHARE of different
// rows, which share x; then come the blocks of tokens, then those of rows. A last cluster may have idle blocks.
struct BlockPlace {
    u32 split, side, token, rows;
    bool idle;
};
RF_DEVICE BlockPlace place_of(u32 token_blocks, u32 row_blocks) {
    u32 rank = block_x() % (RF_SPLIT * RF_SHARE), cluster = block_x() / (RF_SPLIT * RF_SHARE);
    u32 side = rank / RF_SPLIT, rows = cluster / token_blocks * RF_SHARE + side;
    bool idle = rows >= row_blocks;  // it multiplies the rows of another, and keeps nothing
    return {rank % RF_SPLIT, side, cluster % token_blocks * RF_TOKENS, idle ? row_blocks - 1 : rows, idle};
}
RF_DEVICE u32 rank_of(u32 side, u32 split) { return side * RF_SPLIT + split; }

// What a block multiplies: cells `first` to `end` of its rows with its tokens.
struct Work {
    const u8* x;
    u32 width, cells, first, end;
};
RF_DEVICE Work work_of(const u8* x, u32 width, const BlockPlace& place, u32 cells) {
    u32 pairs = (cells + 1) / 2, first = 2 * (place.split * pairs / RF_SPLIT);
    u32 end = 2 * ((place.split + 1) * pairs / RF_SPLIT);
    return {x, width, cells, first, u32(minimum(i32(end), i32(cells)))};
}

// ---- The warpgroup that brings what the others multiply: a wave x, three weights ----

const u32 WEIGHT_WAVES = 3;

// Copies cells c (an even number) and c + 1 of 16 rows: two lanes share a row.
template <class F>
RF_DEVICE void copy_cells(u8* to, const u8* row, u32 cells, u32 c) {
    const u32 CELLS = Stage<F>::CELLS;
    u32 rank = lane() % 2, at = lds_address(to + lane() / 2 * Stage<F>::PITCH);
    RF_UNROLL
    for (u32 p = 0; p < F::PLANES; ++p) copy_async<16>(at + 16 * (p * CELLS + rank), row + 16 * (p * cells + c + rank));
    // what lies past the last cell is copied too, but not past the row
    const u32 tail = F::TAIL * CELLS, unit = tail < 16 ? tail : 16;
    if (rank * unit < tail) {
        u32 from = F::tail_at(cells) + F::TAIL * c + rank * unit;
        copy_async<unit>(at + F::tail_at(CELLS) + rank * unit,
                         row + minimum(i32(from), i32(F::row_bytes(cells) - unit)));
    }
    if constexpr (F::SUPER > 0) {  // of two bytes those of the block before or after come too
        if (rank == 1) copy_async<4>(at + F::super_at(CELLS), row + F::super_at(cells) + F::SUPER * (c / 2) / 4 * 4);
    }
}

// Brings the weights; `row_of` gives where row 0 to ROWS - 1 begins.
template <class F, class RowOf>
RF_DEVICE void bring_weights(const Shared& shared, const Work& work, RowOf row_of) {
    Barriers& barriers = shared.barriers->weights;
    RingPlace<WEIGHT_STAGES> place;
    u32 number = wave() - WAVES - 1;
    bool waited = false;
    RF_NO_UNROLL
    for (u32 c = work.first; c < work.end; c += Stage<F>::CELLS) {
        wait_phase(&barriers.empty[place.stage], place.parity ^ 1);
        RF_NO_UNROLL
        for (u32 run = number; run < ROWS / 16; run += WEIGHT_WAVES)
            copy_cells<F>(shared.weights + place.stage * WEIGHT_BYTES + 16 * run * Stage<F>::PITCH,
                          row_of(16 * run + lane() / 2), work.cells, c);
        arrive_with_copies(&barriers.full[place.stage]);
        place.next();
        if (!waited && place.stage == 0) wait_for_previous(), waited = true;
    }
    if (!waited) wait_for_previous();
}

// Brings x, tile after tile; of a cluster each block brings its part to all that share it.
RF_DEVICE void bring_x(const Shared& shared, const Work& work, const BlockPlace& block) {
    wait_for_previous();
    if (lane() != 0) return;
    Barriers& barriers = shared.barriers->x;
    RingPlace<X_STAGES> place;
    const u64 step = 128 * work.width;  // bytes from tile to tile
    u32 all = 0;
    RF_UNROLL
    for (u32 side = 0; side < RF_SHARE; ++side) all |= 1 << rank_of(side, block.split);
    RF_NO_UNROLL
    for (u32 tile = 2 * work.first; tile < 2 * work.end; ++tile) {
        u8* to = shared.x + place.stage * X_BYTES;
        const u8* from = work.x + tile * step + 128 * block.token;
        u64* full = &barriers.full[place.stage];
        wait_phase(&barriers.empty[place.stage], place.parity ^ 1);
        expect_bytes(full, X_BYTES);
        if (RF_SHARE == 1)
            copy_bulk(to, from, X_BYTES, full);
        else if (tile % RF_SHARE == block.side)
            copy_bulk_to(to, from, X_BYTES, full, all);
        place.next();
    }
}

// ---- The warpgroups that multiply ----

typedef float Sums[TILES][RF_TOKENS / 2];
typedef u32 CellFragments[8][4];  // of 64 rows: a wave's 16 of them

// A warpgroup's part of the products.
template <class F>
struct Consumer {
    const Shared& shared;
    const u8* own;  // the lane's row in the first stage of weights
    RingPlace<X_STAGES> x;
    RingPlace<WEIGHT_STAGES> weights;

    RF_MEMBER explicit Consumer(const Shared& s) : shared(s) {
        u32 row = wave() / 4 * 64 * TILES + wave() % 4 * 16 + part_row(0);
        own = s.weights + row * Stage<F>::PITCH;
    }

    RF_MEMBER void wait_for_weights() { wait_phase(&shared.barriers->weights.full[weights.stage], weights.parity); }
    RF_MEMBER void release_weights() {
        wave_barrier();
        if (lane() == 0) arrive(&shared.barriers->weights.empty[weights.stage]);
        weights.next();
    }

    // Cell r of the stage of weights, block number `block`, of a tile of rows.
    RF_MEMBER void unpack(CellFragments& a, u32 tile, u32 r, u32 block) {
        RF_UNROLL
        for (u32 p = 0; p < 2; ++p) {
            const u8* row = own + weights.stage * WEIGHT_BYTES + (64 * tile + 8 * p) * Stage<F>::PITCH;
            F w;
            if constexpr (F::SUPER == 2)
                w.load_scales(row, Stage<F>::CELLS, r, block % 2);
            else
                w.load_scales(row, Stage<F>::CELLS, r);
            w.ready();
            CellScales<F> scales(w);
            RF_UNROLL
            for (u32 j = 0; j < 8; ++j) {
                u32 s = j / 2, h = j % 2, codes = stored_codes<F>(row, Stage<F>::CELLS, r, s, h, part_lane());
                unpack_four<F>(a[j][p], a[j][2 + p], codes, h, scales.scale[j], scales.min[j]);
            }
        }
    }

    // Two warpgroups take turns at the matrix unit: while it has the products of one, the other unpacks.
    static RF_MEMBER void take_turn() {
        if constexpr (!FOUR) wait_at_barrier<WARPGROUP * GROUPS>(2 + wave() / 4);
    }
    static RF_MEMBER void pass_turn() {
        if constexpr (!FOUR) arrive_at_barrier<WARPGROUP * GROUPS>(3 - wave() / 4);
    }

    // Adds the products of a cell of a tile of rows; behind the matrix unit runs `meanwhile`.
    template <class Meanwhile>
    RF_MEMBER void multiply(float (&sums)[RF_TOKENS / 2], const CellFragments& a, Meanwhile meanwhile) {
        u64 halves[2];
        RingPlace<X_STAGES> half = x;
        RF_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            wait_phase(&shared.barriers->x.full[half.stage], half.parity);
            halves[h] = swizzled_rows(lds_address(shared.x) + half.stage * X_BYTES);
            half.next();
        }
        take_turn();
        begin_products();
        RF_UNROLL
        for (u32 j = 0; j < 8; ++j) WarpGroupProduct<RF_TOKENS>::add(sums, a[j], halves[j / 4] + j % 4 * 2);
        end_products();
        pass_turn();
        meanwhile();
        wait_for_products<0>();
    }
    // All tiles of rows have been multiplied with a cell of x.
    RF_MEMBER void release_x(u32 split) {
        RF_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            u64* empty = &shared.barriers->x.empty[x.stage];
            if (RF_SHARE == 1) {
                if (lane() == 0) arrive(empty);
            } else if (lane() < RF_SHARE) {
                arrive_at(empty, rank_of(lane(), split));
            }
            x.next();
        }
    }

    RF_MEMBER void run(Sums& sums, const Work& work, u32 split) {
        wait_for_weights();
        if constexpr (FOUR) return run_in_order(sums, work, split);
        if (wave() / 4 == 1) pass_turn();
        run_in_turns(sums, work, split);
        if (wave() / 4 == 0) take_turn();
    }
    RF_MEMBER void run_in_order(Sums& sums, const Work& work, u32 split) {
        CellFragments cell;
        RF_NO_UNROLL
        for (u32 c = work.first; c < work.end; c += 2) {
            unpack(cell, 0, 0, c / 2);
            multiply(sums[0], cell, [] {});
            release_x(split);
            if (c + 1 >= work.end) break;
            unpack(cell, 0, 1, c / 2);
            release_weights();
            multiply(sums[0], cell, [] {});
            release_x(split);
            if (c + 2 < work.end) wait_for_weights();
        }
    }
    // Two sets of fragments take turns: one is multiplied while the next tile or cell is unpacked to the other.
    RF_MEMBER void run_in_turns(Sums& sums, const Work& work, u32 split) {
        CellFragments one, other;
        auto next_stage = [&](u32 c) {
            release_weights();
            if (c >= work.end) return;
            wait_for_weights();
            unpack(one, 0, 0, c / 2);
        };
        unpack(one, 0, 0, work.first / 2);
        RF_NO_UNROLL
        for (u32 c = work.first; c < work.end; c += 2) {
            bool both = c + 1 < work.end;
            if constexpr (TILES == 1) {
                multiply(sums[0], one, [&] {
                    if (both) unpack(other, 0, 1, c / 2);
                });
                release_x(split);
                if (!both) break;
                multiply(sums[0], other, [&] { next_stage(c + 2); });
            } else {
                multiply(sums[0], one, [&] { unpack(other, 1, 0, c / 2); });
                multiply(sums[1], other, [&] {
                    if (both) unpack(one, 0, 1, c / 2);
                });
                release_x(split);
                if (!both) break;
                multiply(sums[0], one, [&] { unpack(other, 1, 1, c / 2); });
                multiply(sums[1], other, [&] { next_stage(c + 2); });
            }
            release_x(split);
        }
    }
};

// ---- Sums ----

// Those that wait are the warpgroups that multiply, of all the cluster's blocks.
RF_DEVICE void consumers_barrier() {
    if (RF_SPLIT * RF_SHARE > 1)
        cluster_barrier();
    else
        wait_at_barrier<WARPGROUP * GROUPS>(1);
}

// The sums of the block, in LDS: of each token those of ROWS rows.
RF_DEVICE const float* share(const Shared& shared, const Sums& sums) {
    float* all = reinterpret_cast<float*>(shared.x);
    wait_at_barrier<WARPGROUP * GROUPS>(1);  // what was there has been used
    RF_UNROLL
    for (u32 tile = 0; tile < TILES; ++tile) {
        u32 first = (wave() / 4 * TILES + tile) * 64 + wave() % 4 * 16;
        RF_UNROLL
        for (u32 i = 0; i < RF_TOKENS / 2; ++i) {
            u32 token = i / 4 * 8 + part_lane() * 2 + i % 2;
            all[token * PITCH + first + part_row(i / 2 % 2)] = sums[tile][i];
        }
    }
    consumers_barrier();
    return all;
}

RF_DEVICE f32x4 summed(const float* at, const BlockPlace& place) {
    if (RF_SPLIT == 1) return load<f32x4>(at);
    f32x4 sum = load_from_block(at, rank_of(place.side, 0));
    RF_UNROLL
    for (u32 split = 1; split < RF_SPLIT; ++split) sum = plus(sum, load_from_block(at, rank_of(place.side, split)));
    return sum;
}

// The products of the block's rows, in LDS, handed to `finish` in the warpgroups that multiply; `row_of` gives where
// row 0 to ROWS - 1 begins.
template <class F, class RowOf, class Finish>
RF_DEVICE void multiply_block(const Work& work, const BlockPlace& place, RowOf row_of, Finish finish) {
    Shared shared = shared_memory();
    if (thread_x() == 0) {
        RF_UNROLL
        for (u32 i = 0; i < X_STAGES; ++i)
            init_barrier(&shared.barriers->x.full[i], 1), init_barrier(&shared.barriers->x.empty[i], WAVES * RF_SHARE);
        RF_UNROLL
        for (u32 i = 0; i < WEIGHT_STAGES; ++i) {
            init_barrier(&shared.barriers->weights.full[i], WEIGHT_WAVES * RF_WAVE);
            init_barrier(&shared.barriers->weights.empty[i], WAVES);
        }
        fence_barriers();
    }
    if (RF_SHARE > 1)
        cluster_barrier();  // the other blocks bring x, and arrive
    else
        barrier();
    if (wave() >= WAVES) {
        give_registers_back<PRODUCER_REGISTERS>();
        if (wave() == WAVES)
            bring_x(shared, work, place);
        else
            bring_weights<F>(shared, work, row_of);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        Sums sums;
        RF_UNROLL
        for (u32 tile = 0; tile < TILES; ++tile) {
            RF_UNROLL
            for (u32 i = 0; i < RF_TOKENS / 2; ++i) sums[tile][i] = 0.0f;
        }
        wait_for_previous();
        if (work.first < work.end) Consumer<F>(shared).run(sums, work, place.split);
        finish(share(shared, sums));
        if (RF_SPLIT * RF_SHARE > 1) cluster_barrier();  // the others still use this block's LDS
    }
}

// Calls store(k, compute(k)) for the block's tokens k whose sums it adds up; LANES neighbouring threads have the same.
// What is computed of several is on its way at a time.
template <u32 LANES, class Compute, class Store>
RF_DEVICE void each_token(const BlockPlace& place, u32 tokens, Compute compute, Store store) {
    const u32 STEP = WAVES * RF_WAVE / LANES, AHEAD = 4;
    u32 k = place.split * RF_TOKENS / RF_SPLIT + thread_x() / LANES;
    i32 end = minimum(i32((place.split + 1) * RF_TOKENS / RF_SPLIT), i32(tokens - place.token));
    if (place.idle) return;
    RF_NO_UNROLL
    for (; i32(k) < end; k += AHEAD * STEP) {
        f32x4 values[AHEAD];
        RF_UNROLL
        for (u32 j = 0; j < AHEAD; ++j) values[j] = compute(minimum(i32(k + j * STEP), end - 1));
        RF_UNROLL
        for (u32 j = 0; j < AHEAD; ++j)
            if (i32(k + j * STEP) < end) store(k + j * STEP, values[j]);
    }
}

// Four of a bias from `row` on, which may be null.
RF_DEVICE f32x4 bias_of(const float* bias, u32 row, u32 rows) {
    return bias ? load4(bias, row, rows) : make_f32x4(0, 0, 0, 0);
}

// x as `store_swizzled` leaves it, for `width` tokens. A residual, of the shape of the first result, is added to that.
struct WideParams {
    const u8* x;
    u32 tokens, width, token_blocks, row_blocks, cells;
    Matrix matrices[3];
    RF_NULLABLE const float* residual;
};

template <class F>
RF_DEVICE void product(const WideParams& p, const Matrix& m, u32 number, const BlockPlace& place) {
    u32 first = place.rows * ROWS;
    auto row_of_block = [&](u32 r) {
        return row_of(m.w, u64(minimum(i32(first + r), i32(m.rows - 1))) * F::row_bytes(p.cells));
    };
    const float* residual = number == 0 ? p.residual : nullptr;
    multiply_block<F>(work_of(p.x, p.width, place, p.cells), place, row_of_block, [&](const float* sums) {
        const u32 LANES = ROWS / 4;  // with four rows of a token each
        u32 own = thread_x() % LANES * 4, row = first + own;
        f32x4 bias = bias_of(m.bias, row, m.rows);
        auto at = [&](u32 k) { return u64(place.token + k) * m.rows; };
        auto compute = [&](u32 k) {
            f32x4 sum = plus(summed(sums + k * PITCH + own, place), bias);
            return residual ? plus(sum, load4(residual + at(k), row, m.rows)) : sum;
        };
        each_token<LANES>(place, p.tokens, compute, [&](u32 k, f32x4 v) { store4(m.y + at(k), row, m.rows, v); });
    });
}

#if RF_SPLIT * RF_SHARE > 1
#define RF_CLUSTER __cluster_dims__(RF_SPLIT* RF_SHARE, 1, 1)
#else
#define RF_CLUSTER
#endif
#define RF_KERNEL_CLUSTER(threads) extern "C" __global__ void RF_CLUSTER __launch_bounds__(threads, 1)

RF_KERNEL_CLUSTER(THREADS)
rf_wide_products(WideParams p) {
    BlockPlace place = place_of(p.token_blocks, p.row_blocks);
    u32 number;
    Matrix m = matrix_of(place.rows, number, p.matrices, [](u32 rows) { return (rows + ROWS - 1) / ROWS; });
#ifdef RF_QTYPE_LAST
    if (number == 2) return product<RF_QTYPE_LAST>(p, m, 2, place);
#endif
    product<RF_QTYPE>(p, m, number, place);
}

// As `gated_product` of products.h, where what is quantized is as `store_swizzled` has it. Each wave has eight rows of
// gate and the same eight of up. Rows past the last fill up the last cell with zeros.
struct WideGatedParams {
    const u8* x;
    u32 tokens, width, token_blocks, row_blocks, cells;
    Gated matrices;
    GatedOutput out;
};

RF_KERNEL_CLUSTER(THREADS)
rf_wide_gated(WideGatedParams p) {
    using F = RF_QTYPE;
    const Gated& m = p.matrices;
    BlockPlace place = place_of(p.token_blocks, p.row_blocks);
    u32 first = place.rows * (ROWS / 2);
    auto row_of_block = [&](u32 r) {
        u32 row = minimum(i32(first + r / 16 * 8 + r % 8), i32(m.rows - 1));
        return row_of(r % 16 < 8 ? m.gate : m.up, u64(row) * F::row_bytes(p.cells));
    };
    multiply_block<F>(work_of(p.x, p.width, place, p.cells), place, row_of_block, [&](const float* sums) {
        const u32 LANES = ROWS / 8;  // with four rows of a token each
        u32 own = thread_x() % LANES * 4, row = first + own;
        f32x4 gate_bias = bias_of(m.gate_bias, row, m.rows), up_bias = bias_of(m.up_bias, row, m.rows);
        auto compute = [&](u32 k) {
            const float* at = sums + k * PITCH + own / 8 * 16 + own % 8;
            f32x4 g = plus(summed(at, place), gate_bias), u = plus(summed(at + 8, place), up_bias);
            auto value = [&](u32 i) {
                return row + i < m.rows ? gated(m.activation, element(g, i), element(u, i)) : 0.0f;
            };
            return make_f32x4(value(0), value(1), value(2), value(3));
        };
        each_token<LANES>(place, p.tokens, compute, [&](u32 k, f32x4 v) {
            u32 token = place.token + k;
            if (p.out.y) store4(p.out.y + u64(token) * m.rows, row, m.rows, v);
            if (p.out.quantized) store_swizzled(p.out.quantized, p.width, p.out.cells, token, row, v);
        });
    });
}

}  // namespace rocforge
