// One head's elements in a wave: loaded, normalized, rotated, stored. For sources compiled for a HEAD_DIM.
#pragma once
#include "platform.h"

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

// The rotation of the first 2 * pairs elements; neox pairs element i with i + pairs, else 2i with 2i + 1. Of a lane's
// elements, what they and their partners are multiplied with.
struct Rotation {
    float own[PER_LANE], other[PER_LANE];
    u32 partner[PER_LANE];
};

DEVICE Rotation load_rotation(const float* cos, const float* sin, u32 pairs, bool neox) {
    Rotation rotation;
    UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 element = lane() + i * WAVE;
        bool turned = element < 2 * pairs, second = neox ? element >= pairs : element & 1;
        u32 pair = neox ? (second ? element - pairs : element) : element / 2;
        u32 partner = neox ? (second ? element - pairs : element + pairs) : element ^ 1;
        rotation.own[i] = turned ? cos[pair] : 1.0f;
        rotation.other[i] = turned ? (second ? sin[pair] : -sin[pair]) : 0.0f;
        rotation.partner[i] = turned ? partner : 0;
    }
    return rotation;
}

// `buffer` is the wave's own LDS of HEAD_DIM floats.
DEVICE void rotate_head(Head& head, float* buffer, const Rotation& rotation) {
    wave_barrier();
    store_head(buffer, head);
    wave_barrier();
    UNROLL
    for (u32 i = 0; i < PER_LANE; ++i)
        head.x[i] = head.x[i] * rotation.own[i] + buffer[rotation.partner[i]] * rotation.other[i];
}
