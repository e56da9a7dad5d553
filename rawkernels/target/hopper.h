// Hopper's matrix unit, and its copies into LDS: of sm_90a alone.
#pragma once
#include "target/platform.h"

namespace rocforge {

// An address in the block's LDS, as these instructions take it.
RF_DEVICE u32 lds_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

// ---- Copies of 4, 8 or 16 bytes by lanes ----

template <u32 BYTES>
RF_DEVICE void copy_async(u32 to, const u8* from) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES) : "memory");
}

// ---- Barriers in LDS, whose phases count up; a bulk copy arrives with its bytes ----

RF_DEVICE void init_barrier(u64* b, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(lds_address(b)), "r"(arrivals) : "memory");
}
RF_DEVICE void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
RF_DEVICE void arrive(u64* b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(lds_address(b)) : "memory");
}
RF_DEVICE void wait_phase(u64* b, u32 parity) {
    u32 done = 0;
    while (!done)
        asm volatile(
            "{.reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done;}"
            : "=r"(done)
            : "r"(lds_address(b)), "r"(parity)
            : "memory");
}
// Arrives once what this thread has copied by lanes until here is there.
RF_DEVICE void arrive_with_copies(u64* b) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(lds_address(b)) : "memory");
}
// Arrives, and makes the phase wait for so many bytes.
RF_DEVICE void expect_bytes(u64* b, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(lds_address(b)), "r"(bytes) : "memory");
}
// One lane copies `bytes` from global memory; both addresses are multiples of 16.
RF_DEVICE void copy_bulk(void* to, const u8* from, u32 bytes, u64* b) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     lds_address(to)),
                 "l"(from), "r"(bytes), "r"(lds_address(b))
                 : "memory");
}

// ---- Products of a warp group: 64 rows of a, in registers as of mma.m16n8k16, times N rows of b in LDS ----

// Of b: rows of 128 bytes, of which eight fill 1,024; the 16-byte chunk c of row n lies at c ^ n % 8.
RF_DEVICE u64 swizzled_rows(u32 address) {
    return u64(address >> 4 & 0x3fff) | u64(1) << 16 | u64(64) << 32 | u64(1) << 62;
}

RF_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
RF_DEVICE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <u32 N>
RF_DEVICE void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Sums of a product as operands of the instruction: 4, 16 or 64 of them, from c[i] on.
#define RF_SUMS_4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define RF_SUMS_16(c, i) RF_SUMS_4(c, i), RF_SUMS_4(c, i + 4), RF_SUMS_4(c, i + 8), RF_SUMS_4(c, i + 12)
#define RF_SUMS_64(c, i) RF_SUMS_16(c, i), RF_SUMS_16(c, i + 16), RF_SUMS_16(c, i + 32), RF_SUMS_16(c, i + 48)

template <u32 N>
struct WarpGroupProduct {
    static RF_MEMBER void add(float (&c)[N / 2], const u32* a, u64 b);
};
// Names of sums: 16 of them each.
#define RF_NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define RF_NAMES_16 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define RF_NAMES_32 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define RF_NAMES_48 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define RF_NAMES_64 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define RF_NAMES_80 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define RF_NAMES_96 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define RF_NAMES_112 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

template <>
RF_MEMBER void WarpGroupProduct<32>::add(float (&c)[16], const u32* a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {" RF_NAMES_0
                 "}, {%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
                 : RF_SUMS_16(c, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
RF_MEMBER void WarpGroupProduct<64>::add(float (&c)[32], const u32* a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" RF_NAMES_0 ", " RF_NAMES_16
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
                 : RF_SUMS_16(c, 0), RF_SUMS_16(c, 16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
RF_MEMBER void WarpGroupProduct<96>::add(float (&c)[48], const u32* a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {" RF_NAMES_0 ", " RF_NAMES_16 ", " RF_NAMES_32
                 "}, {%48, %49, %50, %51}, %52, 1, 1, 1, 0;"
                 : RF_SUMS_16(c, 0), RF_SUMS_16(c, 16), RF_SUMS_16(c, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
RF_MEMBER void WarpGroupProduct<128>::add(float (&c)[64], const u32* a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" RF_NAMES_0 ", " RF_NAMES_16 ", " RF_NAMES_32
                 ", " RF_NAMES_48 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
                 : RF_SUMS_16(c, 0), RF_SUMS_16(c, 16), RF_SUMS_16(c, 32), RF_SUMS_16(c, 48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
RF_MEMBER void WarpGroupProduct<160>::add(float (&c)[80], const u32* a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n160k16.f32.f16.f16 {" RF_NAMES_0 ", " RF_NAMES_16 ", " RF_NAMES_32
                 ", " RF_NAMES_48 ", " RF_NAMES_64 "}, {%80, %81, %82, %83}, %84, 1, 1, 1, 0;"
                 : RF_SUMS_16(c, 0), RF_SUMS_16(c, 16), RF_SUMS_16(c, 32), RF_SUMS_16(c, 48), RF_SUMS_16(c, 64)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
RF_MEMBER void WarpGroupProduct<256>::add(float (&c)[128], const u32* a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" RF_NAMES_0 ", " RF_NAMES_16 ", " RF_NAMES_32
                 ", " RF_NAMES_48 ", " RF_NAMES_64 ", " RF_NAMES_80 ", " RF_NAMES_96 ", " RF_NAMES_112
                 "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
                 : RF_SUMS_16(c, 0), RF_SUMS_16(c, 16), RF_SUMS_16(c, 32), RF_SUMS_16(c, 48), RF_SUMS_16(c, 64),
                   RF_SUMS_16(c, 80), RF_SUMS_16(c, 96), RF_SUMS_16(c, 112)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

}  // namespace rocforge
