// Mixture of experts: routing, grouping of tokens by expert, and the weighted sum of what the experts give.
#include "platform.h"

#define THREADS 256
#define KEPT 4

// The experts of the highest logits, the highest first and of equals the lowest id first, with their weights: ids and
// weights (tokens, used), from logits (tokens, experts). softmax_before: over all experts, then, with `normalize`, over
// the chosen ones' sum; else over the chosen ones alone. A wave a token.
KERNEL(THREADS)
route(i32* ids, float* weights, const float* logits, u32 tokens, i32 experts, u32 used, i32 softmax_before,
      i32 normalize) {
    u32 token = block_x() * (THREADS / WAVE) + wave();
    if (token >= tokens) return;
    logits += u64(token) * experts, ids += u64(token) * used, weights += u64(token) * used;
    float kept[KEPT];
    UNROLL
    for (u32 i = 0; i < KEPT; ++i) {
        i32 e = lane() + i * WAVE;
        kept[i] = e < experts ? logits[e] : -__builtin_inff();
    }
    float all = 0, chosen = 0, highest = 0, last = __builtin_inff();
    i32 last_id = -1;
    for (u32 i = 0; i < used; ++i) {
        // the best of those behind the last one chosen
        float best = -__builtin_inff();
        i32 best_id = 0x7fffffff;
        auto consider = [&](i32 e, float logit) {
            bool left = logit < last || (logit == last && e > last_id);
            if (e < experts && left && (logit > best || best_id == 0x7fffffff)) best = logit, best_id = e;
        };
        UNROLL
        for (u32 k = 0; k < KEPT; ++k) consider(lane() + k * WAVE, kept[k]);
        for (i32 e = lane() + KEPT * WAVE; e < experts; e += WAVE) consider(e, logits[e]);
        last = wave_max(best);
        u64 equals = wave_ballot(best == last && best_id != 0x7fffffff);
        last_id = shuffle(best_id, lowest_bit(equals));
        if (equals & (equals - 1)) last_id = -wave_max(best == last ? -best_id : -0x7fffffff);
        if (i == 0) highest = last;
        float weight = fast_exp(last - highest);
        chosen += weight;
        if (lane() == 0) ids[i] = last_id, weights[i] = weight;
    }
    for (i32 e = lane(); e < experts; e += WAVE) all += fast_exp(logits[e] - highest);
    all = wave_sum(all);
    wave_barrier();
    // the floor is the smallest normal float16, as the published implementations have it
    float sum = !softmax_before ? chosen : normalize ? maximum(chosen, all * 6.103515625e-05f) : all;
    if (lane() == 0)
        for (u32 i = 0; i < used; ++i) weights[i] /= sum;
}

// Sorts places (token, choice), i = token * used + choice, by expert, keeping their order within each: order[k] is the
// k-th place, rank its inverse, offsets (experts + 1,) where each expert begins. A block an expert.
KERNEL(THREADS)
group_by_expert(i32* order, i32* rank, i32* offsets, const i32* ids, i32 size, i32 experts) {
    __shared__ i32 counts[THREADS];
    i32 expert = block_x(), share = (size + THREADS - 1) / THREADS;
    i32 begin = minimum(i32(thread_x()) * share, size), end = minimum(begin + share, size);
    i32 before = 0, count = 0;
    for (i32 i = begin; i < end; ++i) before += ids[i] < expert, count += ids[i] == expert;
    before = block_sum<THREADS>(before);
    counts[thread_x()] = count;
    barrier();
    i32 place = before;
    for (u32 i = 0; i < thread_x(); ++i) place += counts[i];
    if (thread_x() == 0) offsets[expert] = before;
    if (thread_x() == THREADS - 1 && expert == experts - 1) offsets[experts] = place + count;
    for (i32 i = begin; i < end; ++i) {
        if (ids[i] != expert) continue;
        order[place] = i, rank[i] = place;
        ++place;
    }
}

// out (size, columns): row k is row order[k] / used of x. Grid: (size, columns / THREADS).
KERNEL(THREADS)
gather_rows(float* out, const float* x, const i32* order, u32 used, u32 columns) {
    u32 column = block_y() * THREADS + thread_x();
    if (column < columns) out[u64(block_x()) * columns + column] = x[u64(order[block_x()] / used) * columns + column];
}

// out (tokens, columns): the sum over a token's choices of weight times row rank[place] of y. Grid as gather_rows.
KERNEL(THREADS)
combine_experts(float* out, const float* y, const i32* rank, const float* weights, u32 used, u32 columns) {
    u32 column = block_y() * THREADS + thread_x();
    u64 token = block_x();
    if (column >= columns) return;
    float sum = 0;
    for (u32 i = 0; i < used; ++i)
        sum += weights[token * used + i] * y[u64(rank[token * used + i]) * columns + column];
    out[token * columns + column] = sum;
}
