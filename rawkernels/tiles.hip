// Products of 8 and more tokens with packed weights on the matrix unit: y = x @ w.T.
//
// Compiled as tiles.h, with RF_TOKENS of 128 for any number of tokens, and with RF_QTYPE_LAST, the format of the last
// matrix of a launch, where it differs.
#include "tiles.h"

namespace rocforge {

// variants: RF_QTYPE=KINDS RF_TOKENS=8 RF_ROW_WAVES=1
// variants: RF_QTYPE=Q8_0,Q4_K,Q6_K RF_TOKENS=32 RF_ROW_WAVES=4
// variants: RF_QTYPE=Q8_0,Q4_K,Q6_K RF_TOKENS=64 RF_ROW_WAVES=2
// variants: RF_QTYPE=Q4_K RF_QTYPE_LAST=Q6_K RF_TOKENS=16 RF_ROW_WAVES=1
// variants: RF_QTYPE=Q8_0,Q4_K,Q6_K RF_TOKENS=128
// targets: gfx908 gfx90a gfx942 gfx950 gfx1100 gfx1101 gfx1102 gfx1103 gfx1150 gfx1151 gfx1152 gfx1200 gfx1201
// The tokens of the block, where a launch has several times RF_TOKENS of them.
struct Tokens {
    const u8* x;
    u32 first, count;
};
RF_DEVICE Tokens tokens_of(const u8* x, u32 tokens, u32 cells) {
    if (!STAGED) return {x, 0, tokens};
    return {x + block_y() * u64(fragments_bytes(RF_TOKENS, cells)), block_y() * RF_TOKENS, tokens};
}

// x as `store_fragments` leaves it. A residual, of the shape of the first result, is added to that.
struct TileParams {
    const u8* x;
    u32 tokens, cells;
    Matrix matrices[4];
    RF_NULLABLE const float* residual;
};

template <class F>
RF_DEVICE void product(Shared& shared, const TileParams& p, const Matrix& m, u32 number, u32 block) {
    const u32 height = 16 * TILES;
    u32 run = wave() % RF_ROW_WAVES, first = block * RF_ROW_WAVES * height;
    Position at = first_run(p.cells, [&](u32 r) {
        return row_of(m.w, u64(minimum(i32(first + run * height + r), i32(m.rows - 1))) * F::row_bytes(p.cells));
    });
    Position none = at;
    none.number = p.cells;
    Cells<F> w;
    w.load(at);
    load_grid<F>(THREADS);
    wait_for_previous();
    Tokens tokens = tokens_of(p.x, p.tokens, p.cells);
    Sums sums = multiply(w, at, none, fragments_of(shared, tokens.x));
    RF_UNROLL
    for (u32 n = 0; n < TOKEN_TILES; ++n) {
        share(shared.sums, sums, n);
        RF_NO_UNROLL
        for (u32 i = thread_x(); i < RF_ROW_WAVES * height * 16; i += THREADS) {
            u32 within = i % (RF_ROW_WAVES * height), r = first + within;
            u32 k = tokens.first + 16 * n + i / (RF_ROW_WAVES * height);
            if (k >= tokens.count || r >= m.rows) continue;
            float value = summed(shared.sums, within / height, k % 16, within % height);
            u64 at = u64(k) * m.rows + r;
            if (m.bias) value += m.bias[r];
            if (number == 0 && p.residual) value += p.residual[at];
            m.y[at] = value;
        }
    }
}

RF_KERNEL_WIDE(THREADS, RESIDENT)
rf_tile_products(TileParams p) {
    RF_SHARED Shared shared;
    const u32 height = RF_ROW_WAVES * 16 * TILES;
    u32 block = block_x(), number;
    Matrix m = matrix_of(block, number, p.matrices, [](u32 rows) { return (rows + height - 1) / height; });
#ifdef RF_QTYPE_LAST
    if (number == LAST_MATRIX) return product<RF_QTYPE_LAST>(shared, p, m, LAST_MATRIX, block);
#endif
    product<RF_QTYPE>(shared, p, m, number, block);
}

// As `gated_product` of products.h, where what is quantized are fragments; a wave has the same rows of gate and up:
// half of its own each. Rows past the last fill up the last cell with zeros. Each of the grid's blocks takes several of
// the launch's, and begins to load the next while its waves' sums meet.
struct TileGatedParams {
    const u8* x;
    u32 tokens, cells;
    Gated matrices;
    GatedOutput out;
    u32 grid;
};
RF_KERNEL_WIDE(THREADS, RESIDENT)
rf_tile_gated(TileGatedParams p) {
    RF_SHARED Shared shared;
    const Gated& m = p.matrices;
    const u32 own = 8 * TILES, height = RF_ROW_WAVES * own;  // rows of either matrix that a wave takes, and a block
    u32 run = wave() % RF_ROW_WAVES, end = p.out.quantized ? p.out.cells * CELL : m.rows;
    i64 to_up =
        row_of(m.up, 0) -
        row_of(m.gate, 0);  // AMD's compiler makes a choice of pointers one between places in scratch that hold them
    auto run_of = [&](u32 first) {
        Position at = first_run(p.cells, [&](u32 r) {
            return row_of(m.gate, r < own ? 0 : to_up) +
                   u64(minimum(i32(first + run * own + r % own), i32(m.rows - 1))) * RF_QTYPE::row_bytes(p.cells);
        });
        if (first >= end) at.number = p.cells;
        return at;
    };
    Tokens tokens = tokens_of(p.x, p.tokens, p.cells);
    Position at = run_of(block_x() * height);
    Cells<RF_QTYPE> w;
    w.load(at);
    load_grid<RF_QTYPE>(THREADS);
    wait_for_previous();
    for (u32 first = block_x() * height; first < end; first += p.grid * height) {
        Position next = run_of(first + p.grid * height);
        Sums sums = multiply(w, at, next, fragments_of(shared, tokens.x));
        at = next;
        RF_UNROLL
        for (u32 n = 0; n < TOKEN_TILES; ++n) {
            share(shared.sums, sums, n);
            RF_NO_UNROLL
            for (u32 i = thread_x(); i < height * 16; i += THREADS) {
                u32 within = i % height, k = tokens.first + 16 * n + i / height, r = first + within;
                if (k >= tokens.count) continue;
                float value = 0.0f;
                if (r < m.rows) {
                    float g = summed(shared.sums, within / own, k % 16, within % own);
                    float u = summed(shared.sums, within / own, k % 16, own + within % own);
                    if (m.gate_bias) g += m.gate_bias[r];
                    if (m.up_bias) u += m.up_bias[r];
                    value = gated(m.activation, g, u);
                    if (p.out.y) p.out.y[u64(k) * m.rows + r] = value;
                }
                if (p.out.quantized) store_fragment(p.out.quantized, RF_TOKENS, p.out.cells, k, r, value);
            }
        }
    }
}

}  // namespace rocforge
