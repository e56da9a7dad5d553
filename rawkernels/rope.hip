// Rotary position embedding, and the store of keys and values into the paged cache.
//
// Compiled for a RF_HEAD_DIM, RF_BLOCK_SIZE (tokens of a cache block), the cache's types, and RF_VALUE_DIM of values
// that are shorter than keys. Cosines and sines are those of angles.hip.
#include "cached_heads.h"

namespace rocforge {

// variants: RF_HEAD_DIM=80,128,256,512 RF_BLOCK_SIZE=32
// variants: RF_HEAD_DIM=96 RF_BLOCK_SIZE=32 RF_KEY_TYPE=Q8_0 RF_VALUE_TYPE=Q4_0
// variants: RF_HEAD_DIM=192 RF_BLOCK_SIZE=32 RF_VALUE_DIM=128
// variants: RF_HEAD_DIM=256 RF_BLOCK_SIZE=32 RF_KEY_TYPE=Q4_0 RF_VALUE_TYPE=FP8_E4M3
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

// Queries are normalized, rotated and spread as keys are into q_out (tokens, heads, RF_HEAD_DIM); keys likewise, into
// the cache, with the values, which with `values_normed` are normalized without a weight. Without kv_heads there are
// queries alone. Rows of q, k and v, and heads of q, are strides apart, in floats. Norm weights are (RF_HEAD_DIM,). A
// token whose slot is negative is not stored.
struct RopeStoreParams {
    float* q_out;
    void *keys, *values;
    const float* q;
    RF_NULLABLE const float *k, *v;
    u64 q_stride, k_stride, v_stride;
    u32 q_head_stride;
    const i32* slots;
    RF_NULLABLE const float *cos, *sin;  // null where nothing is rotated
    RF_NULLABLE const float *q_norm, *k_norm;
    float eps, v_eps;
    u32 tokens, heads, kv_heads, pairs;
    i32 neox, values_normed;
};

// A wave a head of a token.
RF_KERNEL(THREADS)
rf_rope_store(RopeStoreParams p) {
    wait_for_previous();
    RF_SHARED float buffers[THREADS / RF_WAVE][RF_HEAD_DIM];
    u32 rows = p.heads + 2 * p.kv_heads, index = block_x() * (THREADS / RF_WAVE) + wave();
    u32 token = index / rows, row = index % rows;
    if (token >= p.tokens) return;
    const float *cos = p.cos + token * p.pairs, *sin = p.sin + token * p.pairs;
    if (row < p.heads) {
        Head head = load_head(p.q + token * p.q_stride + row * p.q_head_stride);
        if (p.q_norm) rms_norm_head(head, p.q_norm, p.eps);
        rotate_head(head, buffers[wave()], load_rotation(cos, sin, p.pairs, p.neox));
        spread(head);
        store_head(p.q_out + (u64(token) * p.heads + row) * RF_HEAD_DIM, head);
        return;
    }
    if (p.slots[token] < 0) return;
    row -= p.heads;
    u32 slot = p.slots[token], block = slot / RF_BLOCK_SIZE, offset = slot % RF_BLOCK_SIZE;
    if (row < p.kv_heads) {
        Head head = load_head(p.k + token * p.k_stride + row * RF_HEAD_DIM);
        if (p.k_norm) rms_norm_head(head, p.k_norm, p.eps);
        rotate_head(head, buffers[wave()], load_rotation(cos, sin, p.pairs, p.neox));
        spread(head);
        store_cached(Keys(), HeadBlock<Keys>(p.keys, block, p.kv_heads, row).row(offset), head);
    } else {
        row -= p.kv_heads;
        Head head = load_head<RF_VALUE_DIM>(p.v + token * p.v_stride + row * RF_VALUE_DIM);
        if (p.values_normed) rms_norm_head<RF_VALUE_DIM>(head, nullptr, p.v_eps);
        store_cached(Values(), HeadBlock<Values>(p.values, block, p.kv_heads, row).row(offset), head);
    }
}

}  // namespace rocforge
