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

// A lane's best expert of those that come after one in the order of keys, and of equals in that of ids.
struct Candidate {
    u32 key;
    i32 id;  // none: past all experts
};
RF_DEVICE Candidate best_after(const u32* keys, i32 count, Candidate last) {
    const i32 AHEAD = 8;  // keys that are loaded at a time
    Candidate best = {0, count};
    for (i32 first = lane(); first < count; first += AHEAD * RF_WAVE) {
        u32 some[AHEAD];
        RF_UNROLL
        for (i32 j = 0; j < AHEAD; ++j) some[j] = keys[minimum(first + j * i32(RF_WAVE), count - 1)];
        RF_UNROLL
        for (i32 j = 0; j < AHEAD; ++j) {
            i32 e = first + j * i32(RF_WAVE);
            bool after = some[j] < last.key || (some[j] == last.key && e > last.id);
            if (e < count && after && (some[j] > best.key || best.id == count)) best = {some[j], e};
        }
    }
    return best;
}

// The experts of the highest logits, the highest first and of equals the lowest id first, so ids are those of experts
// whatever the logits are. One wave looks for them, one after another. All threads of the block of THREADS call it
// together, and find the result once it returns.
template <u32 THREADS>
RF_DEVICE void choose(Choice& choice, const float* logits, const Routing& r) {
    i32 count = r.experts;
    float highest = 0, all = 1;
    if (r.bias && !r.sigmoid) {
        highest = -infinity(), all = 0;
        for (i32 e = thread_x(); e < count; e += THREADS) highest = maximum(highest, logits[e]);
        highest = block_max<THREADS>(highest);
        for (i32 e = thread_x(); e < count; e += THREADS) all += fast_exp(logits[e] - highest);
        all = block_sum<THREADS>(all);
    }
    for (i32 e = thread_x(); e < count; e += THREADS)
        choice.key[e] = order_key(score_of(logits[e], r, highest, all) + (r.bias ? r.bias[e] : 0.0f));
    barrier();
    if (r.groups > 1) choose_groups<THREADS>(choice, r);
    if (wave() == 0) {
        Candidate own = best_after(choice.key, count, {~0u, -1});
        i32 chosen = count + i32(lane()) - chosen_of(r);
        for (i32 place = 0; place < chosen_of(r); ++place) {
            u32 best = wave_max_of(own.id < count ? own.key : 0);
            // where several lanes have it, the lowest id counts
            i32 id = count - i32(wave_max_of(own.key == best ? u32(count - own.id) : 0));
            if (i32(lane()) == place) chosen = id;
            if (own.id == id) own = best_after(choice.key, count, {best, id});
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
