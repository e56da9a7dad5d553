// Codes of packed weights to float16, for the matrix unit.
#pragma once
#include "formats/quants.h"

namespace rocforge {

// Whether four-bit codes stay where they are in their word, sixteen times as much for the second half of a run.
template <class F>
struct Nibbles {
    static const bool STAY = F::LOW == 4 && F::HIGH == 0 && !F::SIGNED;
};

// Four codes * scale + min in float16: elements 0 and 2, and 1 and 3. `codes` are those of half h of a run as
// `Codes::four` gives them, or the word they lie in, where they stay there. They become float16 in the last places of
// 1024, and lose what they are above by there.
template <class F>
RF_DEVICE void unpack_four(u32& first, u32& second, u32 codes, u32 h, float scale, float min) {
    u32 even, odd;
    float unit = 1.0f, above = 1024.0f;
    if constexpr (Nibbles<F>::STAY) {
        even = and_or(codes, 0x000f000f << 4 * h, 0x64006400);
        odd = and_or(codes >> 8, 0x000f000f << 4 * h, 0x64006400);
        unit = h ? 1.0f / 16 : 1.0f;
    } else {
        u32 four = F::values(codes);
        if (F::SIGNED) four ^= 0x80808080, above += 128;
        even = pick_bytes(0x64646464, four, 0x04020400), odd = pick_bytes(0x64646464, four, 0x04030401);
    }
    float zero = -(above * unit + F::OFFSET);
    u32 units = pack_fp16(unit, unit), zeros = pack_fp16(zero, zero);
    u32 scales = pack_fp16(scale, scale), mins = F::MINS ? pack_fp16(min, min) : 0;
    first = fma_fp16(fma_fp16(even, units, zeros), scales, mins);
    second = fma_fp16(fma_fp16(odd, units, zeros), scales, mins);
}

// What unpack_four takes, of elements 32 s + 16 h + 4 t and following of cell c, from planes in memory.
template <class F>
RF_DEVICE u32 stored_codes(const u8* row, u32 cells, u32 c, u32 s, u32 h, u32 t) {
    if constexpr (Nibbles<F>::STAY) return load<u32>(row + 16 * (s * cells + c) + 4 * t);
    return F::stored_four(row, cells, c, s, 4 * h + t);
}

}  // namespace rocforge
