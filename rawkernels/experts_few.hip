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
    u32 bias_at = tile.expert * p.matrices.rows;
    u64 at = u64(tile.expert) * p.matrices.step * RF_QTYPE::row_bytes(p.pairs.cells);
    Gated m = {row_of(p.matrices.gate, at), row_of(p.matrices.up, at), nullptr, nullptr, p.matrices.rows, 0,
               p.matrices.activation};
    if (p.matrices.gate_bias) m.gate_bias = p.matrices.gate_bias + bias_at;
    if (p.matrices.up_bias) m.up_bias = p.matrices.up_bias + bias_at;
    gated_product(m, tokens_of(p.pairs, tile), {}, p.pairs.cells, p.out, tile.first);
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
    u32 group = thread_x() >> p.log_lanes, lanes = 1 << p.log_lanes, rank = thread_x() & (lanes - 1);
    u32 first = ((block_x() * THREADS >> p.log_lanes) + group) * RF_ROWS;
    const u8* row[RF_ROWS];
    RF_UNROLL
    for (u32 r = 0; r < RF_ROWS; ++r) {
        u64 at = u64(tile.expert) * p.rows + minimum(i32(first + r), i32(p.rows - 1));
        row[r] = row_of(p.w, at * RF_QTYPE::row_bytes(p.pairs.cells));
    }
    TokensAnywhere x = tokens_of(p.pairs, tile);
    float sum[RF_ROWS][RF_TOKENS] = {};
    accumulate<RF_QTYPE, RF_ROWS>(sum, row, x, p.pairs.cells, rank, lanes, [] {
        load_grid<RF_QTYPE>(THREADS);
        wait_for_previous();
    });
    reduce_group<RF_ROWS>(sum, lanes);
    RF_UNROLL
    for (u32 r = 0; r < RF_ROWS; ++r) {
        RF_UNROLL
        for (u32 k = 0; k < RF_TOKENS; ++k) {
            if (rank != ((r * RF_TOKENS + k) & (lanes - 1)) || first + r >= p.rows || k >= x.count) continue;
            float bias = p.bias ? p.bias[u64(tile.expert) * p.rows + first + r] : 0.0f;
            p.y[u64(tile.first + k) * p.rows + first + r] = sum[r][k] + bias;
        }
    }
}

}  // namespace rocforge
