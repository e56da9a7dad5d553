// Mixture of experts, several tokens: products of each expert's matrix with the tokens that chose it, on the matrix
// unit, in one launch for all experts.
//
// Token-expert pairs are sorted by expert, and cut in tiles of up to RF_TOKENS pairs of one expert. A work item is a
// tile of pairs times a wave's rows; each wave of the grid takes several, waits for no other, and begins to load the
// next one's weights while it multiplies and stores. What it does for one is in tiles.h: weights go from memory to
// registers, packed, once for all pairs of a tile. A tile's tokens may lie anywhere in x, whose fragments are loaded a
// token at a time anyway. Compiled as tiles.h, with a run of rows for each wave.
#include "pair_tiles.h"
#include "tiles.h"

namespace rocforge {

// variants: RF_QTYPE=KINDS RF_TOKENS=8
// variants: RF_QTYPE=Q8_0,Q4_K,Q6_K,MXFP4 RF_TOKENS=16,32,64
// targets: gfx908 gfx90a gfx942 gfx950 gfx1100 gfx1101 gfx1102 gfx1103 gfx1150 gfx1151 gfx1152 gfx1200 gfx1201

// Fragments of a tile's tokens, each wherever it lies among `width` of x, or of several times MOST_FRAGMENTS.
struct GatheredFragments {
    const u8* x;
    u32 width, count;
    u32 token[TOKEN_TILES][FRAGMENT_PARTS], run;  // in chunks of 16 bytes
    RF_MEMBER void begin() {}
    RF_MEMBER bool any(u32 n) const { return n == 0 || 16 * n < count; }
    RF_MEMBER void begin_run(u32 cell) { run = fragment_at(width, 0, cell, 0); }
    RF_MEMBER void load_ahead(bool) {}
    RF_MEMBER void advance(bool) {}
    RF_MEMBER u32x4 chunk(u32 half, u32 j, u32 n, u32 p) const {
        return load<u32x4>(x + 16 * u64(token[n][p] + run + (2 * half + j) * width * FRAGMENT_CELLS));
    }
};

// x is in fragments for `width` tokens; of pair i of a tile it is token order[i] / used, or without an order i itself.
// The waves of `grid` blocks share out the runs of rows of each of the tiles.
struct Pairs {
    const u8* x;
    RF_NULLABLE const i32* order;
    const i32* tiles;
    u32 used, width, cells, grid;
};

RF_DEVICE GatheredFragments gather(const Pairs& p, const PairTile& tile) {
    GatheredFragments x = {p.x, p.width, u32(tile.count)};
    u32 run = fragments_bytes(p.width, p.cells) / 16;
    RF_UNROLL
    for (u32 n = 0; n < TOKEN_TILES; ++n) {
        RF_UNROLL
        for (u32 part = 0; part < FRAGMENT_PARTS; ++part) {
            // past the last pair it is computed again, and dropped
            i32 i = tile.first + minimum(i32(16 * n + part_row(part) % RF_TOKENS), tile.count - 1);
            u32 token = p.order ? p.order[i] / p.used : i;
            x.token[n][part] = token / p.width * run + token % p.width * FRAGMENT_CELLS;
        }
    }
    return x;
}

// A wave's work items: a share of all, in a row, so that most follow each other in one tile.
struct Items {
    u32 next, end;
    RF_MEMBER Items(const Pairs& p, u32 runs) {
        u64 count = p.tiles[0] * runs, own = block_x() * WAVES + wave(), waves = p.grid * WAVES;
        next = own * count / waves, end = (own + 1) * count / waves;
    }
};

// Where a wave's lanes exchange the sums of 16 pairs.
typedef float PairSums[16][16 * TILES + PAD];
struct Exchange {
    alignas(16) PairSums of[WAVES];
};

// Calls `store(tile, run, pair, sums)` for the pairs of each of the wave's work items, 16 by 16: of pair 0 to 15 there
// are sums[pair][row]. `position_of(tile, run)` is where it begins. `ready` is called once the first weights are being
// loaded. What an item needs to know of its tile is loaded during the one before.
template <class PositionOf, class Ready, class Store>
RF_DEVICE void each_item(const Pairs& p, u32 runs, PositionOf position_of, Ready ready, Store store) {
    RF_SHARED Exchange exchange;
    load_grid<RF_QTYPE>(THREADS);
    Items items(p, runs);
    if (items.next >= items.end) return ready();
    auto tile_of = [&](u32 item) { return load_tile(p.tiles, minimum(i32(item), i32(items.end - 1)) / runs); };
    PairTile tile = tile_of(items.next), following = tile_of(items.next + 1);
    Position at = position_of(tile, items.next % runs);
    Cells<RF_QTYPE> w;
    w.load(at);
    GatheredFragments x = gather(p, tile);
    ready();
    for (u32 item = items.next; item < items.end; ++item) {
        PairTile last = tile_of(item + 2);
        Position next = position_of(following, (item + 1) % runs);
        if (item + 1 == items.end) next.number = p.cells;
        GatheredFragments next_x = gather(p, following);
        Sums sums = multiply(w, at, next, x);
        RF_UNROLL
        for (u32 n = 0; n < TOKEN_TILES; ++n) {
            if (!x.any(n)) break;
            PairSums& own = exchange.of[wave()];
            wave_barrier();  // what was there has been used
            RF_UNROLL
            for (u32 m = 0; m < TILES; ++m) {
                RF_UNROLL
                for (u32 i = 0; i < ELEMENTS; ++i)
                    own[fragment_column(i)][16 * m + fragment_row(row_slot(i))] = sums.of[m][n].x[i];
            }
            wave_barrier();
            store(tile, item % runs, 16 * n, own);
        }
        tile = following, following = last, at = next, x = next_x;
    }
}

// Calls f(pair, row) for `rows` rows of those of 16 pairs of a tile that there are, a lane each.
template <class Each>
RF_DEVICE void each_sum(const PairTile& tile, u32 first, u32 rows, Each f) {
    RF_NO_UNROLL
    for (u32 i = lane(); i < rows * 16; i += RF_WAVE) {
        u32 pair = i / rows;
        if (i32(first + pair) >= tile.count) break;
        f(pair, i % rows);
    }
}

// The gated product of each pair's token and expert, to fragments for `out_width` pairs, in the pairs' order; gate and
// up are (experts, rows, ...), biases (experts, rows). Rows past the last fill up the last cell with zeros.
struct ExpertsGatedPairsParams {
    Pairs pairs;
    Gated matrices;
    u8* out;
    u32 out_width, out_cells;
};
RF_KERNEL_WIDE(THREADS, RESIDENT)
rf_experts_gated_pairs(ExpertsGatedPairsParams p) {
    const Gated& m = p.matrices;
    const u32 height = 8 * TILES;                     // rows of either matrix that a wave takes
    i64 to_up = row_of(m.up, 0) - row_of(m.gate, 0);  // as in tiles.hip
    auto position_of = [&](const PairTile& tile, u32 run) {
        return first_run(p.pairs.cells, [&](u32 r) {
            u32 row = minimum(i32(run * height + r % height), i32(m.rows - 1));
            u64 at = (u64(tile.expert) * m.step + row) * RF_QTYPE::row_bytes(p.pairs.cells);
            return row_of(m.gate, r < height ? 0 : to_up) + at;
        });
    };
    wait_for_previous();  // which listed the tiles
    u32 runs = (p.out_cells * CELL + height - 1) / height;
    each_item(
        p.pairs, runs, position_of, [] {},
        [&](const PairTile& tile, u32 run, u32 first, const PairSums& sums) {
            each_sum(tile, first, height, [&](u32 pair, u32 within) {
                u32 row = run * height + within;
                float value = 0.0f;
                if (row < m.rows) {
                    float gate = sums[pair][within], up = sums[pair][height + within];
                    u64 bias_at = u64(tile.expert) * m.rows + row;
                    if (m.gate_bias) gate += m.gate_bias[bias_at];
                    if (m.up_bias) up += m.up_bias[bias_at];
                    value = gated(m.activation, gate, up);
                }
                store_fragment(p.out, p.out_width, p.out_cells, tile.first + first + pair, row, value);
            });
        });
}

// y (pairs, rows) = x @ w.T + bias of each pair's expert, in the pairs' order, or, where it `puts_back`, in that of x,
// each pair having a token; w is (experts, rows, ...), bias (experts, rows) or null.
struct ExpertsDownPairsParams {
    Pairs pairs;
    const void* w;
    RF_NULLABLE const float* bias;
    float* y;
    u32 rows;
    i32 puts_back;
};
RF_KERNEL_WIDE(THREADS, RESIDENT)
rf_experts_down_pairs(ExpertsDownPairsParams p) {
    const u32 height = 16 * TILES;
    auto position_of = [&](const PairTile& tile, u32 run) {
        return first_run(p.pairs.cells, [&](u32 r) {
            u32 row = minimum(i32(run * height + r), i32(p.rows - 1));
            return row_of(p.w, (u64(tile.expert) * p.rows + row) * RF_QTYPE::row_bytes(p.pairs.cells));
        });
    };
    auto store = [&](const PairTile& tile, u32 run, u32 first, const PairSums& sums) {
        each_sum(tile, first, height, [&](u32 pair, u32 within) {
            u32 row = run * height + within;
            if (row >= p.rows) return;
            float bias = p.bias ? p.bias[u64(tile.expert) * p.rows + row] : 0.0f;
            u32 i = tile.first + first + pair;
            p.y[u64(p.puts_back ? p.pairs.order[i] : i) * p.rows + row] = sums[pair][within] + bias;
        });
    };
    // the tiles were listed before the gated product began
    each_item(p.pairs, (p.rows + height - 1) / height, position_of, [] { wait_for_previous(); }, store);
}

}  // namespace rocforge
