// Products of one to eight columns with packed weights: y = x @ w.T.
//
// Compiled with QTYPE, the weights' format (a struct of quants.h, or Floats<f16>, Floats<bf16>, Floats<float>),
// QTYPE_LAST, that of the last matrix of a launch, where it differs, and COLUMNS.
//
// A group of 8, 16 or 32 lanes computes ROWS rows at a time. Each lane takes every lanes'th cell of a row: it loads all
// of the cell, of all its rows, then the columns' cell, so that many independent loads are in flight. A launch covers up
// to three matrices of equal row length, whose rows are laid end to end over the grid.
#include "quants.h"

// variants: QTYPE=Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_NL,IQ4_XS,MXFP4 COLUMNS=1
// variants: QTYPE=Floats<float>,Floats<f16>,Floats<bf16> COLUMNS=1,8
// variants: QTYPE=Q4_K,Q6_K,Q8_0 COLUMNS=2,4,8
// variants: QTYPE=Q4_K QTYPE_LAST=Q6_K COLUMNS=1
const u32 THREADS = 128, ROWS = COLUMNS == 1 ? 1 : 2;
const u32 GATED_THREADS = 256, GATED_LANES = 8;
#if COLUMNS == 1
// more threads a multiprocessor where a cell is few registers
#define MATVEC KERNEL_WIDE(THREADS, sizeof(QTYPE) <= 96 ? 768 : 512)
#define MATVEC_GATED KERNEL_WIDE(GATED_THREADS, 512)
#else
#define MATVEC KERNEL(THREADS)
#define MATVEC_GATED KERNEL(GATED_THREADS)
#endif

// Unpacked weights: a cell is 16 bytes of a row, and a column is floats.
template <class T>
struct Floats {
    static constexpr u32 CELL_ELEMENTS = 16 / sizeof(T);
    u32x4 data;
    static MEMBER u32 row_bytes(u32 cells) { return 16 * cells; }
    MEMBER void load(const u8* row, u32, u32 c) { data = load_once<u32x4>(row + 16 * c); }
    MEMBER float value(u32 i) const {
        if constexpr (sizeof(T) == 4) {
            return bits_float(element(data, i));
        } else {
            return to_float(T{u16(element(data, i / 2) >> 16 * (i % 2))});
        }
    }
};

template <class T>
struct FloatColumn {
    static constexpr u32 N = 16 / sizeof(T);
    float value[N];
    MEMBER void load(const u8* column, u32, u32 c) {
        UNROLL
        for (u32 i = 0; i < N; i += 4) {
            f32x4 v = ::load<f32x4>(column + 4 * (N * c + i));
            value[i] = v.x, value[i + 1] = v.y, value[i + 2] = v.z, value[i + 3] = v.w;
        }
    }
};

template <class F>
struct ColumnOf {
    typedef Activation type;
    static MEMBER u32 bytes(u32 cells) { return activation_bytes(cells); }
};
template <class T>
struct ColumnOf<Floats<T>> {
    typedef FloatColumn<T> type;
    static MEMBER u32 bytes(u32 cells) { return 4 * FloatColumn<T>::N * cells; }
};

template <class T>
DEVICE float dot(const Floats<T>& w, const FloatColumn<T>& x) {
    float sum = 0.0f;
    UNROLL
    for (u32 i = 0; i < FloatColumn<T>::N; ++i) sum += w.value(i) * x.value[i];
    return sum;
}

template <class F>
DEVICE float dot(const F& w, const Activation& x) {
    float total = 0.0f, mins = 0.0f;
    UNROLL
    for (u32 s = 0; s < 4; ++s) {
        float part = 0.0f, min_part = 0.0f;
        i32 products = 0, sums = 0;
        UNROLL
        for (u32 h = 0; h < 2; ++h) {
            if (F::HALVES || h == 0) products = 0, sums = 0;
            if (F::OFFSET || F::MINS) sums += x.sum(s, h);
            UNROLL
            for (u32 t = 0; t < 4; ++t) products = dot4(w.values(s, 4 * h + t), element(x.q[2 * s + h], t), products);
            if (F::HALVES || h == 1) {
                part += w.scale(s, h) * float(products - F::OFFSET * sums);
                if (F::MINS) min_part += w.min(s, h) * float(sums);
            }
        }
        total += element(x.scale, s) * part;
        if (F::MINS) mins += element(x.scale, s) * min_part;
    }
    return w.outer_scale() * total + w.outer_min() * mins;
}

// Sums of the products of N rows with the columns, over the cells first, first + step, ...
template <class F, u32 N>
DEVICE void accumulate(float (&sum)[N][COLUMNS], const u8* const (&row)[N], const u8* x, u32 cells, u32 first,
                       u32 step) {
    for (u32 c = first; c < cells; c += step) {
        F w[N];
        UNROLL
        for (u32 r = 0; r < N; ++r) w[r].load(row[r], cells, c);
        UNROLL
        for (u32 k = 0; k < COLUMNS; ++k) {
            typename ColumnOf<F>::type column;
            column.load(x + k * ColumnOf<F>::bytes(cells), cells, c);
            UNROLL
            for (u32 r = 0; r < N; ++r) sum[r][k] += dot(w[r], column);
        }
    }
}

template <u32 N>
DEVICE void reduce_group(float (&sum)[N][COLUMNS], u32 lanes) {
    UNROLL
    for (u32 r = 0; r < N; ++r) {
        UNROLL
        for (u32 k = 0; k < COLUMNS; ++k) {
            sum[r][k] = reduce_lanes<8>(sum[r][k], Add());
            if (lanes > 8) sum[r][k] += shuffle_xor<8>(sum[r][k]);
            if (lanes > 16) sum[r][k] += shuffle_xor<16>(sum[r][k]);
        }
    }
}

// One matrix of a launch; bias and residual may be null. residual and y are (COLUMNS, rows).
struct Matrix {
    const u8* w;
    const float *bias, *residual;
    float* y;
    u32 rows;
};

template <class F>
DEVICE void product(const Matrix& m, const u8* x, u32 cells, u32 log_lanes, u32 block) {
    u32 group = thread_x() >> log_lanes, lanes = 1 << log_lanes, rank = thread_x() & (lanes - 1);
    u32 first = ((block * THREADS >> log_lanes) + group) * ROWS;
    const u8* row[ROWS];
    UNROLL
    for (u32 r = 0; r < ROWS; ++r) row[r] = m.w + u64(minimum(i32(first + r), i32(m.rows - 1))) * F::row_bytes(cells);
    float sum[ROWS][COLUMNS] = {};
    accumulate<F, ROWS>(sum, row, x, cells, rank, lanes);
    reduce_group<ROWS>(sum, lanes);
    UNROLL
    for (u32 r = 0; r < ROWS; ++r) {
        UNROLL
        for (u32 k = 0; k < COLUMNS; ++k) {
            if (rank != ((r * COLUMNS + k) & (lanes - 1)) || first + r >= m.rows) continue;
            u64 at = u64(k) * m.rows + first + r;
            float value = sum[r][k];
            if (m.bias) value += m.bias[first + r];
            if (m.residual) value += m.residual[at];
            m.y[at] = value;
        }
    }
}

DEVICE u32 blocks_of(u32 rows, u32 log_lanes) {
    return ((rows + ROWS - 1) / ROWS * (1 << log_lanes) + THREADS - 1) / THREADS;
}

MATVEC
matvec(const u8* x, i32 cells, i32 log_lanes, const u8* w0, const float* bias0, float* y0, i32 rows0, const u8* w1,
       const float* bias1, float* y1, i32 rows1, const u8* w2, const float* bias2, float* y2, i32 rows2,
       const float* residual) {
    u32 block = block_x(), blocks0 = blocks_of(rows0, log_lanes), blocks1 = blocks_of(rows1, log_lanes);
    Matrix m = {w0, bias0, residual, y0, u32(rows0)};
    bool last = block >= blocks0 + blocks1;
    if (last) {
        block -= blocks0 + blocks1;
        m = {w2, bias2, nullptr, y2, u32(rows2)};
    } else if (block >= blocks0) {
        block -= blocks0;
        m = {w1, bias1, nullptr, y1, u32(rows1)};
    }
#ifdef QTYPE_LAST
    if (last) return product<QTYPE_LAST>(m, x, cells, log_lanes, block);
#endif
    product<QTYPE>(m, x, cells, log_lanes, block);
}

enum { SWIGLU, GEGLU, SWIGLU_OAI };

DEVICE float sigmoid(float x) { return fast_reciprocal(1.0f + fast_exp(-x)); }

DEVICE float gated(i32 activation, float gate, float up) {
    if (activation == SWIGLU) return gate * sigmoid(gate) * up;
    if (activation == GEGLU) {
        float inner = 0.7978845608028654f * gate * (1.0f + 0.044715f * gate * gate);
        return 0.5f * gate * (1.0f + fast_tanh(inner)) * up;
    }
    gate = minimum(gate, 7.0f);
    up = maximum(minimum(up, 7.0f), -7.0f);
    return gate * sigmoid(1.702f * gate) * (up + 1.0f);
}

// activation(x @ gate.T + gate_bias, x @ up.T + up_bias), to y (COLUMNS, rows), or to int8 columns of `out_cells` cells
// for the product that follows, or both; either may be null. A group takes the same row of both matrices, so that a
// block of 8-lane groups has 32 rows: one scale. Blocks past the last row fill up the last cell with zeros.
MATVEC_GATED
matvec_gated(const u8* x, i32 cells, const u8* gate, const u8* up, const float* gate_bias, const float* up_bias,
             float* y, u8* rounded, i32 out_cells, i32 rows, i32 activation) {
    __shared__ float results[COLUMNS][32];
    u32 rank = thread_x() % GATED_LANES, group = thread_x() / GATED_LANES, row = 32 * block_x() + group;
    u64 offset = u64(minimum(i32(row), rows - 1)) * QTYPE::row_bytes(cells);
    const u8* pair[2] = {gate + offset, up + offset};
    float sum[2][COLUMNS] = {};
    accumulate<QTYPE, 2>(sum, pair, x, cells, rank, GATED_LANES);
    reduce_group<2>(sum, GATED_LANES);
    UNROLL
    for (u32 k = 0; k < COLUMNS; ++k) {
        if (rank != k) continue;
        float value = 0.0f;
        if (row < u32(rows)) {
            float g = sum[0][k] + (gate_bias ? gate_bias[row] : 0.0f), u = sum[1][k] + (up_bias ? up_bias[row] : 0.0f);
            value = gated(activation, g, u);
            if (y) y[u64(k) * rows + row] = value;
        }
        results[k][group] = value;
    }
    if (!rounded) return;
    barrier();
    if (wave() * WAVE >= 8 * COLUMNS) return;
    u32 k = thread_x() / 8, at = 4 * (thread_x() % 8);
    const float* v = results[k < COLUMNS ? k : 0] + at;
    // lanes past the last column write nothing: their element is past the end
    u32 to = k < COLUMNS ? 32 * block_x() + at : out_cells * CELL;
    store_activation(rounded + u64(k) * activation_bytes(out_cells), out_cells, to, make_f32x4(v[0], v[1], v[2], v[3]));
}
