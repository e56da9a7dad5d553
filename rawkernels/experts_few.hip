// Mixture of experts, some tokens: products of each expert's matrix with the few tokens that chose it, by dot
// instructions: on the matrix unit, weights would be unpacked for tokens that there are not.
//
// Token-expert pairs are sorted by expert, and cut in tiles of up to RF_TOKENS pairs of one expert. A block multiplies
// a tile with some rows, which it reads once for all of the tile's pairs. Compiled as products.h.
#include "pair_tiles.h"
#include "products.h"

namespace rocforge {

// variants: RF_QTYPE=KINDS RF_TOKENS=2
const u32 THREADS = RF_TUNE_GEMV_THREADS;

// x is int8 rows; of pair i of the order it is row order[i] / used, or without an order i itself. tiles: their number,
// and what load_tile reads.
struct FewPairs {
    const u8* x;
    RF_NULLABLE const i32* order;
    const i32* tiles;
    u32 used, cells;
};

RF_DEVICE TokensAnywhere tokens_of(const FewPairs& p, const PairTile& tile) {
    TokensAnywhere x;
    x.count = tile.count;
    RF_UNROLL
    for (u32 k = 0; k < RF_TOKENS; ++k) {
        i32 pair = tile.first + minimum(i32(k), tile.count - 1);
        x.at[k] = p.x + u64(p.order ? p.order[pair] / p.used : pair) * activation_bytes(p.cells);
    }
    return x;
}

// activation(x @ gate.T + gate_bias, x @ up.T + up_bias) of each pair's token and expert, as `gated_product`, to int8
// rows in the pairs' order. gate and up are (experts, step, ...), biases (experts, rows).
struct ExpertsGatedFewParams {
    FewPairs pairs;
    Gated matrices;
    GatedOutput out;
};

// Grid: (rows / BLOCK_ROWS, tiles).
RF_MATVEC_GATED
rf_experts_gated_few(ExpertsGatedFewParams p) {
    wait_for_previous();  // which listed the tiles
    if (block_y() >= u32(p.pairs.tiles[0])) return;
    PairTile tile = load_tile(p.pairs.tiles, block_y());
    Gated own = gated_of(p.matrices, tile.expert, p.pairs.cells);
    gated_product(own, tokens_of(p.pairs, tile), {}, p.pairs.cells, p.out, tile.first);
}

// y (pairs, rows) = x @ w.T + bias of each pair's expert, in the pairs' order; w is (experts, rows, ...), bias
// (experts, rows) or null. A group of lanes has RF_ROWS rows.
struct ExpertsDownFewParams {
    FewPairs pairs;
    const void* w;
    RF_NULLABLE const float* bias;
    float* y;
    u32 rows, log_lanes;
};

// Grid: (as many blocks as have the rows of a tile, tiles).
RF_KERNEL(THREADS)
rf_experts_down_few(ExpertsDownFewParams p) {
    // the tiles were listed before the gated product began
    if (block_y() >= u32(p.pairs.tiles[0])) return wait_for_previous();
    PairTile tile = load_tile(p.pairs.tiles, block_y());
    auto begin = [] {
        load_grid<RF_QTYPE>(THREADS);
        wait_for_previous();
    };
    u64 first = u64(tile.expert) * p.rows;
    auto store = [&](u32 row, u32 k, float value) {
        p.y[u64(tile.first + k) * p.rows + row] = value + (p.bias ? p.bias[first + row] : 0.0f);
    };
    const u8* w = row_of(p.w, first * RF_QTYPE::row_bytes(p.pairs.cells));
    rows_product<RF_QTYPE, THREADS>(
        w, p.rows, tokens_of(p.pairs, tile), p.pairs.cells, p.log_lanes, block_x(), begin, [] { return 1.0f; }, store);
}

}  // namespace rocforge
