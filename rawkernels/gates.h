// Activations, and the gated units that feed-forward layers are made of.
#pragma once
#include "target/platform.h"

namespace rocforge {

RF_DEVICE float sigmoid(float x) { return fast_reciprocal(1.0f + fast_exp(-x)); }
RF_DEVICE float softplus(float x) {
    float e = fast_exp(x);
    if (e < 0.01f) return e * (1.0f - e * (0.5f - e * (1.0f / 3)));  // of 1 + e too few digits are left
    return x > 20.0f ? x : fast_log(1.0f + e);
}
RF_DEVICE float silu_of(float x) { return x * sigmoid(x); }
// Of elements i to i + 3 of a row of n, which may lie at any address; of those past its end zeros.
RF_DEVICE f32x4 silu_of_four(const float* row, u32 i, u32 n) {
    float of[4];
    RF_UNROLL
    for (u32 j = 0; j < 4; ++j) of[j] = i + j < n ? silu_of(row[i + j]) : 0.0f;
    return make_f32x4(of[0], of[1], of[2], of[3]);
}
RF_DEVICE float gelu_of(float x) {
    // 0.5 (1 + tanh(z)) is sigmoid(2 z)
    return x * sigmoid(1.5957691216057308f * x * (1.0f + 0.044715f * x * x));
}
RF_DEVICE float swiglu_of(float gate, float up) { return silu_of(gate) * up; }
RF_DEVICE float geglu_of(float gate, float up) { return gelu_of(gate) * up; }
RF_DEVICE float reglu_of(float gate, float up) { return maximum(gate, 0.0f) * up; }
RF_DEVICE float swiglu_clipped_of(float gate, float up, float limit) {
    return minimum(silu_of(gate), limit) * maximum(minimum(up, limit), -limit);
}
RF_DEVICE float swiglu_oai_of(float gate, float up, float alpha, float limit) {
    gate = minimum(gate, limit);
    up = maximum(minimum(up, limit), -limit);
    return gate * sigmoid(alpha * gate) * (up + 1.0f);
}

// The unit of a launch, by its number, as GATES in ops/matvec.py has them.
enum { SWIGLU, GEGLU, SWIGLU_OAI };
RF_DEVICE float gated(i32 activation, float gate, float up) {
    if (activation == SWIGLU) return swiglu_of(gate, up);
    if (activation == GEGLU) return geglu_of(gate, up);
    return swiglu_oai_of(gate, up, 1.702f, 7.0f);
}

}  // namespace rocforge
