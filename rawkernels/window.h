// Which tokens a query sees of those before it.
#pragma once
#include "target/platform.h"

namespace rocforge {

// The first token that the one at `position` sees: without a window token 0; with one, the token window - 1 before it,
// or, chunked, the first of its own run of `window` tokens.
RF_DEVICE i32 first_seen(i32 position, i32 window, i32 chunked) {
    if (!window) return 0;
    return chunked ? position / window * window : maximum(position - window + 1, 0);
}

}  // namespace rocforge
