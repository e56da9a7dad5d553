// Rotary position embedding, and the store of keys and values into the paged cache.
//
// Compiled for a RF_HEAD_DIM. Cosines and sines are those of angles.hip.
#include "heads.h"
#include "formats/kv_cache.h"

namespace rocforge {

// variants: RF_HEAD_DIM=64,80,96,128,256
constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS, HEADS = RF_TUNE_ROPE_HEADS;

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
// values. Rows of q, k and v are strides apart, in floats. Norm weights are (RF_HEAD_DIM,). The cache layer is (slots,
// kv_heads, RF_HEAD_DIM); a token whose slot is negative is not stored.
struct RopeStoreParams {
    float* q_out;
    f16 *keys, *values;
    const float *q, *k, *v;
    u64 q_stride, k_stride, v_stride;
    const i32* slots;
    RF_NULLABLE const float *cos, *sin;  // null where nothing is rotated
    RF_NULLABLE const float *q_norm, *k_norm;
    float eps;
    u32 tokens, heads, kv_heads, pairs;
    i32 neox;
};

// Row `row` of a token, of its queries, keys and values one below the other.
RF_DEVICE const float* row_of(const RopeStoreParams& p, u32 token, u32 row) {
    if (row < p.heads) return p.q + token * p.q_stride + row * RF_HEAD_DIM;
    row -= p.heads;
    if (row < p.kv_heads) return p.k + token * p.k_stride + row * RF_HEAD_DIM;
    return p.v + token * p.v_stride + (row - p.kv_heads) * RF_HEAD_DIM;
}

RF_DEVICE void finish_row(const RopeStoreParams& p, u32 token, u32 row, Head& head, const Rotation& rotation,
                          float* buffer) {
    bool query = row < p.heads, key = !query && row < p.heads + p.kv_heads;
    if (!query && p.slots[token] < 0) return;
    const float* norm = query ? p.q_norm : key ? p.k_norm : nullptr;
    if (norm) rms_norm_head(head, norm, p.eps);
    if (query || key) rotate_head(head, buffer, rotation);
    if (query) return store_head(p.q_out + (u64(token) * p.heads + row) * RF_HEAD_DIM, head);
    u32 kv_head = row - p.heads - (key ? 0 : p.kv_heads);
    store_head((key ? p.keys : p.values) + cache_offset(u64(p.slots[token]), p.kv_heads, kv_head), head);
}

// A wave some heads of a token, whose loads are in flight at a time.
RF_KERNEL(THREADS)
rf_rope_store(RopeStoreParams p) {
    wait_for_previous();
    RF_SHARED float buffers[THREADS / RF_WAVE][RF_HEAD_DIM];
    u32 rows = p.heads + 2 * p.kv_heads, parts = (rows + HEADS - 1) / HEADS;
    u32 index = block_x() * (THREADS / RF_WAVE) + wave(), token = index / parts, first = index % parts * HEADS;
    if (token >= p.tokens) return;
    Head heads[HEADS];
    RF_UNROLL
    for (u32 i = 0; i < HEADS; ++i) heads[i] = load_head(row_of(p, token, minimum(i32(first + i), i32(rows - 1))));
    Rotation rotation = load_rotation(p.cos + token * p.pairs, p.sin + token * p.pairs, p.pairs, p.neox);
    RF_UNROLL
    for (u32 i = 0; i < HEADS; ++i)
        if (first + i < rows) finish_row(p, token, first + i, heads[i], rotation, buffers[wave()]);
}

}  // namespace rocforge
