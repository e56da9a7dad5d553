// Rotary position embedding, and the store of keys and values into the paged cache.
//
// Compiled for a RF_HEAD_DIM. Cosines and sines are those of angles.hip.
#include "heads.h"

namespace rocforge {

// variants: RF_HEAD_DIM=64,80,96,128,256
constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// out (tokens, heads, RF_HEAD_DIM) = rotated x; rows of x are `stride` floats apart. A wave a head.
RF_KERNEL(THREADS)
rf_rope(float* out, const float* x, const float* cos, const float* sin, u32 tokens, u32 heads, u64 stride, u32 pairs,
        i32 neox) {
    wait_for_previous();
    RF_SHARED float buffers[THREADS / RF_WAVE][RF_HEAD_DIM];
    u32 index = block_x() * (THREADS / RF_WAVE) + wave();
    if (index >= tokens * heads) return;
    u32 token = index / heads;
    Head head = load_head(x + token * stride + index % heads * RF_HEAD_DIM);
    rotate_head(head, buffers[wave()], load_rotation(cos + token * pairs, sin + token * pairs, pairs, neox));
    store_head(out + u64(index) * RF_HEAD_DIM, head);
}

// Queries are normalized and rotated into q_out (tokens, heads, RF_HEAD_DIM); keys likewise, into the cache, with the
// values. Rows of q, k and v are strides apart, in floats. Norm weights (RF_HEAD_DIM,) may be null. The cache layer is
// (slots, kv_heads, RF_HEAD_DIM); a token whose slot is negative is not stored. A wave a head of a token.
RF_KERNEL(THREADS)
rf_rope_store(float* q_out, f16* keys, f16* values, const float* q, const float* k, const float* v, u64 q_stride,
              u64 k_stride, u64 v_stride, const i32* slots, const float* cos, const float* sin, const float* q_norm,
              const float* k_norm, float eps, u32 tokens, u32 heads, u32 kv_heads, u32 pairs, i32 neox) {
    wait_for_previous();
    RF_SHARED float buffers[THREADS / RF_WAVE][RF_HEAD_DIM];
    u32 rows = heads + 2 * kv_heads, index = block_x() * (THREADS / RF_WAVE) + wave();
    u32 token = index / rows, row = index % rows;
    if (token >= tokens) return;
    cos += token * pairs, sin += token * pairs;
    if (row < heads) {
        Head head = load_head(q + token * q_stride + row * RF_HEAD_DIM);
        if (q_norm) rms_norm_head(head, q_norm, eps);
        rotate_head(head, buffers[wave()], load_rotation(cos, sin, pairs, neox));
        store_head(q_out + (u64(token) * heads + row) * RF_HEAD_DIM, head);
        return;
    }
    if (slots[token] < 0) return;
    row -= heads;
    u64 slot = u64(slots[token]) * kv_heads;
    if (row < kv_heads) {
        Head head = load_head(k + token * k_stride + row * RF_HEAD_DIM);
        if (k_norm) rms_norm_head(head, k_norm, eps);
        rotate_head(head, buffers[wave()], load_rotation(cos, sin, pairs, neox));
        store_head(keys + (slot + row) * RF_HEAD_DIM, head);
    } else {
        row -= kv_heads;
        store_head(values + (slot + row) * RF_HEAD_DIM, load_head(v + token * v_stride + row * RF_HEAD_DIM));
    }
}

}  // namespace rocforge
