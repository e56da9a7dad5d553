// The choice of a token's experts by their logits, by a whole block.
#pragma once
#include "gates.h"
#include "formats/quants.h"

namespace rocforge {

constexpr u32 MOST_EXPERTS = 1024, MOST_USED = 32, MOST_GROUPS = 64;

// How many of how many experts a token goes to, and what their weights are: softmax_before, over all experts, then,
// with `normalize`, over the chosen ones' sum; else over the chosen ones alone; then times `scale`. With `sigmoid` an
// expert's weight is that of its logit. Experts are chosen by their logits, or, with a bias, by weight plus bias; of
// `groups` equal runs of experts only those of groups_used groups, whose best two have the highest sums of weights. In
// the end each weight is times its expert's of expert_scales. The last `always` of the used ones are not chosen, but
// those behind all experts, for each token: with `gates` by the sigmoid of a logit behind theirs, else by one.
struct Routing {
    i32 experts, used, softmax_before, normalize;
    float scale;
    i32 sigmoid, groups, groups_used;
    RF_NULLABLE const float *bias, *expert_scales;
    i32 always, gates;
};

struct Choice {
    alignas(16) u32 key[MOST_EXPERTS];
    u16 experts[MOST_EXPERTS];  // of the keys, once they are sorted
    float scores[MOST_USED], weights[MOST_USED], groups[MOST_GROUPS];
    i32 ids[MOST_USED];
};

RF_DEVICE i32 chosen_of(const Routing& r) { return r.used - r.always; }

// A token's, of all tokens' logits.
RF_DEVICE const float* logits_of(const float* logits, const Routing& r, u32 token) {
    return logits + u64(token) * (r.experts + (r.gates ? r.always : 0));
}

// Whether experts are compared by their shares of the softmax: a bias is added to these, and a group's best are summed.
RF_DEVICE bool by_share(const Routing& r) { return !r.sigmoid && r.softmax_before && (r.bias || r.groups > 1); }

// What experts are compared by, of a logit, for the highest logit and the sum of all exp(logit - highest).
RF_DEVICE float score_of(float logit, const Routing& r, float highest, float all) {
    if (r.sigmoid) return sigmoid(logit);
    return by_share(r) ? fast_exp(logit - highest) / all : logit;
}

// In the order of numbers, and a NaN below them all.
const u32 LOWEST_KEY = 1;
RF_DEVICE u32 order_key(float x) {
    u32 bits = float_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return LOWEST_KEY;
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

RF_DEVICE float number_of(u32 key) { return bits_float(key & 0x80000000 ? key ^ 0x80000000 : ~key); }

// Leaves the experts of groups_used groups alone in the running: all others get the lowest key.
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
        for (i32 e = group * size; e < (group + 1) * size; ++e) choice.key[e] = LOWEST_KEY;
    barrier();
}

// How many of eight keys come before one: those that are higher, and of equals those of the first `before`.
RF_DEVICE i32 keys_before(u32 own, const u32* keys, i32 before) {
    u32x4 four[2] = {load<u32x4>(keys), load<u32x4>(keys + 4)};
    i32 place = 0;
    RF_UNROLL
    for (i32 j = 0; j < 8; ++j) place += element(four[j / 4], j % 4) > own - u32(j < before);
    return place;
}

// The experts of the highest logits, the highest first and of equals the lowest id first, so ids are those of experts
// whatever the logits are. Each wave sorts runs of as many as it has lanes, and then every one of a run's best counts
// those of all runs that come before it. All threads of the block of THREADS call it together, and find the result once
// it returns.
template <u32 THREADS>
RF_DEVICE void choose(Choice& choice, const float* logits, const Routing& r) {
    i32 count = r.experts;
    float highest = 0, all = 1;
    if (by_share(r)) {
        highest = -infinity(), all = 0;
        for (i32 e = thread_x(); e < count; e += THREADS) highest = maximum(highest, logits[e]);
        highest = block_max<THREADS>(highest);
        for (i32 e = thread_x(); e < count; e += THREADS) all += fast_exp(logits[e] - highest);
        all = block_sum<THREADS>(all);
    }
    i32 most = chosen_of(r), end = (count + RF_WAVE - 1) / RF_WAVE * RF_WAVE;
    for (i32 e = thread_x(); e < end; e += THREADS) {
        float score = e < count ? score_of(logits[e], r, highest, all) + (r.bias ? r.bias[e] : 0.0f) : 0.0f;
        choice.key[e] = e < count ? order_key(score) : LOWEST_KEY;
    }
    if (r.groups > 1) {
        barrier();
        choose_groups<THREADS>(choice, r);
    }
    wave_barrier();  // a run is its wave's alone
    for (i32 e = thread_x(); e < end; e += THREADS) {
        u32 own = choice.key[e];
        i32 run = e - lane(), place = run;
        RF_NO_UNROLL  // few instructions, since each is fetched for the first time
        for (i32 j = 0; j < i32(RF_WAVE); j += 8) place += keys_before(own, choice.key + run + j, i32(lane()) - j);
        wave_barrier();
        choice.key[place] = own, choice.experts[place] = u16(e);
    }
    barrier();
    for (i32 e = thread_x(); e < end; e += THREADS) {
        if (i32(lane()) >= most) break;
        u32 own = choice.key[e];
        i32 place = lane(), own_run = e - lane();  // in its own run it has its place
        for (i32 at = 0; at < most; at += 8) {
            RF_NO_UNROLL
            for (i32 run = 0; run < end; run += RF_WAVE)
                if (run != own_run) place += keys_before(own, choice.key + run + at, run < own_run ? 8 : 0);
        }
        if (place >= most) continue;
        i32 id = choice.experts[e];
        choice.ids[place] = id;
        choice.scores[place] = r.bias || r.groups > 1 ? score_of(logits[id], r, highest, all) : number_of(own);
    }
    if (i32(thread_x()) >= most && i32(thread_x()) < r.used) choice.ids[thread_x()] = count + thread_x() - most;
    barrier();
}

RF_DEVICE float scale_of(const Routing& r, i32 expert) {
    return r.expert_scales ? r.scale * r.expert_scales[expert] : r.scale;
}

// And their weights.
template <u32 THREADS>
RF_DEVICE void choose_and_weigh(Choice& choice, const float* logits, const Routing& r) {
    choose<THREADS>(choice, logits, r);
    i32 used = chosen_of(r), behind = i32(thread_x()) - used;
    if (behind >= 0 && behind < r.always)
        choice.weights[thread_x()] = r.gates ? sigmoid(logits[r.experts + behind]) : 1.0f;
    float own = choice.scores[minimum(i32(lane()), used - 1)];
    if (r.sigmoid || by_share(r)) {
        // the floor is the smallest normal float16, as the published implementations have it; with a softmax the best
        // experts' sum is never so small
        float sum = r.normalize ? maximum(wave_sum(i32(lane()) < used ? own : 0.0f), 6.103515625e-05f) : 1.0f;
        if (thread_x() < u32(used)) choice.weights[thread_x()] = own / sum * scale_of(r, choice.ids[thread_x()]);
        barrier();
        return;
    }
    u32 count = r.experts;
    float highest = choice.scores[0], all = 0.0f;
    float chosen = wave_sum(i32(lane()) < used ? fast_exp(own - highest) : 0.0f);
    if (r.softmax_before && !r.normalize) {
        for (u32 e = thread_x(); e < count; e += THREADS) all += fast_exp(logits[e] - highest);
        all = block_sum<THREADS>(all);
    }
    float sum = r.softmax_before && !r.normalize ? all : chosen;
    if (thread_x() < u32(used))
        choice.weights[thread_x()] = fast_exp(own - highest) / sum * scale_of(r, choice.ids[thread_x()]);
    barrier();
}

}  // namespace rocforge
