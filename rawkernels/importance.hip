// Importance matrices: sums of squares of what weights multiply.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// Adds to sums (matrices, columns) the squares of rows of x, and to counts (matrices,) how many they are. There are
// `size` products, `each` of a row of x one after another, by the matrix ids[i]; by the only one where ids is null.
// A thread takes a column. Grid: (columns / THREADS, matrices).
RF_KERNEL(THREADS)
rf_add_squares(float* sums, float* counts, const float* x, const i32* ids, u32 size, u32 each, u32 columns) {
    wait_for_previous();
    u32 column = block_x() * THREADS + thread_x(), matrix = block_y();
    if (column >= columns) return;
    float sum = 0, count = 0;
    for (u32 i = 0; i < size; ++i) {
        if (ids && ids[i] != i32(matrix)) continue;
        float value = x[u64(i / each) * columns + column];
        sum += value * value, count += 1;
    }
    sums[u64(matrix) * columns + column] += sum;
    if (column == 0) counts[matrix] += count;
}

}  // namespace rocforge
