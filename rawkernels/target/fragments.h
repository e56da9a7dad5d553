// Matrix products of a wave: 16 x 16 x 16, float16 in, float32 out, on each target's matrix unit.
//
// Targets without one (gfx1030) multiply in plain code; their fragments point into memory, which must not change before
// the product. The simulator has the instructions of the target that it plays.
#pragma once
#include "target/platform.h"

namespace rocforge {

#if defined(RF_PLATFORM_NVIDIA)
#define RF_FRAGMENTS_NVIDIA 1
#elif defined(__GFX9__)
#define RF_FRAGMENTS_MFMA 1
#elif defined(__GFX11__) || defined(__GFX12__)
#define RF_FRAGMENTS_WMMA 1
#else
#define RF_FRAGMENTS_PLAIN 1
#endif

// A lane's share of a 16 x 16 float32 tile: element i is at (fragment_row(row_slot(i)), fragment_column(i)).
constexpr u32 ELEMENTS = 256 / RF_WAVE;
struct Accumulator {
    float x[ELEMENTS];
};

#if defined(RF_FRAGMENTS_MFMA) || defined(RF_FRAGMENTS_WMMA)
#ifdef __clang__
#define RF_VECTOR(T, n) T __attribute__((ext_vector_type(n)))
#else
#define RF_VECTOR(T, n) T __attribute__((vector_size(sizeof(T) * (n))))
#endif
typedef RF_VECTOR(_Float16, 4) half4;
typedef RF_VECTOR(_Float16, 8) half8;
typedef RF_VECTOR(_Float16, 16) half16;
typedef RF_VECTOR(float, ELEMENTS) Elements;
#endif

// A lane holds elements of ROW_SLOTS rows, and ROW_LANES neighbouring lanes (a power of two) share a row.
#ifdef RF_FRAGMENTS_NVIDIA
constexpr u32 ROW_SLOTS = 2, ROW_LANES = 4;
RF_DEVICE constexpr u32 row_slot(u32 i) { return i / 2 % 2; }
RF_DEVICE u32 fragment_row(u32 slot) { return lane() / 4 + 8 * slot; }
RF_DEVICE u32 fragment_column(u32 i) { return lane() % 4 * 2 + i % 2 + i / 4 * 8; }
#else
constexpr u32 ROW_SLOTS = ELEMENTS, ROW_LANES = 16;
RF_DEVICE constexpr u32 row_slot(u32 i) { return i; }
RF_DEVICE u32 fragment_column(u32) { return lane() % 16; }
#if defined(RF_FRAGMENTS_MFMA) || defined(__GFX12__)
RF_DEVICE u32 fragment_row(u32 slot) { return lane() / 16 * ELEMENTS + slot; }
#else
RF_DEVICE u32 fragment_row(u32 slot) { return slot * (RF_WAVE / 16) + lane() / 16; }
#endif
#endif

// A lane's share of a 16 x 16 float16 tile of either operand.
struct Fragment {
#if defined(RF_FRAGMENTS_NVIDIA)
    u32 x[4];
#elif defined(RF_FRAGMENTS_MFMA)
    half4 x;
#elif defined(RF_FRAGMENTS_WMMA) && defined(__GFX12__)
    half8 x;
#elif defined(RF_FRAGMENTS_WMMA)
    half16 x;
#else
    const f16* x;
    u32 stride;
#endif
};

// A tile, in LDS, of 16 rows of 16 elements, `stride` elements apart; rows are 16-byte aligned. The depth runs along
// the row for both operands.
RF_DEVICE Fragment load_fragment(const f16* tile, u32 stride) {
    Fragment f;
#if defined(RF_FRAGMENTS_NVIDIA)
    u32 row = u32(__cvta_generic_to_shared(tile + lane() % 16 * stride + lane() / 16 * 8));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
                 : "r"(row));
#elif defined(RF_FRAGMENTS_MFMA)
    f.x = load<half4>(tile + lane() % 16 * stride + lane() / 16 * 4);
#elif defined(RF_FRAGMENTS_WMMA) && defined(__GFX12__)
    f.x = load<half8>(tile + lane() % 16 * stride + lane() / 16 * 8);
#elif defined(RF_FRAGMENTS_WMMA)
    const f16* p = tile + lane() % 16 * stride;
    half8 low = load<half8>(p), high = load<half8>(p + 8);
    f.x = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    f.x = tile, f.stride = stride;
#endif
    return f;
}

#ifdef RF_FRAGMENTS_NVIDIA
// As load_fragment, of a tile whose rows are the depth: 16 of them, of 16 elements.
RF_DEVICE Fragment load_fragment_turned(const f16* tile, u32 stride) {
    Fragment f;
    u32 row = u32(__cvta_generic_to_shared(tile + (lane() / 16 * 8 + lane() % 8) * stride + lane() / 8 % 2 * 8));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
                 : "r"(row));
    return f;
}

// What a product gave as an operand of the next, rounded: its columns become the depth.
RF_DEVICE Fragment fragment_of_result(const Accumulator& c) {
    Fragment f;
    RF_UNROLL
    for (u32 i = 0; i < 4; ++i) f.x[i] = pack_fp16(c.x[2 * i], c.x[2 * i + 1]);
    return f;
}

// Sixteen rows of a by eight columns, at c[0..3]; b0 and b1 are the columns' halves in depth.
RF_DEVICE void multiply_add_eight(float* c, const u32* a, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    for (u32 half = 0; half < 2; ++half)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(half ? b1 : b0));
#endif
}
#endif

#ifdef RF_FRAGMENTS_PLAIN
// c + a . b of two pairs of float16.
RF_DEVICE float dot_pair(u32 a, u32 b, float c) {
#ifdef RF_PLATFORM_AMD
    return __builtin_amdgcn_fdot2(reinterpret_cast<half2&>(a), reinterpret_cast<half2&>(b), c, false);
#else
    return c + low_half(a) * low_half(b) + high_half(a) * high_half(b);
#endif
}
RF_DEVICE float dot_eight(u32x4 a, u32x4 b, float c) {
    return dot_pair(a.w, b.w, dot_pair(a.z, b.z, dot_pair(a.y, b.y, dot_pair(a.x, b.x, c))));
}
#endif

// Where a product's operands take many registers, a loop over the depth is not unrolled (RF_UNROLL_DEPTH), and the
// loads of one product are kept behind the product before (fragments_in_order): all of them in flight would spill.
#if defined(RF_FRAGMENTS_NVIDIA) || defined(RF_FRAGMENTS_MFMA)
#define RF_UNROLL_DEPTH RF_UNROLL
RF_DEVICE void fragments_in_order() {}
#else
#define RF_UNROLL_DEPTH _Pragma("unroll 1")
RF_DEVICE void fragments_in_order() { asm volatile("" ::: "memory"); }
#endif

// c += a b^T; all lanes of the wave take part.
RF_DEVICE void multiply_add(Accumulator& c, const Fragment& a, const Fragment& b) {
#if defined(RF_FRAGMENTS_NVIDIA)
    multiply_add_eight(c.x, a.x, b.x[0], b.x[2]);
    multiply_add_eight(c.x + 4, a.x, b.x[1], b.x[3]);
#elif defined(RF_FRAGMENTS_MFMA) || defined(RF_FRAGMENTS_WMMA)
    Elements sum;
    RF_UNROLL
    for (u32 i = 0; i < ELEMENTS; ++i) sum[i] = c.x[i];
#if defined(RF_FRAGMENTS_MFMA)
    sum = __builtin_amdgcn_mfma_f32_16x16x16f16(a.x, b.x, sum, 0, 0, 0);
#elif defined(__GFX12__)
    sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(a.x, b.x, sum);
#else
    sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a.x, b.x, sum);
#endif
    RF_UNROLL
    for (u32 i = 0; i < ELEMENTS; ++i) c.x[i] = sum[i];
#else
    const f16* column = b.x + fragment_column(0) * b.stride;
    u32x4 low = load<u32x4>(column), high = load<u32x4>(column + 8);
    RF_UNROLL
    for (u32 i = 0; i < ELEMENTS; ++i) {
        const f16* row = a.x + fragment_row(i) * a.stride;
        c.x[i] = dot_eight(load<u32x4>(row + 8), high, dot_eight(load<u32x4>(row), low, c.x[i]));
        if (i % 2) schedule_barrier();  // more rows at a time are registers that few waves share
    }
#endif
}

// ---- Fragments from registers ----
//
// FRAGMENT_LANES lanes share a row (of either operand), each with 16 / FRAGMENT_LANES of its 16 elements, as pairs; on
// NVIDIA a lane has its share of two rows, FRAGMENT_PARTS, eight apart. Which elements go where in depth is free, as
// long as both operands agree.
#if defined(RF_FRAGMENTS_NVIDIA)
constexpr u32 FRAGMENT_PARTS = 2;
RF_DEVICE u32 part_row(u32 part) { return lane() / 4 + 8 * part; }
RF_DEVICE u32 part_lane() { return lane() % 4; }
#else
constexpr u32 FRAGMENT_PARTS = 1;
RF_DEVICE u32 part_row(u32) { return lane() % 16; }
RF_DEVICE u32 part_lane() { return lane() / 16 % FRAGMENT_LANES; }
#endif
constexpr u32 FRAGMENT_PAIRS = 8 / FRAGMENT_LANES;

#ifdef RF_FRAGMENTS_PLAIN
struct PairFragment {
    u32 x[FRAGMENT_PAIRS];
};
#else
typedef Fragment PairFragment;
#endif

// From a lane's pairs of each part, those from `first` on.
template <u32 N>
RF_DEVICE PairFragment fragment_of(const u32 (&pairs)[FRAGMENT_PARTS][N], u32 first) {
    PairFragment f;
#if defined(RF_FRAGMENTS_NVIDIA)
    RF_UNROLL
    for (u32 i = 0; i < 4; ++i) f.x[i] = pairs[i % 2][first + i / 2];
#else
    u32 x[FRAGMENT_PAIRS];
    RF_UNROLL
    for (u32 i = 0; i < FRAGMENT_PAIRS; ++i) x[i] = pairs[0][first + i];
    RF_MEMCPY(&f.x, x, sizeof x);
#endif
    return f;
}

#ifdef RF_FRAGMENTS_PLAIN
// Lanes see each other's fragments through LDS; blocks have at most 256 threads.
RF_DEVICE void multiply_add(Accumulator& c, const PairFragment& a, const PairFragment& b) {
    RF_SHARED PairFragment rows[256], columns[256];
    u32 first = wave() * RF_WAVE;
    rows[thread_x()] = a, columns[thread_x()] = b;
    wave_barrier();
    RF_NO_UNROLL
    for (u32 t = 0; t < RF_WAVE; t += 16) {
        const PairFragment& column = columns[first + t + fragment_column(0)];
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i) {
            const PairFragment& row = rows[first + t + fragment_row(i)];
            RF_UNROLL
            for (u32 q = 0; q < FRAGMENT_PAIRS; ++q) c.x[i] = dot_pair(row.x[q], column.x[q], c.x[i]);
        }
    }
    wave_barrier();
}
#endif

// c += a b^T, of which only the first eight columns are wanted.
RF_DEVICE void multiply_add_half(Accumulator& c, const PairFragment& a, const PairFragment& b) {
#ifdef RF_FRAGMENTS_NVIDIA
    multiply_add_eight(c.x, a.x, b.x[0], b.x[2]);
#else
    multiply_add(c, a, b);
#endif
}

}  // namespace rocforge
