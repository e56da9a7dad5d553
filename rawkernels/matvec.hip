// Products of up to COLUMNS columns with packed weights: y = x @ w.T. Of fewer, the last is computed again and dropped.
//
// Compiled with QTYPE, the weights' format (a struct of quants.h, or Floats<f16>, Floats<bf16>, Floats<float>),
// QTYPE_LAST, that of the last matrix of a launch, where it differs, COLUMNS (1, 2, 4 or 8), and ROWS.
//
// A group of 8, 16 or 32 lanes computes ROWS rows at a time. Each lane takes every lanes'th cell of a row: it loads all
// of the cell, of all its rows, then the columns' cell, so that many independent loads are in flight. A launch covers
// up to three matrices of equal row length, whose rows are laid end to end over the grid.
#include "products.h"

// variants: QTYPE=Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_NL,IQ4_XS,MXFP4 COLUMNS=1 ROWS=1
// variants: QTYPE=Floats<float>,Floats<f16>,Floats<bf16> COLUMNS=1 ROWS=1
// variants: QTYPE=Q4_0,Q8_0,Q4_K,Q5_K,Q6_K,MXFP4,Floats<f16> COLUMNS=4 ROWS=2
// variants: QTYPE=Q4_0,Q8_0,Q4_K,Q5_K,Q6_K,MXFP4,Floats<f16> COLUMNS=8 ROWS=4
// variants: QTYPE=Q4_K QTYPE_LAST=Q6_K COLUMNS=1 ROWS=1
const u32 THREADS = 128;
#if COLUMNS == 1
// more threads a multiprocessor where a cell is few registers
#define MATVEC KERNEL_WIDE(THREADS, sizeof(QTYPE) <= 96 ? 768 : 512)
#else
#define MATVEC KERNEL(THREADS)
#endif

template <class F>
DEVICE void product(const Matrix& m, const float* residual, const u8* x, u32 columns, u32 cells, u32 log_lanes,
                    u32 block) {
    u32 group = thread_x() >> log_lanes, lanes = 1 << log_lanes, rank = thread_x() & (lanes - 1);
    u32 first = ((block * THREADS >> log_lanes) + group) * ROWS;
    const u8* row[ROWS];
    UNROLL
    for (u32 r = 0; r < ROWS; ++r) row[r] = m.w + u64(minimum(i32(first + r), i32(m.rows - 1))) * F::row_bytes(cells);
    float sum[ROWS][COLUMNS] = {};
    accumulate<F, ROWS>(sum, row, x, columns, cells, rank, lanes);
    reduce_group<ROWS>(sum, lanes);
    UNROLL
    for (u32 r = 0; r < ROWS; ++r) {
        UNROLL
        for (u32 k = 0; k < COLUMNS; ++k) {
            if (rank != ((r * COLUMNS + k) & (lanes - 1)) || first + r >= m.rows || k >= columns) continue;
            u64 at = u64(k) * m.rows + first + r;
            float value = sum[r][k];
            if (m.bias) value += m.bias[first + r];
            if (m.number == 0 && residual) value += residual[at];
            m.y[at] = value;
        }
    }
}

MATVEC
matvec(const u8* x, i32 columns, i32 cells, i32 log_lanes, const u8* w0, const float* bias0, float* y0, i32 rows0,
       const u8* w1, const float* bias1, float* y1, i32 rows1, const u8* w2, const float* bias2, float* y2, i32 rows2,
       const float* residual) {
    auto blocks_of = [&](u32 rows) { return ((rows + ROWS - 1) / ROWS * (1 << log_lanes) + THREADS - 1) / THREADS; };
    u32 block = block_x();
    Matrix m = matrix_of(block, {w0, bias0, y0, u32(rows0), 0}, {w1, bias1, y1, u32(rows1), 1},
                         {w2, bias2, y2, u32(rows2), 2}, blocks_of);
#ifdef QTYPE_LAST
    if (m.number == 2) return product<QTYPE_LAST>(m, residual, x, columns, cells, log_lanes, block);
#endif
    product<QTYPE>(m, residual, x, columns, cells, log_lanes, block);
}
// As `gated_product`.
MATVEC_GATED
matvec_gated(const u8* x, i32 columns, i32 cells, const u8* gate, const u8* up, const float* gate_bias,
             const float* up_bias, float* y, u8* rounded, i32 out_cells, i32 rows, i32 activation) {
    gated_product({gate, up, gate_bias, up_bias, u32(rows), activation}, x, columns, cells, y, rounded, out_cells);
}
