// GGUF's blocks to planar rows and back, bit for bit. Compiled with RF_QTYPE, a format of quants.h.
#include "formats/quants.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// variants: RF_QTYPE=PLANAR
typedef RF_QTYPE F;

// Bytes of a block's share of the tail plane.
const u32 BLOCK_TAIL = F::TAIL * F::ELEMENTS / CELL;
const u32 LOW_MASK = (1 << F::LOW) - 1, HIGH_MASK = (1 << F::HIGH) - 1;

RF_DEVICE u32 code_of(const u8* blocks, u32 e) {
    const u8* block = blocks + e / F::ELEMENTS * F::BYTES;
    Place low = F::low_place(e % F::ELEMENTS);
    u32 code = block[low.byte] >> low.shift & LOW_MASK;
    if constexpr (F::HIGH > 0) {
        Place high = F::high_place(e % F::ELEMENTS);
        code |= (block[high.byte] >> high.shift & HIGH_MASK) << F::LOW;
    }
    return code;
}

// A thread a cell. `planar` holds rows * F::row_bytes zeros.
RF_KERNEL(THREADS) rf_pack(const u8* blocks, u8* planar, i32 rows, i32 columns) {
    wait_for_previous();
    u32 cells = cells_of(columns), i = block_x() * THREADS + thread_x(), c = i % cells;
    if (i >= rows * cells) return;
    u32 row_blocks = columns / F::ELEMENTS;
    blocks += u64(i / cells) * row_blocks * F::BYTES;
    planar += u64(i / cells) * F::row_bytes(cells);
    auto code = [&](u32 e) -> u32 { return CELL * c + e < u32(columns) ? code_of(blocks, CELL * c + e) : 0; };
    for (u32 p = 0; p < F::PLANES; ++p) {
        u32 words[4];
        RF_UNROLL
        for (u32 w = 0; w < 4; ++w) {
            words[w] = 0;
            RF_NO_UNROLL
            for (u32 b = 0; b < 4; ++b) words[w] |= F::packed_byte(p, 4 * w + b, code) << 8 * b;
        }
        *reinterpret_cast<u32x4*>(planar + 16 * (p * cells + c)) = make_u32x4(words[0], words[1], words[2], words[3]);
    }
    // the headers of the blocks that begin in this cell
    for (u32 b = (CELL * c + F::ELEMENTS - 1) / F::ELEMENTS; b < row_blocks && b * F::ELEMENTS < CELL * (c + 1); ++b) {
        u8* tail = planar + F::tail_at(cells) + BLOCK_TAIL * b;
        for (u32 j = 0; j < F::HEADER; ++j) tail[j] = u8(F::tail_byte(blocks + b * F::BYTES, j));
        u8* super = planar + F::super_at(cells) + F::SUPER * b;
        for (u32 j = 0; j < F::SUPER; ++j) super[j] = blocks[b * F::BYTES + F::SUPER_FROM + j];
    }
}

// A thread a block. `blocks` holds zeros.
RF_KERNEL(THREADS) rf_unpack(const u8* planar, u8* blocks, i32 rows, i32 columns) {
    wait_for_previous();
    u32 row_blocks = columns / F::ELEMENTS, cells = (columns + CELL - 1) / CELL;
    u32 i = block_x() * THREADS + thread_x(), b = i % row_blocks;
    if (i >= rows * row_blocks) return;
    planar += u64(i / row_blocks) * F::row_bytes(cells);
    u8* block = blocks + u64(i) * F::BYTES;
    const u8* tail = planar + F::tail_at(cells) + BLOCK_TAIL * b;
    for (u32 j = 0; j < F::HEADER; ++j) block[F::TAIL_FROM + j] = u8(F::header_byte(tail, j));
    const u8* super = planar + F::super_at(cells) + F::SUPER * b;
    for (u32 j = 0; j < F::SUPER; ++j) block[F::SUPER_FROM + j] = super[j];
    for (u32 e = 0; e < F::ELEMENTS; ++e) {
        u32 at = b * F::ELEMENTS + e;
        u32 code = byte_of(F::stored_four(planar, cells, at / CELL, at % CELL / 32, at % 32 / 4), at % 4);
        Place low = F::low_place(e);
        block[low.byte] |= (code & LOW_MASK) << low.shift;
        if constexpr (F::HIGH > 0) {
            Place high = F::high_place(e);
            block[high.byte] |= (code >> F::LOW) << high.shift;
        }
    }
}

}  // namespace rocforge
