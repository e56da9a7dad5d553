// Token-expert pairs sorted by expert, and cut in tiles of some of one expert's, as group_by_expert of moe.hip lists
// them.
#pragma once
#include "target/platform.h"

namespace rocforge {

// `count` pairs of an expert, from `first` on in their order.
struct PairTile {
    i32 expert, first, count;
};
RF_DEVICE PairTile load_tile(const i32* tiles, u32 i) {
    u32x4 v = load<u32x4>(tiles + 4 * (1 + i));
    return {i32(v.x), i32(v.y), i32(v.z)};
}

}  // namespace rocforge
