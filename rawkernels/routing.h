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
    float logits[MOST_USED], weights[MOST_USED], groups[MOST_GROUPS];
    i32 ids[MOST_USED];
};

RF_DEVICE i32 chosen_of(const Routing& r) { return r.used - r.always; }

// A token's, of all tokens' logits.
RF_DEVICE const float* logits_of(const float* logits, const Routing& r, u32 token) {
    return logits + u64(token) * (r.experts + (r.gates ? r.always : 0));
}

// Whether experts are known by their weights, and not by their logits.
RF_DEVICE bool by_weight(const Routing& r) { return r.sigmoid || r.bias; }

// Of a logit: itself; or the weight, where experts are known by it, for the highest logit and the sum of all exp(logit
// - highest).
RF_DEVICE float score_of(float logit, const Routing& r, float highest, float all) {
    if (r.sigmoid) return sigmoid(logit);
    return r.bias ? fast_exp(logit - highest) / all : logit;
}

// In the order of numbers, and a NaN below them all; the highest is less than all bits.
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

// The waves' best experts, each one's from the highest key down, of equals the lowest id first; key 0 is none.
template <u32 WAVES>
struct Candidates {
    u32 key[WAVES][MOST_USED];
    i32 id[WAVES][MOST_USED];
};

// The lowest lane that has a number, the highest of all.
RF_DEVICE u32 lane_with(u32 key, u32& best) {
    best = wave_max_of(key);
    return lowest_bit(wave_ballot(key == best));
}

// The experts of the highest logits, the highest first and of equals the lowest id first, so ids are those of experts
// whatever the logits are. Each wave looks for the best of a share of all, one after another, and then one wave for the
// best of these. All threads of the block of THREADS call it together, and find the result once it returns.
template <u32 THREADS>
RF_DEVICE void choose(Choice& choice, const float* logits, const Routing& r) {
    const u32 WAVES = THREADS / RF_WAVE, MOST_OWN = MOST_EXPERTS / THREADS;
    RF_SHARED Candidates<WAVES> candidates;
    i32 count = r.experts, share = (count + i32(THREADS) - 1) / i32(THREADS), first = thread_x() * share;
    float highest = 0, all = 1;
    if (r.bias && !r.sigmoid) {
        highest = -infinity(), all = 0;
        for (i32 e = thread_x(); e < count; e += THREADS) highest = maximum(highest, logits[e]);
        highest = block_max<THREADS>(highest);
        for (i32 e = thread_x(); e < count; e += THREADS) all += fast_exp(logits[e] - highest);
        all = block_sum<THREADS>(all);
    }
    u32 own[MOST_OWN];
    RF_UNROLL
    for (u32 i = 0; i < MOST_OWN; ++i) {
        i32 e = first + i32(i);
        own[i] = 0;
        if (i32(i) < share && e < count)
            own[i] = order_key(score_of(logits[e], r, highest, all) + (r.bias ? r.bias[e] : 0.0f)) + 1;
        if (r.groups > 1 && own[i]) choice.key[e] = own[i] - 1;
    }
    if (r.groups > 1) {
        barrier();
        choose_groups<THREADS>(choice, r);
        RF_UNROLL
        for (u32 i = 0; i < MOST_OWN; ++i)
            if (own[i] && choice.key[first + i32(i)] == 0) own[i] = 0;
    }
    for (i32 place = 0; place < chosen_of(r); ++place) {
        u32 most = own[0], best;
        RF_UNROLL
        for (u32 i = 1; i < MOST_OWN; ++i) most = own[i] > most ? own[i] : most;
        if (lane() == lane_with(most, best)) {
            u32 found = MOST_OWN;
            RF_UNROLL
            for (u32 i = 0; i < MOST_OWN; ++i)
                if (found == MOST_OWN && own[i] == best) found = i, own[i] = 0;
            candidates.key[wave()][place] = best, candidates.id[wave()][place] = first + i32(found);
        }
    }
    barrier();
    if (wave() == 0) {
        u32 from = lane() < WAVES ? lane() : 0, at = 0, best;
        i32 chosen = count + i32(lane()) - chosen_of(r);
        for (i32 place = 0; place < chosen_of(r); ++place) {
            u32 key = lane() < WAVES && i32(at) < chosen_of(r) ? candidates.key[from][at] : 0;
            u32 winner = lane_with(key, best);
            i32 id = shuffle(candidates.id[from][minimum(i32(at), chosen_of(r) - 1)], winner);
            if (i32(lane()) == place) chosen = minimum(id, count - 1);
            at += lane() == winner;
        }
        if (i32(lane()) < r.used) {
            choice.ids[lane()] = chosen;
            if (chosen < count) choice.logits[lane()] = score_of(logits[chosen], r, highest, all);
        }
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
    i32 used = chosen_of(r), behind = i32(thread_x()) - used;
    if (behind >= 0 && behind < r.always)
        choice.weights[thread_x()] = r.gates ? sigmoid(logits[r.experts + behind]) : 1.0f;
    if (by_weight(r)) {
        float sum = 0.0f;
        for (i32 i = 0; i < used; ++i) sum += choice.logits[i];
        if (thread_x() < u32(used))
            choice.weights[thread_x()] = choice.logits[thread_x()] /
                                         (r.normalize ? maximum(sum, 6.103515625e-05f) : 1.0f) *
                                         scale_of(r, choice.ids[thread_x()]);
        barrier();
        return;
    }
    u32 count = r.experts;
    float highest = choice.logits[0], all = 0.0f, chosen = 0.0f;
    for (i32 i = 0; i < used; ++i) chosen += fast_exp(choice.logits[i] - highest);
    if (r.softmax_before) {
        for (u32 e = thread_x(); e < count; e += THREADS) all += fast_exp(logits[e] - highest);
        all = block_sum<THREADS>(all);
    }
    // the floor is the smallest normal float16, as the published implementations have it
    float sum = !r.softmax_before ? chosen : r.normalize ? maximum(chosen, all * 6.103515625e-05f) : all;
    if (thread_x() < u32(used))
        choice.weights[thread_x()] =
            fast_exp(choice.logits[thread_x()] - highest) / sum * scale_of(r, choice.ids[thread_x()]);
    barrier();
}

}  // namespace rocforge
