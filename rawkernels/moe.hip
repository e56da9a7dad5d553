// Mixture of experts: routing, grouping of tokens by expert, and the weighted sum of what the experts give.
#include "fours.h"
#include "routing.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;

// ids and weights (tokens, used) by logits (tokens, experts), as `choose_and_weigh` has it. A block a token.
struct RouteParams {
    i32* ids;
    float* weights;
    const float* logits;
    Routing routing;
};
RF_KERNEL(THREADS)
rf_route(RouteParams p) {
    wait_for_previous();
    RF_SHARED Choice choice;
    u32 used = p.routing.used;
    choose_and_weigh<THREADS>(choice, logits_of(p.logits, p.routing, block_x()), p.routing);
    if (thread_x() >= used) return;
    p.ids[u64(block_x()) * used + thread_x()] = choice.ids[thread_x()];
    p.weights[u64(block_x()) * used + thread_x()] = choice.weights[thread_x()];
}

const u32 ROUTER_THREADS = 128, ROUTER_WAVES = ROUTER_THREADS / RF_WAVE;
const u32 ROUTER_TOKENS = 2, ROUTER_CHUNK = 2048;

// The norm of x (tokens, n), x / sqrt(mean(x^2) + eps) * weight, as the products of experts take it, and the router's
// logits (tokens, experts) of it: norm(x) @ w.T + bias; w is float32 (experts, n), bias may be null. n is a multiple
// of 4. Without a weight, logits of x itself, and nothing else.
struct RouterParams {
    const float* x;
    RF_NULLABLE const float* weight;
    u32 tokens, n;
    float eps;
    const float* w;
    RF_NULLABLE const float* bias;
    i32 experts;
    float* logits;
    RF_NULLABLE u8* quantized;
    u32 width, cells;
};

// A thread's share of a chunk of a row that THREADS of them share out.
template <u32 THREADS>
struct RouterChunk {
    static constexpr u32 LOADS = ROUTER_CHUNK / (4 * THREADS);
    f32x4 v[LOADS];
    static RF_MEMBER u32 at(u32 i) { return 4 * (i * THREADS + thread_x() % THREADS); }
    RF_MEMBER void load(const float* row, u32 base, u32 n) {
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) v[i] = four_of(row, base + at(i), n);
    }
    // Ones, where there is no row.
    RF_MEMBER void load_if_any(const float* row, u32 base, u32 n) {
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) v[i] = row ? four_of(row, base + at(i), n) : make_f32x4(1, 1, 1, 1);
    }
    RF_MEMBER float product(const float* x) const {
        float sum = 0.0f;
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) sum += dot(v[i], rocforge::load<f32x4>(x + at(i)));
        return sum;
    }
};
typedef RouterChunk<RF_WAVE> RouterRow;           // of an expert's row, a wave's
typedef RouterChunk<ROUTER_THREADS> RouterFours;  // of x, or of the norm's weight, a block's

// A wave an expert, for ROUTER_TOKENS tokens; each block computes their norms for itself, of which it writes a part.
// Grid: (experts / ROUTER_WAVES, tokens / ROUTER_TOKENS).
RF_KERNEL(ROUTER_THREADS)
rf_router(RouterParams p) {
    RF_SHARED struct {
        alignas(16) float x[ROUTER_TOKENS][ROUTER_CHUNK];
    } shared;
    i32 expert = block_x() * ROUTER_WAVES + wave();
    u32 token = block_y() * ROUTER_TOKENS, count = minimum(i32(p.tokens - token), i32(ROUTER_TOKENS));
    const float *row = p.w + u64(minimum(expert, p.experts - 1)) * p.n, *x = p.x + u64(token) * p.n;
    // what this wave writes of the norm
    u32 own = 4 * (RF_WAVE * (block_x() * ROUTER_WAVES + wave()) + lane());
    u32 step = 4 * RF_WAVE * ((p.experts + ROUTER_WAVES - 1) / ROUTER_WAVES * ROUTER_WAVES);
    RouterRow chunk;
    RouterFours weight;
    if (LOADS_BEFORE_WAIT) chunk.load(row, 0, p.n), weight.load_if_any(p.weight, 0, p.n);
    wait_unless_beside();
    float sums[ROUTER_TOKENS] = {}, squares[ROUTER_TOKENS] = {};
    f32x4 part[ROUTER_TOKENS];
    for (u32 base = 0; base < p.n; base += ROUTER_CHUNK) {
        RouterFours own_x[ROUTER_TOKENS];
        RF_UNROLL
        for (u32 k = 0; k < ROUTER_TOKENS; ++k) {
            if (k >= count) break;
            own_x[k].load(x + u64(k) * p.n, base, p.n);
            if (base == 0) part[k] = four_of(x + u64(k) * p.n, own, p.n);
        }
        if (!LOADS_BEFORE_WAIT || base) chunk.load(row, base, p.n), weight.load_if_any(p.weight, base, p.n);
        if (base) barrier();  // what was there has been used
        RF_UNROLL
        for (u32 k = 0; k < ROUTER_TOKENS; ++k) {
            if (k >= count) break;
            RF_UNROLL
            for (u32 i = 0; i < RouterFours::LOADS; ++i) {
                f32x4 v = own_x[k].v[i];
                squares[k] += dot(v, v);
                *reinterpret_cast<f32x4*>(shared.x[k] + RouterFours::at(i)) = product(v, weight.v[i]);
            }
        }
        barrier();
        RF_UNROLL
        for (u32 k = 0; k < ROUTER_TOKENS; ++k) {
            if (k < count) sums[k] += chunk.product(shared.x[k]);
        }
    }
    Quantized out = {p.quantized, p.width, p.cells};
    RF_UNROLL
    for (u32 k = 0; k < ROUTER_TOKENS; ++k) {
        if (k >= count) break;
        float factor = 1.0f;
        if (p.weight) factor = fast_rsqrt(block_sum<ROUTER_THREADS>(squares[k]) / float(p.n) + p.eps);
        float logit = factor * wave_sum(sums[k]);
        if (lane() == 0 && expert < p.experts)
            p.logits[u64(token + k) * p.experts + expert] = logit + (p.bias ? p.bias[expert] : 0.0f);
        for (u32 at = own; p.weight && at - 4 * lane() < p.cells * CELL; at += step) {
            f32x4 v = at == own ? part[k] : four_of(x + u64(k) * p.n, at, p.n);
            out.store(token + k, at, product(times(v, factor), four_of(p.weight, at, p.n)));
        }
    }
    wait_beside();
}

// Calls f(i, ids[i]) for i from `begin` to `end`; several are loaded at a time.
template <class Each>
RF_DEVICE void each_id(const i32* ids, i32 begin, i32 end, Each f) {
    const u32 AHEAD = 16;
    RF_NO_UNROLL
    for (i32 i = begin; i < end; i += AHEAD) {
        i32 some[AHEAD];
        RF_UNROLL
        for (u32 j = 0; j < AHEAD; ++j) some[j] = ids[minimum(i + i32(j), end - 1)];
        RF_UNROLL
        for (u32 j = 0; j < AHEAD; ++j) {
            if (i + i32(j) < end) f(i + j, some[j]);
        }
    }
}

// Of up to `height` pairs each, which may be the largest number there is.
RF_DEVICE i32 tiles_of(i32 pairs, i32 height) { return pairs ? (pairs - 1) / height + 1 : 0; }

// Sorts pairs (token, choice), i = token * used + choice, by expert, keeping their order within each: order[k] is the
// k-th pair, rank its inverse, offsets (experts + 1,) where each expert begins: at multiples of `unit`, between which
// nothing is written. Each expert's pairs are cut in tiles of up to `height`, a multiple of `unit`, which are listed,
// those of expert 0 first: tiles[0] is their number, and from tiles[4] on there are four numbers for each, the expert,
// where in the order it begins, how many pairs it has, and 0. A block an expert.
RF_KERNEL(THREADS)
rf_group_by_expert(i32* order, i32* rank, i32* offsets, i32* tiles, const i32* ids, i32 size, i32 experts, i32 height,
                   i32 unit) {
    wait_for_previous();
    RF_SHARED i32 counts[MOST_EXPERTS], waves[THREADS / RF_WAVE];
    i32 expert = block_x(), own = 0;
    for (i32 e = thread_x(); e < experts; e += THREADS) counts[e] = 0;
    barrier();
    i32 share = (size + THREADS - 1) / THREADS, begin = minimum(i32(thread_x()) * share, size);
    i32 end = minimum(begin + share, size);  // a thread has a run of pairs
    each_id(ids, begin, end, [&](i32, i32 id) { atomic_add(&counts[id], 1), own += id == expert; });
    barrier();
    i32 before = 0, tiles_before = 0;
    for (i32 e = thread_x(); e < expert; e += THREADS)
        before += (counts[e] + unit - 1) / unit * unit, tiles_before += tiles_of(counts[e], height);
    before = block_sum<THREADS>(before), tiles_before = block_sum<THREADS>(tiles_before);
    i32 count = counts[expert], own_tiles = tiles_of(count, height);
    for (i32 t = thread_x(); t < own_tiles; t += THREADS) {
        i32* tile = tiles + 4 * (1 + tiles_before + t);
        tile[0] = expert, tile[1] = before + t * height, tile[2] = minimum(count - t * height, height), tile[3] = 0;
    }
    if (thread_x() == 0) offsets[expert] = before;
    if (thread_x() == 0 && expert == experts - 1)
        offsets[experts] = before + count, tiles[0] = tiles_before + own_tiles;
    // the expert's pairs of the threads before: of the wave's by a sum over lanes, of other waves' by LDS
    i32 until = own;
    RF_UNROLL
    for (u32 step = 1; step < RF_WAVE; step *= 2) {
        i32 other = shuffle(until, lane() - step);
        until += lane() >= step ? other : 0;
    }
    if (lane() == RF_WAVE - 1) waves[wave()] = until;
    barrier();
    i32 pair = before + until - own;
    for (u32 w = 0; w < wave(); ++w) pair += waves[w];
    each_id(ids, begin, end, [&](i32 i, i32 id) {
        if (id == expert) order[pair] = i, rank[i] = pair, ++pair;
    });
}

// Each token of x (tokens, n), n a multiple of 4, to the places of its pairs, rank[token * used + choice], of `width`,
// as `store_swizzled` has them. Grid: (tokens, cells * CELL / (4 * THREADS)).
RF_KERNEL(THREADS)
rf_scatter_tokens(const float* x, const i32* rank, u8* out, u32 used, u32 n, u32 width, u32 cells) {
    wait_for_previous();
    u32 i = 4 * (block_y() * THREADS + thread_x());
    u64 token = block_x();
    f32x4 v = four_of(x + token * n, i, n);
    for (u64 pair = token * used; pair < (token + 1) * used; ++pair)
        store_swizzled(out, width, cells, rank[pair], i, v);
}

// Rows of y, a token-expert pair each, times their experts' scales; `size` elements.
RF_KERNEL(THREADS)
rf_scale_by_expert(float* out, const float* y, const i32* ids, const float* scales, u32 columns, u64 size) {
    wait_for_previous();
    u64 i = u64(block_x()) * THREADS + thread_x();
    if (i < size) out[i] = y[i] * scales[ids[i / columns]];
}

// out (tokens, columns): residual plus the sum over a token's choices of weight times row rank[pair] of y, which is
// float32 or float16. Null is a residual of zero, a rank that is the pair, and a weight of one. Grid: (tokens, columns
// / THREADS).
RF_KERNEL(THREADS)
rf_combine_experts(float* out, const float* y, const f16* fp16, const i32* rank, const float* weights,
                   const float* residual, u32 used, u32 columns) {
    wait_for_previous();
    u32 column = block_y() * THREADS + thread_x();
    u64 token = block_x(), at = token * columns + column;
    if (column >= columns) return;
    float sum = 0;
    for (u64 pair = token * used; pair < (token + 1) * used; ++pair) {
        u64 row = rank ? rank[pair] : pair;
        float value = fp16 ? to_float(fp16[row * columns + column]) : y[row * columns + column];
        sum += (weights ? weights[pair] : 1.0f) * value;
    }
    out[at] = sum + (residual ? residual[at] : 0.0f);
}

}  // namespace rocforge
