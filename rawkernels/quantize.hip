// Activations as products with packed weights want them: int8, or float16 fragments (`Quantized` in quants.h).
#include "fours.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// x is (rows, size); the rows' filled-up cells are written as zeros. A thread takes four elements of a row.
RF_KERNEL(THREADS) rf_quantize_activations(const float* x, u8* y, i32 size, i32 cells, u32 width) {
    wait_for_previous();
    u32 k = 4 * THREADS * block_x() + 4 * thread_x();
    Quantized{y, width, u32(cells)}.store(block_y(), k, load4(x + u64(block_y()) * size, k, size));
}

// x as float16, for the libraries' products; what float16 cannot hold becomes its largest value. A thread a value.
RF_KERNEL(THREADS) rf_to_fp16(const float* x, f16* y, i64 size) {
    wait_for_previous();
    i64 i = i64(block_x()) * THREADS + thread_x();
    if (i < size) y[i] = from_float<f16>(clamp_fp16(x[i]));
}

}  // namespace rocforge
