// Products of up to RF_TOKENS columns with packed weights: y = x @ w.T. Of fewer, the last is computed again and
// dropped.
//
// Compiled with RF_QTYPE, the weights' format (a struct of quants.h, or Floats<f16>, Floats<bf16>, Floats<float>),
// RF_QTYPE_LAST, that of the last matrix of a launch, where it differs, RF_TOKENS (1, 2, 4 or 8), and, by the card's
// tuning, RF_ROWS and RF_GATED_ROWS.
//
// A group of 8, 16 or 32 lanes computes RF_ROWS rows at a time. Each lane takes every lanes'th cell of a row: it loads
// all of the cell, of all its rows, then the columns' cell, so that many independent loads are in flight. A launch
// covers up to three matrices of equal row length, whose rows are laid end to end over the grid.
#include "products.h"

namespace rocforge {

// variants: RF_QTYPE=PLANAR RF_TOKENS=1
// variants: RF_QTYPE=Floats<float>,Floats<f16>,Floats<bf16> RF_TOKENS=1
// variants: RF_QTYPE=PLANAR RF_TOKENS=2
// variants: RF_QTYPE=Floats<float>,Floats<f16>,Floats<bf16> RF_TOKENS=2
// variants: RF_QTYPE=PLANAR RF_TOKENS=4
// variants: RF_QTYPE=Floats<float>,Floats<f16>,Floats<bf16> RF_TOKENS=4
// variants: RF_QTYPE=PLANAR RF_TOKENS=8
// variants: RF_QTYPE=Floats<float>,Floats<f16>,Floats<bf16> RF_TOKENS=8
// variants: RF_QTYPE=Q4_K RF_QTYPE_LAST=Q6_K RF_TOKENS=1
// variants: RF_QTYPE=Q4_K RF_QTYPE_LAST=Q6_K RF_TOKENS=2
const u32 THREADS = RF_TUNE_GEMV_THREADS;
#if RF_TOKENS == 1
// more threads a multiprocessor where a cell is few registers
#define RF_MATVEC                                                                                         \
    RF_KERNEL_WIDE(THREADS, sizeof(RF_QTYPE) <= RF_TUNE_GEMV_NARROW_NBYTES ? RF_TUNE_GEMV_RESIDENT_NARROW \
                                                                           : RF_TUNE_GEMV_RESIDENT)
#else
#define RF_MATVEC RF_KERNEL(THREADS)
#endif

template <class F>
RF_DEVICE void product(const Matrix& m, const float* residual, const u8* x, const Norm& norm, u32 columns, u32 cells,
                       u32 log_lanes, u32 block) {
    u32 group = thread_x() >> log_lanes, lanes = 1 << log_lanes, rank = thread_x() & (lanes - 1);
    u32 first = ((block * THREADS >> log_lanes) + group) * RF_ROWS;
    const u8* row[RF_ROWS];
    RF_UNROLL
    for (u32 r = 0; r < RF_ROWS; ++r)
        row[r] = m.w + u64(minimum(i32(first + r), i32(m.rows - 1))) * F::row_bytes(cells);
    float sum[RF_ROWS][RF_TOKENS] = {}, share = 0.0f;
    accumulate<F, RF_ROWS>(sum, row, x, columns, cells, rank, lanes, [&] { share = norm.share<THREADS>(); });
    reduce_group<RF_ROWS>(sum, lanes);
    float factor = norm.factor<THREADS>(share);
    RF_UNROLL
    for (u32 r = 0; r < RF_ROWS; ++r) {
        RF_UNROLL
        for (u32 k = 0; k < RF_TOKENS; ++k) {
            if (rank != ((r * RF_TOKENS + k) & (lanes - 1)) || first + r >= m.rows || k >= columns) continue;
            u64 at = u64(k) * m.rows + first + r;
            float value = factor * sum[r][k];
            if (m.bias) value += m.bias[first + r];
            if (m.number == 0 && residual) value += residual[at];
            m.y[at] = value;
        }
    }
}

// Of more than one column the norm is complete: its squares are null.
RF_MATVEC
rf_matvec(const u8* x, const float* squares, i32 n, float eps, i32 columns, i32 cells, i32 log_lanes, const u8* w0,
          const float* bias0, float* y0, i32 rows0, const u8* w1, const float* bias1, float* y1, i32 rows1,
          const u8* w2, const float* bias2, float* y2, i32 rows2, const float* residual) {
    auto blocks_of = [&](u32 rows) {
        return ((rows + RF_ROWS - 1) / RF_ROWS * (1 << log_lanes) + THREADS - 1) / THREADS;
    };
    u32 block = block_x();
    Norm norm = {RF_TOKENS == 1 ? squares : nullptr, u32(n), eps};
    Matrix m = matrix_of(block, {w0, bias0, y0, u32(rows0), 0}, {w1, bias1, y1, u32(rows1), 1},
                         {w2, bias2, y2, u32(rows2), 2}, blocks_of);
#ifdef RF_QTYPE_LAST
    if (m.number == 2) return product<RF_QTYPE_LAST>(m, residual, x, norm, columns, cells, log_lanes, block);
#endif
    product<RF_QTYPE>(m, residual, x, norm, columns, cells, log_lanes, block);
}

// As `gated_product`.
RF_MATVEC_GATED
rf_matvec_gated(const u8* x, const float* squares, i32 n, float eps, i32 columns, i32 cells, const u8* gate,
                const u8* up, const float* gate_bias, const float* up_bias, float* y, u8* rounded, i32 out_cells,
                i32 rows, i32 activation) {
    Norm norm = {RF_TOKENS == 1 ? squares : nullptr, u32(n), eps};
    gated_product({gate, up, gate_bias, up_bias, u32(rows), activation}, x, norm, columns, cells, y, rounded,
                  out_cells);
}

#if RF_TOKENS == 1
const u32 RUN = 32;  // rows of a block

// y = x @ w.T + bias + residual of one column, and what the norm that follows makes of it but for its factor: y times
// that norm's weight in int8, and for each 32 elements the sum of y's squares. Bias and residual may be null. A block
// of RUN << log_lanes threads has RUN rows; blocks past the last row fill up the last cell with zeros.
RF_KERNEL_WIDE(RF_TUNE_THEN_NORM_THREADS, RF_TUNE_GEMV_RESIDENT)
rf_matvec_then_norm(const u8* x, i32 cells, i32 log_lanes, const u8* w, const float* bias, const float* residual,
                    float* y, i32 rows, const float* weight, u8* rounded, i32 out_cells, float* squares) {
    RF_SHARED struct {
        alignas(16) float y[RUN], scaled[RUN];
    } results;
    u32 group = thread_x() >> log_lanes, lanes = 1 << log_lanes, rank = thread_x() & (lanes - 1);
    i32 r = RUN * block_x() + group, within = minimum(r, rows - 1);
    const u8* row[1] = {w + u64(within) * RF_QTYPE::row_bytes(cells)};
    float sum[1][1] = {}, before = 0.0f, scale = load_early(weight + within), offset = 0.0f;
    if (bias) offset = load_early(bias + within);
    accumulate<RF_QTYPE, 1>(sum, row, x, 1, cells, rank, lanes, [&] {
        if (residual) before = load_early(residual + within);
    });
    reduce_group<1>(sum, lanes);
    if (rank == 0) {
        float value = r < rows ? sum[0][0] + offset + before : 0.0f;
        if (r < rows) y[r] = value;
        results.y[group] = value, results.scaled[group] = value * scale;
    }
    barrier();
    if (wave() > 0) return;
    // four values a lane of the first eight; the others' are past the end
    u32 at = 4 * thread_x(), from = at % RUN;
    f32x4 v = load<f32x4>(results.y + from), scaled = load<f32x4>(results.scaled + from);
    float square = reduce_lanes<RUN / 4>(v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w, Add());
    if (at == 0 && i32(RUN * block_x()) < rows) squares[block_x()] = square;
    store_activation(rounded, out_cells, at < RUN ? RUN * block_x() + at : out_cells * CELL, scaled);
}
#endif

}  // namespace rocforge
