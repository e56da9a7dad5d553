// Mixture of experts: routing, grouping of tokens by expert, and the weighted sum of what the experts give.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;
constexpr u32 KEPT = RF_TUNE_ROUTE_KEPT;
constexpr i32 NONE = 0x7fffffff;
constexpr u32 MOST_EXPERTS = 1024;

// The experts of the highest logits, the highest first and of equals the lowest id first, with their weights: ids and
// weights (tokens, used), from logits (tokens, experts). softmax_before: over all experts, then, with `normalize`, over
// the chosen ones' sum; else over the chosen ones alone; then times `scale`. A wave a token, a lane a choice, so used
// is at most 32. Ids are those of experts whatever the logits are, NaN too.
RF_KERNEL(THREADS)
rf_route(i32* ids, float* weights, const float* logits, u32 tokens, i32 experts, u32 used, i32 softmax_before,
         i32 normalize, float scale) {
    wait_for_previous();
    u32 token = block_x() * (THREADS / RF_WAVE) + wave();
    if (token >= tokens) return;
    logits += u64(token) * experts;
    float kept[KEPT];
    RF_UNROLL
    for (u32 i = 0; i < KEPT; ++i) {
        i32 e = lane() + i * RF_WAVE;
        kept[i] = e < experts ? logits[e] : -infinity();
    }
    float all = 0, chosen = 0, highest = 0, last = infinity(), own_weight = 0;
    i32 last_id = -1, own_id = 0;
    for (u32 i = 0; i < used; ++i) {
        // the best of those behind the last one chosen
        float best = -infinity();
        i32 best_id = NONE;
        auto consider = [&](i32 e, float logit) {
            bool left = logit < last || (logit == last && e > last_id);
            if (e < experts && left && (logit > best || best_id == NONE)) best = logit, best_id = e;
        };
        RF_UNROLL
        for (u32 k = 0; k < KEPT; ++k) consider(lane() + k * RF_WAVE, kept[k]);
        for (i32 e = lane() + KEPT * RF_WAVE; e < experts; e += RF_WAVE) consider(e, logits[e]);
        last = wave_max(best);
        u64 equals = wave_ballot(best == last && best_id != NONE);
        last_id = equals ? shuffle(best_id, lowest_bit(equals)) : i32(i);
        if (equals & (equals - 1)) last_id = -wave_max(best == last ? -best_id : -NONE);
        if (i == 0) highest = last;
        float weight = fast_exp(last - highest);
        chosen += weight;
        if (lane() == i) own_id = last_id, own_weight = weight;
    }
    for (i32 e = lane(); e < experts; e += RF_WAVE) all += fast_exp(logits[e] - highest);
    all = wave_sum(all);
    // the floor is the smallest normal float16, as the published implementations have it
    float sum = !softmax_before ? chosen : normalize ? maximum(chosen, all * 6.103515625e-05f) : all;
    if (lane() >= used) return;
    ids[u64(token) * used + lane()] = own_id;
    weights[u64(token) * used + lane()] = own_weight / sum * scale;
}

// Sorts pairs (token, choice), i = token * used + choice, by expert, keeping their order within each: order[k] is the
// k-th pair, rank its inverse, offsets (experts + 1,) where each expert begins. Each expert's pairs are cut in tiles of
// up to `height`, which are listed, those of expert 0 first: tiles[0] is their number, and from tiles[4] on there are
// four numbers for each, the expert, where in the order it begins, how many pairs it has, and 0. A block an expert.
RF_KERNEL(THREADS)
rf_group_by_expert(i32* order, i32* rank, i32* offsets, i32* tiles, const i32* ids, i32 size, i32 experts, i32 height) {
    wait_for_previous();
    RF_SHARED i32 counts[MOST_EXPERTS], waves[THREADS / RF_WAVE];
    i32 expert = block_x();
    for (i32 e = thread_x(); e < experts; e += THREADS) counts[e] = 0;
    barrier();
    for (i32 i = thread_x(); i < size; i += THREADS) atomic_add(&counts[ids[i]], 1);
    barrier();
    i32 before = 0, tiles_before = 0;
    for (i32 e = thread_x(); e < expert; e += THREADS)
        before += counts[e], tiles_before += (counts[e] + height - 1) / height;
    before = block_sum<THREADS>(before), tiles_before = block_sum<THREADS>(tiles_before);
    i32 count = counts[expert], own_tiles = (count + height - 1) / height;
    for (i32 t = thread_x(); t < own_tiles; t += THREADS) {
        i32* tile = tiles + 4 * (1 + tiles_before + t);
        tile[0] = expert, tile[1] = before + t * height, tile[2] = minimum(count - t * height, height), tile[3] = 0;
    }
    if (thread_x() == 0) offsets[expert] = before;
    if (thread_x() == 0 && expert == experts - 1) offsets[experts] = size, tiles[0] = tiles_before + own_tiles;
    i32 end = before + count;
    for (i32 first = 0; before < end; first += THREADS) {  // until all of its own are found
        i32 i = first + thread_x();
        bool own = i < size && ids[i] == expert;
        u64 found = wave_ballot(own);
        barrier();  // what was counted has been read
        if (lane() == 0) waves[wave()] = set_bits(found);
        barrier();
        i32 pair = before + set_bits(found & ((u64(1) << lane()) - 1));
        RF_UNROLL
        for (u32 w = 0; w < THREADS / RF_WAVE; ++w) pair += w < wave() ? waves[w] : 0, before += waves[w];
        if (own) order[pair] = i, rank[i] = pair;
    }
}

// out (tokens, columns): residual plus the sum over a token's choices of weight times row rank[pair] of y. Null is a
// residual of zero, a rank that is the pair, and a weight of one. Grid: (tokens, columns / THREADS).
RF_KERNEL(THREADS)
rf_combine_experts(float* out, const float* y, const i32* rank, const float* weights, const float* residual, u32 used,
                   u32 columns) {
    wait_for_previous();
    u32 column = block_y() * THREADS + thread_x();
    u64 token = block_x(), at = token * columns + column;
    if (column >= columns) return;
    float sum = 0;
    for (u64 pair = token * used; pair < (token + 1) * used; ++pair) {
        u64 row = rank ? rank[pair] : pair;
        sum += (weights ? weights[pair] : 1.0f) * y[row * columns + column];
    }
    out[at] = sum + (residual ? residual[at] : 0.0f);
}

}  // namespace rocforge
