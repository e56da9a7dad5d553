// What the kernels of attention share: which tokens a query sees, and the units of scores.
#pragma once
#include "target/platform.h"

namespace rocforge {

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LOWEST = -1e30f;  // below any score, and finite: the difference of two is not NaN
#ifdef RF_ALIBI
constexpr bool ALIBI = true;
#else
constexpr bool ALIBI = false;
#endif

// A score, in units of log 2, less its head's slope in these for each token that a key is away from the query. Source:
// Press et al., ALiBi, https://arxiv.org/abs/2108.12409.
RF_DEVICE float biased(float score, float slope, i32 distance) {
    if constexpr (ALIBI)
        return score - slope * absolute(float(distance));
    else
        return score;
}

// The first token that the one at `position` sees: without a window token 0; with one, the token window - 1 before it,
// or, chunked, the first of its own run of `window` tokens.
RF_DEVICE i32 first_seen(i32 position, i32 window, i32 chunked) {
    if (!window) return 0;
    return chunked ? position / window * window : maximum(position - window + 1, 0);
}

}  // namespace rocforge
