// One head's elements in a wave: loaded, normalized, rotated, stored. For sources compiled for a RF_HEAD_DIM.
#pragma once
#include "target/platform.h"

namespace rocforge {

constexpr u32 PER_LANE = (RF_HEAD_DIM + RF_WAVE - 1) / RF_WAVE;

// A head's elements in the lanes of a wave: lane l has elements l, l + RF_WAVE, ... Of a head of DIM elements, which
// may be fewer, those behind are zero.
struct Head {
    float x[PER_LANE];
};

// Whether a lane has an i-th element of DIM.
template <u32 DIM>
RF_DEVICE bool is_element(u32 i) {
    return (i + 1) * RF_WAVE <= DIM || lane() + i * RF_WAVE < DIM;
}

template <u32 DIM = RF_HEAD_DIM>
RF_DEVICE Head load_head(const float* p) {
    Head head;
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) head.x[i] = is_element<DIM>(i) ? p[lane() + i * RF_WAVE] : 0.0f;
    return head;
}

template <u32 DIM = RF_HEAD_DIM, class T>
RF_DEVICE void store_head(T* p, const Head& head) {
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i)
        if (is_element<DIM>(i)) p[lane() + i * RF_WAVE] = from_float<T>(head.x[i]);
}

// A weight that is null is one.
template <u32 DIM = RF_HEAD_DIM>
RF_DEVICE void rms_norm_head(Head& head, const float* weight, float eps) {
    float squares = 0, own[PER_LANE];
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) own[i] = weight && is_element<DIM>(i) ? weight[lane() + i * RF_WAVE] : 1.0f;
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) squares = add_rn(squares, mul_rn(head.x[i], head.x[i]));
    float factor = fast_rsqrt(wave_sum(squares) / DIM + eps);
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i)
        if (is_element<DIM>(i)) head.x[i] *= factor * own[i];
}

// The rotation of the first 2 * pairs elements; neox pairs element i with i + pairs, else 2i with 2i + 1. Of a lane's
// elements, what they and their partners are multiplied with.
struct Rotation {
    float cos[PER_LANE], sin[PER_LANE];
    u32 partner[PER_LANE];
};

RF_DEVICE Rotation load_rotation(const float* cos, const float* sin, u32 pairs, bool neox) {
    Rotation rotation;
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 element = lane() + i * RF_WAVE;
        bool turned = element < 2 * pairs, second = neox ? element >= pairs : element & 1;
        u32 pair = neox ? (second ? element - pairs : element) : element / 2;
        u32 partner = neox ? (second ? element - pairs : element + pairs) : element ^ 1;
        rotation.cos[i] = turned ? cos[pair] : 1.0f;
        rotation.sin[i] = turned ? sin[pair] : 0.0f;
        rotation.partner[i] = turned ? partner : 0;
    }
    return rotation;
}

// `buffer` is the wave's own LDS of RF_HEAD_DIM floats. Sums are rounded as written, here and above: left to itself,
// AMD's compiler fuses them with their products in one kernel and not in another, and results differ in a bit.
RF_DEVICE void rotate_head(Head& head, float* buffer, const Rotation& rotation) {
    wave_barrier();
    store_head(buffer, head);
    wave_barrier();
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 partner = rotation.partner[i];
        float sin = partner > lane() + i * RF_WAVE ? -rotation.sin[i] : rotation.sin[i];
        head.x[i] = add_rn(mul_rn(head.x[i], rotation.cos[i]), mul_rn(buffer[partner], sin));
    }
}

}  // namespace rocforge
