// Attention of few queries over the paged cache: split-K decode.
//
// Compiled for RF_HEAD_DIM, RF_GROUP (heads / kv_heads), RF_BLOCK_SIZE (tokens of a cache block), the cache's types,
// RF_ALONE (whether there is one sequence, for which tuning may differ), RF_ALIBI where scores are biased by distance,
// RF_GATE and RF_GATE_STEP where results have gates (head_gates.h), RF_VALUE_DIM where values are shorter than keys,
// and, by the card's tuning, RF_WAVE_HEADS (heads that a wave serves), RF_STRIPES (waves that share out the tokens),
// RF_MATRIX (whether they multiply on the matrix unit) and RF_PARTS (waves that share out the elements there). Sequence
// lengths are read on the device, so that a launch can be replayed while they grow. Source: Dao et al., Flash-Decoding,
// https://crfm.stanford.edu/2023/10/12/flashdecoding.html.
#include "attention.h"
#include "cached_heads.h"
#include "head_gates.h"
#include "formats/quants.h"

namespace rocforge {

// variants: RF_HEAD_DIM=64 RF_GROUP=2 RF_BLOCK_SIZE=32 RF_ALONE=0
// variants: RF_HEAD_DIM=16,80,96 RF_GROUP=1 RF_BLOCK_SIZE=32 RF_ALONE=0
// variants: RF_HEAD_DIM=128 RF_GROUP=1,4,7,8,16 RF_BLOCK_SIZE=32 RF_ALONE=0
// variants: RF_HEAD_DIM=128 RF_GROUP=4 RF_BLOCK_SIZE=32 RF_ALONE=1
// variants: RF_HEAD_DIM=256 RF_GROUP=2,8 RF_BLOCK_SIZE=32 RF_ALONE=1
// variants: RF_HEAD_DIM=512 RF_GROUP=8 RF_BLOCK_SIZE=32 RF_ALONE=0
// variants: RF_HEAD_DIM=128,256 RF_GROUP=8 RF_BLOCK_SIZE=32 RF_ALONE=0 RF_GATE=sigmoid RF_GATE_STEP=1
// variants: RF_HEAD_DIM=128 RF_GROUP=4 RF_BLOCK_SIZE=32 RF_ALONE=0 RF_KEY_TYPE=Q8_0 RF_VALUE_TYPE=Q8_0
// variants: RF_HEAD_DIM=128 RF_GROUP=8 RF_BLOCK_SIZE=32 RF_ALONE=1 RF_KEY_TYPE=Q4_0 RF_VALUE_TYPE=Q4_0
// variants: RF_HEAD_DIM=64 RF_GROUP=4 RF_BLOCK_SIZE=32 RF_ALONE=0 RF_KEY_TYPE=FP8_E4M3 RF_VALUE_TYPE=FP8_E4M3
// variants: RF_HEAD_DIM=128 RF_GROUP=6 RF_BLOCK_SIZE=32 RF_ALONE=0 RF_GATE=softplus RF_GATE_STEP=0
// variants: RF_HEAD_DIM=128 RF_GROUP=1 RF_BLOCK_SIZE=32 RF_ALONE=0 RF_ALIBI=1
// variants: RF_HEAD_DIM=192 RF_GROUP=16 RF_BLOCK_SIZE=32 RF_ALONE=0 RF_VALUE_DIM=128

RF_COMPILE_TIME u32 power_of_two(u32 n) {
    u32 p = 1;
    while (p < n) p *= 2;
    return p;
}

// A wave serves SLICE of the RF_GROUP's heads, and has one of PARTS of their elements; other waves of the block serve
// the other parts, the other slices, or other tokens.
constexpr u32 SLICE = RF_WAVE_HEADS;
constexpr u32 SLICES = RF_GROUP / SLICE;
constexpr u32 PARTS = RF_PARTS;
constexpr u32 STRIPES = RF_STRIPES;
constexpr u32 WAVES = STRIPES * SLICES * PARTS;
constexpr u32 THREADS = WAVES * RF_WAVE;
RF_DEVICE u32 stripe_of_wave() { return wave() / (SLICES * PARTS); }
RF_DEVICE u32 slice_of_wave() { return wave() / PARTS % SLICES; }

constexpr u32 MOST_PARTS = at_least(RF_TUNE_MOST_SPLITS, STRIPES);

static_assert(SLICE * SLICES == RF_GROUP, "a slice of heads for each wave");
static_assert(RF_HEAD_DIM % 8 == 0 && RF_HEAD_DIM <= 512, "RF_HEAD_DIM is a multiple of 8 up to 512");
static_assert(RF_VALUE_DIM % 8 == 0 && RF_VALUE_DIM <= RF_HEAD_DIM,
              "RF_VALUE_DIM is a multiple of 8 up to RF_HEAD_DIM");
static_assert(THREADS <= 1024, "");
static_assert(RF_TUNE_MOST_SPLITS <= 64, "eight teams of eight, with four bits each of a counter");

// What the waves, and then the splits, have of the block's heads: softmax numerators times values, their sum, and the
// highest score (in units of log 2), by which both are scaled.
struct Shared {
    float highest[MOST_PARTS][RF_GROUP], sum[MOST_PARTS][RF_GROUP];
    union {
        alignas(16) float values[STRIPES][RF_GROUP][RF_HEAD_DIM];
        f32x4 scores[2][WAVES][PARTS > 1 ? RF_WAVE : 1];  // of parts, by turns
    };
    float top[RF_GROUP], total[RF_GROUP];
    float buffer[RF_HEAD_DIM];
    alignas(16) u8 newest_key[Keys::ROW + 2 * Keys::SCALES];  // of the newest token, as in the cache
    alignas(16) u8 newest_value[Values::ROW + 2 * Values::SCALES];
    u32 last;
};

// From q (tokens, heads, RF_HEAD_DIM): `out` or `fp16` (tokens, heads, RF_VALUE_DIM), or activations for the product
// that follows, the others null; what heads give, times their gates. A sequence with other than one query, by
// query_starts (sequences + 1,), is left alone; one of length zero gives zeros. A split takes an equal share of the
// tokens, in whole blocks of the cache; no more than `unsplit` tokens are not split. The last split of a head to
// finish, by `counters` (sequences * kv_heads, zero before and after), combines them all from `partials` (sequences,
// kv_heads, splits, RF_GROUP * (RF_VALUE_DIM + 4)), or what teams of them have combined.
// With new_keys, rows of q, keys and values are strides apart and not yet normalized and rotated, and the keys and
// values of the queries' tokens are stored first, values normalized without a weight where they are `values_normed`;
// without, of what follows it only the strides of q count, and the queries are spread as the keys are.
struct DecodeParams {
    RF_NULLABLE float* out;
    RF_NULLABLE f16* fp16;
    RF_NULLABLE u8* activations;
    u32 activation_width;  // as in Quantized
    const float* q;
    void *keys, *values;
    const i32 *tables, *lengths, *query_starts;
    RF_NULLABLE const float *sinks, *slopes;
    float* partials;
    i32* counters;
    u32 table_stride;
    i32 splits, unsplit, kv_heads;
    HeadGates gates;
    float scale, softcap;
    i32 window, chunked;
    RF_NULLABLE const float *new_keys, *new_values;
    u64 q_stride, k_stride, v_stride;
    u32 q_head_stride;
    RF_NULLABLE const i32* slots;
    RF_NULLABLE const float *cos, *sin, *q_norm, *k_norm;
    float eps, v_eps;
    u32 rotated_pairs;
    i32 neox, values_normed;
};

// Stores a head of the newest token in the cache and in LDS.
template <class Type>
RF_DEVICE void store_newest(u8* newest, void* cache, u32 slot, u32 kv_heads, u32 kv_head, const Head& head) {
    store_cached(Type(), HeadBlock<Type>(cache, slot / RF_BLOCK_SIZE, kv_heads, kv_head).row(slot % RF_BLOCK_SIZE),
                 head);
    store_cached(Type(), CachedRow{newest, newest + Type::ROW}, head);
}

// A row of what prepare() takes: a query, and behind those the key and the value of its token.
RF_DEVICE Head load_row(const DecodeParams& p, u32 query, u32 kv_head, u32 row) {
    if (row == RF_GROUP + 1) return load_head<RF_VALUE_DIM>(p.new_values + query * p.v_stride + kv_head * RF_VALUE_DIM);
    return load_head(row == RF_GROUP ? p.new_keys + query * p.k_stride + kv_head * RF_HEAD_DIM
                                     : p.q + query * p.q_stride + (kv_head * RF_GROUP + row) * p.q_head_stride);
}

// The block's queries, normalized, rotated and spread, in LDS that is later used for results. The split with the newest
// token puts its key and value into the cache and into LDS. The whole block takes part.
RF_DEVICE const float* prepare(Shared& shared, const DecodeParams& p, const Rotation& rotation, u32 query, u32 kv_head,
                               bool newest) {
    float* queries = &shared.values[0][0][0];
    u32 slot = newest ? p.slots[query] : 0, rows = newest ? RF_GROUP + 2 : RF_GROUP;
    Head next;
    if (wave() < rows) next = load_row(p, query, kv_head, wave());
    for (u32 row = wave(); row < rows; row += WAVES) {
        Head head = next;
        if (row + WAVES < rows) next = load_row(p, query, kv_head, row + WAVES);
        if (row == RF_GROUP + 1) {
            if (p.values_normed) rms_norm_head<RF_VALUE_DIM>(head, nullptr, p.v_eps);
            store_newest<Values>(shared.newest_value, p.values, slot, p.kv_heads, kv_head, head);
            continue;
        }
        bool key = row == RF_GROUP;
        const float* norm = key ? p.k_norm : p.q_norm;
        float* place = key ? shared.buffer : queries + row * RF_HEAD_DIM;
        if (norm) rms_norm_head(head, norm, p.eps);
        if (p.new_keys) rotate_head(head, place, rotation), spread(head);
        if (key) {
            store_newest<Keys>(shared.newest_key, p.keys, slot, p.kv_heads, kv_head, head);
        } else {
            wave_barrier();  // lanes have read of `place` what they rotate
            store_head(place, head);
        }
    }
    barrier();
    return queries;
}

// Whose tokens a wave reads: of a sequence those from `first` on, up to `end`; and the query's position.
struct Seen {
    const i32* table;
    u32 first, end, kv_heads, kv_head, position;

    // In its block, the token or the nearest that is seen.
    RF_MEMBER u32 nearest(u32 token) const {
        return u32(minimum(maximum(i32(token), i32(first)), i32(end) - 1)) % RF_BLOCK_SIZE;
    }
};

const u32 NO_TOKEN = ~0u;

}  // namespace rocforge

#include "decode_lanes.h"
#if RF_MATRIX
#include "decode_matrix.h"
#endif

namespace rocforge {

// What a wave has of the tokens that it takes at a time.
#if RF_MATRIX
typedef MatrixTokens Tokens;
#else
typedef LaneTokens Tokens;
#endif
static_assert(RF_BLOCK_SIZE % Tokens::STEP == 0, "a wave's step lies in one block of the cache");

// Asks for the keys and values of tokens [begin, end), or the first MOST of them, to be on their way.
template <class Type>
RF_DEVICE void prefetch_rows(const void* cache, const i32* table, u32 begin, u32 end, u32 kv_heads, u32 kv_head) {
    const u32 MOST = RF_TUNE_DECODE_PREFETCH, LINE = 128, LINES = (Type::ROW + LINE - 1) / LINE;
    for (u32 i = thread_x(); i < minimum(i32(end - begin), i32(MOST)) * LINES; i += THREADS) {
        u32 token = begin + i / LINES;
        CachedRow row = block_of<Type>(cache, table, token, kv_heads, kv_head).row(token % RF_BLOCK_SIZE);
        prefetch(row.elements + i % LINES * LINE);
    }
}

constexpr u32 SIZE = RF_GROUP * RF_VALUE_DIM, RECORD = RF_GROUP * (RF_VALUE_DIM + 4);
// Splits whose records one block combines, and those of a team where there are more.
constexpr u32 DIRECT = RF_TUNE_COMBINE_NBYTES / (4 * RECORD), TEAM = 8;
constexpr u32 ROUNDS = (SIZE / 4 + THREADS - 1) / THREADS;  // in which the block's threads take 4 elements each

RF_DEVICE f32x4 add_scaled(f32x4 sum, f32x4 v, float factor) {
    return make_f32x4(sum.x + factor * v.x, sum.y + factor * v.y, sum.z + factor * v.z, sum.w + factor * v.w);
}

// Turns the highest scores of `parts` results of each head into the factors that bring them together, and leaves the
// head's highest score of all and the sum. The whole block takes part, a wave a head.
RF_DEVICE void factors_of(Shared& shared, u32 parts) {
    barrier();
    for (u32 head = wave(); head < RF_GROUP; head += WAVES) {
        float highest = LOWEST, sum = 0;
        for (u32 p = lane(); p < parts; p += RF_WAVE) highest = maximum(highest, shared.highest[p][head]);
        highest = wave_max(highest);
        for (u32 p = lane(); p < parts; p += RF_WAVE) {
            float factor = fast_exp2(shared.highest[p][head] - highest);
            sum += factor * shared.sum[p][head];
            shared.highest[p][head] = factor;
        }
        sum = wave_sum(sum);
        if (lane() == 0) shared.total[head] = sum, shared.top[head] = highest;
    }
    barrier();
}

// One over the softmax's denominator, with the head's sink among the scores where it has one.
RF_DEVICE float normalizer(const Shared& shared, u32 head, const float* sinks, u32 first_head) {
    float highest = shared.top[head], sink = sinks ? sinks[first_head + head] * LOG2E : LOWEST;
    float top = maximum(highest, sink), factor = fast_exp2(highest - top);
    return factor / (shared.total[head] * factor + fast_exp2(sink - top));
}

// Where a block's results go: rows of `columns` floats, or what the product that follows takes.
struct Output {
    float* floats;
    f16* fp16;
    Quantized quantized;
    u64 query;
    u32 first, columns;
    const HeadGates& gates;

    // The gates of elements i to i + 3, for `gated`.
    RF_MEMBER f32x4 load_gates(u32 i) const {
        if (!GATED || i >= SIZE) return make_f32x4(0, 0, 0, 0);
        const float* own = gates_of(gates, query, (first + i) / RF_VALUE_DIM);
        return RF_GATE_STEP ? load<f32x4>(own + i % RF_VALUE_DIM) : make_f32x4(*own, *own, *own, *own);
    }
    RF_MEMBER f32x4 gated(f32x4 v, f32x4 by) const {
        if constexpr (!GATED) return v;
        return make_f32x4(v.x * gate_unit(by.x), v.y * gate_unit(by.y), v.z * gate_unit(by.z), v.w * gate_unit(by.w));
    }
    // All lanes of the wave; i past the block's elements writes nothing.
    RF_MEMBER void write(u32 i, f32x4 v) const {
        if (floats && i < SIZE) *reinterpret_cast<f32x4*>(floats + query * columns + first + i) = v;
        if (fp16 && i < SIZE) store_fp16(fp16 + query * columns + first + i, v);
        if (quantized.data) quantized.store(query, i < SIZE ? first + i : quantized.cells * CELL, v);
    }
};

// Rounds of a block's threads whose gates are loaded together; without gates one.
constexpr u32 GATES_AHEAD = GATED ? at_most(ROUNDS, 4) : 1;
RF_DEVICE void load_ahead(f32x4 (&gates)[GATES_AHEAD], const Output& output, u32 round) {
    RF_UNROLL
    for (u32 g = 0; g < GATES_AHEAD; ++g) gates[g] = output.load_gates(4 * (thread_x() + (round + g) * THREADS));
}

// The sums and highest scores of a block's heads, in a record behind the values.
RF_DEVICE void store_sums(float* record, const Shared& shared) {
    if (thread_x() >= RF_GROUP) return;
    record[SIZE + 2 * thread_x()] = shared.top[thread_x()];
    record[SIZE + 2 * thread_x() + 1] = shared.total[thread_x()];
}

// `count` records, each `stride` floats behind the one before.
struct Records {
    const float* first;
    u32 stride, count;
};

// Groups of threads take every COMBINERS-th record.
constexpr u32 QUADS = SIZE / 4, COMBINERS = at_most(at_least(THREADS / QUADS, 1), STRIPES);
constexpr u32 TOGETHER = RF_TUNE_COMBINE_LOADS;  // records whose loads are on their way at a time

// What the last split does: the sum of records, to one of them, or to the output where `to` is null.
RF_DEVICE void combine(Shared& shared, const Output& output, float* to, const Records& records, const float* sinks,
                       u32 first_head) {
    for (u32 i = thread_x(); i < records.count * RF_GROUP; i += THREADS) {
        const float* pair = records.first + i / RF_GROUP * records.stride + SIZE + 2 * (i % RF_GROUP);
        shared.highest[i / RF_GROUP][i % RF_GROUP] = pair[0], shared.sum[i / RF_GROUP][i % RF_GROUP] = pair[1];
    }
    factors_of(shared, records.count);
    u32 combiner = COMBINERS > 1 ? thread_x() / QUADS : 0;
    for (u32 r = 0; r < ROUNDS; ++r) {
        u32 i = 4 * (COMBINERS > 1 ? thread_x() % QUADS : thread_x() + r * THREADS), at = i < SIZE ? i : 0;
        u32 head = at / RF_VALUE_DIM;
        f32x4 sum = make_f32x4(0, 0, 0, 0), gates = to ? sum : output.load_gates(at);
        // loads that depend on no branch are on their way together
        for (u32 s = combiner; s < (combiner < COMBINERS ? records.count : 0); s += TOGETHER * COMBINERS) {
            f32x4 parts[TOGETHER];
            RF_UNROLL
            for (u32 t = 0; t < TOGETHER; ++t) {
                u32 record = minimum(i32(s + t * COMBINERS), i32(records.count - 1));
                parts[t] = load<f32x4>(records.first + record * records.stride + at);
            }
            RF_UNROLL
            for (u32 t = 0; t < TOGETHER; ++t)
                sum = add_scaled(sum, parts[t],
                                 s + t * COMBINERS < records.count ? shared.highest[s + t * COMBINERS][head] : 0.0f);
        }
        if (COMBINERS > 1) {
            float* values = &shared.values[0][0][0];
            if (combiner < COMBINERS) *reinterpret_cast<f32x4*>(values + combiner * SIZE + i) = sum;
            barrier();
            sum = make_f32x4(0, 0, 0, 0);
            for (u32 c = 0; c < COMBINERS; ++c) sum = add_scaled(sum, load<f32x4>(values + c * SIZE + i), 1.0f);
            if (combiner > 0) i = SIZE;
        }
        if (to) {
            if (i < SIZE) *reinterpret_cast<f32x4*>(to + i) = sum;
        } else {
            float factor = normalizer(shared, head, sinks, first_head);
            output.write(i, output.gated(add_scaled(make_f32x4(0, 0, 0, 0), sum, factor), gates));
        }
    }
    if (to) store_sums(to, shared);
}

// Counts the block in a word, by adding `one`, and says whether the bits of `mask` now are `all`: then it is the last,
// and sees what the others wrote before they were counted. The whole block takes part.
RF_DEVICE bool is_last(Shared& shared, i32* counter, u32 one, u32 mask, u32 all) {
    device_fence();
    barrier();
    if (thread_x() == 0) shared.last = ((u32(atomic_add(counter, i32(one))) + one) & mask) == all;
    barrier();
    if (shared.last) device_fence();
    return shared.last;
}

// Grid: (kv_heads, sequences, splits): first splits come first, which have tokens where others have none.
RF_KERNEL_BOUND(THREADS, at_least(THREADS, Tokens::RESIDENT))
rf_attention_decode(DecodeParams p) {
    RF_SHARED Shared shared;
    let_next_begin();
    if (!p.new_keys) wait_for_previous();
    i32 kv_head = block_x(), sequence = block_y(), split = block_z();
    i32 query = p.query_starts[sequence], next = p.query_starts[sequence + 1], length = p.lengths[sequence];
    i32 first = first_seen(length - 1, p.window, p.chunked);
    i32 origin = first / RF_BLOCK_SIZE * RF_BLOCK_SIZE, range = length - origin;
    i32 share = ((range + p.splits - 1) / p.splits + RF_BLOCK_SIZE - 1) / RF_BLOCK_SIZE * RF_BLOCK_SIZE;
    if (range <= p.unsplit) share = p.unsplit;
    i32 active = (range + share - 1) / share, begin = origin + split * share, end = minimum(begin + share, length);
    bool wanted = next == query + 1 && split < active;
    const i32* table = p.tables + u64(sequence) * p.table_stride;
    Seen seen = {table, u32(first), u32(end), u32(p.kv_heads), u32(kv_head), u32(length - 1)};
    Tokens tokens;
    Rotation rotation;
    if (wanted) {
        i32 start = begin + i32(stripe_of_wave() * Tokens::STEP);
        if (start < end) tokens.load_step(p, seen, start);
        // few blocks leave the memory idle
        if (LOADS_BEFORE_WAIT && active <= 2) {
            prefetch_rows<Keys>(p.keys, table, begin, end, p.kv_heads, kv_head);
            prefetch_rows<Values>(p.values, table, begin, end, p.kv_heads, kv_head);
        }
        if (p.new_keys)
            rotation = load_rotation(p.cos + query * p.rotated_pairs, p.sin + query * p.rotated_pairs, p.rotated_pairs,
                                     p.neox);
    }
    wait_for_previous();

    u32 columns = p.kv_heads * SIZE, cells = cells_of(columns);
    Quantized quantized = {p.activations, p.activation_width, cells};
    Output output = {p.out, p.fp16, quantized, u64(query), kv_head * SIZE, columns, p.gates};
    if (next == query + 1 && length == 0 && split == 0)
        for (u32 r = 0; r < ROUNDS; ++r) output.write(4 * (thread_x() + r * THREADS), make_f32x4(0, 0, 0, 0));
    if (!wanted) return;

    bool newest = p.new_keys && split == active - 1;
    const float* queries = prepare(shared, p, rotation, query, kv_head, newest);
    tokens.accumulate(shared, p, queries, seen, begin, newest ? length - 1 : NO_TOKEN);
    f32x4 gates[GATES_AHEAD];
    if (active == 1) load_ahead(gates, output, 0);
    factors_of(shared, STRIPES);
    u64 pair = u64(sequence) * p.kv_heads + kv_head;
    float* partials = p.partials + pair * p.splits * RECORD;
    float* record = partials + split * RECORD;
    for (u32 r = 0; r < ROUNDS; r += GATES_AHEAD) {
        if (r && active == 1) load_ahead(gates, output, r);
        RF_UNROLL
        for (u32 g = 0; g < GATES_AHEAD; ++g) {
            u32 i = 4 * (thread_x() + (r + g) * THREADS), head = i < SIZE ? i / RF_VALUE_DIM : 0;
            f32x4 sum = make_f32x4(0, 0, 0, 0);
            RF_UNROLL
            for (u32 s = 0; s < STRIPES; ++s)
                sum = add_scaled(sum, load<f32x4>(&shared.values[s][head][i % RF_VALUE_DIM]), shared.highest[s][head]);
            if (active == 1) {
                float factor = normalizer(shared, head, p.sinks, kv_head * RF_GROUP);
                output.write(i, output.gated(add_scaled(make_f32x4(0, 0, 0, 0), sum, factor), gates[g]));
            } else if (i < SIZE) {
                *reinterpret_cast<f32x4*>(record + i) = sum;
            }
        }
    }
    if (active == 1) return;
    store_sums(record, shared);

    // Many large records would take a block long: teams of splits combine theirs first, in that of their first. Four
    // bits of the counter then count a team's splits, and the team itself.
    i32* counter = p.counters + pair;
    u32 teams = active <= DIRECT ? 1 : (active + TEAM - 1) / TEAM, team = teams > 1 ? split / TEAM : 0;
    u32 one = 1u << 4 * team, members = teams > 1 ? at_most(active - team * TEAM, TEAM) : active;
    float* own = partials + team * TEAM * RECORD;
    if (!is_last(shared, counter, one, teams > 1 ? 15 * one : ~0u, members * one)) return;
    Records records = {own, RECORD, members};
    RF_NO_UNROLL
    while (true) {  // twice where there are teams
        if (teams == 1 && thread_x() == 0) *counter = 0;
        combine(shared, output, teams > 1 ? own : nullptr, records, p.sinks, kv_head * RF_GROUP);
        if (teams == 1) return;
        u32 full = 1u << 4 * (teams - 1), rest = active - (teams - 1) * TEAM;
        if (!is_last(shared, counter, one, ~0u, (0x99999999 & (full - 1)) + (rest + 1) * full)) return;
        records = {partials, TEAM * RECORD, teams}, teams = 1;
    }
}

}  // namespace rocforge
