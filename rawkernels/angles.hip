// What layers share of positions, computed once a step: the cosines and sines of rotary position embedding, and
// attention temperatures.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// sin and cos of an angle of at most pi / 4, by their Taylor series: under 1e-8 off.
RF_DEVICE double sine(double x) {
    double z = x * x;
    return x * (1 + z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880)))));
}
RF_DEVICE double cosine(double x) {
    double z = x * x;
    return 1 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 - z * (1.0 / 3628800)))));
}

// cos, sin (tokens, pairs) = magnitude * cos, sin(position * frequency). Angles are reduced in float64: at position
// 100,000 a float32 angle is wrong by 0.004. A thread a pair.
RF_KERNEL(THREADS)
rf_rope_angles(float* cos, float* sin, const i32* positions, const double* frequencies, u32 tokens, u32 pairs,
               float magnitude) {
    wait_for_previous();
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

// out (tokens,) = 1 + scale * log(1 + floor((position + offset) / length)). A thread a token.
RF_KERNEL(THREADS)
rf_temperatures(float* out, const i32* positions, u32 tokens, float scale, u32 length, u32 offset) {
    wait_for_previous();
    u32 i = block_x() * THREADS + thread_x();
    if (i < tokens) out[i] = 1.0f + scale * fast_log(1.0f + float((u32(positions[i]) + offset) / length));
}

}  // namespace rocforge
