// Products of rows of packed weights with the activations of tokens: what the kernels that multiply few tokens share.
//
// Compiled with RF_QTYPE, the weights' format (a struct of quants.h, or Floats<f16>, Floats<bf16>, Floats<float>),
// RF_TOKENS, the tokens of a product (of fewer, the last is computed again and dropped), RF_ROWS, the rows computed
// together, and RF_GATED_ROWS, those of gate and of up in a gated product.
#pragma once

#include "gates.h"
#include "formats/lattices.h"

namespace rocforge {

// A group of lanes of the gated kernels takes GATED_ROWS rows of both matrices, a block BLOCK_ROWS.
const u32 GATED_THREADS = RF_TUNE_GATED_THREADS, GATED_LANES = RF_TUNE_GATED_LANES, GATED_ROWS = RF_GATED_ROWS;
const u32 BLOCK_ROWS = GATED_ROWS * GATED_THREADS / GATED_LANES;
static_assert(BLOCK_ROWS % 32 == 0, "a block of a gated product has whole runs of 32 rows, a scale each");
#if RF_TOKENS == 1
#define RF_MATVEC_GATED RF_KERNEL_WIDE(GATED_THREADS, RF_TUNE_GATED_RESIDENT)
#else
#define RF_MATVEC_GATED RF_KERNEL(GATED_THREADS)
#endif

// Unpacked weights: a cell is 16 bytes of a row, and activations are floats.
template <class T>
struct Floats {
    static constexpr u32 POINTS = 0;
    u32x4 data;
    static RF_MEMBER u32 row_bytes(u32 cells) { return 16 * cells; }
    RF_MEMBER float value(u32 i) const {
        if constexpr (sizeof(T) == 4) {
            return bits_float(element(data, i));
        } else {
            return to_float(T{u16(element(data, i / 2) >> 16 * (i % 2))});
        }
    }
};

// The token that the kernel's token k is.
RF_DEVICE u32 token_of(u32 k, u32 tokens) { return k < tokens || k == 0 ? k : tokens - 1; }

// Bytes of a token of x.
template <class F>
RF_DEVICE u32 token_bytes(const F&, u32 cells) {
    return activation_bytes(cells);
}
template <class T>
RF_DEVICE u32 token_bytes(const Floats<T>&, u32 cells) {
    return 64 / sizeof(T) * cells;
}

// The tokens of a product: `count` of x, one after another.
template <class F>
struct TokensInRow {
    static constexpr bool SKIPS = false;
    const u8* x;
    u32 count, cells;
    RF_MEMBER const u8* first() const { return x; }
    RF_MEMBER const u8* token(u32 k) const {
        return x + token_of(k, count) * token_bytes(F(), rematerialize(cells));  // so that it is scalar
    }
};
// `count` tokens that lie anywhere; of fewer than RF_TOKENS none is computed.
struct TokensAnywhere {
    static constexpr bool SKIPS = true;
    const u8* at[RF_TOKENS];
    u32 count;
    RF_MEMBER const u8* first() const { return at[0]; }
    RF_MEMBER const u8* token(u32 k) const { return at[k]; }
};

template <class F>
RF_DEVICE void load_cell(F& w, const u8* row, u32 cells, u32 c) {
    w.load_codes(row, cells, c);
    w.load_scales(row, cells, c);
}
template <class T>
RF_DEVICE void load_cell(Floats<T>& w, const u8* row, u32, u32 c) {
    w.data = load_once<u32x4>(row + 16 * c);
}

// The product of a cell with that of one token: scales of scales are applied once.
template <class F>
RF_DEVICE float dot(const F& w, const Activation& x) {
    float total = 0.0f, mins = 0.0f;
    RF_UNROLL
    for (u32 s = 0; s < 4; ++s) {
        float part = 0.0f, min_part = 0.0f;
        i32 products = FLOAT_ZERO, sums = 0;
        RF_UNROLL
        for (u32 h = 0; h < 2; ++h) {
            if (F::HALVES || h == 0) products = FLOAT_ZERO, sums = 0;
            if (F::OFFSET || F::MINS) sums += x.sum(s, h);
            RF_UNROLL
            for (u32 t = 0; t < 4; ++t) products = add_four(w, s, 4 * h + t, element(x.q[2 * s + h], t), products);
            if (F::HALVES || h == 1) {
                part += w.scale(s, h) * sum_float(products - F::OFFSET * sums);
                if (F::MINS) min_part += w.min(s, h) * float(sums);
            }
        }
        total += element(x.scale, s) * part;
        if (F::MINS) mins += element(x.scale, s) * min_part;
    }
    return w.outer_scale() * total + w.outer_min() * mins;
}

// Formats whose values take long to look up, on NVIDIA: registers are better spent on more cells in flight than on all
// of a cell's x.
template <class F>
struct ByRuns {
    static const bool X = RF_TOKENS == 1 && LOADS_BEFORE_WAIT && (F::POINTS > 0 || F::SELECTED);
};
template <class T>
struct ByRuns<Floats<T>> {
    static const bool X = false;
};

// Adds the products of a cell of N rows with that of one token, a run of 32 elements after another.
template <class F, u32 N>
RF_DEVICE void add_runs(float (&sum)[N][1], F (&w)[N], const u8* x, u32 cells, u32 c) {
    float total[N] = {};
    f32x4 scale = load<f32x4>(x + 16 * (8 * cells + c));
    RF_UNROLL
    for (u32 s = 0; s < 4; ++s) {
        u32x4 q[2] = {load<u32x4>(x + 16 * (2 * s * cells + c)), load<u32x4>(x + 16 * ((2 * s + 1) * cells + c))};
        RF_UNROLL
        for (u32 r = 0; r < N; ++r) {
            float part = 0.0f;
            i32 products = FLOAT_ZERO;
            RF_UNROLL
            for (u32 h = 0; h < 2; ++h) {
                RF_UNROLL
                for (u32 t = 0; t < 4; ++t) products = add_four(w[r], s, 4 * h + t, element(q[h], t), products);
                if (!F::HALVES && h == 0) continue;
                part += w[r].scale(s, h) * sum_float(products);
                products = FLOAT_ZERO;
            }
            total[r] += element(scale, s) * part;
        }
    }
    RF_UNROLL
    for (u32 r = 0; r < N; ++r) sum[r][0] += w[r].outer_scale() * total[r];
}

// 32 elements of a row, unpacked: for several tokens, each of which is computed alike, wherever it is among them.
template <class F>
struct Run {
    u32 q[8];
    float scale[2], min[2];
    RF_MEMBER void unpack(const F& w, u32 s) {
        RF_UNROLL
        for (u32 t = 0; t < 8; ++t) q[t] = F::values(w.four(s, t));
        RF_UNROLL
        for (u32 h = 0; h < 2; ++h) scale[h] = w.outer_scale() * w.scale(s, h), min[h] = w.outer_min() * w.min(s, h);
    }
    RF_MEMBER float dot(const u32x4 (&x)[2], u32 pair) const {
        i32 sum[2] = {i32(i16(pair)), i32(pair) >> 16}, products[2] = {-F::OFFSET * sum[0], -F::OFFSET * sum[1]};
        RF_UNROLL
        for (u32 t = 0; t < 8; ++t) products[t / 4] = dot4(q[t], element(x[t / 4], t % 4), products[t / 4]);
        if (!F::HALVES) {
            float result = scale[0] * float(products[0] + products[1]);
            return F::MINS ? fused(min[0], float(sum[0] + sum[1]), result) : result;
        }
        float result = fused(scale[1], float(products[1]), scale[0] * float(products[0]));
        return F::MINS ? fused(min[1], float(sum[1]), fused(min[0], float(sum[0]), result)) : result;
    }
};

// Adds the products of cell c of N rows with all tokens.
template <class F, u32 N, class X>
RF_DEVICE void add_cell(float (&sum)[N][RF_TOKENS], F (&w)[N], const X& x, u32 cells, u32 c) {
    if constexpr (ByRuns<F>::X) {
        RF_UNROLL
        for (u32 r = 0; r < N; ++r) w[r].ready();
        return add_runs(sum, w, x.first(), cells, c);
    }
    if constexpr (RF_TOKENS == 1) {
        Activation activation;
        activation.load(x.first(), cells, c);
        schedule_barrier();  // all of these loads, too, come before the first wait
        RF_UNROLL
        for (u32 r = 0; r < N; ++r) {
            RF_UNROLL
            for (u32 p = 0; p < F::PLANES; ++p) used_from_here(w[r].plane[p]);
            w[r].ready();
            sum[r][0] += dot(w[r], activation);
        }
        return;
    }
    RF_UNROLL
    for (u32 r = 0; r < N; ++r) w[r].ready();
    RF_UNROLL
    for (u32 s = 0; s < 4; ++s) {
        // a run of 32 elements and a token after another: all of them together would spill
        Run<F> run[N];
        RF_UNROLL
        for (u32 r = 0; r < N; ++r) {
            RF_UNROLL
            for (u32 p = 0; p < F::PLANES; ++p) used_from_here(w[r].plane[p]);
            run[r].unpack(w[r], s);
            schedule_barrier();
        }
        RF_UNROLL
        for (u32 k = 0; k < RF_TOKENS; ++k) {
            if (X::SKIPS && k >= x.count) break;
            // what all lanes share comes first, so that it is scalar
            u32 plane = 16 * rematerialize(cells);
            const u8* token = x.token(k);
            u32x4 q[2] = {load<u32x4>(token + 2 * s * plane + 16 * c),
                          load<u32x4>(token + (2 * s + 1) * plane + 16 * c)};
            float scale = load<float>(token + (8 * plane + 4 * s) + 16 * c);
            u32 sums = load<u32>(token + (9 * plane + 4 * s) + 16 * c);
            RF_UNROLL
            for (u32 r = 0; r < N; ++r) {
                sum[r][k] = fused(scale, run[r].dot(q, sums), sum[r][k]);
                materialize(sum[r][k]);
            }
            schedule_barrier();
        }
    }
}
template <class T, u32 N, class X>
RF_DEVICE void add_cell(float (&sum)[N][RF_TOKENS], Floats<T> (&w)[N], const X& x, u32 cells, u32 c) {
    RF_UNROLL
    for (u32 k = 0; k < RF_TOKENS; ++k) {
        if (X::SKIPS && k >= x.count) break;
        const u8* token = x.token(k) + 64 / sizeof(T) * c;
        RF_UNROLL
        for (u32 i = 0; i < 16 / sizeof(T); i += 4) {
            f32x4 v = load<f32x4>(token + 4 * i);
            RF_UNROLL
            for (u32 r = 0; r < N; ++r) {
                RF_UNROLL
                for (u32 j = 0; j < 4; ++j) sum[r][k] += w[r].value(i + j) * element(v, j);
                materialize(sum[r][k]);
            }
            schedule_barrier();
        }
    }
}

template <class F, u32 N, u32 AHEAD>
RF_DEVICE void load_cells(F (&w)[AHEAD][N], const u8* const (&row)[N], u32 cells, u32 c, u32 step) {
    RF_UNROLL
    for (u32 a = 0; a < AHEAD; ++a) {
        RF_UNROLL
        for (u32 r = 0; r < N; ++r) load_cell(w[a][r], row[r], cells, c + a * step);
    }
}

// Adds the products of N rows with the tokens, over cells first, first + step, ...; AHEAD cells are loaded together,
// of one token the first of them before `begin`, which waits for what x depends on: of more there are no registers to
// spare.
template <class F, u32 N, u32 AHEAD, class X, class Begin>
RF_DEVICE u32 accumulate_ahead(float (&sum)[N][RF_TOKENS], const u8* const (&row)[N], const X& x, u32 cells, u32 first,
                               u32 step, Begin begin) {
    u32 c = first, ahead = (AHEAD - 1) * step;
    if constexpr (RF_TOKENS == 1 && LOADS_BEFORE_WAIT) {
        F w[AHEAD][N];
        if (c + ahead < cells) load_cells(w, row, cells, c, step);
        begin();
        while (c + ahead < cells) {
            RF_UNROLL
            for (u32 a = 0; a < AHEAD; ++a) add_cell(sum, w[a], x, cells, c + a * step);
            c += AHEAD * step;
            if (c + ahead < cells) load_cells(w, row, cells, c, step);
        }
        return c;
    }
    begin();
    for (; c + ahead < cells; c += AHEAD * step) {
        F w[AHEAD][N];
        load_cells(w, row, cells, c, step);
        if (RF_TOKENS == 1) schedule_barrier();  // all loads come first
        RF_UNROLL
        for (u32 a = 0; a < AHEAD; ++a) add_cell(sum, w[a], x, cells, c + a * step);
    }
    return c;
}
// The same of such formats: of AHEAD cells each is loaded again as soon as it has been multiplied.
template <class F, u32 N, u32 AHEAD, class X, class Begin>
RF_DEVICE void accumulate_by_runs(float (&sum)[N][RF_TOKENS], const u8* const (&row)[N], const X& x, u32 cells,
                                  u32 first, u32 step, Begin begin) {
    F w[AHEAD][N];
    auto load = [&](F(&to)[N], u32 c) {
        RF_UNROLL
        for (u32 r = 0; r < N; ++r) load_cell(to[r], row[r], cells, c);
    };
    RF_UNROLL
    for (u32 a = 0; a < AHEAD; ++a) {
        if (first + a * step < cells) load(w[a], first + a * step);
    }
    begin();
    for (u32 from = first; from < cells; from += AHEAD * step) {
        RF_UNROLL
        for (u32 a = 0; a < AHEAD; ++a) {
            u32 c = from + a * step;
            if (c >= cells) break;
            add_cell(sum, w[a], x, cells, c);
            if (c + AHEAD * step < cells) load(w[a], c + AHEAD * step);
        }
    }
}
struct WaitForPrevious {
    RF_MEMBER void operator()() const { wait_for_previous(); }
};
// AHEAD_NBYTES: of cells that a lane may have in flight, where there are registers for more than one.
template <class F, u32 N, u32 AHEAD_NBYTES = 0, class X, class Begin = WaitForPrevious>
RF_DEVICE void accumulate(float (&sum)[N][RF_TOKENS], const u8* const (&row)[N], const X& x, u32 cells, u32 first,
                          u32 step, Begin begin = {}) {
    // a cell of floats is a single load
    if constexpr (sizeof(F) == 16) {
        const u32 ALONE = N == 1 ? RF_TUNE_GEMV_FLOAT_CELLS : RF_TUNE_GATED_FLOAT_CELLS;
        const u32 AHEAD = RF_TOKENS == 1 ? ALONE : RF_TUNE_GEMV_FLOAT_CELLS_MANY;
        first = accumulate_ahead<F, N, AHEAD>(sum, row, x, cells, first, step, begin);
        accumulate_ahead<F, N, 1>(sum, row, x, cells, first, step, [] {});
    } else if constexpr (ByRuns<F>::X && AHEAD_NBYTES >= 2 * N * sizeof(F)) {
        const u32 AHEAD = AHEAD_NBYTES >= 4 * N * sizeof(F) ? 4 : 2;
        accumulate_by_runs<F, N, AHEAD>(sum, row, x, cells, first, step, begin);
    } else {
        accumulate_ahead<F, N, 1>(sum, row, x, cells, first, step, begin);
    }
}
// The same where few blocks have a product, so that nothing else hides what they wait for: a lane has two cells in
// flight, if they take no more bytes than it has registers for.
const u32 AHEAD_OF_FEW_NBYTES = 320;
template <class F, u32 N, class X, class Begin>
RF_DEVICE void accumulate_of_few(float (&sum)[N][RF_TOKENS], const u8* const (&row)[N], const X& x, u32 cells,
                                 u32 first, u32 step, Begin begin) {
    if constexpr (sizeof(F) > 16 && 2 * N * sizeof(F) <= AHEAD_OF_FEW_NBYTES) {
        if (first + step < cells) {
            first = accumulate_ahead<F, N, 2>(sum, row, x, cells, first, step, begin);
            accumulate_ahead<F, N, 1>(sum, row, x, cells, first, step, [] {});
            return;
        }
    }
    accumulate<F, N>(sum, row, x, cells, first, step, begin);
}

template <u32 N>
RF_DEVICE void reduce_group(float (&sum)[N][RF_TOKENS], u32 lanes) {
    RF_UNROLL
    for (u32 r = 0; r < N; ++r) {
        RF_UNROLL
        for (u32 k = 0; k < RF_TOKENS; ++k) {
            sum[r][k] = reduce_lanes<8>(sum[r][k], Add());
            if (lanes > 8) sum[r][k] += shuffle_xor<8>(sum[r][k]);
            if (lanes > 16) sum[r][k] += shuffle_xor<16>(sum[r][k]);
        }
    }
}

// The norm that one token still lacks: division by its root mean square. Its int8 values are those before, whose
// squares are here, a sum for each 32; null where nothing is lacking. Products are multiplied by its factor.
struct Norm {
    const float* squares;
    u32 n;
    float eps;

    RF_MEMBER u32 runs() const { return (n + 31) / 32; }
    RF_MEMBER float factor_of(float sum) const { return fast_rsqrt(sum / float(n) + eps); }

    // A thread's share of the sum, loaded now: long before the block needs the factor.
    template <u32 THREADS>
    RF_MEMBER float share() const {
        float sum = 0.0f;
        if (!squares) return sum;
        if (thread_x() < runs()) sum = load_early(squares + thread_x());
        RF_NO_UNROLL
        for (u32 i = thread_x() + THREADS; i < runs(); i += THREADS) sum += squares[i];
        return sum;
    }
    template <u32 THREADS>
    RF_MEMBER float factor(float share) const {
        return squares ? factor_of(block_sum<THREADS>(share)) : 1.0f;
    }
};

// One of the up to four matrices of a launch, whose rows are laid end to end over the grid; null where there are
// fewer. y is (tokens, rows).
struct Matrix {
    RF_NULLABLE const void* w;
    RF_NULLABLE const float* bias;
    RF_NULLABLE float* y;
    u32 rows;
};

const u32 LAST_MATRIX = 3;

// The matrix that a block of the grid belongs to, and its number; `block` becomes its number within that one's blocks.
// Indices are constants: of parameters with another, NVIDIA's compiler makes a copy in memory.
template <class BlocksOf>
RF_DEVICE Matrix matrix_of(u32& block, u32& number, const Matrix (&matrices)[4], BlocksOf blocks_of) {
    number = 0;
    if (block < blocks_of(matrices[0].rows)) return matrices[0];
    block -= blocks_of(matrices[0].rows), number = 1;
    if (block < blocks_of(matrices[1].rows)) return matrices[1];
    block -= blocks_of(matrices[1].rows), number = 2;
    if (block < blocks_of(matrices[2].rows)) return matrices[2];
    block -= blocks_of(matrices[2].rows), number = LAST_MATRIX;
    return matrices[LAST_MATRIX];
}

RF_DEVICE const u8* row_of(const void* matrix, u64 offset) { return static_cast<const u8*>(matrix) + offset; }

// Products of x with those of a matrix's rows that block `block` of THREADS threads has: each group of 1 << log_lanes
// lanes RF_ROWS. Calls store(row, token, value) for each, on one lane; `factor()`, of all threads, is on all values.
// begin: as in accumulate_ahead.
template <class F, u32 THREADS, class X, class Begin, class Factor, class Store>
RF_DEVICE void rows_product(const void* w, u32 rows, const X& x, u32 cells, u32 log_lanes, u32 block, Begin begin,
                            Factor factor, Store store) {
    u32 group = thread_x() >> log_lanes, lanes = 1 << log_lanes, rank = thread_x() & (lanes - 1);
    u32 first = ((block * THREADS >> log_lanes) + group) * RF_ROWS;
    const u8* row[RF_ROWS];
    RF_UNROLL
    for (u32 r = 0; r < RF_ROWS; ++r)
        row[r] = row_of(w, u64(minimum(i32(first + r), i32(rows - 1))) * F::row_bytes(cells));
    float sum[RF_ROWS][RF_TOKENS] = {};
    accumulate<F, RF_ROWS>(sum, row, x, cells, rank, lanes, begin);
    reduce_group<RF_ROWS>(sum, lanes);
    float scale = factor();
    RF_UNROLL
    for (u32 r = 0; r < RF_ROWS; ++r) {
        RF_UNROLL
        for (u32 k = 0; k < RF_TOKENS; ++k) {
            if (rank != ((r * RF_TOKENS + k) & (lanes - 1)) || first + r >= rows || k >= x.count) continue;
            store(first + r, k, scale * sum[r][k]);
        }
    }
}

// Both matrices of a gated product; of experts, each one's matrix begins `step` rows behind that of the one before.
struct Gated {
    const void *gate, *up;
    RF_NULLABLE const float *gate_bias, *up_bias;
    u32 rows, step;
    i32 activation;
};

// Where a gated product goes: float32 (tokens, rows), or rows of `cells` cells for the product that follows, or both.
struct GatedOutput {
    RF_NULLABLE float* y;
    RF_NULLABLE u8* quantized;
    u32 cells;
};

// Those of an expert, among all experts'.
RF_DEVICE Gated gated_of(const Gated& all, u32 expert, u32 cells) {
    u32 bias_at = expert * all.rows;
    u64 at = u64(expert) * all.step * RF_QTYPE::row_bytes(cells);
    Gated own = {row_of(all.gate, at), row_of(all.up, at), nullptr, nullptr, all.rows, 0, all.activation};
    if (all.gate_bias) own.gate_bias = all.gate_bias + bias_at;
    if (all.up_bias) own.up_bias = all.up_bias + bias_at;
    return own;
}

// activation(x @ gate.T + gate_bias, x @ up.T + up_bias), to float32, or int8 for the product that follows. A group
// takes the same rows of both matrices, and a block has whole runs of 32 rows, a scale each. Blocks past the last row
// fill up the last cell with zeros. The results are written as those of tokens `to` and following. OF_FEW: as in
// accumulate_of_few.
template <bool OF_FEW = false, class X>
RF_DEVICE void gated_product(const Gated& m, const X& x, const Norm& norm, u32 cells, const GatedOutput& out,
                             u32 to = 0) {
    const u32 SIZE = RF_TOKENS * BLOCK_ROWS;
    RF_SHARED struct {
        alignas(16) float gate[SIZE], up[SIZE];
    } sums;
    u32 rank = thread_x() % GATED_LANES, group = thread_x() / GATED_LANES, first = BLOCK_ROWS * block_x();
    const u8* row[2 * GATED_ROWS];
    RF_UNROLL
    for (u32 p = 0; p < GATED_ROWS; ++p) {
        u32 r = minimum(i32(first + GATED_ROWS * group + p), i32(m.rows - 1));
        row[2 * p] = row_of(m.gate, u64(r) * RF_QTYPE::row_bytes(cells));
        row[2 * p + 1] = row_of(m.up, u64(r) * RF_QTYPE::row_bytes(cells));
    }
    float sum[2 * GATED_ROWS][RF_TOKENS] = {}, share = 0.0f;
    auto begin = [&] {
        load_grid<RF_QTYPE>(GATED_THREADS);
        wait_unless_beside();
        if (RF_TOKENS == 1) share = norm.share<GATED_THREADS>();
    };
    if constexpr (OF_FEW)
        accumulate_of_few<RF_QTYPE, 2 * GATED_ROWS>(sum, row, x, cells, rank, GATED_LANES, begin);
    else
        accumulate<RF_QTYPE, 2 * GATED_ROWS>(sum, row, x, cells, rank, GATED_LANES, begin);
    reduce_group<2 * GATED_ROWS>(sum, GATED_LANES);
    RF_UNROLL
    for (u32 p = 0; p < GATED_ROWS; ++p) {
        RF_UNROLL
        for (u32 k = 0; k < RF_TOKENS; ++k) {
            u32 at = k * BLOCK_ROWS + GATED_ROWS * group + p;
            if (rank == k) sums.gate[at] = sum[2 * p][k], sums.up[at] = sum[2 * p + 1][k];
        }
    }
    float factor = RF_TOKENS == 1 ? norm.factor<GATED_THREADS>(share) : 1.0f;
    barrier();
    // a lane a row, then, of each run of 32, eight lanes with four each
    for (u32 from = wave() * RF_WAVE; from < SIZE; from += GATED_THREADS) {
        u32 at = from + lane(), k = at / BLOCK_ROWS, r = first + at % BLOCK_ROWS;
        float value = 0.0f;
        if (at < SIZE && r < m.rows) {
            float g = factor * sums.gate[at] + (m.gate_bias ? m.gate_bias[r] : 0.0f);
            float u = factor * sums.up[at] + (m.up_bias ? m.up_bias[r] : 0.0f);
            value = gated(m.activation, g, u);
            if (out.y && k < x.count) out.y[u64(to + k) * m.rows + r] = value;
        }
        if (!out.quantized) continue;
        if (at < SIZE) sums.gate[at] = value;
        wave_barrier();
        at = from + 4 * lane();
        // lanes past the last row or token write nothing, since their element is past the end
        bool wanted = 4 * lane() < RF_WAVE && at < SIZE && at / BLOCK_ROWS < x.count;
        at = wanted ? at : from;
        u8* token = out.quantized + u64(to + at / BLOCK_ROWS) * activation_bytes(out.cells);
        store_activation(token, out.cells, wanted ? first + at % BLOCK_ROWS : out.cells * CELL,
                         load<f32x4>(sums.gate + at));
    }
}

}  // namespace rocforge
