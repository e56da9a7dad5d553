// Mixture of experts, many tokens: a matrix product for each expert with the tokens that chose it, in one launch.
//
// Pairs (token, choice) are sorted by expert, as group_by_expert of moe.hip leaves them: order, and offsets, where
// each expert begins. A block multiplies WEIGHTS rows of an expert's matrix, unpacked to float16 in LDS, with a tile of
// up to PAIRS of its pairs on the matrix unit. Compiled with RF_QTYPE, as products.h.
#define RF_TOKENS 1
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "products.h"
#include "target/fragments.h"

namespace rocforge {

// variants: RF_QTYPE=Q4_1,Q5_0,Q8_0,Q2_K,Q3_K,Q4_K,Q6_K,MXFP4,Floats<float>,Floats<f16>
const u32 WEIGHTS = RF_TUNE_EXPERTS_TILE_ROWS, PAIRS = RF_TUNE_EXPERTS_TILE_PAIRS, DEPTH = CELL / 2;
const u32 THREADS = WEIGHTS, WAVES = THREADS / RF_WAVE;  // a thread unpacks a row
const u32 WEIGHT_TILES = WEIGHTS / 16 / WAVES;           // a wave's, of fragments
const u32 PIECES = PAIRS * DEPTH / 8 / THREADS;          // of 16 bytes of x, a thread's

// Rows are padded by 16 bytes, so that the rows of a fragment lie in different LDS banks.
const u32 STRIDE = DEPTH + 8;
struct Shared {
    alignas(16) f16 weights[WEIGHTS][STRIDE];
    alignas(16) f16 x[PAIRS][STRIDE];
    i32 expert, first, count;
};

RF_DEVICE void store_eight(f16* to, const float (&v)[8]) {
    u32 pair[4];
    RF_UNROLL
    for (u32 i = 0; i < 4; ++i) pair[i] = pack_fp16(v[2 * i], v[2 * i + 1]);
    *reinterpret_cast<u32x4*>(to) = make_u32x4(pair[0], pair[1], pair[2], pair[3]);
}

// A cell of a row on its way to LDS: loaded during the arithmetic on what came before, then unpacked in two halves.
template <class F>
struct RowCell {
    F w;
    static RF_MEMBER u32 row_bytes(u32 columns) { return F::row_bytes(cells_of(columns)); }
    RF_MEMBER void load(const u8* row, u32 columns, u32 c) { load_cell(w, row, cells_of(columns), c); }
    RF_MEMBER void unpack(f16* to, u32 half) {
        if (half == 0) w.ready();
        RF_UNROLL
        for (u32 i = 0; i < DEPTH / 8; ++i) {
            u32 s = 2 * half + i / 4, h = i % 4 / 2;
            float scale = w.outer_scale() * w.scale(s, h), v[8];
            float zero = w.outer_min() * w.min(s, h) - scale * float(128 + F::OFFSET);
            RF_UNROLL
            for (u32 j = 0; j < 8; ++j) {
                u32 unsigned_four = F::values(w.four(s, i % 4 * 2 + j / 4)) ^ 0x80808080;
                v[j] = scale * byte_float(unsigned_four, j % 4) + zero;
            }
            store_eight(to + 8 * i, v);
        }
    }
};
template <class T>
struct RowCell<Floats<T>> {
    const T* from;
    i32 left;
    static RF_MEMBER u32 row_bytes(u32 columns) { return sizeof(T) * columns; }
    RF_MEMBER void load(const u8* row, u32 columns, u32 c) {
        from = reinterpret_cast<const T*>(row) + c * CELL, left = columns - c * CELL;
    }
    RF_MEMBER void unpack(f16* to, u32 half) const {
        RF_UNROLL
        for (u32 i = 0; i < DEPTH / 8; ++i) {
            u32 at = half * DEPTH + 8 * i;
            float v[8] = {};
            if (i32(at) < left) {
                RF_UNROLL
                for (u32 j = 0; j < 8; j += 16 / sizeof(T)) {
                    Floats<T> piece = {load_once<u32x4>(from + at + j)};
                    RF_UNROLL
                    for (u32 k = 0; k < 16 / sizeof(T); ++k) v[j + k] = piece.value(k);
                }
            }
            store_eight(to + 8 * i, v);
        }
    }
};

// The part of x (..., columns) that a thread copies to LDS, DEPTH elements of a row at a time.
struct Columns {
    const f16* x;
    i32 row[PIECES];  // or -1
    u32x4 piece[PIECES];
    // The rows of the pairs from `first` on: those of their tokens, or, without an order, their own.
    RF_MEMBER void find(const i32* order, u32 used, i32 first, i32 count) {
        RF_UNROLL
        for (u32 i = 0; i < PIECES; ++i) {
            i32 at = pair(i);
            row[i] = at >= count ? -1 : order ? i32(order[first + at] / used) : first + at;
        }
    }
    RF_MEMBER void load(u32 start, u32 columns) {
        u32 at = start + thread_x() % (DEPTH / 8) * 8;
        RF_UNROLL
        for (u32 i = 0; i < PIECES; ++i) {
            piece[i] = make_u32x4(0, 0, 0, 0);
            if (row[i] >= 0 && at < columns) piece[i] = rocforge::load<u32x4>(x + u64(row[i]) * columns + at);
        }
    }
    static RF_MEMBER u32 pair(u32 i) { return (i * THREADS + thread_x()) / (DEPTH / 8); }
    RF_MEMBER void store(Shared& shared) const {
        RF_UNROLL
        for (u32 i = 0; i < PIECES; ++i)
            *reinterpret_cast<u32x4*>(&shared.x[pair(i)][thread_x() % (DEPTH / 8) * 8]) = piece[i];
    }
};

// Which expert's pairs this tile has. Expert e has the tiles from offsets[e] / PAIRS + e on, of which the last may be
// empty: so a tile finds its expert without a sum over those before.
RF_DEVICE void find_tile(Shared& shared, const i32* offsets, i32 experts, i32 tile) {
    if (thread_x() == 0) shared.count = 0;
    barrier();
    for (i32 e = thread_x(); e < experts; e += THREADS) {
        i32 begin = offsets[e], end = offsets[e + 1], local = tile - (begin / i32(PAIRS) + e);
        if (local < 0 || tile > end / i32(PAIRS) + e) continue;
        shared.expert = e, shared.first = begin + local * i32(PAIRS);
        shared.count = minimum(end - shared.first, i32(PAIRS));
    }
    barrier();
}

template <u32 TILES>
struct Sums {
    Accumulator of[TILES][WEIGHT_TILES];
};

// The products of the first TILES fragments of pairs with the block's rows: this thread unpacks the row at `weights`.
template <u32 TILES>
RF_DEVICE void multiply(Sums<TILES>& sums, Shared& shared, const u8* weights, Columns& x, u32 columns) {
    u32 cells = cells_of(columns);
    RF_UNROLL
    for (u32 p = 0; p < TILES; ++p) {
        RF_UNROLL
        for (u32 n = 0; n < WEIGHT_TILES; ++n) RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i) sums.of[p][n].x[i] = 0;
    }
    RowCell<RF_QTYPE> cell;
    cell.load(weights, columns, 0);
    x.load(0, columns);
    for (u32 c = 0; c < cells; ++c) {
        RF_UNROLL
        for (u32 half = 0; half < 2; ++half) {
            barrier();  // what LDS has has been used
            cell.unpack(shared.weights[thread_x()], half);
            x.store(shared);
            barrier();
            x.load(c * CELL + (half + 1) * DEPTH, columns);
            if (half == 1 && c + 1 < cells) cell.load(weights, columns, c + 1);
            RF_UNROLL_DEPTH
            for (u32 k = 0; k < DEPTH / 16; ++k) {
                u32 at = rematerialize(16 * k);
                Fragment w[WEIGHT_TILES];
                RF_UNROLL
                for (u32 n = 0; n < WEIGHT_TILES; ++n)
                    w[n] = load_fragment(&shared.weights[(wave() * WEIGHT_TILES + n) * 16][at], STRIDE);
                RF_UNROLL
                for (u32 p = 0; p < TILES; ++p) {
                    Fragment a = load_fragment(&shared.x[16 * p][at], STRIDE);
                    RF_UNROLL
                    for (u32 n = 0; n < WEIGHT_TILES; ++n) {
                        multiply_add(sums.of[p][n], a, w[n]);
                        fragments_in_order();
                    }
                }
            }
        }
    }
}

// The row of its matrix that LDS row i has, of a block's first row on. A gated block has 16 rows of gate, the same of
// up, the next 16 of gate and so on, so that a wave has both of a pair.
template <bool GATED>
RF_DEVICE u32 matrix_row(u32 i) {
    return GATED ? i / 32 * 16 + i % 16 : i;
}

// y (pairs, rows), in the order of the pairs, is x @ gate.T + gate_bias, or, gated, with up the activation of both.
template <class T>
struct Launch {
    T* y;
    const f16* x;
    const i32 *order, *offsets;
    u32 used, columns;
    i32 experts;
    Gated m;
};

template <bool GATED, u32 TILES, class T>
RF_DEVICE void multiply_and_store(const Launch<T>& l, Shared& shared, u32 first_row) {
    i32 expert = shared.expert, first = shared.first, count = shared.count;
    u32 row = first_row + matrix_row<GATED>(thread_x());
    const void* matrix = GATED && thread_x() / 16 % 2 ? l.m.up : l.m.gate;
    u64 at = u64(expert) * l.m.step + minimum(i32(row), i32(l.m.rows - 1));
    Columns pairs = {l.x};
    pairs.find(l.order, l.used, first, count);
    Sums<TILES> sums;
    multiply(sums, shared, row_of(matrix, at * RowCell<RF_QTYPE>::row_bytes(l.columns)), pairs, l.columns);
    RF_UNROLL
    for (u32 p = 0; p < TILES; ++p) {
        RF_UNROLL
        for (u32 n = 0; n < WEIGHT_TILES; n += GATED ? 2 : 1) {
            RF_UNROLL
            for (u32 i = 0; i < ELEMENTS; ++i) {
                i32 pair = 16 * p + fragment_row(row_slot(i));
                u32 r = first_row + matrix_row<GATED>((wave() * WEIGHT_TILES + n) * 16) + fragment_column(i);
                if (pair >= count || r >= l.m.rows) continue;
                u64 bias_at = u64(expert) * l.m.rows + r;
                float value = sums.of[p][n].x[i] + (l.m.gate_bias ? l.m.gate_bias[bias_at] : 0.0f);
                if (GATED) {
                    float up = sums.of[p][n + GATED].x[i] + (l.m.up_bias ? l.m.up_bias[bias_at] : 0.0f);
                    value = clamp_fp16(gated(l.m.activation, value, up));
                }
                l.y[u64(first + pair) * l.m.rows + r] = from_float<T>(value);
            }
        }
    }
}

template <bool GATED, class T>
RF_DEVICE void tile_product(const Launch<T>& l) {
    RF_SHARED Shared shared;
    const u32 HEIGHT = GATED ? WEIGHTS / 2 : WEIGHTS;
    u32 runs = (l.m.rows + HEIGHT - 1) / HEIGHT, first_row = block_x() % runs * HEIGHT;
    load_grid<RF_QTYPE>(THREADS);
    find_tile(shared, l.offsets, l.experts, block_x() / runs);
    // no more registers and products than the pairs need
    if (shared.count > 32) return multiply_and_store<GATED, 4>(l, shared, first_row);
    if (shared.count > 16) return multiply_and_store<GATED, 2>(l, shared, first_row);
    if (shared.count > 0) multiply_and_store<GATED, 1>(l, shared, first_row);
}

// float16 (pairs, rows): activation(x @ gate.T + gate_bias, x @ up.T + up_bias) of each pair's token and expert; x is
// (tokens, columns), gate and up (experts, rows, ...), biases (experts, rows). `offsets` may begin at a later expert,
// the first that there are matrices of.
struct ExpertsGatedTilesParams {
    f16* y;
    const f16* x;
    const i32 *order, *offsets;
    u32 used, columns;
    i32 experts;
    Gated matrices;
};

// Grid: rows / (WEIGHTS / 2) times the tiles, of which there are at most pairs / PAIRS + experts: for a second axis
// there may be too many.
RF_KERNEL(THREADS)
rf_experts_gated_tiles(ExpertsGatedTilesParams p) {
    wait_for_previous();
    tile_product<true, f16>({p.y, p.x, p.order, p.offsets, p.used, p.columns, p.experts, p.matrices});
}

// float32 (pairs, rows): x @ w.T + bias, x being (pairs, columns) in the pairs' order. Grid: rows / WEIGHTS times
// tiles.
RF_KERNEL(THREADS)
rf_experts_down_tiles(float* y, const f16* x, const i32* offsets, i32 experts, const u8* w, const float* bias, i32 rows,
                      u32 columns) {
    wait_for_previous();
    Gated m = {w, nullptr, bias, nullptr, u32(rows), u32(rows), 0};
    tile_product<false, float>({y, x, nullptr, offsets, 1, columns, experts, m});
}

}  // namespace rocforge
