// Elements of packed rows one at a time, of every format, as they lie on a device: for kernels that want values more
// than speed. `grid` is the table of the IQ formats that have one (rocforge.formats.blocks.lattice), else null.
#pragma once

#include "formats/blocks.h"
#include "formats/quants.h"

namespace rocforge {

// GGUF's blocks.
template <class F, class = void>
struct Rows {
    static RF_MEMBER u64 bytes(u32 columns) { return u64(columns / F::ELEMENTS) * F::BYTES; }
    static RF_MEMBER float value(const u8* row, u32, u32 k, const float* grid) {
        return F::value(row + u64(k / F::ELEMENTS) * F::BYTES, k % F::ELEMENTS, grid);
    }
};
// Planes of fields.
template <class F>
struct Rows<F, decltype(void(F::PLANES))> {
    static RF_MEMBER u64 bytes(u32 columns) { return F::row_bytes(cells_of(columns)); }
    static RF_MEMBER float value(const u8* row, u32 columns, u32 k, const float*) {
        u32 cells = cells_of(columns), c = k / CELL, s = k % CELL / 32, t = k % 32 / 4;
        F w;
        w.load_scales(row, cells, c);
        w.ready();
        u32 four = F::values(F::stored_four(row, cells, c, s, t));
        return value_of(w, s, t / 4, i32(i8(byte_of(four, k % 4))) - F::OFFSET);
    }
};

// Where a row of `columns` elements begins, and element k of it.
template <class F>
RF_DEVICE const u8* row_at(const u8* rows, u32 columns, u32 row) {
    return rows + row * Rows<F>::bytes(columns);
}
template <class F>
RF_DEVICE float value_at(const u8* row, u32 columns, u32 k, const float* grid = nullptr) {
    return Rows<F>::value(row, columns, k, grid);
}

}  // namespace rocforge
