// The choice of a token's experts by their logits, by a whole block.
#pragma once
#include "formats/quants.h"

namespace rocforge {

constexpr u32 MOST_EXPERTS = 1024, MOST_USED = 32;

// How many of how many experts a token goes to, and what their weights are: softmax_before, over all experts, then,
// with `normalize`, over the chosen ones' sum; else over the chosen ones alone; then times `scale`.
struct Routing {
    i32 experts, used, softmax_before, normalize;
    float scale;
};

struct Choice {
    alignas(16) u32 key[MOST_EXPERTS];
    float logits[MOST_USED], weights[MOST_USED];
    i32 ids[MOST_USED];
};

// In the order of numbers, and a NaN below them all.
RF_DEVICE u32 order_key(float x) {
    u32 bits = float_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0;
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// The experts of the highest logits, the highest first and of equals the lowest id first. Each expert's place is the
// number of those before it, so ids are those of experts whatever the logits are. All threads of the block of THREADS
// call it together, and find the result once it returns.
template <u32 THREADS>
RF_DEVICE void choose(Choice& choice, const float* logits, const Routing& r) {
    const u32 RUN = 16;  // experts that are compared with at a time, by two lanes in turn
    u32 count = r.experts, runs = (count + RUN - 1) / RUN;
    for (u32 e = thread_x(); e < RUN * runs; e += THREADS) choice.key[e] = e < count ? order_key(logits[e]) : 0;
    barrier();
    for (u32 first = 0; first < count; first += THREADS / 2) {
        u32 e = first + thread_x() / 2, key = choice.key[minimum(i32(e), i32(count - 1))], place = 0;
        RF_NO_UNROLL
        for (u32 run = thread_x() % 2; run < runs; run += 2) {
            RF_UNROLL
            for (u32 i = 0; i < RUN; ++i) {
                u32 other = element(load<u32x4>(choice.key + RUN * run + i / 4 * 4), i % 4);
                place += other + (RUN * run + i < e) > key;  // of equals those before it
            }
        }
        place += shuffle_xor<1>(place);
        if (e < count && place < u32(r.used) && thread_x() % 2 == 0)
            choice.ids[place] = e, choice.logits[place] = logits[e];
    }
    barrier();
}

// And their weights.
template <u32 THREADS>
RF_DEVICE void choose_and_weigh(Choice& choice, const float* logits, const Routing& r) {
    choose<THREADS>(choice, logits, r);
    u32 count = r.experts;
    float highest = choice.logits[0], all = 0.0f, chosen = 0.0f;
    for (i32 i = 0; i < r.used; ++i) chosen += fast_exp(choice.logits[i] - highest);
    if (r.softmax_before) {
        for (u32 e = thread_x(); e < count; e += THREADS) all += fast_exp(logits[e] - highest);
        all = block_sum<THREADS>(all);
    }
    // the floor is the smallest normal float16, as the published implementations have it
    float sum = !r.softmax_before ? chosen : r.normalize ? maximum(chosen, all * 6.103515625e-05f) : all;
    if (thread_x() < u32(r.used))
        choice.weights[thread_x()] = fast_exp(choice.logits[thread_x()] - highest) / sum * r.scale;
    barrier();
}

}  // namespace rocforge
