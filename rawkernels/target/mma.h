// Products of a wave on the matrix unit of NVIDIA's sm_80 and later: c (16, 8) += a (16, depth) b (depth, 8), operands
// in registers. The simulator has them, too, with 32 lanes.
//
// Lane 4 g + t has of c the rows g, in c[0] and c[1], and g + 8 of columns 2 t and 2 t + 1; of a word of b the column
// g.
#pragma once
#include "target/platform.h"

namespace rocforge {

// Pairs of float16, 16 in depth: a[0] and a[1] are the rows g and g + 8 at depth 2 t, a[2] and a[3] at 2 t + 8, and so
// are b0 and b1.
RF_DEVICE void multiply_halves(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef RF_PLATFORM_HOST
    hipsim_mma_halves(c, a, b0, b1);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
// The same, 8 in depth.
RF_DEVICE void multiply_eight_halves(float (&c)[4], u32 a0, u32 a1, u32 b) {
#ifdef RF_PLATFORM_HOST
    const u32 a[4] = {a0, a1, 0, 0};
    hipsim_mma_halves(c, a, b, 0);
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
#endif
}
// Signed bytes, 32 in depth: a0 and a1 are the rows g and g + 8 at depth 4 t, a2 and a3 at 4 t + 16, and so are b0 and
// b1.
RF_DEVICE void multiply_bytes(i32 (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#ifdef RF_PLATFORM_HOST
    const u32 a[4] = {a0, a1, a2, a3};
    hipsim_mma_bytes(c, a, b0, b1);
#else
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}
// A matrix (8, 8) of float16, of which lane 4 g + t has the pair at 2 t of row g, turned.
RF_DEVICE u32 turned(u32 pair) {
#ifdef RF_PLATFORM_HOST
    u32 from = lane() % 4 * 8 + lane() / 8, shift = lane() / 4 % 2 * 16;
    u32 even = shuffle(pair, from), odd = shuffle(pair, from + 4);
    return (even >> shift & 0xffff) | (odd >> shift & 0xffff) << 16;
#else
    u32 y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(pair));
    return y;
#endif
}

// Of two words: both low halves, both high ones; and the bytes of both low halves in turns, and of both high ones.
RF_DEVICE u32 low_halves(u32 a, u32 b) { return pick_bytes(b, a, 0x05040100); }
RF_DEVICE u32 high_halves(u32 a, u32 b) { return pick_bytes(b, a, 0x07060302); }
RF_DEVICE u32 interleaved_low(u32 a, u32 b) { return pick_bytes(b, a, 0x05010400); }
RF_DEVICE u32 interleaved_high(u32 a, u32 b) { return pick_bytes(b, a, 0x07030602); }

}  // namespace rocforge
