// Latent attention over the paged cache: the heads of a token by its sequence's rows, on each target's matrix unit.
//
// A row of the cache is a latent of RF_RANK elements and RF_HEAD_DIM - RF_RANK of a key that all heads share; the
// latent is what is summed, too. Compiled for these, RF_BLOCK_SIZE (tokens of a cache block) and the cache's type.
// Lengths are read on the device, so that a launch can be replayed while they grow. Source: DeepSeek-V2,
// https://arxiv.org/abs/2405.04434; split along the tokens as Dao et al., Flash-Decoding,
// https://crfm.stanford.edu/2023/10/12/flashdecoding.html.
#include "attention.h"
#include "cached_heads.h"
#include "formats/quants.h"
#include "sequences.h"
#include "target/fragments.h"

namespace rocforge {

// variants: RF_HEAD_DIM=576 RF_RANK=512 RF_BLOCK_SIZE=32
// variants: RF_HEAD_DIM=320 RF_RANK=256 RF_BLOCK_SIZE=32
// variants: RF_HEAD_DIM=576 RF_RANK=512 RF_BLOCK_SIZE=32 RF_KEY_TYPE=Q8_0 RF_VALUE_TYPE=Q8_0

constexpr u32 SHARED = RF_HEAD_DIM - RF_RANK, STORE_THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// ---- Storing ----

// Of the elements that all heads share, one, rotated: of x (SHARED,), by the angles of its token.
RF_DEVICE float rotated_element(const float* x, u32 i, const float* cos, const float* sin, bool neox) {
    if (!cos) return x[i];
    const u32 pairs = SHARED / 2;
    bool second = neox ? i >= pairs : i & 1;
    u32 pair = neox ? i % pairs : i / 2, partner = neox ? (second ? i - pairs : i + pairs) : i ^ 1;
    float other = x[partner] * sin[pair];
    return x[i] * cos[pair] + (second ? other : -other);
}

// Queries q, (heads, own + SHARED) a token, become own (tokens, heads, own) and rotated (tokens, heads, SHARED), times
// a factor of each token where there are some; latents (RF_RANK,) and shared keys (SHARED,) a token go to the cache,
// the latents normalized where there is a norm. Rows of tokens are strides apart. What has a negative slot is not
// stored. With `whole` (tokens, heads, own + SHARED) it gets the queries of sequences with several tokens, and own and
// rotated, which then have a row a sequence, those of the others.
struct LatentStoreParams {
    float *own, *rotated;
    RF_NULLABLE float* whole;
    void* keys;
    const float *q, *latents, *shared_keys;
    u64 q_stride, latent_stride, key_stride;
    const i32* slots;
    RF_NULLABLE const i32* query_starts;  // of `whole`
    RF_NULLABLE const float *cos, *sin;   // null where nothing is rotated
    RF_NULLABLE const float *norm, *factors;
    float eps;
    u32 tokens, heads, own_dim, sequences;
    i32 neox;
};

// A wave a head of a token, and one for its row of the cache.
RF_KERNEL(STORE_THREADS)
rf_latent_store(LatentStoreParams p) {
    u32 index = block_x() * (STORE_THREADS / RF_WAVE) + wave(), token = index / (p.heads + 1);
    u32 head = index % (p.heads + 1);
    i32 slot = token < p.tokens ? p.slots[token] : -1;
    float weights[PER_LANE];  // of the row's norm
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 element = lane() + i * RF_WAVE;
        weights[i] = p.norm && head == p.heads && element < RF_RANK ? p.norm[element] : 1.0f;
    }
    wait_for_previous();
    if (token >= p.tokens) return;
    const float *cos = p.cos ? p.cos + token * (SHARED / 2) : nullptr, *sin = p.sin + token * (SHARED / 2);
    if (head < p.heads) {
        u32 whole_dim = p.own_dim + SHARED, row = token;
        const float* q = p.q + token * p.q_stride + u64(head) * whole_dim;
        bool several = false;
        if (p.whole) {
            row = sequence_of(p.query_starts, p.sequences, token);
            several = p.query_starts[row + 1] > p.query_starts[row] + 1;
            if (several) row = token;
        }
        u64 at = u64(row) * p.heads + head;
        float* own = several ? p.whole + at * whole_dim : p.own + at * p.own_dim;
        float* rotated = several ? own + p.own_dim : p.rotated + at * SHARED;
        float factor = p.factors ? p.factors[token] : 1.0f;
        const u32 AHEAD = 256 / RF_WAVE, TURNED = (SHARED + RF_WAVE - 1) / RF_WAVE;
        float some[AHEAD], turned[TURNED];  // all loads come first
        for (u32 base = 0; base < p.own_dim; base += AHEAD * RF_WAVE) {
            RF_UNROLL
            for (u32 j = 0; j < AHEAD; ++j) some[j] = q[minimum(i32(base + j * RF_WAVE + lane()), i32(p.own_dim - 1))];
            if (base == 0) {
                RF_UNROLL
                for (u32 j = 0; j < TURNED; ++j) {
                    u32 i = minimum(i32(j * RF_WAVE + lane()), i32(SHARED - 1));
                    turned[j] = factor * rotated_element(q + p.own_dim, i, cos, sin, p.neox);
                }
            }
            RF_UNROLL
            for (u32 j = 0; j < AHEAD; ++j) {
                u32 i = base + j * RF_WAVE + lane();
                if (i < p.own_dim) own[i] = factor * some[j];
            }
        }
        RF_UNROLL
        for (u32 j = 0; j < TURNED; ++j) {
            u32 i = j * RF_WAVE + lane();
            if (i < SHARED) rotated[i] = turned[j];
        }
        return;
    }
    if (slot < 0) return;
    const float *latent = p.latents + token * p.latent_stride, *key = p.shared_keys + token * p.key_stride;
    Head row;
    float squares = 0;
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 element = lane() + i * RF_WAVE;
        row.x[i] = element < RF_RANK ? latent[element] : 0.0f;
        squares += row.x[i] * row.x[i];
    }
    float factor = p.norm ? fast_rsqrt(wave_sum(squares) / RF_RANK + p.eps) : 1.0f;
    RF_UNROLL
    for (u32 i = 0; i < PER_LANE; ++i) {
        u32 element = lane() + i * RF_WAVE;
        if (element < RF_RANK)
            row.x[i] *= factor * weights[i];
        else if (element < RF_HEAD_DIM)
            row.x[i] = rotated_element(key, element - RF_RANK, cos, sin, p.neox);
    }
    store_cached(Keys(), HeadBlock<Keys>(p.keys, slot / RF_BLOCK_SIZE, 1, 0).row(slot % RF_BLOCK_SIZE), row);
}

// ---- Attention ----

// A block has 16 heads of a token, and takes 16 rows of the cache at a time. Its waves share out the elements of the
// rows in the first product, whose parts they add up in LDS, and the latents' elements in the second.
constexpr u32 WAVES = 8, THREADS = WAVES * RF_WAVE, HEADS = 16, KEYS = 16;
constexpr u32 DEPTH = RF_HEAD_DIM / 16, TILES = RF_RANK / 16, OWN_TILES = (TILES + WAVES - 1) / WAVES;
constexpr u32 OWN_DEPTH = (DEPTH + WAVES - 1) / WAVES;
constexpr u32 CHUNKS = RF_HEAD_DIM / 8, LOADS = (KEYS / 2 * CHUNKS + THREADS - 1) / THREADS;
constexpr u32 STRIDE = RF_HEAD_DIM + 8, WEIGHT_STRIDE = KEYS + 8;  // rows of a fragment lie in different banks
constexpr u32 MOST_SPLITS = RF_TUNE_MOST_SPLITS;
constexpr u32 SIZE = HEADS * RF_RANK, RECORD = SIZE + 2 * HEADS;  // of what a split leaves

static_assert(DEPTH * 16 == RF_HEAD_DIM && TILES * 16 == RF_RANK && RF_HEAD_DIM <= 576, "");
static_assert(RF_BLOCK_SIZE % KEYS == 0, "a step's rows lie in one block of the cache");
static_assert(HEADS * KEYS <= THREADS, "a score for each thread");

struct Shared {
    alignas(16) f16 queries[HEADS][STRIDE];
    alignas(16) f16 keys[KEYS][STRIDE];
#ifndef RF_FRAGMENTS_NVIDIA
    alignas(16) f16 latents[RF_RANK][KEYS];  // turned: the depth of the second product runs along rows
#endif
    alignas(16) f16 weights[HEADS][WEIGHT_STRIDE];
    float rescale[HEADS], highest[HEADS], sum[HEADS];
    float parts[WAVES * KEYS][HEADS];  // of scores, by wave and row
};

// From absorbed (tokens, heads, RF_RANK) and rotated (tokens, heads, SHARED) to out (tokens, heads, RF_RANK). A split
// takes an equal share of the rows; several leave what they have in `partials` (tokens, tiles of heads, splits,
// RECORD), of which rf_latent_combine makes the sum.
struct LatentAttentionParams {
    float* out;
    const float *absorbed, *rotated;
    const void* keys;
    const i32 *tables, *lengths, *query_starts;
    RF_NULLABLE float* partials;
    u32 table_stride, sequences, heads;
    i32 splits;
    float scale;
};

// A token's sequence: its table, how many of its rows the token sees, none where it fills up a step, and how many of
// these are of steps before.
struct Seen {
    const i32* table;
    i32 rows, before;
};
RF_DEVICE Seen seen_by(const LatentAttentionParams& p, i32 token) {
    u32 sequence = sequence_of(p.query_starts, p.sequences, token);
    i32 begin = p.query_starts[sequence], end = p.query_starts[sequence + 1], length = p.lengths[sequence];
    return {p.tables + u64(sequence) * p.table_stride, maximum(length - (end - token - 1), 0), length - (end - begin)};
}

// Rows of a split, and how many splits have some: one at least.
struct Cut {
    u32 share, active;
};
RF_DEVICE Cut cut_of(i32 rows, i32 splits) {
    const u32 LEAST = 2 * KEYS;
    u32 share = at_least((rows + splits - 1) / splits, 1);
    share = (share + LEAST - 1) / LEAST * LEAST;
    return {share, at_least((rows + share - 1) / share, 1)};
}
RF_DEVICE float* records_of(const LatentAttentionParams& p, u32 token, u32 tile) {
    return p.partials + (u64(token) * ((p.heads + HEADS - 1) / HEADS) + tile) * p.splits * RECORD;
}

// The queries of the block's heads, four elements a thread at a time; all loads come first.
RF_DEVICE void store_queries(Shared& shared, const LatentAttentionParams& p, u32 token) {
    const u32 FOURS_OF_A_HEAD = RF_HEAD_DIM / 4, ROUNDS = (HEADS * FOURS_OF_A_HEAD + THREADS - 1) / THREADS;
    float scale = p.scale * LOG2E;
    f32x4 fours[ROUNDS];
    RF_UNROLL
    for (u32 j = 0; j < ROUNDS; ++j) {
        u32 i = j * THREADS + thread_x(), head = block_y() * HEADS + i / FOURS_OF_A_HEAD;
        u32 element = i % FOURS_OF_A_HEAD * 4;
        u64 at = u64(token) * p.heads + minimum(i32(head), i32(p.heads - 1));
        fours[j] = load<f32x4>(element < RF_RANK ? p.absorbed + at * RF_RANK + element
                                                 : p.rotated + at * SHARED + element - RF_RANK);
        if (head >= p.heads) fours[j] = make_f32x4(0, 0, 0, 0);
    }
    RF_UNROLL
    for (u32 j = 0; j < ROUNDS; ++j) {
        u32 i = j * THREADS + thread_x();
        f32x4 v = make_f32x4(fours[j].x * scale, fours[j].y * scale, fours[j].z * scale, fours[j].w * scale);
        if (i < HEADS * FOURS_OF_A_HEAD) store_fp16(&shared.queries[i / FOURS_OF_A_HEAD][i % FOURS_OF_A_HEAD * 4], v);
    }
}

// Rows on their way from the cache to LDS: of two rows a piece each. Past the last row that is repeated.
struct Step {
    Keys::Piece<8> pieces[LOADS][2];

    static RF_MEMBER u32 row(u32 i) { return (thread_x() + i * THREADS) % (KEYS / 2) * 2; }
    static RF_MEMBER u32 chunk(u32 i) { return (thread_x() + i * THREADS) / (KEYS / 2); }

    RF_MEMBER void load_rows(const void* cache, const i32* table, u32 start, u32 end) {
        auto block = block_of<Keys>(cache, table, start, 1, 0);
        u32 first = start % RF_BLOCK_SIZE, last = first + minimum(i32(end - start), i32(KEYS)) - 1;
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            u32 element = minimum(i32(chunk(i)), i32(CHUNKS - 1)) * 8;
            RF_UNROLL
            for (u32 j = 0; j < 2; ++j)
                pieces[i][j].load_from(block.row(minimum(i32(first + row(i) + j), i32(last))), element);
        }
    }
    RF_MEMBER void store_rows(Shared& shared) const {
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            if (chunk(i) >= CHUNKS) continue;
            u32x4 even = pieces[i][0].fp16(), odd = pieces[i][1].fp16();
            *reinterpret_cast<u32x4*>(&shared.keys[row(i)][chunk(i) * 8]) = even;
            *reinterpret_cast<u32x4*>(&shared.keys[row(i) + 1][chunk(i) * 8]) = odd;
#ifndef RF_FRAGMENTS_NVIDIA
            if (chunk(i) >= RF_RANK / 8) continue;
            const u32 a[4] = {even.x, even.y, even.z, even.w}, b[4] = {odd.x, odd.y, odd.z, odd.w};
            RF_UNROLL
            for (u32 j = 0; j < 4; ++j) {
                f16(*to)[KEYS] = &shared.latents[chunk(i) * 8 + 2 * j];
                *reinterpret_cast<u32*>(&to[0][row(i)]) = (a[j] & 0xffff) | b[j] << 16;
                *reinterpret_cast<u32*>(&to[1][row(i)]) = a[j] >> 16 | (b[j] & 0xffff0000);
            }
#endif
        }
    }
};

RF_DEVICE void clear(Accumulator& c) {
    RF_UNROLL
    for (u32 i = 0; i < ELEMENTS; ++i) c.x[i] = 0;
}

// The wave's part of the queries: tiles of 16 elements, every WAVES-th.
struct Queries {
    Fragment tiles[OWN_DEPTH];

    RF_MEMBER void load_own(const Shared& shared) {
        RF_UNROLL
        for (u32 n = 0; n < OWN_DEPTH; ++n) {
            u32 k = minimum(i32(wave() + n * WAVES), i32(DEPTH - 1));
            tiles[n] = load_fragment(&shared.queries[0][k * 16], STRIDE);
        }
    }
};

// The wave's part of each score.
RF_DEVICE void store_scores(Shared& shared, const Queries& queries) {
    Accumulator scores;
    clear(scores);
    RF_UNROLL
    for (u32 n = 0; n < OWN_DEPTH; ++n) {
        u32 k = wave() + n * WAVES;
        if (k < DEPTH) multiply_add(scores, queries.tiles[n], load_fragment(&shared.keys[0][k * 16], STRIDE));
        fragments_in_order();
    }
    RF_UNROLL
    for (u32 i = 0; i < ELEMENTS; ++i)
        shared.parts[wave() * KEYS + fragment_column(i)][fragment_row(row_slot(i))] = scores.x[i];
}

// What a thread has of the softmax of a head, of which every 16th row is its own: the sum of the weights, and, as all
// threads of the head have it, the highest score (in units of log 2).
struct Softmax {
    float highest = LOWEST, sum = 0;

    static RF_MEMBER bool takes_part() { return thread_x() < HEADS * KEYS; }
    static RF_MEMBER u32 head() { return thread_x() / KEYS; }
    static RF_MEMBER u32 key() { return thread_x() % KEYS; }

    // Turns scores into weights of the rows that are `seen`. Whole waves take part.
    RF_MEMBER void update(Shared& shared, bool seen) {
        float score = 0;
        RF_UNROLL
        for (u32 w = 0; w < WAVES; ++w) score += shared.parts[w * KEYS + key()][head()];
        float before = highest;
        highest = maximum(before, reduce_lanes<KEYS>(seen ? score : LOWEST, Maximum()));
        float weight = seen ? fast_exp2(score - highest) : 0.0f, rescale = fast_exp2(before - highest);
        sum = sum * rescale + weight;
        shared.weights[head()][key()] = from_float<f16>(weight);
        if (key() == 0) shared.rescale[head()] = rescale;
    }
    RF_MEMBER void finish(Shared& shared) {
        float total = reduce_lanes<KEYS>(sum, Add());
        if (key() == 0) shared.highest[head()] = highest, shared.sum[head()] = total;
    }
};

// Adds the rows' latents times their weights to what the wave has: tiles of 16 elements, every WAVES-th.
RF_DEVICE void add_latents(Accumulator (&sums)[OWN_TILES], const Shared& shared) {
    float rescale[ROW_SLOTS];
    RF_UNROLL
    for (u32 slot = 0; slot < ROW_SLOTS; ++slot) rescale[slot] = shared.rescale[fragment_row(slot)];
    Fragment a = load_fragment(&shared.weights[0][0], WEIGHT_STRIDE);
    RF_UNROLL
    for (u32 n = 0; n < OWN_TILES; ++n) {
        u32 tile = wave() + n * WAVES;
        if (TILES % WAVES && tile >= TILES) break;
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i) sums[n].x[i] *= rescale[row_slot(i)];
#ifdef RF_FRAGMENTS_NVIDIA
        multiply_add(sums[n], a, load_fragment_turned(&shared.keys[0][tile * 16], STRIDE));
#else
        multiply_add(sums[n], a, load_fragment(&shared.latents[tile * 16][0], KEYS));
        fragments_in_order();
#endif
    }
}

// Calls f(head of the block, element, value) for what the wave has.
template <class Each>
RF_DEVICE void each_sum(const Accumulator (&sums)[OWN_TILES], Each f) {
    RF_UNROLL
    for (u32 n = 0; n < OWN_TILES; ++n) {
        u32 tile = wave() + n * WAVES;
        if (TILES % WAVES && tile >= TILES) break;
        RF_UNROLL
        for (u32 i = 0; i < ELEMENTS; ++i) f(fragment_row(row_slot(i)), tile * 16 + fragment_column(i), sums[n].x[i]);
    }
}

RF_DEVICE float reciprocal_or_zero(float x) { return x > 0 ? 1 / x : 0.0f; }

// Grid: (tokens, tiles of heads, splits).
RF_KERNEL(THREADS)
rf_latent_attention(LatentAttentionParams p) {
    RF_SHARED Shared shared;
    u32 token = block_x(), split = block_z();
    Seen seen = seen_by(p, token);
    Cut cut = cut_of(seen.rows, p.splits);
    u32 start = split * cut.share, end = minimum(i32(start + cut.share), seen.rows);
    bool early = split < cut.active && i32(start + KEYS) <= seen.before;
    Step step;
    if (early) step.load_rows(p.keys, seen.table, start, end);
    wait_for_previous();
    if (split >= cut.active) return;

    store_queries(shared, p, token);
    Accumulator sums[OWN_TILES];
    RF_UNROLL
    for (u32 n = 0; n < OWN_TILES; ++n) clear(sums[n]);
    barrier();
    Queries queries;
    queries.load_own(shared);
    Softmax softmax;
    if (!early && start < end) step.load_rows(p.keys, seen.table, start, end);
    for (; start < end; start += KEYS) {
        barrier();  // the rows before have been used
        step.store_rows(shared);
        barrier();
        if (start + KEYS < end) step.load_rows(p.keys, seen.table, start + KEYS, end);
        store_scores(shared, queries);
        barrier();
        if (Softmax::takes_part()) softmax.update(shared, start + Softmax::key() < end);
        barrier();
        add_latents(sums, shared);
    }
    if (Softmax::takes_part()) softmax.finish(shared);
    barrier();

    if (p.splits == 1) {
        u32 first = block_y() * HEADS;
        float* out = p.out + (u64(token) * p.heads + first) * RF_RANK;
        each_sum(sums, [&](u32 head, u32 element, float value) {
            if (first + head < p.heads) out[head * RF_RANK + element] = value * reciprocal_or_zero(shared.sum[head]);
        });
        return;
    }
    float* record = records_of(p, token, block_y()) + split * RECORD;
    each_sum(sums, [&](u32 head, u32 element, float value) { record[head * RF_RANK + element] = value; });
    if (thread_x() < HEADS) {
        record[SIZE + thread_x()] = shared.highest[thread_x()];
        record[SIZE + HEADS + thread_x()] = shared.sum[thread_x()];
    }
}

// A thread sums four elements of a head, of every GROUPS-th split, so many at a time. Grid: (tokens, heads).
constexpr u32 FOURS = RF_RANK / 4, GROUPS = THREADS / FOURS, AHEAD = 4;
RF_KERNEL(THREADS)
rf_latent_combine(LatentAttentionParams p) {
    RF_SHARED float factors[MOST_SPLITS];
    alignas(16) RF_SHARED float parts[GROUPS][RF_RANK];
    u32 token = block_x(), head = block_y() % HEADS, active = cut_of(seen_by(p, token).rows, p.splits).active;
    wait_for_previous();
    const float* records = records_of(p, token, block_y() / HEADS);
    u32 group = thread_x() / FOURS, element = thread_x() % FOURS * 4;
    f32x4 some[AHEAD];
    auto load_some = [&](u32 base) {
        RF_UNROLL
        for (u32 j = 0; j < AHEAD; ++j) {
            u32 s = minimum(i32(base + j * GROUPS), i32(active - 1));
            some[j] = load<f32x4>(records + s * RECORD + head * RF_RANK + element);
        }
    };
    load_some(group);  // the first are on their way while the factors are made
    float highest = LOWEST, sum = 0;
    for (u32 s = thread_x(); s < active; s += THREADS) highest = maximum(highest, records[s * RECORD + SIZE + head]);
    highest = block_max<THREADS>(highest);
    for (u32 s = thread_x(); s < active; s += THREADS) {
        const float* softmax = records + s * RECORD + SIZE + head;
        factors[s] = fast_exp2(softmax[0] - highest), sum += factors[s] * softmax[HEADS];
    }
    sum = block_sum<THREADS>(sum);
    f32x4 own = make_f32x4(0, 0, 0, 0);
    RF_NO_UNROLL
    for (u32 base = group; base < active && group < GROUPS; base += AHEAD * GROUPS) {
        if (base != group) load_some(base);
        RF_UNROLL
        for (u32 j = 0; j < AHEAD; ++j) {
            if (base + j * GROUPS >= active) continue;
            float factor = factors[base + j * GROUPS];
            own = make_f32x4(own.x + factor * some[j].x, own.y + factor * some[j].y, own.z + factor * some[j].z,
                             own.w + factor * some[j].w);
        }
    }
    if (group < GROUPS) *reinterpret_cast<f32x4*>(&parts[group][element]) = own;
    barrier();
    float scale = reciprocal_or_zero(sum), *out = p.out + (u64(token) * p.heads + block_y()) * RF_RANK;
    for (u32 i = thread_x(); i < RF_RANK; i += THREADS) {
        float total = 0;
        RF_UNROLL
        for (u32 g = 0; g < GROUPS; ++g) total += parts[g][i];
        out[i] = total * scale;
    }
}

}  // namespace rocforge
