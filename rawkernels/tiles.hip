// Products of 8 to 64 columns with packed weights on the matrix unit: y = x @ w.T, weights unpacked in registers.
//
// Compiled with QTYPE, the weights' format (a struct of quants.h), QTYPE_LAST, that of the last matrix of a launch,
// where it differs, COLUMNS, to which the columns are filled up (8, 16, 32 or 64; x as `store_units` leaves it), and
// ROW_WAVES.
//
// A wave multiplies a tile of 16 rows, or of 64 columns two, with all columns. The lanes that share a row of a fragment
// take a cell each, of UNIT_CELLS consecutive ones: so each lane loads whole cells and knows their scales, and codes
// become float16 where the matrix unit wants them. The waves of a block are ROW_WAVES runs of rows by K_WAVES shares of
// the depth, whose sums meet in LDS.
#include "fragments.h"
#define ROWS 1
#include "products.h"

// variants: QTYPE=Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_NL,IQ4_XS,MXFP4 COLUMNS=8 ROW_WAVES=1
// variants: QTYPE=Q8_0,Q4_K,Q6_K COLUMNS=64 ROW_WAVES=2
// variants: QTYPE=Q4_K QTYPE_LAST=Q6_K COLUMNS=16 ROW_WAVES=1
// targets: gfx90a gfx942 gfx1100 gfx1201
const u32 THREADS = 256, WAVES = THREADS / WAVE, K_WAVES = WAVES / ROW_WAVES;
const u32 TILES = COLUMNS == 64 ? 2 : 1, COLUMN_TILES = (COLUMNS + 15) / 16;

const u32 PAD = 4;  // so that a fragment's columns lie in different LDS banks
struct Shared {
    alignas(16) float sums[WAVES][16][16 * TILES + PAD];
};

// Sixteen elements of a cell in float16, in the order of units.
template <class F>
DEVICE void unpack(u32 (&pairs)[8], const F& w, u32 s, u32 h, bool wanted) {
    const float zero = 1024 + 128 + F::OFFSET;  // what codes are above in the last places of 1024, signed ones too
    const u32 zeros = pack_halves(zero, zero);
    float scale = wanted ? w.outer_scale() * w.scale(s, h) : 0.0f, min = wanted ? w.outer_min() * w.min(s, h) : 0.0f;
    u32 scales = pack_halves(scale, scale), mins = F::MINS ? pack_halves(min, min) : 0;
    UNROLL
    for (u32 i = 0; i < 4; ++i) {
        u32 four = F::values(w.four(s, 4 * h + i));
        u32 even = (four & 0x00ff00ff) ^ 0x64806480, odd = (four >> 8 & 0x00ff00ff) ^ 0x64806480;
        pairs[2 * i] = fma_halves(sub_halves(even, zeros), scales, mins);
        pairs[2 * i + 1] = fma_halves(sub_halves(odd, zeros), scales, mins);
    }
}

struct Sums {
    Accumulator of[TILES][COLUMN_TILES];
};

// The wave's rows with all columns, over runs of UNIT_CELLS cells first, first + K_WAVES, ...
template <class F>
DEVICE void multiply(Sums& sums, const u8* const (&row)[TILES][FRAGMENT_PARTS], const u8* x, u32 cells, u32 first) {
    for (u32 run = first; run * UNIT_CELLS < cells; run += K_WAVES) {
        u32 c = run * UNIT_CELLS + part_lane();
        bool wanted = c < cells;
        c = minimum(i32(c), i32(cells - 1));
        F w[TILES][FRAGMENT_PARTS];
        UNROLL
        for (u32 m = 0; m < TILES; ++m)
            UNROLL
            for (u32 p = 0; p < FRAGMENT_PARTS; ++p) load_cell(w[m][p], row[m][p], cells, c);
        UNROLL
        for (u32 m = 0; m < TILES; ++m)
            UNROLL
            for (u32 p = 0; p < FRAGMENT_PARTS; ++p) w[m][p].ready();
        u32 units[FRAGMENT_PARTS];
        UNROLL
        for (u32 p = 0; p < FRAGMENT_PARTS; ++p) units[p] = 16 * unit_at(COLUMNS, part_row(p) % COLUMNS, c, 0);
        UNROLL
        for (u32 half = 0; half < 8; ++half) {
            u32 a[TILES][FRAGMENT_PARTS][8];
            UNROLL
            for (u32 m = 0; m < TILES; ++m)
                UNROLL
                for (u32 p = 0; p < FRAGMENT_PARTS; ++p) unpack(a[m][p], w[m][p], half / 2, half % 2, wanted);
            UNROLL
            for (u32 n = 0; n < COLUMN_TILES; ++n) {
                schedule_barrier();
                u32 b[FRAGMENT_PARTS][8];
                UNROLL
                for (u32 p = 0; p < FRAGMENT_PARTS; ++p) {
                    UNROLL
                    for (u32 j = 0; j < 2; ++j) {
                        // what all lanes share comes first, so that it is scalar
                        const u8* shared_by_lanes = x + anew(16 * UNIT_CELLS * ((2 * half + j) * COLUMNS + 16 * n));
                        u32x4 unit = load<u32x4>(shared_by_lanes + units[p]);
                        UNROLL
                        for (u32 i = 0; i < 4; ++i) b[p][4 * j + i] = element(unit, i);
                    }
                }
                UNROLL
                for (u32 step = 0; step < 8; step += FRAGMENT_PAIRS) {
                    PairFragment columns = fragment_of(b, step);
                    UNROLL
                    for (u32 m = 0; m < TILES; ++m) {
                        if (COLUMNS == 8)
                            multiply_add_half(sums.of[m][n], fragment_of(a[m], step), columns);
                        else
                            multiply_add(sums.of[m][n], fragment_of(a[m], step), columns);
                        computed(sums.of[m][n].x[0]);
                    }
                }
            }
        }
    }
}

// Puts a wave's sums of 16 columns into LDS, where those of all shares of the depth are added up by `summed`.
DEVICE void share(Shared& shared, const Sums& sums, u32 n) {
    barrier();  // what was there has been used
    UNROLL
    for (u32 m = 0; m < TILES; ++m)
        UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i)
            shared.sums[wave()][fragment_column(i)][16 * m + fragment_row(row_slot(i))] = sums.of[m][n].x[i];
    barrier();
}
// Of row `row` of run `run`.
DEVICE float summed(const Shared& shared, u32 run, u32 column, u32 row) {
    float sum = 0.0f;
    UNROLL
    for (u32 k = 0; k < K_WAVES; ++k) sum += shared.sums[k * ROW_WAVES + run][column][row];
    return sum;
}

template <class F>
DEVICE void product(Shared& shared, const Matrix& m, const float* residual, const u8* x, u32 columns, u32 cells,
                    u32 block) {
    const u32 height = 16 * TILES;
    u32 run = wave() % ROW_WAVES, first = block * ROW_WAVES * height;
    const u8* row[TILES][FRAGMENT_PARTS];
    UNROLL
    for (u32 t = 0; t < TILES; ++t)
        UNROLL
        for (u32 p = 0; p < FRAGMENT_PARTS; ++p)
            row[t][p] = m.w + u64(minimum(i32(first + run * height + 16 * t + part_row(p)), i32(m.rows - 1))) *
                                  F::row_bytes(cells);
    Sums sums = {};
    multiply<F>(sums, row, x, cells, wave() / ROW_WAVES);
    UNROLL
    for (u32 n = 0; n < COLUMN_TILES; ++n) {
        share(shared, sums, n);
        NO_UNROLL
        for (u32 i = thread_x(); i < ROW_WAVES * height * 16; i += THREADS) {
            u32 within = i % (ROW_WAVES * height), k = 16 * n + i / (ROW_WAVES * height), r = first + within;
            float value = summed(shared, within / height, k % 16, within % height);
            if (k >= columns || r >= m.rows) continue;
            u64 at = u64(k) * m.rows + r;
            if (m.bias) value += m.bias[r];
            if (m.number == 0 && residual) value += residual[at];
            m.y[at] = value;
        }
    }
}

KERNEL_WIDE(THREADS, COLUMNS == 64 ? 256 : 512)
tile_products(const u8* x, i32 columns, i32 cells, const u8* w0, const float* bias0, float* y0, i32 rows0, const u8* w1,
              const float* bias1, float* y1, i32 rows1, const u8* w2, const float* bias2, float* y2, i32 rows2,
              const float* residual) {
    wait_for_previous();
    __shared__ Shared shared;
    const u32 height = ROW_WAVES * 16 * TILES;
    u32 block = block_x();
    Matrix m = matrix_of(block, {w0, bias0, y0, u32(rows0), 0}, {w1, bias1, y1, u32(rows1), 1},
                         {w2, bias2, y2, u32(rows2), 2}, [](u32 rows) { return (rows + height - 1) / height; });
#ifdef QTYPE_LAST
    if (m.number == 2) return product<QTYPE_LAST>(shared, m, residual, x, columns, cells, block);
#endif
    product<QTYPE>(shared, m, residual, x, columns, cells, block);
}

// As `gated_product` of products.h; a wave has the same rows of gate and up: half of its own each. y, or, for the product that follows,
// the units of `rounded` may be null. Blocks past the last row fill up the last cell with zeros.
KERNEL_WIDE(THREADS, COLUMNS == 64 ? 256 : 512)
tile_gated(const u8* x, i32 columns, i32 cells, const u8* gate, const u8* up, const float* gate_bias,
           const float* up_bias, float* y, u8* rounded, i32 out_cells, i32 rows, i32 activation) {
    wait_for_previous();
    __shared__ Shared shared;
    const u32 own = 8 * TILES;  // rows of either matrix that a wave takes
    u32 run = wave() % ROW_WAVES, first = block_x() * ROW_WAVES * own;
    const u8* row[TILES][FRAGMENT_PARTS];
    UNROLL
    for (u32 t = 0; t < TILES; ++t)
        UNROLL
        for (u32 p = 0; p < FRAGMENT_PARTS; ++p) {
            u32 within = 16 * t + part_row(p);
            row[t][p] = (within < own ? gate : up) +
                        u64(minimum(i32(first + run * own + within % own), rows - 1)) * QTYPE::row_bytes(cells);
        }
    Sums sums = {};
    multiply<QTYPE>(sums, row, x, cells, wave() / ROW_WAVES);
    UNROLL
    for (u32 n = 0; n < COLUMN_TILES; ++n) {
        share(shared, sums, n);
        NO_UNROLL
        for (u32 i = thread_x(); i < ROW_WAVES * own * 16; i += THREADS) {
            u32 within = i % (ROW_WAVES * own), k = 16 * n + i / (ROW_WAVES * own), r = first + within;
            float g = summed(shared, within / own, k % 16, within % own);
            float u = summed(shared, within / own, k % 16, own + within % own);
            if (k >= u32(columns)) continue;
            float value = 0.0f;
            if (r < u32(rows)) {
                value = gated(activation, g + (gate_bias ? gate_bias[r] : 0.0f), u + (up_bias ? up_bias[r] : 0.0f));
                if (y) y[u64(k) * rows + r] = value;
            }
            if (rounded) store_unit(rounded, COLUMNS, out_cells, k, r, value);
        }
    }
}
