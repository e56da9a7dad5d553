// The rules by which a state of fixed size is written and read: the gated delta rule; and with RF_STATE_SPACE Mamba-2's
// state space, where what is written does not depend on what is there, and queries and keys are as they are.
#pragma once
#include "gates.h"
#include "sequences.h"

namespace rocforge {

#ifndef RF_STATE_SPACE
#define RF_STATE_SPACE 0
#endif

// A block has COLUMNS of the value_dim columns of a head's state.
constexpr u32 KEY_DIM = RF_KEY_DIM, COLUMNS = 32;

struct RuleParams {
    float* y;  // (tokens, value_heads, value_dim)
    const float *q, *k, *v;
    RF_NULLABLE const float* beta;
    const float *alpha, *decay;  // rows of (value_heads,), or with RF_CHANNELS (value_heads, KEY_DIM); (value_heads,)
    RF_NULLABLE const float* bias;  // as a row of alpha
    RF_NULLABLE const float* skip;  // (value_heads,): what a value adds to its y, times this
    float* state;                   // (slots, value_heads, KEY_DIM, value_dim)
    RF_NULLABLE float* chunks;      // what state_chunks.hip makes of the tokens
    Sequences sequences;
    u64 q_stride, k_stride, v_stride, beta_stride, alpha_stride;  // elements between rows
    u32 key_heads, value_heads, value_dim, repeated, count, turns;
    i32 few;  // sequences of more tokens are those of state_chunks.hip
    float eps;
};

RF_DEVICE u32 runs_of(const RuleParams& p) { return (p.value_dim + COLUMNS - 1) / COLUMNS; }
RF_DEVICE u32 key_head_of(const RuleParams& p, u32 head) {
    return p.repeated ? head / (p.value_heads / p.key_heads) : head % p.key_heads;
}

}  // namespace rocforge
