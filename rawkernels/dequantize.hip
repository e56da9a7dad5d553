// Planar rows to float32, float16 or bfloat16, all rows or those of a list; the same bits as the gguf package gives.
// Compiled with RF_QTYPE, a format of quants.h.
#include "formats/lattices.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// variants: RF_QTYPE=PLANAR
typedef RF_QTYPE F;

RF_DEVICE void store4(float* y, const float (&v)[4]) {
    *reinterpret_cast<f32x4*>(y) = make_f32x4(v[0], v[1], v[2], v[3]);
}
template <class T>
RF_DEVICE void store4(T* y, const float (&v)[4]) {
    u32x2 packed;
    packed.x = from_float<T>(v[0]).bits | u32(from_float<T>(v[1]).bits) << 16;
    packed.y = from_float<T>(v[2]).bits | u32(from_float<T>(v[3]).bits) << 16;
    *reinterpret_cast<u32x2*>(y) = packed;
}

// A thread takes eight elements, so that neighbours write neighbouring addresses; ids may be null.
template <class T>
RF_DEVICE void dequantize(const u8* planar, const i32* ids, T* y, i32 rows, i32 columns) {
    u32 eighths = columns / 8, cells = cells_of(columns);
    u32 i = block_x() * THREADS + thread_x(), row = i / eighths, k = i % eighths * 8;
    if (row >= u32(rows)) return;
    u32 c = k / CELL, s = k % CELL / 32, t = k % 32 / 4;
    planar += u64(ids ? ids[row] : row) * F::row_bytes(cells);
    StoredCell<F> cell(planar, cells, c);
    y += u64(row) * columns + k;
    RF_UNROLL
    for (u32 j = 0; j < 2; ++j) {
        u32 four = cell.four(s, t + j);
        float v[4];
        RF_UNROLL
        for (u32 b = 0; b < 4; ++b) v[b] = cell.value(s, t + j, four, b);
        store4(y + 4 * j, v);
    }
}

RF_KERNEL(THREADS) rf_dequantize_float32(const u8* planar, const i32* ids, float* y, i32 rows, i32 columns) {
    wait_for_previous();
    dequantize(planar, ids, y, rows, columns);
}
RF_KERNEL(THREADS) rf_dequantize_float16(const u8* planar, const i32* ids, f16* y, i32 rows, i32 columns) {
    wait_for_previous();
    dequantize(planar, ids, y, rows, columns);
}
RF_KERNEL(THREADS) rf_dequantize_bfloat16(const u8* planar, const i32* ids, bf16* y, i32 rows, i32 columns) {
    wait_for_previous();
    dequantize(planar, ids, y, rows, columns);
}

}  // namespace rocforge
