// Each head's row times its own matrix, of few tokens.
//
// Blocks round x to int8 themselves: a head's row is short, and a launch that does it would take longer than this one.
// Compiled with RF_QTYPE, the weights' format, which has planes.
#define RF_TOKENS 1
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "fours.h"
#include "products.h"

namespace rocforge {

// variants: RF_QTYPE=KINDS

// A group of lanes has ROWS rows, or, where half of its lanes have all cells of a row, twice as many.
const u32 GROUPS = GATED_THREADS / GATED_LANES, ROWS = 2, MOST_ROWS = 2 * ROWS, MOST_CELLS = 8;

// From x (tokens, heads, columns), of up to MOST_CELLS cells, and w (heads, rows, ...): y (tokens, heads, rows), or
// what the product that follows takes of (tokens, heads * rows), rows being a multiple of 32; the other is null.
struct HeadLinearParams {
    const float* x;
    const void* w;
    RF_NULLABLE float* y;
    RF_NULLABLE u8* quantized;
    u32 width, cells;  // as in Quantized
    u32 columns, heads, rows, step;
};

// A row, in int8 to LDS. The whole block takes part.
RF_DEVICE void round_row(u8* to, const float* x, u32 columns, u32 cells) {
    for (u32 from = wave() * RF_WAVE; 4 * from < cells * CELL; from += GATED_THREADS) {
        u32 k = 4 * (from + lane());
        store_activation(to, cells, k, load4(x, k, columns));
    }
}

// Grid: (step, tokens * heads). A block takes several runs of rows, `step` apart.
RF_MATVEC_GATED
rf_head_linear(HeadLinearParams p) {
    load_grid<RF_QTYPE>(GATED_THREADS);
    RF_SHARED struct {
        alignas(16) u8 x[16 * ACTIVATION_PLANES * MOST_CELLS];
        alignas(16) float results[GROUPS * MOST_ROWS];
    } shared;
    u32 cells = (p.columns + CELL - 1) / CELL, pair = block_y(), head = pair % p.heads;
    bool halves = cells <= GATED_LANES / 2, rounded = false;
    u32 lanes = halves ? GATED_LANES / 2 : GATED_LANES, of_group = halves ? MOST_ROWS : ROWS;
    u32 rank = thread_x() % lanes, together = GROUPS * of_group;
    u32 own = thread_x() / GATED_LANES * of_group + thread_x() % GATED_LANES / lanes * ROWS;
    RowsOut out = {p.y, nullptr, {p.quantized, p.width, p.cells}, p.heads * p.rows};
    for (u32 first = together * block_x(); first < p.rows; first += together * p.step) {
        const u8* w[ROWS];
        RF_UNROLL
        for (u32 r = 0; r < ROWS; ++r) {
            u32 row = head * p.rows + minimum(i32(first + own + r), i32(p.rows - 1));
            w[r] = row_of(p.w, u64(row) * RF_QTYPE::row_bytes(cells));
        }
        float sum[ROWS][1] = {};
        TokensInRow<RF_QTYPE> x = {shared.x, 1, cells};
        accumulate<RF_QTYPE, ROWS>(sum, w, x, cells, rank, lanes, [&] {
            wait_for_previous();
            if (!rounded) round_row(shared.x, p.x + u64(pair) * p.columns, p.columns, cells);
            rounded = true;
            barrier();
        });
        RF_UNROLL
        for (u32 r = 0; r < ROWS; ++r) {
            sum[r][0] = reduce_lanes<GATED_LANES / 2>(sum[r][0], Add());
            if (!halves) sum[r][0] += shuffle_xor<GATED_LANES / 2>(sum[r][0]);
            if (rank == r) shared.results[own + r] = sum[r][0];
        }
        barrier();
        for (u32 from = wave() * RF_WAVE; 4 * from < together; from += GATED_THREADS) {
            u32 at = 4 * (from + lane());
            bool there = at < together;
            f32x4 v = load<f32x4>(shared.results + (there ? at : 0));
            out.write(pair / p.heads, head * p.rows, p.rows, there ? first + at : p.rows, v);
        }
        barrier();
    }
}

}  // namespace rocforge
