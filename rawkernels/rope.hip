// Rotary position embedding, and the store of keys and values into the paged cache.
//
// Compiled for a HEAD_DIM. Cosines and sines are computed once a step and shared by its layers.
#include "platform.h"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#define THREADS 256

// sin and cos of an angle of at most pi / 4, by their Taylor series: under 1e-8 off.
DEVICE double sine(double x) {
    double z = x * x;
    return x * (1 + z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880)))));
}
DEVICE double cosine(double x) {
    double z = x * x;
    return 1 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 - z * (1.0 / 3628800)))));
}

// cos, sin (tokens, pairs) = magnitude * cos, sin(position * frequency). Angles are reduced in float64: at position
// 100,000 a float32 angle is wrong by 0.004. A thread a pair.
KERNEL(THREADS)
rope_angles(float* cos, float* sin, const i32* positions, const double* frequencies, u32 tokens, u32 pairs,
                 float magnitude) {
    u32 i = block_x() * THREADS + thread_x();
    if (i >= tokens * pairs) return;
    double angle = positions[i / pairs] * frequencies[i % pairs];
    i64 quarters = i64(angle * 0.6366197723675814 + 0.5);  // angles are not negative
    double rest = angle - double(quarters) * 1.5707963267948966;
    double s = sine(rest), c = cosine(rest);
    double turned_s = quarters & 1 ? c : s, turned_c = quarters & 1 ? s : c;
    sin[i] = float(quarters & 2 ? -turned_s : turned_s) * magnitude;
    cos[i] = float((quarters + 1) & 2 ? -turned_c : turned_c) * magnitude;
}

constexpr u32 PER_LANE = (HEAD_DIM + WAVE - 1) / WAVE;

// A head's elements in the lanes of a wave: lane l has elements l, l + WAVE, ...
struct Head {
    float x[PER_LANE];
};

DEVICE Head load_head(const float* p) {
    Head head;
    UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 element = lane() + i * WAVE;
        head.x[i] = HEAD_DIM % WAVE == 0 || element < HEAD_DIM ? p[element] : 0.0f;
    }
    return head;
}

template <class T>
DEVICE void store_head(T* p, const Head& head) {
    UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 element = lane() + i * WAVE;
        if (HEAD_DIM % WAVE == 0 || element < HEAD_DIM) p[element] = from_float<T>(head.x[i]);
    }
}

DEVICE void rms_norm_head(Head& head, const float* weight, float eps) {
    float squares = 0;
    UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) squares += head.x[i] * head.x[i];
    float factor = fast_rsqrt(wave_sum(squares) / HEAD_DIM + eps);
    UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 element = lane() + i * WAVE;
        if (HEAD_DIM % WAVE == 0 || element < HEAD_DIM) head.x[i] *= factor * weight[element];
    }
}

// Rotates the first 2 * pairs elements; neox pairs element i with i + pairs, else 2i with 2i + 1. `buffer` is the
// wave's own LDS of HEAD_DIM floats.
DEVICE void rotate_head(Head& head, float* buffer, const float* cos, const float* sin, u32 pairs, bool neox) {
    wave_barrier();
    store_head(buffer, head);
    wave_barrier();
    UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 element = lane() + i * WAVE;
        if (element >= 2 * pairs) continue;
        bool second = neox ? element >= pairs : element & 1;
        u32 pair = neox ? (second ? element - pairs : element) : element / 2;
        u32 partner = neox ? (second ? element - pairs : element + pairs) : element ^ 1;
        head.x[i] = head.x[i] * cos[pair] + (second ? buffer[partner] : -buffer[partner]) * sin[pair];
    }
}

// out (tokens, heads, HEAD_DIM) = rotated x; rows of x are `stride` floats apart. A wave a head.
KERNEL(THREADS)
rope(float* out, const float* x, const float* cos, const float* sin, u32 tokens, u32 heads, u64 stride, u32 pairs,
          i32 neox) {
    __shared__ float buffers[THREADS / WAVE][HEAD_DIM];
    u32 index = block_x() * (THREADS / WAVE) + wave();
    if (index >= tokens * heads) return;
    u32 token = index / heads;
    Head head = load_head(x + token * stride + index % heads * HEAD_DIM);
    rotate_head(head, buffers[wave()], cos + token * pairs, sin + token * pairs, pairs, neox);
    store_head(out + u64(index) * HEAD_DIM, head);
}

// Queries are normalized and rotated into q_out (tokens, heads, HEAD_DIM); keys likewise, into the cache, with the
// values. Rows of q, k and v are strides apart, in floats. Norm weights (HEAD_DIM,) may be null. The cache layer is
// (slots, kv_heads, HEAD_DIM); a token whose slot is negative is not stored. A wave a head of a token.
KERNEL(THREADS)
rope_store(float* q_out, f16* keys, f16* values, const float* q, const float* k, const float* v, u64 q_stride,
                       u64 k_stride, u64 v_stride, const i32* slots, const float* cos, const float* sin,
                       const float* q_norm, const float* k_norm, float eps, u32 tokens, u32 heads, u32 kv_heads,
                       u32 pairs, i32 neox) {
    __shared__ float buffers[THREADS / WAVE][HEAD_DIM];
    u32 rows = heads + 2 * kv_heads, index = block_x() * (THREADS / WAVE) + wave();
    u32 token = index / rows, row = index % rows;
    if (token >= tokens) return;
    cos += token * pairs, sin += token * pairs;
    if (row < heads) {
        Head head = load_head(q + token * q_stride + row * HEAD_DIM);
        if (q_norm) rms_norm_head(head, q_norm, eps);
        rotate_head(head, buffers[wave()], cos, sin, pairs, neox);
        store_head(q_out + (u64(token) * heads + row) * HEAD_DIM, head);
        return;
    }
    if (slots[token] < 0) return;
    row -= heads;
    u64 slot = u64(slots[token]) * kv_heads;
    if (row < kv_heads) {
        Head head = load_head(k + token * k_stride + row * HEAD_DIM);
        if (k_norm) rms_norm_head(head, k_norm, eps);
        rotate_head(head, buffers[wave()], cos, sin, pairs, neox);
        store_head(keys + (slot + row) * HEAD_DIM, head);
    } else {
        row -= kv_heads;
        store_head(values + (slot + row) * HEAD_DIM, load_head(v + token * v_stride + row * HEAD_DIM));
    }
}
