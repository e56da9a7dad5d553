// Elements of packed rows one at a time, of every format, as they lie on a device: for kernels that want values more
// than speed.
#pragma once

#include "formats/blocks.h"
#include "formats/lattices.h"

namespace rocforge {

// GGUF's blocks.
template <class F, class = void>
struct Rows {
    static RF_MEMBER u64 bytes(u32 columns) { return u64(columns / F::ELEMENTS) * F::BYTES; }
    static RF_MEMBER float value(const u8* row, u32, u32 k) {
        return F::value(row + u64(k / F::ELEMENTS) * F::BYTES, k % F::ELEMENTS);
    }
};
// Planes of fields.
template <class F>
struct Rows<F, decltype(void(F::PLANES))> {
    static RF_MEMBER u64 bytes(u32 columns) { return F::row_bytes(cells_of(columns)); }
    static RF_MEMBER float value(const u8* row, u32 columns, u32 k) {
        u32 cells = cells_of(columns), c = k / CELL, s = k % CELL / 32, t = k % 32 / 4;
        StoredCell<F> cell(row, cells, c);
        return cell.value(s, t, cell.four(s, t), k % 4);
    }
};

// Where a row of `columns` elements begins, and element k of it.
template <class F>
RF_DEVICE const u8* row_at(const u8* rows, u32 columns, u32 row) {
    return rows + row * Rows<F>::bytes(columns);
}
template <class F>
RF_DEVICE float value_at(const u8* row, u32 columns, u32 k) {
    return Rows<F>::value(row, columns, k);
}

}  // namespace rocforge
