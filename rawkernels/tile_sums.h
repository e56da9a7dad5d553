// What a block has that multiplies on the matrix unit: its waves are RF_ROW_WAVES runs of rows by K_WAVES shares of the
// depth, and each has RF_ROW_TILES tiles of 16 rows times RF_TOKENS tokens. Sums of all shares meet in LDS.
#pragma once
#include "target/fragments.h"

namespace rocforge {

const u32 THREADS = RF_TUNE_TILE_THREADS, WAVES = THREADS / RF_WAVE, K_WAVES = WAVES / RF_ROW_WAVES;
const u32 TILES = RF_ROW_TILES, TOKEN_TILES = (RF_TOKENS + 15) / 16;
const u32 HEIGHT = 16 * TILES;  // rows of a wave

const u32 PAD = 4;  // so that a fragment's columns lie in different LDS banks
typedef float LdsSums[WAVES][16][HEIGHT + PAD];

struct Sums {
    Accumulator of[TILES][TOKEN_TILES];
};

// Adds the product of a tile of rows and one of tokens: the first eight columns, where there are no more.
RF_DEVICE void add_product(Accumulator& sum, const PairFragment& rows, const PairFragment& tokens) {
    if (RF_TOKENS == 8)
        multiply_add_half(sum, rows, tokens);
    else
        multiply_add(sum, rows, tokens);
    materialize(sum.x[0]);
}

// Puts a wave's sums of 16 tokens into LDS, where those of all shares of the depth are added up by `summed`.
RF_DEVICE void share(LdsSums& lds, const Sums& sums, u32 n) {
    barrier();  // what was there has been used
    RF_UNROLL
    for (u32 m = 0; m < TILES; ++m) {
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i)
            lds[wave()][fragment_column(i)][16 * m + fragment_row(row_slot(i))] = sums.of[m][n].x[i];
    }
    barrier();
}
// Of row `row` of run `run`.
RF_DEVICE float summed(const LdsSums& lds, u32 run, u32 token, u32 row) {
    float sum = 0.0f;
    RF_UNROLL
    for (u32 k = 0; k < K_WAVES; ++k) sum += lds[k * RF_ROW_WAVES + run][token % 16][row];
    return sum;
}

// Calls f(token, row) for all tokens and the first `rows` of the block's rows, a thread each, while `summed` knows
// them.
template <class F>
RF_DEVICE void each_result(LdsSums& lds, const Sums& sums, u32 rows, F f) {
    RF_UNROLL
    for (u32 n = 0; n < TOKEN_TILES; ++n) {
        share(lds, sums, n);
        RF_NO_UNROLL
        for (u32 i = thread_x(); i < rows * 16; i += THREADS) f(16 * n + i / rows, i % rows);
    }
}

}  // namespace rocforge
