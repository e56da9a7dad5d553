// Copies by lanes from memory into LDS that go on while they do other work: NVIDIA's, from sm_80 on.
#pragma once
#include "target/platform.h"

namespace rocforge {

// An address in the block's LDS, as these instructions take it.
RF_DEVICE u32 lds_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

// Copies 4, 8 or 16 bytes.
template <u32 BYTES>
RF_DEVICE void copy_async(u32 to, const u8* from) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES) : "memory");
}
// Copies 16 bytes, and asks for the 128 that they are of to be in the last cache; or writes zeros.
RF_DEVICE void copy_async_or_zeros(f16* to, const f16* from, bool wanted) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(lds_address(to)), "l"(from),
                 "r"(wanted ? 16 : 0)
                 : "memory");
}
RF_DEVICE void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all but the last N of this lane's groups.
template <u32 N>
RF_DEVICE void wait_for_copy_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace rocforge
