// Floats, which are kept as GGUF has them: to float32, float16 or bfloat16, all rows or those of a list. Compiled with
// RF_QTYPE, a format of blocks.h.
#include "formats/blocks.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// variants: RF_QTYPE=BLOCKS

// A thread an element; ids may be null. Grid: (rows, columns / THREADS): for a second axis there may be too many rows.
template <class T>
RF_DEVICE void dequantize(const u8* blocks, const i32* ids, T* y, i32 columns) {
    typedef RF_QTYPE F;
    u32 row = block_x(), i = block_y() * THREADS + thread_x();
    if (i >= u32(columns)) return;
    blocks += u64(ids ? ids[row] : row) * (columns / F::ELEMENTS * F::BYTES) + u64(i / F::ELEMENTS) * F::BYTES;
    y[u64(row) * columns + i] = from_float<T>(F::value(blocks, i % F::ELEMENTS));
}

RF_KERNEL(THREADS) rf_dequantize_float32(const u8* blocks, const i32* ids, float* y, i32 columns) {
    wait_for_previous();
    dequantize(blocks, ids, y, columns);
}
RF_KERNEL(THREADS) rf_dequantize_float16(const u8* blocks, const i32* ids, f16* y, i32 columns) {
    wait_for_previous();
    dequantize(blocks, ids, y, columns);
}
RF_KERNEL(THREADS) rf_dequantize_bfloat16(const u8* blocks, const i32* ids, bf16* y, i32 columns) {
    wait_for_previous();
    dequantize(blocks, ids, y, columns);
}

}  // namespace rocforge
