// Attention of few queries over the paged cache: split-K decode.
//
// Compiled for RF_HEAD_DIM, RF_GROUP (heads / kv_heads), RF_BLOCK_SIZE (tokens of a cache block), the cache's types,
// RF_ALONE (whether there is one sequence, for which tuning may differ), RF_ALIBI where scores are biased by distance,
// RF_GATE and RF_GATE_STEP where results have gates (head_gates.h), RF_VALUE_DIM where values are shorter than keys,
// and, by the card's tuning, RF_WAVE_HEADS (heads that a wave serves), RF_STRIPES (waves that share out the tokens),
// RF_MATRIX (whether they multiply on the matrix unit), RF_PARTS (waves that share out the elements there) and
// RF_RESIDENT (threads a multiprocessor that registers are left for). Sequence lengths are read on the device, so that
// a launch can be replayed while they grow. Source: Dao et al., Flash-Decoding,
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

// Floats of a head in LDS. On the matrix unit lanes have the same elements of two heads or four, in other banks so.
constexpr u32 PLACE = RF_HEAD_DIM + (RF_MATRIX ? 4 : 0);
constexpr u32 MOST_PARTS = at_least(RF_TUNE_MOST_SPLITS, STRIPES);

static_assert(SLICE * SLICES == RF_GROUP, "a slice of heads for each wave");
static_assert(RF_HEAD_DIM % 8 == 0 && RF_HEAD_DIM <= 512, "RF_HEAD_DIM is a multiple of 8 up to 512");
static_assert(RF_VALUE_DIM % 8 == 0 && RF_VALUE_DIM <= RF_HEAD_DIM,
              "RF_VALUE_DIM is a multiple of 8 up to RF_HEAD_DIM");
static_assert(THREADS <= 1024, "");
static_assert(RF_TUNE_MOST_SPLITS < 128, "a byte of a counter");

// What the waves, and then the splits, have of the block's heads: softmax numerators times values, their sum, and the
// highest score (in units of log 2), by which both are scaled.
struct Shared {
    float highest[MOST_PARTS + 1][RF_GROUP], sum[STRIPES][RF_GROUP];
    union {
        alignas(16) float values[STRIPES][RF_GROUP][PLACE];
        f32x4 scores[2][WAVES][PARTS > 1 ? RF_WAVE : 1];  // of parts, by turns
        f32x4 sums[WAVES][RF_WAVE];                       // of records
    };
    float top[RF_GROUP], total[RF_GROUP];
    float buffer[RF_HEAD_DIM];
    alignas(16) u8 newest_key[Keys::ROW + 2 * Keys::SCALES];  // of the newest token, as in the cache
    alignas(16) u8 newest_value[Values::ROW + 2 * Values::SCALES];
    u32 place, sharers;  // of the blocks that share the sum of all splits
};

// From q (tokens, heads, RF_HEAD_DIM): `out` or `fp16` (tokens, heads, RF_VALUE_DIM), or activations for the product
// that follows, the others null; what heads give, times their gates. A sequence with other than one query, by
// query_starts (sequences + 1,), is left alone; one of length zero gives zeros. A split takes an equal share of the
// tokens, in whole blocks of the cache; no more than `unsplit` tokens are not split. The last splits of a head to
// finish, by `counters` (sequences * kv_heads, zero before and after), combine them all from `partials` (sequences,
// kv_heads, splits, RF_GROUP * (RF_VALUE_DIM + 4)).
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
        float* place = key ? shared.buffer : queries + row * PLACE;
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

// Asks for a row's bytes to be on their way.
RF_DEVICE void prefetch_row(CachedRow row, u32 nbytes) {
    const u32 LINE = 128;
    RF_UNROLL
    for (u32 at = 0; at < nbytes; at += LINE) prefetch(row.elements + at);
}

constexpr u32 SIZE = RF_GROUP * RF_VALUE_DIM, RECORD = RF_GROUP * (RF_VALUE_DIM + 4);
constexpr u32 ROUNDS = (SIZE / 4 + THREADS - 1) / THREADS;  // in which the block's threads take 4 elements each

RF_DEVICE f32x4 add_scaled(f32x4 sum, f32x4 v, float factor) {
    return make_f32x4(sum.x + factor * v.x, sum.y + factor * v.y, sum.z + factor * v.z, sum.w + factor * v.w);
}

// A result's highest score of a head, and its sum.
struct Scale {
    float highest, sum;
};

// Leaves in shared.highest the factors that bring together `parts` results of each head, up to MOST, and the head's
// highest score of all and the sum, from each(part, head). The whole block takes part, a wave a head.
template <u32 MOST, class Each>
RF_DEVICE void factors_of(Shared& shared, u32 parts, Each each) {
    const u32 OWN = (MOST + RF_WAVE - 1) / RF_WAVE;
    barrier();
    for (u32 head = wave(); head < RF_GROUP; head += WAVES) {
        Scale own[OWN];
        float highest = LOWEST, sum = 0;
        RF_UNROLL
        for (u32 i = 0; i < OWN; ++i) {
            u32 part = lane() + i * RF_WAVE;
            own[i] = {LOWEST, 0};
            if (part < parts) own[i] = each(part, head);
            highest = maximum(highest, own[i].highest);
        }
        highest = wave_max(highest);
        RF_UNROLL
        for (u32 i = 0; i < OWN; ++i) {
            u32 part = lane() + i * RF_WAVE;
            if (part >= parts) continue;
            float factor = fast_exp2(own[i].highest - highest);
            sum += factor * own[i].sum;
            shared.highest[part][head] = factor;
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

// A wave's elements of a record at a time. Where splits are more than DIRECT, blocks share the sum of their records, a
// chunk at a time each, whose records all waves of the block share out; else it is the last block's, and waves share
// out records where there are more waves than chunks. So an element's terms are added in the same order, however many
// blocks there are.
constexpr u32 CHUNK = 4 * RF_WAVE, CHUNKS = (SIZE + CHUNK - 1) / CHUNK;
constexpr u32 DIRECT = RF_TUNE_COMBINE_NBYTES / (4 * RECORD);
constexpr u32 TOGETHER = RF_TUNE_COMBINE_LOADS;  // records whose loads are on their way at a time

// The counter of a head's splits, in bytes: how many have begun; how many have ended; how many had ended when the last
// one began; and how many of the blocks that share the sum have seen all splits ended. A block waits for others only
// where all have begun: those are running, and wait for nothing before they end.
constexpr u32 BEGUN = 1, ENDED = 1 << 8, EARLY = 1 << 16, SEEN = 1 << 24;
RF_DEVICE u32 begun(u32 count) { return count & 255; }
RF_DEVICE u32 ended(u32 count) { return count >> 8 & 255; }
RF_DEVICE u32 early(u32 count) { return count >> 16 & 255; }
RF_DEVICE u32 seen_by(u32 count) { return count >> 24; }

// Counts a split as begun, if blocks are to wait for each other. What it is to add when it ends.
RF_DEVICE u32 begin_split(u32* counter, u32 active) {
    if (active <= DIRECT) return BEGUN + ENDED;
    u32 before = atomic_add(counter, BEGUN);
    return ENDED + (begun(before) == active - 1 ? ended(before) * EARLY : 0);
}

// Counts the block's split as ended. The blocks that end last, `most` at most, and after the last one has begun, wait
// for all and share the sum: each gets its place among them and how many there are, others zero. The whole block takes
// part.
RF_DEVICE void end_split(Shared& shared, u32* counter, u32 addend, u32 active, u32 most) {
    fence_for_blocks();
    barrier();
    if (thread_x() == 0) {
        u32 before = count_in(counter, addend), now = before + addend;
        u32 place = active - 1 - ended(before);
        bool stays = begun(now) == active && place < most;
        while (stays && ended(now) < active) now = counted(counter);
        shared.place = place;
        shared.sharers = stays ? minimum(i32(active - early(now)), i32(most)) : 0;
    }
    barrier();
    fence_for_blocks();
}

RF_DEVICE void load_records(f32x4 (&parts)[TOGETHER], const float* records, u32 count, u32 at, u32 first, u32 stride) {
    RF_UNROLL
    for (u32 t = 0; t < TOGETHER; ++t)
        parts[t] = load<f32x4>(records + minimum(i32(first + t * stride), i32(count - 1)) * RECORD + at);
}

// The block's share of the sum of `count` records, to the output.
RF_DEVICE void combine(Shared& shared, const Output& output, const float* records, u32 count, const float* sinks,
                       u32 first_head) {
    u32 place = shared.place, sharers = shared.sharers;
    u32 own = (CHUNKS - place + sharers - 1) / sharers;  // chunks of this block
    const u32 FEW = at_least(WAVES / CHUNKS, 1);
    u32 readers = count > DIRECT ? WAVES : FEW;
    used_from_here(readers);  // scalar registers are few
    u32 at_a_time = WAVES / readers;
    u32 reader = wave() % readers, turn = wave() / readers;
    f32x4 parts[TOGETHER];
    for (u32 c = 0; c < own; c += at_a_time) {
        bool has_chunk = turn < at_a_time && c + turn < own;
        u32 i = has_chunk ? (place + (c + turn) * sharers) * CHUNK + 4 * lane() : SIZE, at = i < SIZE ? i : 0;
        // the first records are on their way while the factors are made
        load_records(parts, records, count, at, reader, readers);
        f32x4 gates = output.load_gates(i);
        if (c == 0) {
            if (thread_x() < RF_GROUP) shared.highest[count][thread_x()] = 0;  // of what is read beyond the last
            factors_of<RF_TUNE_MOST_SPLITS>(shared, count, [&](u32 split, u32 head) -> Scale {
                const float* pair = records + split * RECORD + SIZE + 2 * head;
                return {pair[0], pair[1]};
            });
        }
        u32 head = at / RF_VALUE_DIM;
        f32x4 sum = make_f32x4(0, 0, 0, 0);
        for (u32 s = reader; s < count; s += TOGETHER * readers) {
            if (s != reader) load_records(parts, records, count, at, s, readers);
            RF_UNROLL
            for (u32 t = 0; t < TOGETHER; ++t) {
                u32 record = s + t * readers;
                sum = add_scaled(sum, parts[t], shared.highest[minimum(i32(record), i32(count))][head]);
            }
        }
        if (readers > 1) {
            if (c > 0) barrier();  // the sums before have been read
            shared.sums[wave()][lane()] = sum;
            barrier();
            sum = make_f32x4(0, 0, 0, 0);
            if (reader == 0 && has_chunk)
                for (u32 r = 0; r < readers; ++r) sum = add_scaled(sum, shared.sums[wave() + r][lane()], 1.0f);
        }
        if (reader > 0 || !has_chunk) continue;
        float factor = normalizer(shared, head, sinks, first_head);
        output.write(i, output.gated(add_scaled(make_f32x4(0, 0, 0, 0), sum, factor), gates));
    }
}

// A block's part: what the kernel does but for the wait at its end.
RF_DEVICE void decode(const DecodeParams& p) {
    RF_SHARED Shared shared;
    let_next_begin();
    if (!p.new_keys) wait_unless_beside();
    i32 kv_head = block_x(), sequence = block_y(), split = block_z();
    i32 query = p.query_starts[sequence], next = p.query_starts[sequence + 1], length = p.lengths[sequence];
    i32 first = first_seen(length - 1, p.window, p.chunked);
    i32 origin = first / RF_BLOCK_SIZE * RF_BLOCK_SIZE, range = length - origin;
    i32 share = ((range + p.splits - 1) / p.splits + RF_BLOCK_SIZE - 1) / RF_BLOCK_SIZE * RF_BLOCK_SIZE;
    if (length - first <= p.unsplit) share = p.unsplit + RF_BLOCK_SIZE;
    i32 active = (range + share - 1) / share, begin = origin + split * share, end = minimum(begin + share, length);
    bool wanted = next == query + 1 && split < active;
    const i32* table = p.tables + u64(sequence) * p.table_stride;
    Seen seen = {table, u32(first), u32(end), u32(p.kv_heads), u32(kv_head), u32(length - 1)};
    Tokens tokens;
    Rotation rotation;
    if (wanted) {
        i32 start = begin + i32(stripe_of_wave() * Tokens::STEP);
        if (start < end) tokens.find_step(seen, start);
        // what comes behind the first steps: few blocks leave the memory idle
        i32 later = begin + i32(STRIPES * Tokens::STEP + thread_x());
        bool prefetches = LOADS_BEFORE_WAIT && active <= 2 && thread_x() < RF_TUNE_DECODE_PREFETCH && later < end;
        u32 block = prefetches ? table[later / RF_BLOCK_SIZE] : 0;
        if (p.new_keys)
            rotation = load_rotation(p.cos + query * p.rotated_pairs, p.sin + query * p.rotated_pairs, p.rotated_pairs,
                                     p.neox);
        if (start < end) tokens.load_step(p, seen, start);
        if (prefetches) {
            prefetch_row(HeadBlock<Keys>(p.keys, block, p.kv_heads, kv_head).row(later % RF_BLOCK_SIZE), Keys::ROW);
            prefetch_row(HeadBlock<Values>(p.values, block, p.kv_heads, kv_head).row(later % RF_BLOCK_SIZE),
                         Values::ROW);
        }
    }
    wait_unless_beside();

    u32 columns = p.kv_heads * SIZE, cells = cells_of(columns);
    Quantized quantized = {p.activations, p.activation_width, cells};
    Output output = {p.out, p.fp16, quantized, u64(query), kv_head * SIZE, columns, p.gates};
    if (next == query + 1 && length == 0 && split == 0)
        for (u32 r = 0; r < ROUNDS; ++r) output.write(4 * (thread_x() + r * THREADS), make_f32x4(0, 0, 0, 0));
    if (!wanted) return;

    u64 pair = u64(sequence) * p.kv_heads + kv_head;
    u32* counter = reinterpret_cast<u32*>(p.counters) + pair;
    bool newest = p.new_keys && split == active - 1;
    const float* queries = prepare(shared, p, rotation, query, kv_head, newest);
    u32 addend = active > 1 && thread_x() == 0 ? begin_split(counter, active) : 0;
    tokens.accumulate(shared, p, queries, seen, begin, newest ? length - 1 : NO_TOKEN);
    f32x4 gates[GATES_AHEAD];
    if (active == 1) load_ahead(gates, output, 0);
    factors_of<STRIPES>(shared, STRIPES, [&](u32 stripe, u32 head) -> Scale {
        return {shared.highest[stripe][head], shared.sum[stripe][head]};
    });
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

    end_split(shared, counter, addend, active, u32(active) > DIRECT ? CHUNKS : 1);
    if (shared.sharers == 0) return;
    bool counts = thread_x() == 0 && shared.sharers > 1;
    u32 others = counts ? seen_by(atomic_add(counter, SEEN)) : 0;
    combine(shared, output, partials, active, p.sinks, kv_head * RF_GROUP);
    if (thread_x() == 0 && others == shared.sharers - 1) *counter = 0;
}

// Grid: (kv_heads, sequences, splits): first splits come first, which have tokens where others have none.
RF_KERNEL_BOUND(THREADS, at_least(THREADS, RF_RESIDENT))
rf_attention_decode(DecodeParams p) {
    decode(p);
    wait_beside();
}

}  // namespace rocforge
