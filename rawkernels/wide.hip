// Products of 64 and more tokens with packed weights on Hopper's matrix unit: y = x @ w.T, weights unpacked in
// registers.
//
// Compiled with RF_QTYPE, the weights' format (a struct of quants.h), RF_QTYPE_LAST, that of the last matrix of a
// launch, where it differs, RF_TOKENS, the tokens of a block (64, 128 or 256; x as `store_swizzled` leaves it), and
// RF_LDS, a block's bytes of LDS.
//
// A block multiplies ROWS rows with RF_TOKENS tokens, over all of the depth or a part of it, and then the next. One of
// its warpgroups brings packed weights, as they are, and x, as the matrix unit reads it, into LDS, each ahead of its
// use as far as there is room. The others take turns at the matrix unit: while it has a cell of one's rows, others
// unpack.
#define RF_WEIGHTS_IN_LDS
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "fours.h"
#include "products.h"
#include "unpack.h"
#include "wide.h"

namespace rocforge {

// variants: RF_QTYPE=WIDE RF_TOKENS=64 RF_LDS=232448
// variants: RF_QTYPE=Q8_0,Q4_K,Q6_K RF_TOKENS=128,256 RF_LDS=232448
// variants: RF_QTYPE=Q4_K RF_QTYPE_LAST=Q6_K RF_TOKENS=128 RF_LDS=232448
// targets: sm_90
// Warpgroups that multiply, and tiles of 64 rows of each: four have registers for one set of fragments, two for two, of
// which one is multiplied while the other is unpacked.
const bool FOUR = RF_TOKENS == 64;
const u32 GROUPS = FOUR ? 4 : 2, TILES = RF_TOKENS == 128 ? 2 : 1;
const u32 WAVES = 4 * GROUPS, ROWS = 64 * TILES * GROUPS, THREADS = WARPGROUP * (GROUPS + 1);
const u32 CONSUMER_REGISTERS = FOUR ? 104 : 232, PRODUCER_REGISTERS = 40;

// Where a wave turns its sums, RUN tokens at a time: of each token 16 rows, and a little to keep LDS banks apart.
const u32 RUN = 32;
struct TurnedSums {
    float at[RUN][20];
};
const u32 TURNED_BYTES = WAVES * sizeof(TurnedSums);

// A stage of x is 64 elements of all tokens. As many as there is room for beside two of weights, and more of those.
const u32 X_BYTES = 128 * RF_TOKENS, ROOM = RF_LDS - sizeof(AllBarriers) - TURNED_BYTES;
#ifdef RF_QTYPE_LAST
const u32 LAST_BYTES = ROWS * Stage<RF_QTYPE_LAST>::PITCH;
#else
const u32 LAST_BYTES = 0;
#endif
const u32 WEIGHT_BYTES = at_least(ROWS * Stage<RF_QTYPE>::PITCH, LAST_BYTES);
const u32 X_STAGES = at_most((ROOM - 2 * WEIGHT_BYTES) / X_BYTES, RF_TOKENS == 256 ? 4 : 6);
const u32 WEIGHT_STAGES = at_most((ROOM - X_STAGES * X_BYTES) / WEIGHT_BYTES, 4);
static_assert(X_STAGES >= 4 && WEIGHT_STAGES >= 2, "a cell is multiplied while another is brought");

struct Shared {
    u8* x;
    u8* weights;
    TurnedSums* turned;
    AllBarriers* barriers;
};
RF_DEVICE Shared shared_memory() {
    extern __shared__ __align__(1024) u8 memory[];
    return {memory, memory + X_STAGES * X_BYTES, reinterpret_cast<TurnedSums*>(memory + ROOM),
            reinterpret_cast<AllBarriers*>(memory + ROOM + TURNED_BYTES)};
}

// All that is multiplied, in parts: of the depth, of the tokens and of the rows. Each of `blocks` takes one after
// another.
struct Parts {
    u32 depth, tokens, rows, blocks;
};
// A part: cells `first` to `end`, the tokens from `token` on, and the number of a run of ROWS rows.
struct Part {
    u32 depth, first, end, token, rows;
};
RF_DEVICE Part part_of(const Parts& parts, u32 cells, u32 i) {
    u32 depth = i % parts.depth, number = i / parts.depth, pairs = (cells + 1) / 2;
    u32 end = 2 * ((depth + 1) * pairs / parts.depth);
    return {depth, 2 * (depth * pairs / parts.depth), u32(minimum(i32(end), i32(cells))),
            number % parts.tokens * RF_TOKENS, number / parts.tokens};
}
template <class Do>
RF_DEVICE void each_part(const Parts& parts, Do f) {
    RF_NO_UNROLL
    for (u32 i = block_x(); i < parts.depth * parts.tokens * parts.rows; i += parts.blocks) f(i);
}
// x as `store_swizzled` leaves it, for `width` tokens, of which there are `tokens`.
struct Operand {
    const u8* x;
    u32 tokens, width, cells;
};

// ---- The warpgroup that brings what the others multiply ----

// Brings the weights of a part; `rows.row<F>(r)` is where row 0 to ROWS - 1 begins.
template <class F, class Rows>
RF_DEVICE void bring_weights(const Shared& shared, RingPlace<WEIGHT_STAGES>& place, bool& waited, const Part& part,
                             u32 cells, const Rows& rows) {
    Barriers& barriers = shared.barriers->weights;
    RF_NO_UNROLL
    for (u32 c = part.first; c < part.end; c += Stage<F>::CELLS) {
        wait_phase(&barriers.empty[place.stage], place.parity ^ 1);
        RF_NO_UNROLL
        for (u32 run = wave() - WAVES - 1; run < ROWS / 16; run += WEIGHT_WAVES)
            copy_cells<F>(shared.weights + place.stage * WEIGHT_BYTES + 16 * run * Stage<F>::PITCH,
                          rows.template row<F>(16 * run + lane() / 2), cells, c);
        arrive_with_copies(&barriers.full[place.stage]);
        place.next();
        if (place.stage == 0 && !waited) wait_for_previous(), waited = true;  // all stages are on their way
    }
}

// Brings the x of a part, 64 elements after another.
RF_DEVICE void bring_x(const Shared& shared, RingPlace<X_STAGES>& place, const Part& part, const Operand& x) {
    Barriers& barriers = shared.barriers->x;
    RF_NO_UNROLL
    for (u32 tile = 2 * part.first; tile < 2 * part.end; ++tile) {
        u64* full = &barriers.full[place.stage];
        wait_phase(&barriers.empty[place.stage], place.parity ^ 1);
        expect_bytes(full, X_BYTES);
        copy_bulk(shared.x + place.stage * X_BYTES, x.x + 128 * (u64(tile) * x.width + part.token), X_BYTES, full);
        place.next();
    }
}

// ---- The warpgroups that multiply ----

typedef float Sums[TILES][RF_TOKENS / 2];
typedef u32 CellFragments[8][4];  // of 64 rows: a wave's 16 of them

// The first of a wave's 16 rows of a tile.
RF_DEVICE u32 wave_row(u32 tile) { return (wave() / 4 * TILES + tile) * 64 + wave() % 4 * 16; }

// The matrix unit takes the fragments of one instruction after another, so that issuing them takes nearly as long as
// they do: one warpgroup at a time does, in order.
RF_DEVICE void take_turn() { wait_at_barrier<2 * WARPGROUP>(1 + wave() / 4); }
RF_DEVICE void pass_turn() { arrive_at_barrier<2 * WARPGROUP>(1 + (wave() / 4 + 1) % GROUPS); }

// A warpgroup's share of the products; where it is in the rings goes from part to part.
struct Rings {
    RingPlace<X_STAGES> x;
    RingPlace<WEIGHT_STAGES> weights;
};
template <class F>
struct Consumer : Rings {
    const Shared& shared;

    RF_MEMBER Consumer(const Shared& s, const Rings& rings) : Rings(rings), shared(s) {}

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
            const u8* row =
                shared.weights + weights.stage * WEIGHT_BYTES + (wave_row(tile) + part_row(p)) * Stage<F>::PITCH;
            F w;
            load_scales(w, row, r, block);
            w.ready();
            CellScales<F> scales(w);
            RF_UNROLL
            for (u32 j = 0; j < 8; ++j) {
                u32 s = j / 2, h = j % 2, codes = stored_codes<F>(row, Stage<F>::CELLS, r, s, h, part_lane());
                unpack_four<F>(a[j][p], a[j][2 + p], codes, h, scales.scale[j], scales.min[j]);
            }
        }
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
    RF_MEMBER void release_x() {
        RF_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            if (lane() == 0) arrive(&shared.barriers->x.empty[x.stage]);
            x.next();
        }
    }

    RF_MEMBER void run(Sums& sums, const Part& part) {
        if (part.first >= part.end) return;
        wait_for_weights();
        if constexpr (FOUR)
            run_in_order(sums, part);
        else
            run_in_pairs(sums, part);
    }
    RF_MEMBER void run_in_order(Sums& sums, const Part& part) {
        CellFragments cell;
        RF_NO_UNROLL
        for (u32 c = part.first; c < part.end; c += 2) {
            unpack(cell, 0, 0, c / 2);
            multiply(sums[0], cell, [] {});
            release_x();
            if (c + 1 < part.end) unpack(cell, 0, 1, c / 2);
            release_weights();
            if (c + 1 >= part.end) break;
            multiply(sums[0], cell, [] {});
            release_x();
            if (c + 2 < part.end) wait_for_weights();
        }
    }
    // Two sets of fragments: one is multiplied while the next tile or cell is unpacked to the other.
    RF_MEMBER void run_in_pairs(Sums& sums, const Part& part) {
        CellFragments one, other;
        auto next_stage = [&](u32 c) {
            release_weights();
            if (c >= part.end) return;
            wait_for_weights();
            unpack(one, 0, 0, c / 2);
        };
        unpack(one, 0, 0, part.first / 2);
        RF_NO_UNROLL
        for (u32 c = part.first; c < part.end; c += 2) {
            bool both = c + 1 < part.end;
            auto second = [&](CellFragments& a) {
                if (both)
                    unpack(a, 0, 1, c / 2);
                else
                    release_weights();
            };
            if constexpr (TILES == 1) {
                multiply(sums[0], one, [&] { second(other); });
                release_x();
                if (!both) break;
                multiply(sums[0], other, [&] { next_stage(c + 2); });
            } else {
                multiply(sums[0], one, [&] { unpack(other, 1, 0, c / 2); });
                multiply(sums[1], other, [&] { second(one); });
                release_x();
                if (!both) break;
                multiply(sums[0], one, [&] { unpack(other, 1, 1, c / 2); });
                multiply(sums[1], other, [&] { next_stage(c + 2); });
            }
            release_x();
        }
    }
};

// ---- Sums ----

// Sums of a wave, in LDS: of RUN tokens from `token` on those of 16 rows from `row` on.
struct WaveSums {
    const TurnedSums& sums;
    u32 row, token;

    // Four neighbouring ones of a token.
    RF_MEMBER f32x4 at(u32 k, u32 r) const { return load<f32x4>(&sums.at[k - token][r]); }
    // Calls store(k, compute(k)) for each of the tokens up to `end`; LANES neighbouring lanes have the same.
    template <u32 LANES, class Compute, class Store>
    RF_MEMBER void each_token(u32 end, Compute compute, Store store) const {
        const u32 STEP = RF_WAVE / LANES, COUNT = RUN / STEP;
        u32 first = token + lane() / LANES;
        f32x4 values[COUNT];
        RF_UNROLL
        for (u32 j = 0; j < COUNT; ++j) values[j] = compute(minimum(i32(first + j * STEP), i32(end - 1)));
        RF_UNROLL
        for (u32 j = 0; j < COUNT; ++j)
            if (first + j * STEP < end) store(first + j * STEP, values[j]);
    }
};

// Hands the sums of a part, which has `tokens` tokens, to `rows.finish`.
template <class Rows>
RF_DEVICE void hand_over(const Shared& shared, const Sums& sums, u32 tokens, const Rows& rows) {
    TurnedSums& turned = shared.turned[wave()];
    RF_UNROLL
    for (u32 tile = 0; tile < TILES; ++tile) {
        RF_UNROLL
        for (u32 token = 0; token < RF_TOKENS; token += RUN) {
            if (token >= tokens) continue;
            wave_barrier();
            RF_UNROLL
            for (u32 i = 0; i < RUN / 2; ++i)
                turned.at[i / 4 * 8 + part_lane() * 2 + i % 2][part_row(i / 2 % 2)] = sums[tile][token / 2 + i];
            wave_barrier();
            rows.finish(WaveSums{turned, wave_row(tile), token});
        }
    }
}

template <class F>
RF_DEVICE void multiply_part(const Shared& shared, Rings& rings, Sums& sums, const Part& part) {
    Consumer<F> consumer(shared, rings);
    consumer.run(sums, part);
    rings = consumer;
}

// The block's parts of x times the weights, one after another. `Rows(params, part)` are a part's: whether they are of
// the last format, `of_last`, where each begins, and where their sums go.
template <class Rows, class Params>
RF_DEVICE void multiply_parts(const Params& p) {
    Shared shared = shared_memory();
    init_rings<X_STAGES, WEIGHT_STAGES>(*shared.barriers, WAVES);
    const u32 cells = p.x.cells;
    if (wave() >= WAVES) {
        give_registers_back<PRODUCER_REGISTERS>();
        if (wave() == WAVES) {
            wait_for_previous();
            RingPlace<X_STAGES> ring;
            if (lane() == 0) each_part(p.parts, [&](u32 i) { bring_x(shared, ring, part_of(p.parts, cells, i), p.x); });
        } else {
            RingPlace<WEIGHT_STAGES> ring;
            bool waited = false;
            each_part(p.parts, [&](u32 i) {
                Part part = part_of(p.parts, cells, i);
                Rows rows(p, part);
#ifdef RF_QTYPE_LAST
                if (rows.of_last) return bring_weights<RF_QTYPE_LAST>(shared, ring, waited, part, cells, rows);
#endif
                bring_weights<RF_QTYPE>(shared, ring, waited, part, cells, rows);
            });
            if (!waited) wait_for_previous();
        }
    } else {
        take_registers<CONSUMER_REGISTERS>();
        wait_for_previous();
        Rings rings;
        if (wave() / 4 == GROUPS - 1) pass_turn();
        each_part(p.parts, [&](u32 i) {
            Sums sums;
            RF_UNROLL
            for (u32 tile = 0; tile < TILES; ++tile) {
                RF_UNROLL
                for (u32 j = 0; j < RF_TOKENS / 2; ++j) sums[tile][j] = 0.0f;
            }
            Part part = part_of(p.parts, cells, i);
#ifdef RF_QTYPE_LAST
            if (Rows(p, part).of_last)
                multiply_part<RF_QTYPE_LAST>(shared, rings, sums, part);
            else
#endif
                multiply_part<RF_QTYPE>(shared, rings, sums, part);
            part = part_of(p.parts, cells, unknown(i));  // again, as all registers were taken
            hand_over(shared, sums, p.x.tokens - part.token, Rows(p, part));
        });
        if (wave() / 4 == 0) take_turn();
    }
}

// Four of a bias from `row` on, which may be null.
RF_DEVICE f32x4 bias_of(const float* bias, u32 row, u32 rows) {
    return bias ? load4(bias, row, rows) : make_f32x4(0, 0, 0, 0);
}

// A block has one warpgroup more than multiply, and the multiprocessor for itself.
#define RF_KERNEL_WARPGROUPS extern "C" __global__ void __launch_bounds__(THREADS, 1)

// The results lie side by side, y (parts of the depth, tokens, stride), where each matrix has its own place. If the
// depth is one part biases are added, and to the first result a residual of its shape.
struct WideParams {
    Operand x;
    Parts parts;
    u32 stride;
    Matrix matrices[4];
    RF_NULLABLE const float* residual;
};

struct ProductRows {
    const WideParams& p;
    const Part& part;
    u32 block, number;
    Matrix m;
    bool of_last;

    RF_MEMBER ProductRows(const WideParams& params, const Part& of) : p(params), part(of), block(of.rows) {
        m = matrix_of(block, number, p.matrices, [](u32 rows) { return (rows + ROWS - 1) / ROWS; });
        of_last = number == LAST_MATRIX;
    }
    template <class F>
    RF_MEMBER const u8* row(u32 r) const {
        return row_of(m.w, u64(minimum(i32(block * ROWS + r), i32(m.rows - 1))) * F::row_bytes(p.x.cells));
    }
    RF_MEMBER void finish(const WaveSums& sums) const {
        const u32 LANES = 4;  // with four rows of a token each
        u32 own = lane() % LANES * 4, row = block * ROWS + sums.row + own;
        const float* residual = number == 0 ? p.residual : nullptr;
        f32x4 bias = bias_of(m.bias, row, m.rows);
        float* y = m.y + (u64(part.depth) * p.x.tokens + part.token) * p.stride;
        bool aligned = p.stride % 4 == 0 && reinterpret_cast<u64>(m.y) % 16 == 0;
        sums.each_token<LANES>(
            p.x.tokens - part.token,
            [&](u32 k) {
                f32x4 sum = plus(sums.at(k, own), bias);
                return residual ? plus(sum, load4(residual + u64(part.token + k) * m.rows, row, m.rows)) : sum;
            },
            [&](u32 k, f32x4 v) { store4(y + u64(k) * p.stride, row, m.rows, v, aligned); });
    }
};

RF_KERNEL_WARPGROUPS
rf_wide_products(WideParams p) { multiply_parts<ProductRows>(p); }

// As `gated_product` of products.h, where what is quantized is as `store_swizzled` has it; the depth is one part. Each
// wave has eight rows of gate and the same eight of up. Rows past the last fill up the last cell with zeros.
struct WideGatedParams {
    Operand x;
    Parts parts;
    Gated matrices;
    GatedOutput out;
};

struct GatedRows {
    const WideGatedParams& p;
    const Part& part;
    static constexpr bool of_last = false;

    RF_MEMBER GatedRows(const WideGatedParams& params, const Part& of) : p(params), part(of) {}
    template <class F>
    RF_MEMBER const u8* row(u32 r) const {
        const Gated& m = p.matrices;
        u32 row = minimum(i32(part.rows * (ROWS / 2) + r / 16 * 8 + r % 8), i32(m.rows - 1));
        return row_of(r % 16 < 8 ? m.gate : m.up, u64(row) * F::row_bytes(p.x.cells));
    }
    RF_MEMBER void finish(const WaveSums& sums) const {
        const Gated& m = p.matrices;
        const u32 LANES = 2;  // with four rows of a token each
        u32 own = lane() % LANES * 4, row = part.rows * (ROWS / 2) + sums.row / 2 + own;
        f32x4 gate_bias = bias_of(m.gate_bias, row, m.rows), up_bias = bias_of(m.up_bias, row, m.rows);
        sums.each_token<LANES>(
            p.x.tokens - part.token,
            [&](u32 k) {
                f32x4 g = plus(sums.at(k, own), gate_bias), u = plus(sums.at(k, 8 + own), up_bias);
                float value[4];
                RF_UNROLL
                for (u32 i = 0; i < 4; ++i)
                    value[i] = row + i < m.rows ? gated(m.activation, element(g, i), element(u, i)) : 0.0f;
                return make_f32x4(value[0], value[1], value[2], value[3]);
            },
            [&](u32 k, f32x4 v) {
                u32 token = part.token + k;
                if (p.out.y) store4(p.out.y + u64(token) * m.rows, row, m.rows, v);
                if (p.out.quantized) store_swizzled(p.out.quantized, p.x.width, p.out.cells, token, row, v);
            });
    }
};

RF_KERNEL_WARPGROUPS
rf_wide_gated(WideGatedParams p) { multiply_parts<GatedRows>(p); }

}  // namespace rocforge
