// Products of packed weights with several tokens on the matrix unit, weights unpacked in registers: what the kernels of
// tiles.hip and experts_tiles.hip share.
//
// Compiled with RF_QTYPE, the weights' format (a struct of quants.h), RF_TOKENS, to which the tokens are filled up (8,
// 16, 32 or 64, or 128 a block; x as `store_fragments` leaves it), RF_ROW_WAVES and RF_ROW_TILES.
//
// A wave multiplies RF_ROW_TILES tiles of 16 rows with all tokens. The lanes that share a row of a fragment
// take a cell each, of FRAGMENT_CELLS consecutive ones: so each lane loads whole cells and knows their scales, and
// codes become float16 where the matrix unit wants them. The waves of a block are RF_ROW_WAVES runs of rows by K_WAVES
// shares of the depth, whose sums meet in LDS. Of 128 tokens no wave shares the depth, and x comes to all through LDS.
#pragma once
#include "target/fragments.h"
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "products.h"
#include "tile_sums.h"
#include "unpack.h"

namespace rocforge {

const bool STAGED = RF_TOKENS == 128;  // x, in LDS
const u32 RESIDENT = THREADS * (TILES > 1 || STAGED ? RF_TUNE_TILE_BLOCKS_WIDE : RF_TUNE_TILE_BLOCKS);

static_assert(!STAGED || K_WAVES == 1, "all waves multiply the same share of x at a time");

const u32 HALF_CHUNKS = 2 * RF_TOKENS * FRAGMENT_CELLS;  // of x, that 16 elements of a run's cells take
union Shared {
    alignas(16) LdsSums sums;
    u32x4 x[STAGED ? 2 : 1][STAGED ? HALF_CHUNKS : 1];
};

// The fragments of the block's tokens, in memory.
struct Fragments {
    const u8* x;
    u32 at[FRAGMENT_PARTS];
    RF_MEMBER void begin() {}
    RF_MEMBER bool any(u32) const { return true; }
    RF_MEMBER void begin_run(u32 cell) {
        RF_UNROLL
        for (u32 p = 0; p < FRAGMENT_PARTS; ++p) at[p] = 16 * fragment_at(RF_TOKENS, part_row(p) % RF_TOKENS, cell, 0);
    }
    RF_MEMBER void load_ahead(bool) {}
    RF_MEMBER void advance(bool) {}
    // Chunk j of a half of the run's cells, of 16 tokens.
    RF_MEMBER u32x4 chunk(u32 half, u32 j, u32 n, u32 p) const {
        // what all lanes share comes first, so that it is scalar
        const u8* shared_by_lanes = x + rematerialize(16 * FRAGMENT_CELLS * ((2 * half + j) * RF_TOKENS + 16 * n));
        return load<u32x4>(shared_by_lanes + at[p]);
    }
};

// The same through LDS: while the waves multiply a half, the next is on its way.
struct StagedFragments {
    static const u32 EACH = STAGED ? HALF_CHUNKS / THREADS : 1;
    const u8* x;
    Shared& shared;
    u32 half_number, now, own;  // `own`: the lane's cell of the run
    u32x4 ahead[EACH];
    static RF_MEMBER u32 place(u32 j, u32 n, u32 row, u32 cell) {
        return ((j * TOKEN_TILES + n) * FRAGMENT_CELLS + cell) * 16 + row;  // a wave's lanes read consecutive ones
    }
    RF_MEMBER void load() {
        RF_UNROLL
        for (u32 e = 0; e < EACH; ++e)
            ahead[e] = rocforge::load<u32x4>(x + 16 * (u64(half_number) * HALF_CHUNKS + e * THREADS + thread_x()));
        ++half_number;
    }
    RF_MEMBER void store(u32 to) {
        RF_UNROLL
        for (u32 e = 0; e < EACH; ++e) {
            u32 i = e * THREADS + thread_x(), k = i / FRAGMENT_CELLS % RF_TOKENS;
            shared.x[to][place(i / FRAGMENT_CELLS / RF_TOKENS, k / 16, k % 16, i % FRAGMENT_CELLS)] = ahead[e];
        }
        barrier();
    }
    RF_MEMBER void begin() {
        half_number = now = 0;
        load();
        barrier();  // what was in LDS has been used
        store(0);
    }
    RF_MEMBER bool any(u32) const { return true; }
    RF_MEMBER void begin_run(u32 cell) { own = cell % FRAGMENT_CELLS; }
    RF_MEMBER void load_ahead(bool more) {
        if (more) load();
    }
    RF_MEMBER void advance(bool more) {
        now ^= 1;
        if (more) store(now);
    }
    RF_MEMBER u32x4 chunk(u32, u32 j, u32 n, u32 p) const { return shared.x[now][place(j, n, part_row(p), own)]; }
};

// Sixteen elements of a cell in float16, in the order of fragments: codes * scale + min.
template <class F>
RF_DEVICE void unpack(u32 (&pairs)[8], const F& w, u32 s, u32 h, float scale, float min) {
    u32 scales = pack_fp16(scale, scale), mins = F::MINS ? pack_fp16(min, min) : 0;
    RF_UNROLL
    for (u32 i = 0; i < 4; ++i) {
        unpack_four<F>(pairs[2 * i], pairs[2 * i + 1], codes_of(w, s, h, i), h, scales, mins);
    }
}

// Where a wave is: at a run of FRAGMENT_CELLS cells of its rows, or past its last one.
struct Position {
    const u8* row[TILES][FRAGMENT_PARTS];
    u32 number, cells;
    RF_MEMBER bool any() const { return number * FRAGMENT_CELLS < cells; }
    // Lanes past the row's last cell have that one again, times zero.
    RF_MEMBER u32 own() const { return number * FRAGMENT_CELLS + part_lane(); }
    RF_MEMBER u32 cell() const { return minimum(i32(own()), i32(cells - 1)); }
    RF_MEMBER bool wanted() const { return own() < cells; }
};

// A cell of each of a lane's rows. Its planes are loaded AHEAD runs of 16 elements before they are multiplied, or as
// soon as the last cell's same plane has been: `time` counts these runs from the beginning of that last cell.
template <class F>
struct Cells {
    static const u32 AHEAD = F::PLANES < 6 && RF_TOKENS <= 16 ? RF_TUNE_TILE_RUNS_AHEAD : 1;
    F of[TILES][FRAGMENT_PARTS];
    RF_MEMBER void load_scales(const Position& at) {
        RF_UNROLL
        for (u32 m = 0; m < TILES; ++m) {
            RF_UNROLL
            for (u32 p = 0; p < FRAGMENT_PARTS; ++p) of[m][p].load_scales(at.row[m][p], at.cells, at.cell());
        }
    }
    RF_MEMBER void load_planes(const Position& at, u32 time) {
        RF_UNROLL
        for (u32 plane = 0; plane < F::PLANES; ++plane) {
            if (time != maximum(i32(F::last_use(plane)), i32(F::first_use(plane) + 8 - AHEAD))) continue;
            RF_UNROLL
            for (u32 m = 0; m < TILES; ++m) {
                RF_UNROLL
                for (u32 p = 0; p < FRAGMENT_PARTS; ++p) of[m][p].load_plane(at.row[m][p], at.cells, at.cell(), plane);
            }
        }
    }
    RF_MEMBER void load(const Position& at) {
        if (!at.any()) return;
        load_scales(at);
        RF_UNROLL
        for (u32 time = 0; time < 8; ++time) load_planes(at, time);
    }
};

// Adds the products of a run with all tokens, and loads the one after.
template <class F, class X>
RF_DEVICE void add_run(Sums& sums, Cells<F>& w, const Position& at, const Position& next, X& x, bool last) {
    Cells<F> after;
    if (next.any()) after.load_scales(next);
    float scale[TILES][FRAGMENT_PARTS], min[TILES][FRAGMENT_PARTS];  // of scales
    RF_UNROLL
    for (u32 m = 0; m < TILES; ++m) {
        RF_UNROLL
        for (u32 p = 0; p < FRAGMENT_PARTS; ++p) {
            w.of[m][p].ready();
            scale[m][p] = at.wanted() ? w.of[m][p].outer_scale() : 0.0f;
            min[m][p] = at.wanted() ? w.of[m][p].outer_min() : 0.0f;
        }
    }
    x.begin_run(at.cell());
    RF_UNROLL
    for (u32 half = 0; half < 8; ++half) {
        u32 a[TILES][FRAGMENT_PARTS][8], s = half / 2, h = half % 2;
        bool more = half < 7 || !last;
        x.load_ahead(more);
        RF_UNROLL
        for (u32 m = 0; m < TILES; ++m) {
            RF_UNROLL
            for (u32 p = 0; p < FRAGMENT_PARTS; ++p) {
                const F& cell = w.of[m][p];
                unpack(a[m][p], cell, s, h, scale[m][p] * cell.scale(s, h), min[m][p] * cell.min(s, h));
            }
        }
        w.load_planes(at, 8 + half);
        if (next.any()) after.load_planes(next, half);
        RF_UNROLL
        for (u32 n = 0; n < TOKEN_TILES; ++n) {
            if (!x.any(n)) continue;
            schedule_barrier();
            u32 b[FRAGMENT_PARTS][8];
            RF_UNROLL
            for (u32 p = 0; p < FRAGMENT_PARTS; ++p) {
                RF_UNROLL
                for (u32 j = 0; j < 2; ++j) {
                    u32x4 chunk = x.chunk(half, j, n, p);
                    RF_UNROLL
                    for (u32 i = 0; i < 4; ++i) b[p][4 * j + i] = element(chunk, i);
                }
            }
            RF_UNROLL
            for (u32 step = 0; step < 8; step += FRAGMENT_PAIRS) {
                PairFragment x_fragment = fragment_of(b, step);
                RF_UNROLL
                for (u32 m = 0; m < TILES; ++m) {
                    add_product(sums.of[m][n], fragment_of(a[m], step), x_fragment);
                }
            }
        }
        x.advance(more);
    }
    w = after;
}

// The block's tokens as its waves take them.
RF_DEVICE auto fragments_of(Shared& shared, const u8* x) {
    if constexpr (STAGED)
        return StagedFragments{x, shared};
    else
        return Fragments{x};
}

// The products of the wave's rows with all tokens, from its first run `at` on; loads the run that comes `then`.
template <class F, class X>
RF_DEVICE Sums multiply(Cells<F>& w, Position at, const Position& then, X x) {
    Sums sums = {};
    bool more = at.any();
    if (more) x.begin();
    while (more) {
        Position next = at;
        next.number += K_WAVES;
        more = next.any();
        if (!more) next = then;
        add_run(sums, w, at, next, x, !more);
        at = next;
    }
    return sums;
}

// The first run of a wave, whose rows are what `row_of` gives for 0 to 16 TILES - 1.
template <class RowOf>
RF_DEVICE Position first_run(u32 cells, RowOf row_of) {
    Position at;
    RF_UNROLL
    for (u32 m = 0; m < TILES; ++m) {
        RF_UNROLL
        for (u32 p = 0; p < FRAGMENT_PARTS; ++p) at.row[m][p] = computed_once(row_of(16 * m + part_row(p)));
    }
    at.number = wave() / RF_ROW_WAVES, at.cells = cells;
    return at;
}

}  // namespace rocforge
