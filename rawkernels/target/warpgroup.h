// Products of Hopper's warpgroups from tiles in LDS that are wider than a swizzled row, and what warpgroups with roles
// of their own need: of sm_90a alone.
//
// A tile in LDS is panels of 64 float16 a row, rows of 128 bytes one after another, whose 16-byte pieces are permuted
// by the row so that eight rows lie in different banks. Panels begin at multiples of 1,024 bytes.
#pragma once
#include "target/hopper.h"

namespace rocforge {

constexpr u32 PANEL = 64, WARPGROUP = 128;

// Where a row's 16-byte piece lies in a tile of `rows` rows, in elements.
RF_DEVICE u32 piece_offset(u32 rows, u32 row, u32 piece) {
    return piece / 8 * rows * PANEL + row * PANEL + (piece % 8 ^ row % 8) * 8;
}

// ---- Products: c (64, N) float32 in registers, of a (64, 16) and b, 16 in depth, float16 ----
//
// A lane has c's element i at row `warp % 4 * 16 + fragment_row(row_slot(i))`, column fragment_column(i).

template <u32 N>
using WarpgroupTile = float[N / 2];

// How the tensor cores find an operand: the one at a tile's beginning, plus a distance in it. A shuffle tells the
// compiler that all lanes have the same, which it then computes in uniform registers, where products take it from.
struct Operands {
    u32 first;
    u64 rest;

    // `panels` is bytes between the panels, for operands that span several.
    RF_MEMBER Operands(const f16* tile, u32 panels) : first(shuffle(lds_address(tile) >> 4, 0)) {
        const u64 EIGHT_ROWS = 1024 >> 4, PERMUTED = u64(1) << 62;
        rest = u64(panels >> 4) << 16 | EIGHT_ROWS << 32 | PERMUTED;
    }
    // `distance` in elements.
    RF_MEMBER u64 at(u32 distance) const { return rest | (first + distance / 8); }
};

#define RF_PRODUCT_64 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" RF_NAMES_0 ", " RF_NAMES_16 "}, "
#define RF_PRODUCT_128                                                                                   \
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" RF_NAMES_0 ", " RF_NAMES_16 ", " RF_NAMES_32 \
    ", " RF_NAMES_48 "}, "

// c = a b^T, or c += a b^T; both in LDS, the depth along their rows. N is 64 or 128.
RF_DEVICE void multiply_rows(WarpgroupTile<64>& c, u64 a, u64 b, bool add) {
    asm volatile("{.reg .pred add; setp.ne.b32 add, %34, 0; " RF_PRODUCT_64 "%32, %33, add, 1, 1, 0, 0;}"
                 : RF_SUMS_16(c, 0), RF_SUMS_16(c, 16)
                 : "l"(a), "l"(b), "r"(i32(add)));
}
RF_DEVICE void multiply_rows(WarpgroupTile<128>& c, u64 a, u64 b, bool add) {
    asm volatile("{.reg .pred add; setp.ne.b32 add, %66, 0; " RF_PRODUCT_128 "%64, %65, add, 1, 1, 0, 0;}"
                 : RF_SUMS_64(c, 0)
                 : "l"(a), "l"(b), "r"(i32(add)));
}

// c += a b; a in registers, b in LDS, its rows the depth. N is 64 or 128.
RF_DEVICE void multiply_columns(WarpgroupTile<64>& c, const u32* a, u64 b) {
    asm volatile("{.reg .pred add; setp.ne.b32 add, 1, 0; " RF_PRODUCT_64 "{%32, %33, %34, %35}, %36, add, 1, 1, 1;}"
                 : RF_SUMS_16(c, 0), RF_SUMS_16(c, 16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
RF_DEVICE void multiply_columns(WarpgroupTile<128>& c, const u32* a, u64 b) {
    asm volatile("{.reg .pred add; setp.ne.b32 add, 1, 0; " RF_PRODUCT_128 "{%64, %65, %66, %67}, %68, add, 1, 1, 1;}"
                 : RF_SUMS_64(c, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// The compiler moves no access to c across this.
template <u32 COUNT>
RF_DEVICE void in_place(float (&c)[COUNT]) {
    RF_UNROLL
    for (u32 i = 0; i < COUNT; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

// The compiler takes it for another number: what follows from it is computed again, and takes no registers before.
RF_DEVICE u32 unknown(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}

// ---- Barriers ----

// What this thread has put into LDS is seen by products, once a barrier orders them; or, behind the barrier, what
// others have put there.
RF_DEVICE void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// At those of wait_at_barrier some threads may only arrive.
template <u32 THREADS>
RF_DEVICE void arrive_at_barrier(u32 number) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "n"(THREADS) : "memory");
}

// Registers of each lane of this warpgroup from here on; a kernel begins with the same for all.
template <u32 COUNT>
RF_DEVICE void give_registers_back() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <u32 COUNT>
RF_DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

}  // namespace rocforge
