// One head's elements in a wave on their way into the cache: in the form that its type keeps them in.
#pragma once
#include "heads.h"
#include "formats/kv_cache.h"

namespace rocforge {

// Of 4 bits, an element far larger than the others would leave these none. Keys have such elements, in the same places
// for all tokens. So queries and keys are multiplied with a Hadamard matrix first, which leaves their products as they
// are. Source: Ashkboos et al., QuaRot, https://arxiv.org/abs/2404.00456.
constexpr u32 HADAMARD = RF_HEAD_DIM % 128 == 0 ? 128 : RF_HEAD_DIM % 64 == 0 ? 64 : 32;
constexpr float HADAMARD_FACTOR = HADAMARD == 128  ? 0.08838834764831845f
                                  : HADAMARD == 64 ? 0.125f
                                                   : 0.17677669529663687f;

template <u32 OFFSET = 1>
RF_DEVICE void multiply_hadamard(Head& head) {
    if constexpr (OFFSET == HADAMARD) {
        RF_UNROLL
        for (u32 i = 0; i < PER_LANE; ++i) head.x[i] *= HADAMARD_FACTOR;
    } else {
        RF_UNROLL
        for (u32 i = 0; i < PER_LANE; ++i) {
            if constexpr (OFFSET < RF_WAVE) {
                float other = shuffle_xor<OFFSET>(head.x[i]);
                head.x[i] = other + (lane() & OFFSET ? -head.x[i] : head.x[i]);
            } else if (!(i & OFFSET / RF_WAVE)) {
                float a = head.x[i], b = head.x[i + OFFSET / RF_WAVE];
                head.x[i] = a + b, head.x[i + OFFSET / RF_WAVE] = a - b;
            }
        }
        multiply_hadamard<2 * OFFSET>(head);
    }
}

// A query or a key, once it is rotated by its position.
RF_DEVICE void spread(Head& head) {
    if constexpr (Keys::SPREAD) multiply_hadamard(head);
}

template <u32 DIM>
RF_DEVICE void store_cached(cached::F16<DIM>, CachedRow row, const Head& head) {
    store_head<DIM>(reinterpret_cast<f16*>(row.elements), head);
}

// The runs of 32 elements that share a scale are in 32 lanes each.
template <u32 DIM>
RF_DEVICE void store_cached(cached::Q8_0<DIM>, CachedRow row, const Head& head) {
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        float x = head.x[i], largest = reduce_lanes<32>(absolute(x), Maximum());
        u32 element = lane() + i * RF_WAVE;
        if (element >= DIM) continue;
        row.elements[element] = u8(round_int(x * (largest > 0 ? 127 / largest : 0.0f)));
        if (lane() % 32 == 0) reinterpret_cast<f16*>(row.scales)[element / 32] = from_float<f16>(largest / 127);
    }
}

// What is largest in size becomes -8.
template <u32 DIM>
RF_DEVICE void store_cached(cached::Q4_0<DIM>, CachedRow row, const Head& head) {
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        float x = head.x[i], high = reduce_lanes<32>(x, Maximum()), low = -reduce_lanes<32>(-x, Maximum());
        float scale = (high > -low ? high : low) / -8;
        u32 code = minimum(i32(x * (scale != 0 ? 1 / scale : 0.0f) + 8.5f), 15), other = shuffle_xor<8>(code);
        u32 element = lane() + i * RF_WAVE;
        if (element >= DIM) continue;
        if (element % 16 < 8) row.elements[element / 16 * 8 + element % 8] = u8(code | other << 4);
        if (lane() % 32 == 0) reinterpret_cast<f16*>(row.scales)[element / 32] = from_float<f16>(scale);
    }
}

template <u32 DIM>
RF_DEVICE void store_cached(cached::FP8_E4M3<DIM>, CachedRow row, const Head& head) {
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 element = lane() + i * RF_WAVE;
        if (element < DIM) row.elements[element] = u8(to_fp8(head.x[i]));
    }
}

}  // namespace rocforge
