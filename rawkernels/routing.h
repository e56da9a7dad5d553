// The choice of a token's experts by their logits, by a whole block.
#pragma once
#include "gates.h"
#include "formats/quants.h"

namespace rocforge {

constexpr u32 MOST_EXPERTS = 1024, MOST_USED = 32, MOST_GROUPS = 64;

// How many of how many experts a token goes to, and what their weights are: softmax_before, over all experts, then,
// with `normalize`, over the chosen ones' sum; else over the chosen ones alone; then times `scale`. With `sigmoid` an
// expert's weight is that of its logit. Experts are chosen by their logits, or, with a bias, by weight plus bias; of
// `groups` equal runs of experts only those of groups_used groups, which have the highest sums of their best two. In
// the end each weight is times its expert's of expert_scales.
struct Routing {
    i32 experts, used, softmax_before, normalize;
    float scale;
    i32 sigmoid, groups, groups_used;
    RF_NULLABLE const float *bias, *expert_scales;
};

struct Choice {
    alignas(16) u32 key[MOST_EXPERTS];
    float logits[MOST_USED], weights[MOST_USED], groups[MOST_GROUPS];
    i32 ids[MOST_USED];
};

// Whether experts are known by their weights, and not by their logits.
RF_DEVICE bool by_weight(const Routing& r) { return r.sigmoid || r.bias; }

// Of a logit: itself; or the weight, where experts are known by it, for the highest logit and the sum of all exp(logit
// - highest).
RF_DEVICE float score_of(float logit, const Routing& r, float highest, float all) {
    if (r.sigmoid) return sigmoid(logit);
    return r.bias ? fast_exp(logit - highest) / all : logit;
}

// In the order of numbers, and a NaN below them all.
RF_DEVICE u32 order_key(float x) {
    u32 bits = float_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0;
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

RF_DEVICE float number_of(u32 key) { return bits_float(key & 0x80000000 ? key ^ 0x80000000 : ~key); }

// Leaves the experts of groups_used groups alone in the running: all others' keys become 0.
template <u32 THREADS>
RF_DEVICE void choose_groups(Choice& choice, const Routing& r) {
    i32 size = r.experts / r.groups, group = thread_x();
    if (group < r.groups) {
        u32 best = 0, second = 0;
        for (i32 e = group * size; e < (group + 1) * size; ++e) {
            u32 key = choice.key[e];
            if (key > best)
                second = best, best = key;
            else if (key > second)
                second = key;
        }
        choice.groups[group] = number_of(best) + (size > 1 ? number_of(second) : 0.0f);
    }
    barrier();
    bool out = false;
    if (group < r.groups) {
        i32 place = 0;
        float own = choice.groups[group];
        for (i32 g = 0; g < r.groups; ++g) place += choice.groups[g] > own || (choice.groups[g] == own && g < group);
        out = place >= r.groups_used;
    }
    if (out)
        for (i32 e = group * size; e < (group + 1) * size; ++e) choice.key[e] = 0;
    barrier();
}

// The experts of the highest logits, the highest first and of equals the lowest id first. Each expert's place is the
// number of those before it, so ids are those of experts whatever the logits are. All threads of the block of THREADS
// call it together, and find the result once it returns.
template <u32 THREADS>
RF_DEVICE void choose(Choice& choice, const float* logits, const Routing& r) {
    const u32 RUN = 16;  // experts that are compared with at a time, by two lanes in turn
    u32 count = r.experts, runs = (count + RUN - 1) / RUN;
    float highest = 0, all = 1;
    if (r.bias && !r.sigmoid) {
        highest = -infinity(), all = 0;
        for (u32 e = thread_x(); e < count; e += THREADS) highest = maximum(highest, logits[e]);
        highest = block_max<THREADS>(highest);
        for (u32 e = thread_x(); e < count; e += THREADS) all += fast_exp(logits[e] - highest);
        all = block_sum<THREADS>(all);
    }
    for (u32 e = thread_x(); e < RUN * runs; e += THREADS) {
        float score = e < count ? score_of(logits[e], r, highest, all) + (r.bias ? r.bias[e] : 0.0f) : 0.0f;
        choice.key[e] = e < count ? order_key(score) : 0;
    }
    barrier();
    if (r.groups > 1) choose_groups<THREADS>(choice, r);
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
            choice.ids[place] = e, choice.logits[place] = score_of(logits[e], r, highest, all);
    }
    barrier();
}

RF_DEVICE float scale_of(const Routing& r, i32 expert) {
    return r.expert_scales ? r.scale * r.expert_scales[expert] : r.scale;
}

// And their weights.
template <u32 THREADS>
RF_DEVICE void choose_and_weigh(Choice& choice, const float* logits, const Routing& r) {
    choose<THREADS>(choice, logits, r);
    if (by_weight(r)) {
        float sum = 0.0f;
        for (i32 i = 0; i < r.used; ++i) sum += choice.logits[i];
        if (thread_x() < u32(r.used))
            choice.weights[thread_x()] = choice.logits[thread_x()] /
                                         (r.normalize ? maximum(sum, 6.103515625e-05f) : 1.0f) *
                                         scale_of(r, choice.ids[thread_x()]);
        barrier();
        return;
    }
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
        choice.weights[thread_x()] =
            fast_exp(choice.logits[thread_x()] - highest) / sum * scale_of(r, choice.ids[thread_x()]);
    barrier();
}

}  // namespace rocforge
