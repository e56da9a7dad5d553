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

constexpr i32 NOT_FINITE = -1, NOTHING_ALLOWED = -2;  // in place of tokens

constexpr u32 SLICE_THREADS = RF_TUNE_SAMPLE_SLICE_THREADS, SLICE = RF_TUNE_SAMPLE_SLICE,
              PER_THREAD = SLICE / SLICE_THREADS;

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

// highest, best: the highest logit of each slice after mask, penalties and biases, and the lowest id that has it; NaN
// counts as infinity. edited: all of these logits, and -inf past the vocabulary, of rows that have any of the three
// and a temperature. Grid: (slices, rows); `edited` is (.., slices * SLICE), counts (.., vocabulary).
RF_KERNEL(SLICE_THREADS)
rf_sample_slices(float* edited, float* highest, i32* best, const float* logits, const u32* staged, const i32* counts,
                 u32 vocabulary, u32 slices) {
    RF_SHARED float biased[SLICE];
    u32 row = block_y(), first = block_x() * SLICE + thread_x();
    const Parameters p = parameters_of(staged, row);
    wait_for_previous();
    logits += u64(row) * vocabulary;
    float values[PER_THREAD];
    auto id_of = [&](u32 j) { return first + j * SLICE_THREADS; };
    auto inside = [&](u32 j) { return u32(minimum(i32(id_of(j)), i32(vocabulary) - 1)); };
    RF_UNROLL
    for (u32 j = 0; j < PER_THREAD; ++j) values[j] = logits[inside(j)];
    if (p.mask_start >= 0) {
        RF_UNROLL
        for (u32 j = 0; j < PER_THREAD; ++j) values[j] = masked(values[j], inside(j), staged + p.mask_start);
    }
    if (p.counts_row >= 0) {
        const i32* uses = counts + u64(p.counts_row) * vocabulary;
        RF_UNROLL
        for (u32 j = 0; j < PER_THREAD; ++j) values[j] = penalized(values[j], uses[inside(j)], p);
    }
    if (p.bias_start >= 0) {
        u32 count = staged[p.bias_start];
        const u32 *ids = staged + p.bias_start + 1, *biases = ids + count;
        RF_UNROLL
        for (u32 j = 0; j < PER_THREAD; ++j) biased[thread_x() + j * SLICE_THREADS] = values[j];
        barrier();
        for (u32 i = thread_x(); i < count; i += SLICE_THREADS) {
            u32 place = ids[i] - block_x() * SLICE;
            if (place < SLICE) biased[place] += bits_float(biases[i]);
        }
        barrier();
        RF_UNROLL
        for (u32 j = 0; j < PER_THREAD; ++j) values[j] = biased[thread_x() + j * SLICE_THREADS];
    }
    float top = -infinity();
    i32 top_id = 0x7fffffff;
    RF_UNROLL
    for (u32 j = 0; j < PER_THREAD; ++j) {
        if (id_of(j) >= vocabulary) values[j] = -infinity();
        if (p.edited_row >= 0) edited[u64(p.edited_row) * slices * SLICE + id_of(j)] = values[j];
        float value = values[j] == values[j] ? values[j] : infinity();
        if (value > top || top_id == 0x7fffffff) top = value, top_id = id_of(j);
    }
    float slice_top = block_max<SLICE_THREADS>(top);
    i32 slice_best = -block_max<SLICE_THREADS>(top == slice_top ? -top_id : -0x7fffffff);
    if (thread_x() == 0) {
        highest[row * slices + block_x()] = slice_top;
        best[row * slices + block_x()] = slice_best;
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
// Whether a row is drawn from all of its tokens, or all that are likely enough: no other has to be found first.
RF_DEVICE bool drawn_from_all(const Parameters& p, u32 vocabulary) {
    return p.temperature > 0 && !chained(p) && p.top_p >= 1 && (p.top_k <= 0 || u32(p.top_k) >= vocabulary);
}
RF_DEVICE u32 widest_gap(const Parameters& p) {
    return p.min_p > 0 ? float_bits(maximum(-fast_log(p.min_p), 0.0f)) : ALL;
}
// The sum of weights at which the token is drawn, of `total`.
RF_DEVICE u64 drawn_at(const Parameters& p, u64 total) {
    u64 random = random24(p.seed, p.step);
    return (total >> 24) * random + ((total & 0xffffff) * random >> 24) + 1;
}
// The highest of a row's slices.
template <u32 THREADS>
RF_DEVICE float top_of(const float* highest, u32 row, u32 slices) {
    float top = -infinity();
    for (u32 i = thread_x(); i < slices; i += THREADS) top = maximum(top, highest[row * slices + i]);
    return block_max<THREADS>(top);
}
RF_DEVICE Row row_of(const Parameters& p, const float* logits, const float* edited, u32 row, u32 vocabulary, u32 slices,
                     float highest) {
    if (p.edited_row < 0) return {logits + u64(row) * vocabulary, vocabulary, p.temperature, highest};
    return {edited + u64(p.edited_row) * slices * SLICE, slices * SLICE, p.temperature, highest};
}

// sums (rows, slices): of the weights of each slice, of rows that are drawn from all of their tokens. Grid: (slices,
// rows).
RF_KERNEL(SLICE_THREADS)
rf_sample_sums(u64* sums, const float* logits, const float* edited, const float* highest, const u32* staged,
               u32 vocabulary, u32 slices) {
    RF_SHARED u64 parts[SLICE_THREADS / RF_WAVE];
    u32 row = block_y();
    const Parameters p = parameters_of(staged, row);
    wait_for_previous();
    if (!drawn_from_all(p, vocabulary)) return;
    float top = top_of<SLICE_THREADS>(highest, row, slices) / p.temperature;
    Row source = row_of(p, logits, edited, row, vocabulary, slices, top);
    u32 widest = widest_gap(p);
    u64 sum = 0;
    RF_UNROLL
    for (u32 j = 0; j < PER_THREAD; ++j) {
        u32 id = block_x() * SLICE + j * SLICE_THREADS + thread_x();
        if (id >= source.size) continue;
        u32 gap = float_bits(top - source.values[id] / p.temperature);
        if (gap <= widest) sum += weight_of(gap);
    }
    sum = wave_sum64(sum);
    if (lane() == 0) parts[wave()] = sum;
    barrier();
    if (thread_x() != 0) return;
    for (u32 i = 1; i < SLICE_THREADS / RF_WAVE; ++i) sum += parts[i];
    sums[row * slices + block_x()] = sum;
}

// The token at which the running sum of weights reaches the random limit: first its slice, then within that.
RF_DEVICE u32 draw_from_all(SelectShared& shared, const Row& source, const Parameters& p, const u64* sums, u32 slices) {
    u64 value = thread_x() < slices ? sums[thread_x()] : 0, total;
    u64 before = block_prefix(shared, value, total), limit = drawn_at(p, total);
    barrier();
    if (before < limit && limit <= before + value) shared.bin = thread_x(), shared.below = before;
    barrier();
    u32 low = shared.bin * SLICE, widest = widest_gap(p);
    u64 base = shared.below;
    barrier();
    auto weight = [=](u32, u32 gap) -> u64 { return gap <= widest ? weight_of(gap) : 0; };
    return find<ById>(shared, source, weight, [=](u64) { return limit; }, low, SLICE, base).key;
}

template <class Source>
RF_DEVICE u32 draw(SelectShared& shared, const Source& source, const Parameters& p, u32 vocabulary, u64 total) {
    Cut cut = {ALL, ALL};
    if (p.top_k > 0 && u32(p.top_k) < vocabulary) {
        u64 limit = p.top_k;
        cut = cut_at(shared, source, [](u32, u32) -> u64 { return 1; }, [=](u64) { return limit; });
    }
    auto weight = [&](u32 id, u32 gap) -> u64 { return cut.keeps(id, gap) ? weight_of(gap) : 0; };
    if (p.top_p < 1) {
        bool all = cut.gap == ALL;
        Cut nucleus = cut_at(shared, source, weight, [&](u64 kept) {
            double mass = p.top_p * double(all ? total : kept);
            u64 limit = u64(mass);
            return limit + (double(limit) < mass || limit == 0);
        });
        cut = {nucleus.gap, nucleus.gap == cut.gap && cut.id < nucleus.id ? cut.id : nucleus.id};
    }
    if (widest_gap(p) < cut.gap) cut = {widest_gap(p), ALL};
    return find<ById>(shared, source, weight, [&](u64 kept) { return drawn_at(p, kept); }).key;
}

// The drawn token, or the most likely one where the temperature is zero, goes to last_tokens[slot] and
// host_tokens[row], memory of the host; its count goes up. Where there is none, for the highest logit is not finite or
// the mask allows nothing, the host gets NOT_FINITE or NOTHING_ALLOWED, and last_tokens any token. A block a row.
RF_KERNEL(ROW_THREADS)
rf_sample_rows(i32* last_tokens, i32* host_tokens, i32* counts, const float* logits, const float* edited,
               const float* highest, const i32* best, const u64* sums, const u32* staged, u32 vocabulary, u32 slices) {
    RF_SHARED SelectShared shared;
    u32 row = block_x();
    const Parameters p = parameters_of(staged, row);
    wait_for_previous();
    float top = top_of<ROW_THREADS>(highest, row, slices);
    float scaled = p.temperature > 0 ? top / p.temperature : top;
    bool finite = absolute(scaled) < infinity();
    if (finite && chained(p)) return;
    i32 token = 0x7fffffff;
    if (drawn_from_all(p, vocabulary) && finite) {
        Row source = row_of(p, logits, edited, row, vocabulary, slices, scaled);
        token = draw_from_all(shared, source, p, sums + row * slices, slices);
    } else if (p.temperature > 0 && finite) {
        Row source = row_of(p, logits, edited, row, vocabulary, slices, scaled);
        bool listed;
        u64 total = list_likely(shared, source, listed);
        // does the list reach as far as the cuts may?
        if (listed && p.top_k > 0) {
            listed = u32(p.top_k) <= shared.listed;
        } else if (listed) {
            u64 sum = 0, mass;
            for (u32 i = thread_x(); i < shared.listed; i += ROW_THREADS) sum += weight_of(shared.gaps[i]);
            block_prefix(shared, sum, mass);
            listed = double(mass) >= p.top_p * double(total);
        }
        token = listed ? draw(shared, List{shared}, p, vocabulary, total) : draw(shared, source, p, vocabulary, total);
    } else {
        for (u32 i = thread_x(); i < slices; i += ROW_THREADS)
            if (highest[row * slices + i] == top) token = minimum(token, best[row * slices + i]);
        token = -block_max<ROW_THREADS>(-token);
    }
    if (thread_x() != 0) return;
    token = maximum(minimum(token, i32(vocabulary) - 1), 0);  // an embedding has a row for it
    last_tokens[p.slot] = token;
    host_tokens[row] = finite ? token : p.mask_start >= 0 && top < 0 ? NOTHING_ALLOWED : NOT_FINITE;
    if (p.counts_row >= 0) counts[u64(p.counts_row) * vocabulary + token] += 2;
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

// A row with distances in place of gaps.
struct Distances {
    static constexpr u32 AT_ONCE = Row::AT_ONCE;
    const Row& row;
    const Kept& kept;

    template <class F>
    RF_MEMBER void each(u32 begin, u32 end, F f) const {
        row.each(begin, end, [&](u32 count, u32 id, const u32* gaps) {
            u32 distances[AT_ONCE];
            RF_UNROLL
            for (u32 j = 0; j < AT_ONCE; ++j) distances[j] = kept.distance(gaps[j]);
            f(count, id, distances);
        });
    }
};

// Calls f(id, gap) for each element of a row.
template <class F>
RF_DEVICE void for_each(const Row& row, F f) {
    row.each(0, row.size, [&](u32 count, u32 id, const u32* gaps) {
        RF_UNROLL
        for (u32 j = 0; j < Row::AT_ONCE; ++j)
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
RF_DEVICE void keep_typical(SelectShared& shared, const Row& row, Kept& kept, float share) {
    float weights = 0, moments = 0;
    for_each(row, [&](u32 id, u32 gap) {
        float weight = float(kept.weight(id, gap)) * 9.094947e-13f;  // 2^-40
        if (weight > 0) weights += weight, moments += weight * bits_float(gap);
    });
    weights = block_sum<ROW_THREADS>(weights);
    kept.center = block_sum<ROW_THREADS>(moments) / weights;
    auto weight = [&](u32 id, u32) {
        return kept.weight(id, float_bits(row.highest - row.values[id] / row.temperature));
    };
    auto limit_of = [=](u64 total) {
        u64 limit = u64(double(total) * double(share));
        return limit < total ? limit + 1 : total;
    };
    kept.width = find<ByGap>(shared, Distances{row, kept}, weight, limit_of).key;
}

// Leaves out the elements with `threshold` of the weight or more, but the least likely of them.
RF_DEVICE void exclude_top(SelectShared& shared, const Row& row, Kept& kept, float threshold) {
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

// The token that is drawn from what all truncations keep, each of what the one before has kept.
RF_DEVICE u32 draw_chained(SelectShared& shared, const Row& row, const Parameters& p) {
    Kept kept = {{0x7f7fffff, ALL}, 0, ALL, 0, 0};
    if (p.top_n_sigma > 0) kept.cut.gap = float_bits(p.top_n_sigma * deviation(row));
    if (p.top_k > 0) {
        u64 limit = p.top_k;
        u32 widest = kept.cut.gap;
        Cut most = cut_at(
            shared, row, [=](u32, u32 gap) -> u64 { return gap <= widest; },
            [=](u64 all) { return all < limit ? all : limit; });
        kept.cut = most;
    }
    if (p.typical_p < 1) keep_typical(shared, row, kept, p.typical_p);
    auto weight = [&](u32 id, u32 gap) { return kept.weight(id, gap); };
    if (p.top_p < 1) {
        Cut nucleus = cut_at(shared, row, weight, [&](u64 all) {
            double mass = p.top_p * double(all);
            u64 limit = u64(mass);
            return limit + (double(limit) < mass || limit == 0);
        });
        if (nucleus.gap < kept.cut.gap || (nucleus.gap == kept.cut.gap && nucleus.id < kept.cut.id)) kept.cut = nucleus;
    }
    if (p.min_p > 0) {
        i32 first = 0x7f7fffff;
        for_each(row, [&](u32 id, u32 gap) {
            if (kept.has(id, gap)) first = minimum(first, i32(gap));
        });
        first = -block_max<ROW_THREADS>(-first);
        u32 widest = float_bits(bits_float(first) + bits_float(widest_gap(p)));
        if (widest < kept.cut.gap) kept.cut = {widest, ALL};
    }
    bool excludes = float(random24(p.seed ^ 0x58544358544358ull, p.step)) < p.xtc_probability * 16777216.0f;
    if (excludes) exclude_top(shared, row, kept, p.xtc_threshold);
    return find<ById>(shared, row, weight, [&](u64 all) { return drawn_at(p, all); }).key;
}

// What rf_sample_rows does, for the rows with top_n_sigma, typical_p or XTC, which it passes over. A block a row.
RF_KERNEL(ROW_THREADS)
rf_sample_chains(i32* last_tokens, i32* host_tokens, i32* counts, const float* logits, const float* edited,
                 const float* highest, const u32* staged, u32 vocabulary, u32 slices) {
    RF_SHARED SelectShared shared;
    u32 row = block_x();
    const Parameters p = parameters_of(staged, row);
    wait_for_previous();
    if (!chained(p)) return;
    float top = top_of<ROW_THREADS>(highest, row, slices) / p.temperature;
    if (!(absolute(top) < infinity())) return;
    Row source = row_of(p, logits, edited, row, vocabulary, slices, top);
    i32 token = draw_chained(shared, source, p);
    if (thread_x() != 0) return;
    last_tokens[p.slot] = token;
    host_tokens[row] = token;
    if (p.counts_row >= 0) counts[u64(p.counts_row) * vocabulary + token] += 2;
}

// Log-probabilities of unchanged logits (.., vocabulary): of `tokens`, or of any for those below zero, in `chosen`, and
// of the `count` most likely ones, in descending order, in top_ids and top_values (rows, count). A block a row.
// places (2, rows): of each its row of the logits, and its place in `tokens`; without, both are those of the block.
RF_KERNEL(ROW_THREADS)
rf_token_logprobs(float* chosen, i32* top_ids, float* top_values, const float* logits, const i32* tokens,
                  const i32* places, u32 rows, u32 vocabulary, u32 count) {
    wait_for_previous();
    RF_SHARED SelectShared shared;
    u32 row = block_x();
    logits += u64(places ? places[row] : row) * vocabulary;
    i32 token = tokens[places ? places[rows + row] : row];
    float top = -infinity(), sum = 0;
    for (u32 i = thread_x(); i < vocabulary; i += ROW_THREADS) top = maximum(top, logits[i]);
    top = block_max<ROW_THREADS>(top);
    for (u32 i = thread_x(); i < vocabulary; i += ROW_THREADS) sum += fast_exp(logits[i] - top);
    float log_sum = fast_log(block_sum<ROW_THREADS>(sum));
    if (thread_x() == 0) chosen[row] = logits[maximum(token, 0)] - top - log_sum;
    if (count == 0) return;
    Row source = {logits, vocabulary, 1, top};
    u64 limit = count;
    bool listed;
    list_likely(shared, source, listed);
    listed = listed && shared.listed >= count;
    auto one = [](u32, u32) -> u64 { return 1; };
    auto limit_of = [=](u64) { return limit; };
    Cut cut = listed ? cut_at(shared, List{shared}, one, limit_of) : cut_at(shared, source, one, limit_of);
    barrier();
    if (thread_x() == 0) shared.listed = 0;
    barrier();
    source.each(0, vocabulary, [&](u32 size, u32 id, const u32* gaps) {
        RF_UNROLL
        for (u32 j = 0; j < Row::AT_ONCE; ++j) {
            if (j >= size || !cut.keeps(id + j, gaps[j])) continue;
            u32 i = atomic_add(&shared.listed, 1u);
            shared.ids[i] = id + j, shared.gaps[i] = gaps[j];
        }
    });
    barrier();
    if (thread_x() >= count) return;
    u32 id = shared.ids[thread_x()], gap = shared.gaps[thread_x()], rank = 0;
    for (u32 i = 0; i < count; ++i) rank += shared.ids[i] != id && Cut{gap, id}.keeps(shared.ids[i], shared.gaps[i]);
    top_ids[u64(row) * count + rank] = id;
    top_values[u64(row) * count + rank] = -bits_float(gap) - log_sum;
}

}  // namespace rocforge
