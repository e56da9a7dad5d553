// Low-rank updates of products, y += scale * B (A x), where each token has an adapter of its own, or none.
//
// `ids` (tokens,) has the adapter of each token, or -1. A target is a product that adapters update; adapter id is entry
// id of its `pairs`, of rank 0 where that does not update it. Those of one x are updated by one launch of each kernel:
// shrink gives `hidden` (targets, tokens, rank), A x in float32, and expand adds to y.
//
// A block takes `together` tokens in turn, an adapter at a time, so that tokens of one adapter share its loads.
//
// Source: Chen et al., Punica: Multi-Tenant LoRA Serving, https://arxiv.org/abs/2310.18547.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = RF_TUNE_ELEMENTWISE_THREADS;
constexpr u32 TOKENS = RF_TUNE_LORA_TOKENS;
constexpr u32 MAX_RANK = 256;
constexpr u32 RUN = 8;  // float16 values of a load

// A lies as (rank, columns filled up to RUNs); of a target that looks rows up, as (columns, rank). B lies as
// (rank / RUN, rows, RUN), so that threads a row apart load what is adjacent. The rank is a multiple of RUN, what fills
// up is 0.
struct LoraPair {
    const f16 *a, *b;
    u32 rank;
    float scale;
};
static_assert(sizeof(LoraPair) == 24, "LoraPair as the host lays it out");

struct LoraTarget {
    RF_NULLABLE const void* pairs;
    RF_NULLABLE float* y;
    u32 rows, stride;  // elements between the rows of y
};

struct LoraParams {
    RF_NULLABLE const float* x;     // (tokens, columns)
    RF_NULLABLE const i32* lookup;  // (tokens,): in place of x, the columns that are 1
    const i32* ids;
    float* hidden;
    u32 tokens, columns, rank, together;
    LoraTarget targets[4];
};

// Tokens of a block, and the adapters that they have.
struct Tile {
    u32 first, count;
    const i32* ids;
    i32 id[TOKENS];
    RF_MEMBER explicit Tile(const LoraParams& p) {
        first = block_x() * p.together, count = minimum(i32(p.together), i32(p.tokens - first)), ids = p.ids + first;
        RF_UNROLL
        for (u32 k = 0; k < TOKENS; ++k) id[k] = k < count ? ids[k] : -1;
    }
    // Calls visit(id) with each adapter once.
    template <class Visit>
    RF_MEMBER void each_adapter(Visit visit) const {
        for (u32 k = 0; k < count; ++k) {
            i32 own = ids[k];
            bool seen = own < 0;
            for (u32 j = 0; j < k; ++j) seen |= ids[j] == own;
            if (!seen) visit(own);
        }
    }
};

RF_DEVICE LoraPair pair_of(const LoraTarget& target, i32 id) {
    LoraPair pair = static_cast<const LoraPair*>(target.pairs)[id];
    pair.a = in_memory(pair.a), pair.b = in_memory(pair.b);
    return pair;
}

RF_DEVICE void unpack(float (&values)[RUN], const f16* run) {
    u32x4 words = load<u32x4>(run);
    values[0] = low_half(words.x), values[1] = high_half(words.x);
    values[2] = low_half(words.y), values[3] = high_half(words.y);
    values[4] = low_half(words.z), values[5] = high_half(words.z);
    values[6] = low_half(words.w), values[7] = high_half(words.w);
}

// Elements c to c + RUN of a row, those past its end 0.
RF_DEVICE void load_run(float (&values)[RUN], const float* row, u32 c, u32 columns) {
    if (columns % 4 == 0 && c + RUN <= columns) {
        f32x4 low = load<f32x4>(row + c), high = load<f32x4>(row + c + 4);
        values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
        values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
        return;
    }
    RF_UNROLL
    for (u32 i = 0; i < RUN; ++i) values[i] = c + i < columns ? row[c + i] : 0.0f;
}

// A wave a row of A. Grid: (tokens / together, rank / waves of a block, targets).
RF_KERNEL(THREADS)
rf_lora_shrink(LoraParams p) {
    wait_for_previous();
    Tile tile(p);
    const LoraTarget target = p.targets[block_z()];
    u32 row = block_y() * (THREADS / RF_WAVE) + wave(), padded = (p.columns + RUN - 1) / RUN * RUN;
    float* hidden = p.hidden + (u64(block_z()) * p.tokens + tile.first) * p.rank + row;
    const float* x = p.x + u64(tile.first) * p.columns;
    tile.each_adapter([&](i32 id) {
        LoraPair pair = pair_of(target, id);
        if (row >= pair.rank) return;
        const f16* a = pair.a + u64(row) * padded;
        float sum[TOKENS] = {};
        for (u32 c = RUN * lane(); c < p.columns; c += RUN * RF_WAVE) {
            float weights[RUN];
            unpack(weights, a + c);
            RF_UNROLL
            for (u32 k = 0; k < TOKENS; ++k) {
                if (tile.id[k] != id) continue;
                float values[RUN];
                load_run(values, x + u64(k) * p.columns, c, p.columns);
                RF_UNROLL
                for (u32 i = 0; i < RUN; ++i) sum[k] += weights[i] * values[i];
            }
        }
        RF_UNROLL
        for (u32 k = 0; k < TOKENS; ++k) {
            float total = wave_sum(sum[k]);
            if (tile.id[k] == id && lane() == 0) hidden[k * p.rank] = total;
        }
    });
}

// As shrink, of an x that has a 1 where `lookup` says. Grid: (tokens, 1, targets).
RF_KERNEL(THREADS)
rf_lora_lookup(LoraParams p) {
    wait_for_previous();
    u32 token = block_x();
    i32 id = p.ids[token];
    if (id < 0) return;
    LoraPair pair = pair_of(p.targets[block_z()], id);
    float* hidden = p.hidden + (u64(block_z()) * p.tokens + token) * p.rank;
    const f16* a = pair.a + u64(p.lookup[token]) * pair.rank;
    for (u32 r = thread_x(); r < pair.rank; r += THREADS) hidden[r] = to_float(a[r]);
}

// A thread a row of B. Grid: (tokens / together, the most rows / THREADS, targets).
RF_KERNEL(THREADS)
rf_lora_expand(LoraParams p) {
    wait_for_previous();
    RF_SHARED float hidden[TOKENS][MAX_RANK];
    Tile tile(p);
    const LoraTarget target = p.targets[block_z()];
    u32 row = block_y() * THREADS + thread_x();
    if (block_y() * THREADS >= target.rows) return;
    const float* source = p.hidden + (u64(block_z()) * p.tokens + tile.first) * p.rank;
    for (u32 i = thread_x(); i < tile.count * p.rank; i += THREADS) hidden[i / p.rank][i % p.rank] = source[i];
    barrier();
    if (row >= target.rows) return;
    float* y = target.y + u64(tile.first) * target.stride + row;
    tile.each_adapter([&](i32 id) {
        LoraPair pair = pair_of(target, id);
        if (pair.rank == 0) return;
        float sum[TOKENS] = {};
        for (u32 r = 0; r < pair.rank; r += RUN) {
            float weights[RUN];
            unpack(weights, pair.b + u64(r) * target.rows + RUN * row);
            RF_UNROLL
            for (u32 k = 0; k < TOKENS; ++k) {
                if (tile.id[k] != id) continue;
                RF_UNROLL
                for (u32 i = 0; i < RUN; ++i) sum[k] += weights[i] * hidden[k][r + i];
            }
        }
        RF_UNROLL
        for (u32 k = 0; k < TOKENS; ++k) {
            if (tile.id[k] == id) y[u64(k) * target.stride] += pair.scale * sum[k];
        }
    });
}

}  // namespace rocforge
