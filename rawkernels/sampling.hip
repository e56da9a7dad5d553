// Choosing the next token of each row of logits, as rocforge.ops.sampling.sample does.
#include "target/platform.h"
#include "select.h"

namespace rocforge {

// How one row is sampled: 80 bytes, made by rocforge.ops.device.sampling. Rows and starts are -1 where there is none.
// `slot` is where its token goes in last_tokens. Masks and biases are in the memory that begins with the rows'
// Parameters, at mask_start and bias_start, in words of 32 bits: of a mask a bit for each token, set where it may come
// next; of biases their count, that many ids, and that many floats.
struct Parameters {
    u64 seed;
    double top_p;
    i32 step, top_k, slot, counts_row, edited_row, mask_start, bias_start;
    float temperature, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    float top_n_sigma, typical_p, xtc_probability, xtc_threshold;
};
static_assert(sizeof(Parameters) == 80, "as rocforge.ops.device.sampling lays it out");

RF_DEVICE Parameters parameters_of(const u32* staged, u32 row) {
    return reinterpret_cast<const Parameters*>(staged)[row];
}

// By one thread of a row: gives its token, and to the host `host`, and counts it. The row's parameters become those of
// its next token.
RF_DEVICE void give(const Parameters& p, u32* staged, u32 row, i32 token, i32 host, i32* last_tokens, i32* host_tokens,
                    i32* counts, u32 vocabulary) {
    last_tokens[p.slot] = token;
    host_tokens[row] = host;
    if (p.counts_row >= 0) counts[u64(p.counts_row) * vocabulary + token] += 2;
    reinterpret_cast<Parameters*>(staged)[row].step = p.step + 1;
}

constexpr i32 NOT_FINITE = -1, NOTHING_ALLOWED = -2;  // in place of tokens

// A block of the kernels that go over whole rows has SLICE logits, a thread FOURS times four that follow each other,
// and RUN_LANES threads a run.
constexpr u32 SLICE_THREADS = RF_TUNE_SAMPLE_SLICE_THREADS, SLICE = RF_TUNE_SAMPLE_SLICE,
              FOURS = SLICE / (4 * SLICE_THREADS);
static_assert(SLICE == 4 * FOURS * SLICE_THREADS, "a block takes whole loads");

RF_DEVICE u32 place_in_slice(u32 four) { return 4 * (four * SLICE_THREADS + thread_x()); }
RF_DEVICE u32 first_id(u32 four) { return block_x() * SLICE + place_in_slice(four); }

RF_DEVICE float masked(float logit, u32 id, const u32* mask) {
    if (mask[id / 32] >> id % 32 & 1) return logit;
    return logit < infinity() ? -infinity() : infinity();  // what is not finite shows through: it ends the row
}

// uses: 2 * (how often the token is in the text) + (it is in the prompt).
RF_DEVICE float penalized(float logit, i32 uses, const Parameters& p) {
    if (uses) logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    if (uses > 1) logit = sub_rn(sub_rn(logit, mul_rn(uses >> 1, p.frequency_penalty)), p.presence_penalty);
    return logit;
}

// A logit after mask and penalties.
RF_DEVICE float changed(float logit, u32 id, const Parameters& p, const u32* staged, const i32* uses) {
    if (p.mask_start >= 0) logit = masked(logit, id, staged + p.mask_start);
    return p.counts_row >= 0 ? penalized(logit, uses[id], p) : logit;
}

// Adds a row's biases to what a block has of its logits.
RF_DEVICE void add_biases(float (&values)[FOURS][4], const u32* biases) {
    RF_SHARED float biased[SLICE];
    u32 count = biases[0];
    const u32 *ids = biases + 1, *added = ids + count;
    for (u32 q = 0; q < FOURS; ++q)
        for (u32 j = 0; j < 4; ++j) biased[place_in_slice(q) + j] = values[q][j];
    barrier();
    for (u32 i = thread_x(); i < count; i += SLICE_THREADS) {
        u32 place = ids[i] - block_x() * SLICE;
        if (place < SLICE) biased[place] += bits_float(added[i]);
    }
    barrier();
    for (u32 q = 0; q < FOURS; ++q)
        for (u32 j = 0; j < 4; ++j) values[q][j] = biased[place_in_slice(q) + j];
}

// highest, best: the highest logit of each run after mask, penalties and biases, and the lowest id that has it; NaN
// counts as infinity. edited: all of these logits, and -inf past the vocabulary, of rows that have any of the three
// and a temperature. Grid: (slices, rows); `edited` is (.., runs * RUN), counts (.., vocabulary).
RF_KERNEL(SLICE_THREADS)
rf_sample_slices(float* edited, float* highest, i32* best, const float* logits, const u32* staged, const i32* counts,
                 u32 vocabulary, u32 runs) {
    u32 row = block_y();
    wait_for_previous();
    float values[FOURS][4];
    RF_UNROLL
    for (u32 q = 0; q < FOURS; ++q) load_four(values[q], logits + u64(row) * vocabulary, first_id(q), vocabulary);
    const Parameters p = parameters_of(staged, row);
    if (p.mask_start >= 0 || p.counts_row >= 0) {
        RF_UNROLL
        for (u32 q = 0; q < FOURS; ++q) {
            RF_UNROLL
            for (u32 j = 0; j < 4; ++j) {
                u32 id = first_id(q) + j;
                if (id >= vocabulary) continue;
                values[q][j] = changed(values[q][j], id, p, staged, counts + u64(p.counts_row) * vocabulary);
            }
        }
    }
    if (p.bias_start >= 0) add_biases(values, staged + p.bias_start);
    RF_UNROLL
    for (u32 q = 0; q < FOURS; ++q) {
        u32 id = first_id(q);
        const float (&v)[4] = values[q];
        if (p.edited_row >= 0 && id < runs * RUN)
            *reinterpret_cast<f32x4*>(edited + u64(p.edited_row) * runs * RUN + id) =
                make_f32x4(v[0], v[1], v[2], v[3]);
        float top = -infinity();
        u32 top_id = id;
        RF_UNROLL
        for (u32 j = 0; j < 4; ++j) {
            float value = v[j] == v[j] ? v[j] : infinity();
            if (value > top) top = value, top_id = id + j;
        }
        float run_top = reduce_lanes<RUN_LANES>(top, Maximum());
        u32 first_lane = lane() / RUN_LANES * RUN_LANES;
        u32 winner = first_lane + lowest_bit(wave_ballot(top == run_top) >> first_lane);
        top_id = shuffle(top_id, winner);
        if (lane() == first_lane && id < vocabulary) {
            highest[row * runs + id / RUN] = run_top;
            best[row * runs + id / RUN] = top_id;
        }
    }
}

// 24 random bits: splitmix64 with the step as its counter.
RF_DEVICE u32 random24(u64 seed, u32 step) {
    u64 z = seed + (u64(step) + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return u32((z ^ z >> 31) >> 40);
}

// Whether a row is drawn by rf_sample_chains.
RF_DEVICE bool chained(const Parameters& p) {
    return p.temperature > 0 && (p.top_n_sigma > 0 || p.typical_p < 1 || p.xtc_probability > 0);
}
// Whether top_k leaves tokens out.
RF_DEVICE bool ranked(const Parameters& p, u32 vocabulary) { return p.top_k > 0 && u32(p.top_k) < vocabulary; }
// Whether a row is drawn from all of its tokens, or all that are likely enough: no other has to be found first.
RF_DEVICE bool drawn_from_all(const Parameters& p, u32 vocabulary) {
    return p.temperature > 0 && !chained(p) && p.top_p >= 1 && !ranked(p, vocabulary);
}
RF_DEVICE u32 widest_gap(const Parameters& p) {
    return p.min_p > 0 ? float_bits(maximum(-fast_log(p.min_p), 0.0f)) : ALL;
}
// The sum of weights at which the token is drawn, of `total`.
RF_DEVICE u64 drawn_at(const Parameters& p, u64 total) {
    u64 random = random24(p.seed, p.step);
    return (total >> 24) * random + ((total & 0xffffff) * random >> 24) + 1;
}
// The sum of weights that top_p wants, of `total`.
RF_DEVICE u64 nucleus_of(const Parameters& p, u64 total) {
    double mass = p.top_p * double(total);
    u64 limit = u64(mass);
    return limit + (double(limit) < mass || limit == 0);
}
RF_DEVICE Row row_of(const Parameters& p, const float* logits, const float* edited, u32 row, u32 vocabulary, u32 runs,
                     float highest) {
    if (p.edited_row < 0) return {logits + u64(row) * vocabulary, vocabulary, p.temperature, highest};
    return {edited + u64(p.edited_row) * runs * RUN, runs * RUN, p.temperature, highest};
}

// sums (rows, runs): of the weights of each run, of rows without top_k; where top_p is not asked for either, of those
// that are likely enough. Grid: (slices, rows).
RF_KERNEL(SLICE_THREADS)
rf_sample_sums(u64* sums, const float* logits, const float* edited, const float* highest, const u32* staged,
               u32 vocabulary, u32 runs) {
    u32 row = block_y();
    const Parameters p = parameters_of(staged, row);
    wait_for_previous();
    if (p.temperature <= 0 || chained(p) || ranked(p, vocabulary)) return;
    float top = -infinity();
    for (u32 i = thread_x(); i < runs; i += SLICE_THREADS) top = maximum(top, highest[row * runs + i]);
    top = block_max<SLICE_THREADS>(top) / p.temperature;
    Row source = row_of(p, logits, edited, row, vocabulary, runs, top);
    u32 widest = p.top_p < 1 ? ALL : widest_gap(p);
    RF_UNROLL
    for (u32 q = 0; q < FOURS; ++q) {
        u32 gaps[4], id = first_id(q);
        source.load_gaps(gaps, id);
        u64 sum = 0;
        RF_UNROLL
        for (u32 j = 0; j < 4; ++j) sum += gaps[j] <= widest ? weight_of(gaps[j]) : 0;
        sum = sum_lanes<RUN_LANES>(sum);
        if (lane() % RUN_LANES == 0 && id < source.size) sums[row * runs + id / RUN] = sum;
    }
}

// The token at which the running sum of weights reaches the random limit: first its run, then within that.
RF_DEVICE u32 draw_from_all(SelectShared& shared, const Row& source, const Parameters& p, const u64* sums, u32 runs) {
    u64 own[RUNS_EACH], sum = 0, total;
    RF_UNROLL
    for (u32 j = 0; j < RUNS_EACH; ++j) {
        u32 run = RUNS_EACH * thread_x() + j;
        own[j] = run < runs ? sums[run] : 0, sum += own[j];
    }
    u64 before = block_prefix(shared, sum, total), limit = drawn_at(p, total);
    RF_UNROLL
    for (u32 j = 0; j < RUNS_EACH; ++j) {
        if (before < limit && limit <= before + own[j]) shared.bin = RUNS_EACH * thread_x() + j, shared.below = before;
        before += own[j];
    }
    barrier();
    u32 id = RUN * shared.bin + thread_x();
    bool inside = thread_x() < RUN && id < source.size;
    u32 gap = inside ? source.gap(source.values[id]) : ALL;
    u64 weight = inside && gap <= widest_gap(p) ? weight_of(gap) : 0;
    before = shared.below + block_prefix(shared, weight, total);
    if (before < limit && limit <= before + weight) shared.bin = id;
    barrier();
    return shared.bin;
}

// The token that is drawn from a list of at most COUNTED, which has all that the cuts leave. `all` is the sum of the
// weights of all of the row's tokens, where there is no top_k.
RF_DEVICE u32 draw_listed(SelectShared& shared, const Parameters& p, bool by_rank, u64 all) {
    u32 i = thread_x(), most = by_rank ? minimum(p.top_k, i32(shared.listed)) : shared.listed, rank = 0;
    bool stays = i < shared.listed;
    u32 gap = stays ? shared.gaps[i] : ALL, id = stays ? shared.ids[i] : ALL;
    u64 weight = stays ? weight_of(gap) : 0, before = 0, kept = 0;
    if (stays) shared.weights[i] = weight;
    barrier();
    if (stays)
        rank = rank_of(shared, shared.listed, gap, id,
                       [&](u32 j, bool comes) { before += comes ? shared.weights[j] : 0; });
    if (stays && rank == most - 1) shared.inside = before + weight;
    barrier();
    stays = stays && rank < most && gap <= widest_gap(p);
    if (stays && p.top_p < 1) stays = before < nucleus_of(p, by_rank ? shared.inside : all);
    if (i < shared.listed) shared.weights[i] = stays ? weight : 0;
    barrier();
    before = 0;
    for (u32 j = 0; stays && j < shared.listed; ++j) {
        kept += shared.weights[j];
        if (shared.ids[j] < id) before += shared.weights[j];
    }
    u64 limit = drawn_at(p, kept);
    if (stays && before < limit && limit <= before + weight) shared.bin = id;
    barrier();
    return shared.bin;
}

template <class Source>
RF_DEVICE u32 draw(SelectShared& shared, const Source& source, const Parameters& p, u32 vocabulary, u64 total) {
    Cut cut = {ALL, ALL};
    if (ranked(p, vocabulary)) {
        u64 limit = p.top_k;
        cut = cut_at(shared, source, [](u32, u32) -> u64 { return 1; }, [=](u64) { return limit; });
    }
    auto weight = [&](u32 id, u32 gap) -> u64 { return cut.keeps(id, gap) ? weight_of(gap) : 0; };
    if (p.top_p < 1) {
        bool all = cut.gap == ALL;
        Cut nucleus = cut_at(shared, source, weight, [&](u64 kept) { return nucleus_of(p, all ? total : kept); });
        cut = {nucleus.gap, nucleus.gap == cut.gap && cut.id < nucleus.id ? cut.id : nucleus.id};
    }
    if (widest_gap(p) < cut.gap) cut = {widest_gap(p), ALL};
    return find<ById>(shared, source, weight, [&](u64 kept) { return drawn_at(p, kept); }).key;
}

// The token that is drawn from a row with top_k or top_p: from a list of its likely tokens, or where the cuts lie
// further out, or too many are as likely, from all.
RF_DEVICE u32 draw_cut(SelectShared& shared, const Row& source, const Parameters& p, const Runs& likely,
                       const u64* sums, u32 vocabulary, u32 runs) {
    bool by_rank = ranked(p, vocabulary);
    u64 all = 0, listed = 0, own[RUNS_EACH];
    if (!by_rank) {
        RF_UNROLL
        for (u32 j = 0; j < RUNS_EACH; ++j) {
            own[j] = Runs::number(j) < runs ? sums[Runs::number(j)] : 0, listed += own[j];
        }
        block_prefix(shared, listed, all);
    }
    // what runs have beside their likeliest may lie further out: the list has to reach further than top_p
    u64 nucleus = by_rank ? 0 : nucleus_of(p, all);
    u32 reach = by_rank
                    ? reach_of(shared, source, likely, p.top_k)
                    : reach_of(shared, source, likely, [&](u32 j) { return own[j]; }, nucleus + (all - nucleus) / 2);
    list(shared, source, likely, reach, [=](u32, u32 gap) { return gap <= reach; });
    bool complete = shared.listed <= LIST;
    if (complete && reach < FAR && !by_rank) {  // do they have as much of the weight as top_p asks for?
        u64 sum = 0;
        for (u32 i = thread_x(); i < shared.listed; i += ROW_THREADS) sum += weight_of(shared.gaps[i]);
        block_prefix(shared, sum, listed);
        complete = listed >= nucleus;
    }
    if (!complete) return draw(shared, source, p, vocabulary, all);
    if (shared.listed > COUNTED) return draw(shared, List{shared}, p, vocabulary, all);
    return draw_listed(shared, p, by_rank, all);
}

// The most likely token of a row, of equals the first.
RF_DEVICE i32 most_likely(const Runs& likely, const i32* best, float top, u32 runs) {
    i32 token = 0x7fffffff;
    RF_UNROLL
    for (u32 j = 0; j < RUNS_EACH; ++j)
        if (Runs::number(j) < runs && likely.highest[j] == top) token = minimum(token, best[Runs::number(j)]);
    return -block_max<ROW_THREADS>(-token);
}

// The drawn token, or the most likely one where the temperature is zero, goes to last_tokens[slot] and
// host_tokens[row], memory of the host; its count goes up. Where there is none, for the highest logit is not finite or
// the mask allows nothing, the host gets NOT_FINITE or NOTHING_ALLOWED, and last_tokens any token. A block a row.
RF_KERNEL(ROW_THREADS)
rf_sample_rows(i32* last_tokens, i32* host_tokens, i32* counts, const float* logits, const float* edited,
               const float* highest, const i32* best, const u64* sums, u32* staged, u32 vocabulary, u32 runs) {
    RF_SHARED SelectShared shared;
    u32 row = block_x();
    const Parameters p = parameters_of(staged, row);
    wait_for_previous();
    best += row * runs, sums += row * runs;
    Runs likely(highest + row * runs, runs);
    float top = likely.top();
    float scaled = p.temperature > 0 ? top / p.temperature : top;
    bool finite = absolute(scaled) < infinity();
    if (finite && chained(p)) return;
    i32 token;
    Row source = row_of(p, logits, edited, row, vocabulary, runs, scaled);
    if (p.temperature <= 0 || !finite)
        token = most_likely(likely, best, top, runs);
    else if (drawn_from_all(p, vocabulary))
        token = draw_from_all(shared, source, p, sums, runs);
    else
        token = draw_cut(shared, source, p, likely, sums, vocabulary, runs);
    if (thread_x() != 0) return;
    token = maximum(minimum(token, i32(vocabulary) - 1), 0);  // an embedding has a row for it
    i32 host = finite ? token : p.mask_start >= 0 && top < 0 ? NOTHING_ALLOWED : NOT_FINITE;
    give(p, staged, row, token, host, last_tokens, host_tokens, counts, vocabulary);
}

// The elements of a row that are kept so far: up to a cut, as near as `width` to `center` where gaps have a typical
// one, and from an element on where XTC has left out those before.
struct Kept {
    Cut cut;
    float center;
    u32 width, from_gap, from_id;

    RF_MEMBER u32 distance(u32 gap) const { return float_bits(absolute(bits_float(gap) - center)); }
    RF_MEMBER bool has(u32 id, u32 gap) const {
        bool begun = gap > from_gap || (gap == from_gap && id >= from_id);
        return cut.keeps(id, gap) && begun && (width == ALL || distance(gap) <= width);
    }
    RF_MEMBER u64 weight(u32 id, u32 gap) const { return has(id, gap) ? weight_of(gap) : 0; }
};

// A row, or a list of it, with distances in place of gaps.
template <class Source>
struct Distances {
    static constexpr u32 AT_ONCE = Source::AT_ONCE;
    const Source& source;
    const Kept& kept;

    template <class F>
    RF_MEMBER void each(F f) const {
        source.each([&](u32 count, u32 id, const u32* gaps) {
            u32 distances[AT_ONCE];
            RF_UNROLL
            for (u32 j = 0; j < AT_ONCE; ++j) distances[j] = kept.distance(gaps[j]);
            f(count, id, distances);
        });
    }
};

// Calls f(id, gap) for each element of a row, or of a list.
template <class Source, class F>
RF_DEVICE void for_each(const Source& source, F f) {
    source.each([&](u32 count, u32 id, const u32* gaps) {
        RF_UNROLL
        for (u32 j = 0; j < Source::AT_ONCE; ++j)
            if (j < count) f(id + j, gaps[j]);
    });
}

// The standard deviation of the logits over the temperature, of those that are finite.
RF_DEVICE float deviation(const Row& row) {
    float sum = 0, count = 0, squares = 0;
    for_each(row, [&](u32, u32 gap) {
        float value = bits_float(gap);
        if (value < infinity()) sum += value, count += 1;
    });
    count = block_sum<ROW_THREADS>(count);
    float mean = block_sum<ROW_THREADS>(sum) / count;
    for_each(row, [&](u32, u32 gap) {
        float value = bits_float(gap) - mean;
        if (value < infinity()) squares += value * value;
    });
    return square_root(block_sum<ROW_THREADS>(squares) / count);
}

// Keeps the elements whose gaps are nearest to the expected one, as many as have `share` of the weight.
template <class Source>
RF_DEVICE void keep_typical(SelectShared& shared, const Row& row, const Source& source, Kept& kept, float share) {
    float weights = 0, moments = 0;
    for_each(source, [&](u32 id, u32 gap) {
        float weight = float(kept.weight(id, gap)) * 9.094947e-13f;  // 2^-40
        if (weight > 0) weights += weight, moments += weight * bits_float(gap);
    });
    weights = block_sum<ROW_THREADS>(weights);
    kept.center = block_sum<ROW_THREADS>(moments) / weights;
    auto weight = [&](u32 id, u32) { return kept.weight(id, row.gap(row.values[id])); };
    auto limit_of = [=](u64 total) {
        u64 limit = u64(double(total) * double(share));
        return limit < total ? limit + 1 : total;
    };
    kept.width = find<ByGap>(shared, Distances<Source>{source, kept}, weight, limit_of).key;
}

// Leaves out the elements with `threshold` of the weight or more, but the least likely of them.
template <class Source>
RF_DEVICE void exclude_top(SelectShared& shared, const Source& row, Kept& kept, float threshold) {
    u64 sum = 0, total;
    for_each(row, [&](u32 id, u32 gap) { sum += kept.weight(id, gap); });
    block_prefix(shared, sum, total);
    double least = double(total) * double(threshold);
    i32 gap_of_last = 0, id_of_last = 0;  // gaps as integers: all are below 2^31
    auto likely = [&](u32 id, u32 gap) {
        u64 weight = kept.weight(id, gap);
        return weight && double(weight) >= least;
    };
    for_each(row, [&](u32 id, u32 gap) {
        if (likely(id, gap)) gap_of_last = maximum(gap_of_last, i32(gap));
    });
    gap_of_last = block_max<ROW_THREADS>(gap_of_last);
    for_each(row, [&](u32 id, u32 gap) {
        if (i32(gap) == gap_of_last && likely(id, gap)) id_of_last = maximum(id_of_last, i32(id));
    });
    kept.from_id = block_max<ROW_THREADS>(id_of_last), kept.from_gap = gap_of_last;
}

// The token that is drawn from what all truncations keep, each of what the one before has kept: of `source`, which is
// the row or has all that top_n_sigma, which keeps what is as near as `widest`, and top_k leave of it.
template <class Source>
RF_DEVICE u32 draw_chained(SelectShared& shared, const Row& row, const Source& source, const Parameters& p,
                           u32 widest) {
    Kept kept = {{widest, ALL}, 0, ALL, 0, 0};
    if (p.top_k > 0) {
        u64 limit = p.top_k;
        Cut most = cut_at(
            shared, source, [=](u32, u32 gap) -> u64 { return gap <= widest; },
            [=](u64 all) { return all < limit ? all : limit; });
        kept.cut = most;
    }
    if (p.typical_p < 1) keep_typical(shared, row, source, kept, p.typical_p);
    auto weight = [&](u32 id, u32 gap) { return kept.weight(id, gap); };
    if (p.top_p < 1) {
        Cut nucleus = cut_at(shared, source, weight, [&](u64 all) { return nucleus_of(p, all); });
        if (nucleus.gap < kept.cut.gap || (nucleus.gap == kept.cut.gap && nucleus.id < kept.cut.id)) kept.cut = nucleus;
    }
    if (p.min_p > 0) {
        i32 first = 0x7f7fffff;
        for_each(source, [&](u32 id, u32 gap) {
            if (kept.has(id, gap)) first = minimum(first, i32(gap));
        });
        first = -block_max<ROW_THREADS>(-first);
        u32 widest = float_bits(bits_float(first) + bits_float(widest_gap(p)));
        if (widest < kept.cut.gap) kept.cut = {widest, ALL};
    }
    bool excludes = float(random24(p.seed ^ 0x58544358544358ull, p.step)) < p.xtc_probability * 16777216.0f;
    if (excludes) exclude_top(shared, source, kept, p.xtc_threshold);
    return find<ById>(shared, source, weight, [&](u64 all) { return drawn_at(p, all); }).key;
}

// What rf_sample_rows does, for the rows with top_n_sigma, typical_p or XTC, which it passes over. A block a row.
RF_KERNEL(ROW_THREADS)
rf_sample_chains(i32* last_tokens, i32* host_tokens, i32* counts, const float* logits, const float* edited,
                 const float* highest, u32* staged, u32 vocabulary, u32 runs) {
    RF_SHARED SelectShared shared;
    u32 row = block_x();
    const Parameters p = parameters_of(staged, row);
    wait_for_previous();
    if (!chained(p)) return;
    Runs likely(highest + row * runs, runs);
    float top = likely.top() / p.temperature;
    if (!(absolute(top) < infinity())) return;
    Row source = row_of(p, logits, edited, row, vocabulary, runs, top);
    u32 widest = p.top_n_sigma > 0 ? float_bits(p.top_n_sigma * deviation(source)) : 0x7f7fffff, reach = widest;
    if (ranked(p, vocabulary)) reach = reach_of(shared, source, likely, p.top_k);
    if (widest < reach) reach = widest;
    if (FAR < reach) reach = FAR;
    list(shared, source, likely, reach, [=](u32, u32 gap) { return gap <= reach; });
    i32 token = shared.listed <= LIST ? draw_chained(shared, source, List{shared}, p, widest)
                                      : draw_chained(shared, source, source, p, widest);
    if (thread_x() != 0) return;
    give(p, staged, row, token, token, last_tokens, host_tokens, counts, vocabulary);
}

// highest, sums (rows, runs): of unchanged logits (.., vocabulary) the highest of each run, and the sum of exp(logit -
// that). places (2, rows): the first half says of each row which of the logits' it is, else it is that of the block.
// Grid: (slices, rows).
RF_KERNEL(SLICE_THREADS)
rf_logprob_sums(float* highest, float* sums, const float* logits, const i32* places, u32 vocabulary, u32 runs) {
    wait_for_previous();
    u32 row = block_y();
    logits += u64(places ? places[row] : row) * vocabulary;
    float values[FOURS][4];
    RF_UNROLL
    for (u32 q = 0; q < FOURS; ++q) load_four(values[q], logits, first_id(q), vocabulary);
    RF_UNROLL
    for (u32 q = 0; q < FOURS; ++q) {
        const float (&v)[4] = values[q];
        float top = reduce_lanes<RUN_LANES>(maximum(maximum(v[0], v[1]), maximum(v[2], v[3])), Maximum()), sum = 0;
        RF_UNROLL
        for (u32 j = 0; j < 4; ++j) sum += v[j] == -infinity() ? 0 : fast_exp(v[j] - top);
        sum = reduce_lanes<RUN_LANES>(sum, Add());
        if (lane() % RUN_LANES != 0 || first_id(q) >= vocabulary) continue;
        highest[row * runs + first_id(q) / RUN] = top;
        sums[row * runs + first_id(q) / RUN] = sum;
    }
}

// Lists the `count` most likely elements of a row, of which it has as many, and perhaps others.
RF_DEVICE void list_top(SelectShared& shared, const Row& row, const Runs& runs, u32 count) {
    u32 reach = reach_of(shared, row, runs, count);
    list(shared, row, runs, reach, [=](u32, u32 gap) { return gap <= reach; });
    if (count <= shared.listed && shared.listed <= ROW_THREADS) return;
    u64 limit = count;
    Cut cut = cut_at(shared, row, [](u32, u32) -> u64 { return 1; }, [=](u64) { return limit; });
    list(shared, row, runs, cut.gap, [=](u32 id, u32 gap) { return cut.keeps(id, gap); });
}

// Log-probabilities of unchanged logits (.., vocabulary): of `tokens`, or of any for those below zero, in `chosen`, and
// of the `count` most likely ones, in descending order, in top_ids and top_values (rows, count). A block a row.
// places (2, rows): of each its row of the logits, and its place in `tokens`; without, both are those of the block.
// highest, sums: as rf_logprob_sums leaves them.
RF_KERNEL(ROW_THREADS)
rf_token_logprobs(float* chosen, i32* top_ids, float* top_values, const float* logits, const i32* tokens,
                  const i32* places, const float* highest, const float* sums, u32 rows, u32 vocabulary, u32 runs,
                  u32 count) {
    wait_for_previous();
    RF_SHARED SelectShared shared;
    u32 row = block_x();
    logits += u64(places ? places[row] : row) * vocabulary, highest += row * runs, sums += row * runs;
    i32 token = tokens[places ? places[rows + row] : row];
    Runs likely(highest, runs);
    float top = likely.top(), sum = 0;
    for (u32 i = thread_x(); i < runs; i += ROW_THREADS) sum += sums[i] == 0 ? 0 : sums[i] * fast_exp(highest[i] - top);
    float log_sum = fast_log(block_sum<ROW_THREADS>(sum));
    if (thread_x() == 0) chosen[row] = logits[maximum(token, 0)] - top - log_sum;
    if (count == 0) return;
    Row source = {logits, vocabulary, 1, top};
    list_top(shared, source, likely, count);
    u32 i = thread_x(), listed = minimum(i32(shared.listed), i32(ROW_THREADS));  // more where none is a number
    if (i >= listed) return;
    u32 id = shared.ids[i], gap = shared.gaps[i], rank = rank_of(shared, listed, gap, id, [](u32, bool) {});
    if (rank >= count) return;
    top_ids[u64(row) * count + rank] = id;
    top_values[u64(row) * count + rank] = -bits_float(gap) - log_sum;
}

}  // namespace rocforge
