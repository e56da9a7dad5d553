// Products of up to RF_TOKENS tokens with packed weights: y = x @ w.T. Of fewer, the last is computed again and
// dropped.
//
// Compiled with RF_QTYPE, the weights' format (a struct of quants.h, or Floats<f16>, Floats<bf16>, Floats<float>),
// RF_QTYPE_LAST, that of the last matrix of a launch, where it differs, RF_TOKENS (1, 2, 4 or 8), and, by the card's
// tuning, RF_ROWS and RF_GATED_ROWS.
//
// A group of 8, 16 or 32 lanes computes RF_ROWS rows at a time. Each lane takes every lanes'th cell of a row: it loads
// all of the cell, of all its rows, then the tokens' cell, so that many independent loads are in flight. A launch
// covers up to four matrices of equal row length, whose rows are laid end to end over the grid.
#include "products.h"

namespace rocforge {

// variants: RF_QTYPE=PLANAR RF_TOKENS=1
// variants: RF_QTYPE=Floats<float>,Floats<f16>,Floats<bf16> RF_TOKENS=1
// variants: RF_QTYPE=KINDS RF_TOKENS=2
// variants: RF_QTYPE=Floats<float>,Floats<f16>,Floats<bf16> RF_TOKENS=2
// variants: RF_QTYPE=KINDS RF_TOKENS=4
// variants: RF_QTYPE=Floats<float>,Floats<f16>,Floats<bf16> RF_TOKENS=4
// variants: RF_QTYPE=KINDS RF_TOKENS=8
// variants: RF_QTYPE=Floats<float>,Floats<f16>,Floats<bf16> RF_TOKENS=8
// variants: RF_QTYPE=Q4_K RF_QTYPE_LAST=Q6_K RF_TOKENS=1
// variants: RF_QTYPE=Q4_K RF_QTYPE_LAST=Q6_K RF_TOKENS=2
const u32 THREADS = RF_TUNE_GEMV_THREADS;
#if RF_TOKENS == 1
// more threads a multiprocessor where a cell is few registers
const u32 RESIDENT =
    sizeof(RF_QTYPE) <= RF_TUNE_GEMV_NARROW_NBYTES ? RF_TUNE_GEMV_RESIDENT_NARROW : RF_TUNE_GEMV_RESIDENT;
#define RF_MATVEC RF_KERNEL_WIDE(THREADS, RESIDENT)
#else
#define RF_MATVEC RF_KERNEL(THREADS)
#endif

// x is (tokens, columns), in int8 (tokens, cells) or floats. A residual, of the shape of the first result, is added to
// that. Of more than one token the norm is complete: its squares are null.
struct GemvParams {
    const void* x;
    RF_NULLABLE const float* squares;
    u32 columns;
    float eps;
    u32 tokens, cells, log_lanes;
    Matrix matrices[4];
    RF_NULLABLE const float* residual;
};

template <class F>
RF_DEVICE void product(const GemvParams& p, const Matrix& m, u32 number, u32 block) {
    const float* residual = number == 0 ? p.residual : nullptr;
    Norm norm = {RF_TOKENS == 1 ? p.squares : nullptr, p.columns, p.eps};
    float share = 0.0f;
    auto begin = [&] {
        load_grid<F>(THREADS);
        wait_for_previous();
        share = norm.share<THREADS>();
    };
    auto factor = [&] { return norm.factor<THREADS>(share); };
    auto store = [&](u32 row, u32 k, float value) {
        u64 at = u64(k) * m.rows + row;
        if (m.bias) value += m.bias[row];
        if (residual) value += residual[at];
        m.y[at] = value;
    };
    TokensInRow<F> x = {row_of(p.x, 0), p.tokens, p.cells};
    rows_product<F, THREADS>(m.w, m.rows, x, p.cells, p.log_lanes, block, begin, factor, store);
}

RF_MATVEC
rf_matvec(GemvParams p) {
    auto blocks_of = [&](u32 rows) {
        return ((rows + RF_ROWS - 1) / RF_ROWS * (1 << p.log_lanes) + THREADS - 1) / THREADS;
    };
    u32 block = block_x(), number;
    Matrix m = matrix_of(block, number, p.matrices, blocks_of);
#ifdef RF_QTYPE_LAST
    if (number == LAST_MATRIX) return product<RF_QTYPE_LAST>(p, m, LAST_MATRIX, block);
#endif
    product<RF_QTYPE>(p, m, number, block);
}

// As `gated_product`; x as in GemvParams.
struct GemvGatedParams {
    const void* x;
    RF_NULLABLE const float* squares;
    u32 columns;
    float eps;
    u32 tokens, cells;
    Gated matrices;
    GatedOutput out;
};
RF_MATVEC_GATED
rf_matvec_gated(GemvGatedParams p) {
    Norm norm = {RF_TOKENS == 1 ? p.squares : nullptr, p.columns, p.eps};
    gated_product(p.matrices, TokensInRow<RF_QTYPE>{row_of(p.x, 0), p.tokens, p.cells}, norm, p.cells, p.out);
}

#if RF_TOKENS == 1
const u32 RUN = 32;  // rows of a block

// y = x @ w.T + bias + residual of one token, and what the norm that follows makes of it but for its factor: y times
// that norm's weight in int8, and for each 32 elements the sum of y's squares. Bias and residual may be null. A block
// of RUN << log_lanes threads has RUN rows; blocks past the last row fill up the last cell with zeros.
RF_KERNEL_WIDE(RF_TUNE_THEN_NORM_THREADS, RF_TUNE_GEMV_RESIDENT)
rf_matvec_then_norm(const u8* x, i32 cells, i32 log_lanes, const u8* w, const float* bias, const float* residual,
                    float* y, i32 rows, const float* weight, u8* quantized, i32 out_cells, float* squares) {
    RF_SHARED struct {
        alignas(16) float y[RUN], scaled[RUN];
    } results;
    u32 group = thread_x() >> log_lanes, lanes = 1 << log_lanes, rank = thread_x() & (lanes - 1);
    i32 r = RUN * block_x() + group, within = minimum(r, rows - 1);
    const u8* row[1] = {w + u64(within) * RF_QTYPE::row_bytes(cells)};
    float sum[1][1] = {}, before = 0.0f, scale = load_early(weight + within), offset = 0.0f;
    if (bias) offset = load_early(bias + within);
    TokensInRow<RF_QTYPE> token = {x, 1, u32(cells)};
    accumulate<RF_QTYPE, 1, RF_TUNE_THEN_NORM_AHEAD_NBYTES>(sum, row, token, cells, rank, lanes, [&] {
        load_grid<RF_QTYPE>(RUN << log_lanes);
        wait_for_previous();
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
    store_activation(quantized, out_cells, at < RUN ? RUN * block_x() + at : out_cells * CELL, scaled);
}
#endif

}  // namespace rocforge
