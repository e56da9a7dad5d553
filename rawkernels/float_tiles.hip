// Products of up to 64 tokens with rows of float16 or bfloat16 on the matrix unit: y = x @ w.T, x in float16.
//
// Compiled with RF_QTYPE, Floats<f16> or Floats<bf16>, RF_QTYPE_LAST, that of the last matrix of a launch, where it
// differs, RF_TOKENS, to which the tokens are filled up (8, 16, 32 or 64), RF_ROW_WAVES and RF_ROW_TILES.
//
// A wave multiplies RF_ROW_TILES tiles of 16 rows, a stripe of 64 elements after another. The lanes that share a row
// of a fragment load chunks of 16 bytes side by side, of weights and of x alike: which element of the depth a lane has
// does not matter to the matrix unit. AHEAD stripes of weights are on their way while one is multiplied, at the end of
// rows those of the next. The waves of a block take runs of rows, and stripes in turn; a block of the grid takes
// several of the launch's.
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "products.h"
#include "tile_sums.h"

namespace rocforge {

// variants: RF_QTYPE=Floats<f16>,Floats<bf16> RF_TOKENS=8 RF_ROW_WAVES=1
// variants: RF_QTYPE=Floats<f16> RF_QTYPE_LAST=Floats<bf16> RF_TOKENS=16 RF_ROW_WAVES=2
// variants: RF_QTYPE=Floats<f16>,Floats<bf16> RF_TOKENS=32 RF_ROW_WAVES=4
// variants: RF_QTYPE=Floats<f16>,Floats<bf16> RF_TOKENS=64 RF_ROW_WAVES=1
// targets: gfx908 gfx90a gfx942 gfx950 gfx1100 gfx1101 gfx1102 gfx1103 gfx1150 gfx1151 gfx1152 gfx1200 gfx1201
const u32 RESIDENT = THREADS * (TILES > 1 ? RF_TUNE_TILE_BLOCKS_WIDE : RF_TUNE_TILE_BLOCKS);
const u32 AHEAD = TILES > 1 ? RF_TUNE_FLOAT_TILE_AHEAD_WIDE : RF_TUNE_FLOAT_TILE_AHEAD;
const u32 STRIPE = 64, CHUNKS = STRIPE / 8 / FRAGMENT_LANES;  // chunks of a lane

// Where a lane's chunk i of a stripe begins, in elements of the row.
RF_DEVICE u32 chunk_at(u32 stripe, u32 i) { return stripe * STRIPE + 8 * (i * FRAGMENT_LANES + part_lane()); }

// Two numbers of a format in float16.
template <class F>
RF_DEVICE u32 fp16_pair(u32 word) {
    return word;
}
template <>
RF_INLINE u32 fp16_pair<Floats<bf16>>(u32 word) {
    return pack_fp16(bits_float(word << 16), bits_float(word & 0xffff0000));
}

// A lane's rows of the wave's.
struct LaneRows {
    const u8* at[TILES][FRAGMENT_PARTS];
};

// What a lane has of its rows in a stripe, as it lies in memory; zeros past the end.
struct Stripe {
    u32x4 of[TILES][FRAGMENT_PARTS][CHUNKS];
    RF_MEMBER void load(const LaneRows& rows, u32 stripe, u32 columns) {
        RF_UNROLL
        for (u32 m = 0; m < TILES; ++m) {
            RF_UNROLL
            for (u32 p = 0; p < FRAGMENT_PARTS; ++p) {
                RF_UNROLL
                for (u32 i = 0; i < CHUNKS; ++i) {
                    u32 at = chunk_at(stripe, i);
                    of[m][p][i] = make_u32x4(0, 0, 0, 0);
                    if (at < columns) of[m][p][i] = load_once<u32x4>(rows.at[m][p] + 2 * at);
                }
            }
        }
    }
};

// The block's tokens: float16 (tokens, columns).
struct Tokens {
    const u8* x;
    u32 count, columns;
    // Chunk i of a stripe of token k; past the last token that one again, past the end zeros.
    RF_MEMBER u32x4 chunk(u32 stripe, u32 i, u32 k) const {
        u32 at = chunk_at(stripe, i), row = minimum(i32(k), i32(count - 1));
        return at < columns ? load<u32x4>(x + 2 * (row * columns + at)) : make_u32x4(0, 0, 0, 0);
    }
};

// What a lane has of 16 tokens in a stripe.
struct TokenStripe {
    u32 pairs[FRAGMENT_PARTS][4 * CHUNKS];
    RF_MEMBER void load(const Tokens& x, u32 stripe, u32 n) {
        RF_UNROLL
        for (u32 p = 0; p < FRAGMENT_PARTS; ++p) {
            RF_UNROLL
            for (u32 i = 0; i < CHUNKS; ++i) {
                u32x4 chunk = x.chunk(stripe, i, 16 * n + part_row(p) % RF_TOKENS);
                RF_UNROLL
                for (u32 j = 0; j < 4; ++j) pairs[p][4 * i + j] = element(chunk, j);
            }
        }
    }
};

// Adds the products of a stripe of the wave's rows, of which `pair` makes float16, with all tokens, which `tokens(n)`
// gives 16 at a time.
template <class Pair, class TokensOf>
RF_DEVICE void add_stripe(Sums& sums, const Stripe& w, Pair pair, TokensOf tokens) {
    u32 a[TILES][FRAGMENT_PARTS][4 * CHUNKS];
    RF_UNROLL
    for (u32 m = 0; m < TILES; ++m) {
        RF_UNROLL
        for (u32 p = 0; p < FRAGMENT_PARTS; ++p) {
            RF_UNROLL
            for (u32 i = 0; i < 4 * CHUNKS; ++i) a[m][p][i] = pair(element(w.of[m][p][i / 4], i % 4));
        }
    }
    RF_UNROLL
    for (u32 n = 0; n < TOKEN_TILES; ++n) {
        schedule_barrier();
        TokenStripe x = tokens(n);
        RF_UNROLL
        for (u32 step = 0; step < 4 * CHUNKS; step += FRAGMENT_PAIRS) {
            PairFragment fragment = fragment_of(x.pairs, step);
            RF_UNROLL
            for (u32 m = 0; m < TILES; ++m) add_product(sums.of[m][n], fragment_of(a[m], step), fragment);
        }
    }
}

// x is float16 (tokens, columns), columns a multiple of 8. The launch has `blocks` of work, which `grid` share.
struct FloatTileX {
    const void* x;
    u32 tokens, columns, blocks, grid;
};

// Of a wave, from the address of each of its rows by number, up to HEIGHT - 1.
template <class RowOf>
RF_DEVICE LaneRows lane_rows(RowOf row_of) {
    LaneRows rows;
    RF_UNROLL
    for (u32 m = 0; m < TILES; ++m) {
        RF_UNROLL
        for (u32 p = 0; p < FRAGMENT_PARTS; ++p) rows.at[m][p] = computed_once(row_of(16 * m + part_row(p)));
    }
    return rows;
}

// Where a block is: `rows` are multiplied up to `end`, stripes of a round of all waves, then come those of `next`. With
// few tokens x comes ahead like the weights: behind them it would be waited for as long.
const bool TOKENS_AHEAD = TOKEN_TILES == 1;
struct Walk {
    Stripe w[AHEAD];
    TokenStripe x[TOKENS_AHEAD ? AHEAD : 1];
    u32 first, end, columns;

    RF_MEMBER Walk(const LaneRows& rows, u32 columns) : columns(columns) {
        const u32 ROUND = AHEAD * K_WAVES;
        first = wave() / RF_ROW_WAVES;
        end = ((columns + STRIPE - 1) / STRIPE + ROUND - 1) / ROUND * ROUND;
        RF_UNROLL
        for (u32 a = 0; a < AHEAD; ++a) w[a].load(rows, first + a * K_WAVES, columns);
    }
    // Once the tokens are there.
    RF_MEMBER void begin(const Tokens& tokens) {
        RF_UNROLL
        for (u32 a = 0; TOKENS_AHEAD && a < AHEAD; ++a) x[a].load(tokens, first + a * K_WAVES, 0);
    }
    template <class Pair>
    RF_MEMBER Sums multiply(Pair pair, const Tokens& tokens, const LaneRows& rows, const LaneRows& next, bool more) {
        Sums sums = {};
        for (u32 from = first; from < end; from += AHEAD * K_WAVES) {
            RF_UNROLL
            for (u32 a = 0; a < AHEAD; ++a) {
                u32 stripe = from + a * K_WAVES, ahead = stripe + AHEAD * K_WAVES;
                add_stripe(sums, w[a], pair, [&](u32 n) {
                    TokenStripe here;
                    if (!TOKENS_AHEAD) here.load(tokens, stripe, n);
                    return TOKENS_AHEAD ? x[a] : here;
                });
                bool last = ahead >= end;
                ahead = last ? ahead - end : ahead;
                if (last && !more) continue;
                if (last)
                    w[a].load(next, ahead, columns);
                else
                    w[a].load(rows, ahead, columns);
                if (TOKENS_AHEAD) x[a].load(tokens, ahead, 0);
            }
        }
        return sums;
    }
};

// A residual, of the shape of the first result, is added to that.
struct FloatTileParams {
    FloatTileX x;
    Matrix matrices[4];
    RF_NULLABLE const float* residual;
};

RF_KERNEL_WIDE(THREADS, RESIDENT)
rf_float_tile_products(FloatTileParams p) {
    RF_SHARED LdsSums lds;
    const u32 height = RF_ROW_WAVES * HEIGHT;
    auto place = [&](u32& block, u32& number) {
        return matrix_of(block, number, p.matrices, [](u32 rows) { return (rows + height - 1) / height; });
    };
    auto rows_of = [&](u32 block) {
        u32 number;
        Matrix m = place(block, number);
        u32 first = block * height + wave() % RF_ROW_WAVES * HEIGHT;
        return lane_rows(
            [&](u32 r) { return row_of(m.w, u64(minimum(i32(first + r), i32(m.rows - 1))) * p.x.columns * 2); });
    };
    LaneRows rows = rows_of(block_x());
    Walk walk(rows, p.x.columns);
    wait_for_previous();
    Tokens x = {static_cast<const u8*>(p.x.x), p.x.tokens, p.x.columns};
    walk.begin(x);
    for (u32 at = block_x(); at < p.x.blocks; at += p.x.grid) {
        u32 block = at, number;
        Matrix m = place(block, number);
        bool more = at + p.x.grid < p.x.blocks;
        LaneRows next = more ? rows_of(at + p.x.grid) : rows;
        auto pair = [=](u32 word) {
#ifdef RF_QTYPE_LAST
            if (number == LAST_MATRIX) return fp16_pair<RF_QTYPE_LAST>(word);
#endif
            return fp16_pair<RF_QTYPE>(word);
        };
        Sums sums = walk.multiply(pair, x, rows, next, more);
        rows = next;
        each_result(lds, sums, height, [&](u32 k, u32 row) {
            u32 r = block * height + row;
            if (k >= p.x.tokens || r >= m.rows) return;
            float value = summed(lds, row / HEIGHT, k, row % HEIGHT);
            u64 to = u64(k) * m.rows + r;
            if (m.bias) value += m.bias[r];
            if (number == 0 && p.residual) value += p.residual[to];
            m.y[to] = value;
        });
    }
}

// activation(x @ gate.T + gate_bias, x @ up.T + up_bias), (tokens, rows) in float32 or float16. A wave has the same
// rows of gate and up: half of its own each.
struct FloatTileGatedParams {
    FloatTileX x;
    Gated matrices;
    RF_NULLABLE float* y;
    RF_NULLABLE f16* fp16;
};
RF_KERNEL_WIDE(THREADS, RESIDENT)
rf_float_tile_gated(FloatTileGatedParams p) {
    RF_SHARED LdsSums lds;
    const Gated& m = p.matrices;
    const u32 own = HEIGHT / 2, height = RF_ROW_WAVES * own;  // rows of either matrix that a wave takes, and a block
    i64 to_up = row_of(m.up, 0) - row_of(m.gate, 0);          // as in tiles.hip
    auto rows_of = [&](u32 block) {
        u32 first = block * height + wave() % RF_ROW_WAVES * own;
        return lane_rows([&](u32 r) {
            return row_of(m.gate, r < own ? 0 : to_up) +
                   u64(minimum(i32(first + r % own), i32(m.rows - 1))) * p.x.columns * 2;
        });
    };
    LaneRows rows = rows_of(block_x());
    Walk walk(rows, p.x.columns);
    wait_for_previous();
    Tokens x = {static_cast<const u8*>(p.x.x), p.x.tokens, p.x.columns};
    walk.begin(x);
    for (u32 block = block_x(); block < p.x.blocks; block += p.x.grid) {
        bool more = block + p.x.grid < p.x.blocks;
        LaneRows next = more ? rows_of(block + p.x.grid) : rows;
        Sums sums = walk.multiply([](u32 word) { return fp16_pair<RF_QTYPE>(word); }, x, rows, next, more);
        rows = next;
        each_result(lds, sums, height, [&](u32 k, u32 row) {
            u32 r = block * height + row;
            if (k >= p.x.tokens || r >= m.rows) return;
            float g = summed(lds, row / own, k, row % own), u = summed(lds, row / own, k, own + row % own);
            if (m.gate_bias) g += m.gate_bias[r];
            if (m.up_bias) u += m.up_bias[r];
            float value = gated(m.activation, g, u);
            u64 to = u64(k) * m.rows + r;
            if (p.y) p.y[to] = value;
            if (p.fp16) p.fp16[to] = from_float<f16>(clamp_fp16(value));
        });
    }
}

}  // namespace rocforge
