// Alternating updates: several residual streams, of which layers compute one and predict the others.
//
// Streams are (streams, tokens, dim). Source: Baykal et al., https://arxiv.org/abs/2301.13310.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// out[j] = x[j] + the sum over i of coefs[token][j][i] times x[i]; `size` is tokens * dim. A thread an element of all
// streams.
RF_KERNEL(THREADS) rf_altup_predict(float* out, const float* x, const float* coefs, u32 streams, u32 dim, u64 size) {
    wait_for_previous();
    u64 at = u64(block_x()) * THREADS + thread_x();
    if (at >= size) return;
    const float* c = coefs + at / dim * streams * streams;
    for (u32 j = 0; j < streams; ++j) {
        float sum = x[j * size + at];
        for (u32 i = 0; i < streams; ++i) sum += c[j * streams + i] * x[i * size + at];
        out[j * size + at] = sum;
    }
}

// out[j] = predictions[j] + (1 + coefs[token][j]) * (activated - predictions[active]).
RF_KERNEL(THREADS)
rf_altup_correct(float* out, const float* predictions, const float* activated, const float* coefs, u32 streams,
                 u32 active, u32 dim, u64 size) {
    wait_for_previous();
    u64 at = u64(block_x()) * THREADS + thread_x();
    if (at >= size) return;
    float innovation = activated[at] - predictions[active * size + at];
    const float* c = coefs + at / dim * streams;
    for (u32 j = 0; j < streams; ++j) out[j * size + at] = predictions[j * size + at] + (1.0f + c[j]) * innovation;
}

// out = x, plus y in all streams but the first.
RF_KERNEL(THREADS) rf_altup_add(float* out, const float* x, const float* y, u64 size, u64 all) {
    wait_for_previous();
    u64 at = u64(block_x()) * THREADS + thread_x();
    if (at < all) out[at] = at < size ? x[at] : x[at] + y[at % size];
}

// Rows of x, as long as those of `like`: out = x * |like| / |x|. A block a row of n.
RF_KERNEL(THREADS) rf_with_length_of(float* out, const float* x, const float* like, u32 n) {
    wait_for_previous();
    u64 start = u64(block_x()) * n;
    float own = 0, wanted = 0;
    for (u32 i = thread_x(); i < n; i += THREADS) {
        own += x[start + i] * x[start + i];
        wanted += like[start + i] * like[start + i];
    }
    own = block_sum<THREADS>(own), wanted = block_sum<THREADS>(wanted);
    float factor = fast_rsqrt(own / wanted);
    for (u32 i = thread_x(); i < n; i += THREADS) out[start + i] = x[start + i] * factor;
}

}  // namespace rocforge
