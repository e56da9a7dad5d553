// Words at addresses that are not aligned, and halves of bytes.
#pragma once

#include "target/platform.h"

namespace rocforge {

RF_DEVICE u32 word16(const u8* p) { return p[0] | u32(p[1]) << 8; }
RF_DEVICE u32 word32(const u8* p) { return word16(p) | word16(p + 2) << 16; }
RF_DEVICE void put16(u8* p, u32 word) { p[0] = u8(word), p[1] = u8(word >> 8); }
RF_DEVICE void put32(u8* p, u32 word) { put16(p, word), put16(p + 2, word >> 16); }
RF_DEVICE u32 nibble(const u8* p, u32 i) { return p[i / 2] >> i % 2 * 4 & 15; }

}  // namespace rocforge
