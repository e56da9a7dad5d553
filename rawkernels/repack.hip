// GGUF's blocks to planar rows and back, bit for bit. Compiled with RF_QTYPE, a format of quants.h or lattices.h.
#include "formats/lattices.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// variants: RF_QTYPE=PLANAR

// Bytes of a block's share of the tail plane.
template <class F>
RF_DEVICE u32 block_tail() {
    return F::TAIL * F::ELEMENTS / CELL;
}

template <class F>
RF_DEVICE u32 code_of(const u8* blocks, u32 e) {
    const u8* block = blocks + e / F::ELEMENTS * F::BYTES;
    Place low = F::low_place(e % F::ELEMENTS);
    u32 code = block[low.byte] >> low.shift & ((1 << F::LOW) - 1);
    if constexpr (F::HIGH > 0) {
        Place high = F::high_place(e % F::ELEMENTS);
        code |= (block[high.byte] >> high.shift & ((1 << F::HIGH) - 1)) << F::LOW;
    }
    return code;
}

// Word w of plane p of cell c of a row.
template <class F>
RF_DEVICE u32 packed_word(const u8* blocks, u32 columns, u32 c, u32 p, u32 w) {
    if constexpr (F::FIELDS) {
        auto code = [&](u32 e) -> u32 { return CELL * c + e < columns ? code_of<F>(blocks, CELL * c + e) : 0; };
        u32 word = 0;
        RF_NO_UNROLL
        for (u32 b = 0; b < 4; ++b) word |= F::packed_byte(p, 4 * w + b, code) << 8 * b;
        return word;
    } else {
        return F::packed_word(blocks + c / 2 * F::BYTES, c % 2, p, w);
    }
}

// A thread a cell. `planar` holds rows * F::row_bytes zeros.
template <class F>
RF_DEVICE void pack(const u8* blocks, u8* planar, u32 rows, u32 columns) {
    u32 cells = cells_of(columns), i = block_x() * THREADS + thread_x(), c = i % cells;
    if (i >= rows * cells) return;
    u32 row_blocks = columns / F::ELEMENTS;
    blocks += u64(i / cells) * row_blocks * F::BYTES;
    planar += u64(i / cells) * F::row_bytes(cells);
    for (u32 p = 0; p < F::PLANES; ++p) {
        u32 words[4];
        RF_UNROLL
        for (u32 w = 0; w < 4; ++w) words[w] = packed_word<F>(blocks, columns, c, p, w);
        *reinterpret_cast<u32x4*>(planar + 16 * (p * cells + c)) = make_u32x4(words[0], words[1], words[2], words[3]);
    }
    // the headers of the blocks that begin in this cell
    for (u32 b = (CELL * c + F::ELEMENTS - 1) / F::ELEMENTS; b < row_blocks && b * F::ELEMENTS < CELL * (c + 1); ++b) {
        u8* tail = planar + F::tail_at(cells) + block_tail<F>() * b;
        for (u32 j = 0; j < F::HEADER; ++j) tail[j] = u8(F::tail_byte(blocks + b * F::BYTES, j));
        u8* super = planar + F::super_at(cells) + F::SUPER * b;
        for (u32 j = 0; j < F::SUPER; ++j) super[j] = blocks[b * F::BYTES + F::SUPER_FROM + j];
    }
}

// The codes of block b of a planar row, and what lies with them.
template <class F>
RF_DEVICE void unpack_codes(const u8* planar, u8* block, u32 cells, u32 b) {
    if constexpr (F::FIELDS) {
        const u8* tail = planar + F::tail_at(cells) + block_tail<F>() * b;
        for (u32 j = 0; j < F::HEADER; ++j) block[F::TAIL_FROM + j] = u8(F::header_byte(tail, j));
        for (u32 e = 0; e < F::ELEMENTS; ++e) {
            u32 at = b * F::ELEMENTS + e;
            u32 code = F::stored_code(planar, cells, at / CELL, at % CELL / 32, at % 32 / 4, at % 4);
            Place low = F::low_place(e);
            block[low.byte] |= (code & ((1 << F::LOW) - 1)) << low.shift;
            if constexpr (F::HIGH > 0) {
                Place high = F::high_place(e);
                block[high.byte] |= (code >> F::LOW) << high.shift;
            }
        }
    } else {
        RF_NO_UNROLL
        for (u32 half = 0; half < 2; ++half) {
            F w;
            w.load_codes(planar, cells, 2 * b + half), w.load_scales(planar, cells, 2 * b + half), w.ready();
            w.to_block(block, half);
        }
    }
}

// A thread a block. `blocks` holds zeros.
template <class F>
RF_DEVICE void unpack(const u8* planar, u8* blocks, u32 rows, u32 columns) {
    u32 row_blocks = columns / F::ELEMENTS, cells = cells_of(columns);
    u32 i = block_x() * THREADS + thread_x(), b = i % row_blocks;
    if (i >= rows * row_blocks) return;
    planar += u64(i / row_blocks) * F::row_bytes(cells);
    u8* block = blocks + u64(i) * F::BYTES;
    const u8* super = planar + F::super_at(cells) + F::SUPER * b;
    for (u32 j = 0; j < F::SUPER; ++j) block[F::SUPER_FROM + j] = super[j];
    unpack_codes<F>(planar, block, cells, b);
}

RF_KERNEL(THREADS) rf_pack(const u8* blocks, u8* planar, i32 rows, i32 columns) {
    wait_for_previous();
    pack<RF_QTYPE>(blocks, planar, rows, columns);
}
RF_KERNEL(THREADS) rf_unpack(const u8* planar, u8* blocks, i32 rows, i32 columns) {
    wait_for_previous();
    unpack<RF_QTYPE>(planar, blocks, rows, columns);
}

}  // namespace rocforge
