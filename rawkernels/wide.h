// What the kernels of wide.hip and experts_wide.hip share: rings of stages in LDS, through which one warpgroup brings
// packed weights and x to others that multiply them.
#pragma once
#include "formats/quants.h"
#include "target/fragments.h"
#include "target/warpgroup.h"

namespace rocforge {

const u32 MOST_STAGES = 8;
struct Barriers {
    u64 full[MOST_STAGES], empty[MOST_STAGES];
};
struct AllBarriers {
    Barriers x, weights;
};

// A wave brings x, so many bring weights.
const u32 WEIGHT_WAVES = 3;

// `consumers`: waves that multiply. All of the block's threads call it.
template <u32 X_STAGES, u32 WEIGHT_STAGES>
RF_DEVICE void init_rings(AllBarriers& barriers, u32 consumers) {
    if (thread_x() == 0) {
        RF_UNROLL
        for (u32 i = 0; i < X_STAGES; ++i)
            init_barrier(&barriers.x.full[i], 1), init_barrier(&barriers.x.empty[i], consumers);
        RF_UNROLL
        for (u32 i = 0; i < WEIGHT_STAGES; ++i) {
            init_barrier(&barriers.weights.full[i], WEIGHT_WAVES * RF_WAVE);
            init_barrier(&barriers.weights.empty[i], consumers);
        }
        fence_barriers();
    }
    barrier();
}

// A place in a ring of stages, and the parity of the phase there.
template <u32 COUNT>
struct RingPlace {
    u32 stage = 0, parity = 0;
    RF_MEMBER void next() {
        if (++stage == COUNT) stage = 0, parity ^= 1;
    }
};

// A stage of weights is CELLS cells of all rows. Each row lies there as a row of CELLS cells lies in memory, of which
// PITCH leaves every lane of a wave that reads the same word of eight rows its own bank.
template <class F>
struct Stage {
    static const u32 CELLS = 2, PITCH = 16 * (F::row_bytes(CELLS) / 16 | 1);
};

// Copies cells c (an even number) and c + 1 of 16 rows: two lanes share a row.
template <class F>
RF_DEVICE void copy_cells(u8* to, const u8* row, u32 cells, u32 c) {
    const u32 CELLS = Stage<F>::CELLS;
    u32 rank = lane() % 2, at = lds_address(to + lane() / 2 * Stage<F>::PITCH);
    RF_UNROLL
    for (u32 p = 0; p < F::PLANES; ++p) copy_async<16>(at + 16 * (p * CELLS + rank), row + 16 * (p * cells + c + rank));
    // what lies past the last cell is copied too, but not past the row
    const u32 tail = F::TAIL * CELLS, unit = tail < 16 ? tail : 16;
    if (rank * unit < tail) {
        u32 from = F::tail_at(cells) + F::TAIL * c + rank * unit;
        copy_async<unit>(at + F::tail_at(CELLS) + rank * unit,
                         row + minimum(i32(from), i32(F::row_bytes(cells) - unit)));
    }
    if constexpr (F::SUPER > 0) {  // of two bytes those of the block before or after come too
        if (rank == 1) copy_async<4>(at + F::super_at(CELLS), row + F::super_at(cells) + F::SUPER * (c / 2) / 4 * 4);
    }
}

// Of cell r of a stage, which is of block number `block`.
template <class F>
RF_DEVICE void load_scales(F& w, const u8* row, u32 r, u32 block) {
    if constexpr (F::SUPER == 2)
        w.load_scales(row, Stage<F>::CELLS, r, block % 2);
    else
        w.load_scales(row, Stage<F>::CELLS, r);
}

}  // namespace rocforge
