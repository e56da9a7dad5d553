// The floats, which are kept as GGUF has them: a format gives the value of element e of a block.
#pragma once

#include "formats/bytes.h"

namespace rocforge {

struct F32 {
    static constexpr u32 ELEMENTS = 1, BYTES = 4;
    static RF_MEMBER float value(const u8* b, u32) { return bits_float(word32(b)); }
};
struct F16 {
    static constexpr u32 ELEMENTS = 1, BYTES = 2;
    static RF_MEMBER float value(const u8* b, u32) { return low_half(word16(b)); }
};
struct BF16 {
    static constexpr u32 ELEMENTS = 1, BYTES = 2;
    static RF_MEMBER float value(const u8* b, u32) { return bits_float(word16(b) << 16); }
};

}  // namespace rocforge
