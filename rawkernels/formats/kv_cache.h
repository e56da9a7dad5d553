// The paged KV cache. For sources compiled for a RF_HEAD_DIM.
//
// Keys and values of a layer are (slots, kv_heads, RF_HEAD_DIM) float16 each. A block is RF_BLOCK_SIZE consecutive
// slots, and token t of a sequence lies in block table[t / RF_BLOCK_SIZE] of its table.
#pragma once
#include "target/platform.h"

namespace rocforge {

// Where a head's elements begin.
RF_DEVICE u64 cache_offset(u64 slot, u32 kv_heads, u32 kv_head) { return (slot * kv_heads + kv_head) * RF_HEAD_DIM; }

// Eight elements.
RF_DEVICE void unpack8(float* x, u32x4 packed) {
    x[0] = low_half(packed.x), x[1] = high_half(packed.x), x[2] = low_half(packed.y), x[3] = high_half(packed.y);
    x[4] = low_half(packed.z), x[5] = high_half(packed.z), x[6] = low_half(packed.w), x[7] = high_half(packed.w);
}

#ifdef RF_BLOCK_SIZE
RF_DEVICE u64 cache_slot(const i32* table, u32 token) {
    return u64(table[token / RF_BLOCK_SIZE]) * RF_BLOCK_SIZE + token % RF_BLOCK_SIZE;
}
#endif

}  // namespace rocforge
