// Copies from memory into LDS that go on while a lane does other work: NVIDIA's, from sm_80 on.
#pragma once
#include "target/platform.h"

namespace rocforge {

RF_DEVICE u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

// Copies 16 bytes, or zeros.
RF_DEVICE void copy_16_bytes(f16* to, const f16* from, bool wanted = true) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(wanted ? 16 : 0)
                 : "memory");
}
// Those of this lane since the last end are a group.
RF_DEVICE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all groups of this lane but the last PENDING.
template <u32 PENDING>
RF_DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

}  // namespace rocforge
