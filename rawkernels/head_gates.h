// Gates of attention: what the heads give is multiplied by a unit of numbers that the layer's projections gave. For
// sources compiled, where there are any, for RF_GATE, the unit's name, and RF_GATE_STEP, how many floats the gates of a
// head's elements are apart: 0 where a head has one.
#pragma once
#include "gates.h"

namespace rocforge {

#ifdef RF_GATE
constexpr bool GATED = true;
RF_DEVICE float gate_unit(float x) { return RF_GATE(x); }
#else
#define RF_GATE_STEP 0
constexpr bool GATED = false;
RF_DEVICE float gate_unit(float) { return 1; }
#endif

// Null without RF_GATE.
struct HeadGates {
    RF_NULLABLE const float* values;
    u32 stride, head_stride;  // floats between rows, and between heads of one
};

// Of one head of a row.
RF_DEVICE const float* gates_of(const HeadGates& gates, u64 row, u32 head) {
    return gates.values + row * gates.stride + head * gates.head_stride;
}

}  // namespace rocforge
