// Where sequences have their state of a fixed size: each in the slot of its number. One whose first token here is at
// position 0 begins with zeros.
#pragma once
#include "target/platform.h"

namespace rocforge {

struct Sequences {
    const i32 *slots, *positions, *query_starts;
    u64 slot_stride;  // elements of the state between two slots
};

struct Sequence {
    i32 begin, end;
    u64 state;
    bool fresh;
};

// The one of a number; without tokens or a slot it has no rows.
RF_DEVICE Sequence sequence_at(const Sequences& all, u32 number) {
    i32 begin = all.query_starts[number], end = all.query_starts[number + 1], slot = all.slots[number];
    if (slot < 0 || begin >= end) return {0, 0, 0, true};
    return {begin, end, slot * all.slot_stride, all.positions[begin] == 0};
}

}  // namespace rocforge
