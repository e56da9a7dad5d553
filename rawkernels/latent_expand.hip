// Keys and values of heads, made of the latents of whole sequences, for prompts: attention_prefill.hip then reads them
// as a paged cache.
//
// A row of the cache is a latent of RF_RANK elements and RF_HEAD_DIM - RF_RANK of a key that all heads share. Compiled
// for these, RF_BLOCK_SIZE (tokens of a cache block) and the cache's type. How many blocks are expanded is read on the
// device, so that a launch can be replayed with other sequences. Source: DeepSeek-V2, https://arxiv.org/abs/2405.04434.
#include "formats/kv_cache.h"
#include "target/fragments.h"

namespace rocforge {

// variants: RF_HEAD_DIM=576 RF_RANK=512 RF_BLOCK_SIZE=32
// variants: RF_HEAD_DIM=320 RF_RANK=256 RF_BLOCK_SIZE=32
// variants: RF_HEAD_DIM=576 RF_RANK=512 RF_BLOCK_SIZE=32 RF_KEY_TYPE=Q8_0 RF_VALUE_TYPE=Q8_0

constexpr u32 SHARED = RF_HEAD_DIM - RF_RANK, THREADS = 256, WAVES = THREADS / RF_WAVE;

// ---- Weights ----

// From w (heads, RF_RANK, own) to turned (heads, own, RF_RANK). Grid: (tiles of own, tiles of RF_RANK, heads).
RF_KERNEL(THREADS)
rf_latent_turn(const f16* w, f16* turned, u32 own) {
    const u32 TILE = 32, ROWS = THREADS / TILE;
    RF_SHARED f16 tile[TILE][TILE + 2];
    wait_for_previous();
    u32 x = thread_x() % TILE, y = thread_x() / TILE, column = block_x() * TILE, row = block_y() * TILE;
    u64 head = u64(block_z()) * RF_RANK * own;
    RF_UNROLL
    for (u32 i = y; i < TILE; i += ROWS)
        if (row + i < RF_RANK && column + x < own) tile[i][x] = w[head + u64(row + i) * own + column + x];
    barrier();
    RF_UNROLL
    for (u32 i = y; i < TILE; i += ROWS)
        if (row + x < RF_RANK && column + i < own) turned[head + u64(column + i) * RF_RANK + row + x] = tile[x][i];
}

// ---- Keys and values ----

// A block multiplies TOKENS rows of the cache with COLUMNS rows of the weights, STEP elements of the depth at a time.
// Each of its waves has a tile of the results.
constexpr u32 TOKENS = 128, COLUMNS = 128, STEP = 32, STRIDE = STEP + 8, RESULT_STRIDE = COLUMNS + 8;
constexpr u32 WAVES_DOWN = WAVES / 2, OWN_TOKENS = TOKENS / WAVES_DOWN / 16, OWN_COLUMNS = COLUMNS / 2 / 16;
constexpr u32 STEPS = (RF_RANK + STEP - 1) / STEP, CHUNKS = STEP / 8, LOADS = TOKENS * CHUNKS / THREADS;
constexpr u32 ROWS_AT_ONCE = THREADS / CHUNKS, BLOCKS = TOKENS / RF_BLOCK_SIZE;

static_assert(TOKENS == COLUMNS && ROWS_AT_ONCE % RF_BLOCK_SIZE == 0, "a thread loads as many rows of both");
static_assert(RF_RANK % 16 == 0 && SHARED % 16 == 0, "whole chunks");

union Shared {
    struct {
        alignas(16) f16 latents[TOKENS][STRIDE];
        alignas(16) f16 weights[COLUMNS][STRIDE];
    } operands;
    alignas(16) f16 results[TOKENS][RESULT_STRIDE];
};

// To keys (room * RF_BLOCK_SIZE, heads, own + SHARED) and values (the same, heads, value_dim), of the blocks of
// `latents` that `sources` names, those that there are before the others. The weights are (heads, own, RF_RANK) of keys
// and behind them (heads, value_dim, RF_RANK) of values.
struct LatentExpandParams {
    f16 *keys, *values;
    const void* latents;
    const f16* weights;
    const i32* sources;
    u32 room, heads, own, value_dim;
};

// What is made with a row of the weights: an element of a head's keys or values. They are numbered head by head, first
// those of keys.
struct Column {
    u32 head, element;
    bool key;

    RF_MEMBER Column(const LatentExpandParams& p, u32 number) {
        u32 each = p.own + p.value_dim;
        head = number / each, element = number % each, key = element < p.own;
        if (!key) element -= p.own;
    }
    // Where its weights begin.
    RF_MEMBER u32 weights(const LatentExpandParams& p) const {
        return (key ? head * p.own + element : p.heads * p.own + head * p.value_dim + element) * RF_RANK;
    }
    RF_MEMBER f16* result(const LatentExpandParams& p, u64 token) const {
        u64 row = token * p.heads + head;
        return key ? p.keys + row * (p.own + SHARED) + element : p.values + row * p.value_dim + element;
    }
};

// A step's operands on their way to LDS: pieces of 16 bytes, or of 8 elements.
struct Operands {
    Keys::Piece<8> latents[LOADS];
    u32x4 weights[LOADS];

    RF_MEMBER void load(const CachedRow (&rows)[LOADS], const f16* w, const u32 (&columns)[LOADS], u32 element) {
        bool there = RF_RANK % STEP == 0 || element < RF_RANK;
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            latents[i].clear(), weights[i] = make_u32x4(0, 0, 0, 0);
            if (there)
                latents[i].load_from(rows[i], element), weights[i] = rocforge::load<u32x4>(w + columns[i] + element);
        }
    }
    RF_MEMBER void store(Shared& shared) const {
        u32 row = thread_x() / CHUNKS, at = thread_x() % CHUNKS * 8;
        RF_UNROLL
        for (u32 i = 0; i < LOADS; ++i) {
            *reinterpret_cast<u32x4*>(&shared.operands.latents[i * ROWS_AT_ONCE + row][at]) = latents[i].fp16();
            *reinterpret_cast<u32x4*>(&shared.operands.weights[i * ROWS_AT_ONCE + row][at]) = weights[i];
        }
    }
};

RF_DEVICE u32 wave_token() { return wave() / 2 * OWN_TOKENS * 16; }
RF_DEVICE u32 wave_column() { return wave() % 2 * OWN_COLUMNS * 16; }

RF_DEVICE void add_step(Accumulator (&sums)[OWN_TOKENS][OWN_COLUMNS], const Shared& shared) {
    RF_UNROLL_DEPTH
    for (u32 k = 0; k < STEP; k += 16) {
        Fragment latents[OWN_TOKENS];
        RF_UNROLL
        for (u32 m = 0; m < OWN_TOKENS; ++m)
            latents[m] = load_fragment(&shared.operands.latents[wave_token() + m * 16][k], STRIDE);
        RF_UNROLL
        for (u32 n = 0; n < OWN_COLUMNS; ++n) {
            Fragment weights = load_fragment(&shared.operands.weights[wave_column() + n * 16][k], STRIDE);
            RF_UNROLL
            for (u32 m = 0; m < OWN_TOKENS; ++m) multiply_add(sums[m][n], latents[m], weights);
            fragments_in_order();
        }
    }
}

// Grid: (groups of BLOCKS blocks of the room, tiles of COLUMNS of the weights' rows). The block in which a head begins
// also copies the shared key to it.
RF_KERNEL_BOUND(THREADS, 2 * THREADS)
rf_latent_expand(LatentExpandParams p) {
    RF_SHARED Shared shared;
    wait_for_previous();
    u32 first_block = block_x() * BLOCKS, first_column = block_y() * COLUMNS, each = p.own + p.value_dim;
    u32 own_row = thread_x() / CHUNKS, own_chunk = thread_x() % CHUNKS, total = p.heads * each;
    if (p.sources[first_block] < 0) return;
    CachedRow rows[LOADS];
    u32 columns[LOADS];
    RF_UNROLL
    for (u32 i = 0; i < LOADS; ++i) {
        u32 row = i * ROWS_AT_ONCE + own_row;
        i32 source = p.sources[minimum(i32(first_block + row / RF_BLOCK_SIZE), i32(p.room - 1))];
        rows[i] = HeadBlock<Keys>(p.latents, maximum(source, 0), 1, 0).row(row % RF_BLOCK_SIZE);
        columns[i] = Column(p, minimum(i32(first_column + row), i32(total - 1))).weights(p);
    }

    Accumulator sums[OWN_TOKENS][OWN_COLUMNS];
    RF_UNROLL
    for (u32 m = 0; m < OWN_TOKENS; ++m) {
        RF_UNROLL
        for (u32 n = 0; n < OWN_COLUMNS; ++n) {
            RF_UNROLL
            for (u32 i = 0; i < ELEMENTS; ++i) sums[m][n].x[i] = 0;
        }
    }
    Operands next;
    next.load(rows, p.weights, columns, own_chunk * 8);
    RF_NO_UNROLL
    for (u32 step = 0; step < STEPS; ++step) {
        barrier();  // the operands before have been used
        next.store(shared);
        barrier();
        if (step + 1 < STEPS) next.load(rows, p.weights, columns, (step + 1) * STEP + own_chunk * 8);
        add_step(sums, shared);
    }
    barrier();
    RF_UNROLL
    for (u32 m = 0; m < OWN_TOKENS; ++m) {
        RF_UNROLL
        for (u32 n = 0; n < OWN_COLUMNS; ++n) {
            RF_UNROLL
            for (u32 i = 0; i < ELEMENTS; ++i)
                shared.results[wave_token() + m * 16 + fragment_row(row_slot(i))]
                              [wave_column() + n * 16 + fragment_column(i)] = from_float<f16>(sums[m][n].x[i]);
        }
    }
    barrier();
    const u32 WIDTH = COLUMNS / 8;
    u32 at = thread_x() % WIDTH * 8;
    u64 first_token = u64(first_block) * RF_BLOCK_SIZE;
    u32 there = 1;  // blocks
    while (there < BLOCKS && first_block + there < p.room && p.sources[first_block + there] >= 0) ++there;
    if (first_column + at < total) {
        Column column(p, first_column + at);
        for (u32 row = thread_x() / WIDTH; row < there * RF_BLOCK_SIZE; row += THREADS / WIDTH)
            *reinterpret_cast<u32x4*>(column.result(p, first_token + row)) = load<u32x4>(&shared.results[row][at]);
    }
    for (u32 head = (first_column + each - 1) / each; head < p.heads && head * each < first_column + COLUMNS; ++head) {
        for (u32 unit = thread_x(); unit < there * RF_BLOCK_SIZE * (SHARED / 8); unit += THREADS) {
            u32 row = unit / (SHARED / 8), chunk = unit % (SHARED / 8) * 8;
            i32 source = p.sources[first_block + row / RF_BLOCK_SIZE];
            Keys::Piece<8> piece;
            piece.load_from(HeadBlock<Keys>(p.latents, source, 1, 0).row(row % RF_BLOCK_SIZE), RF_RANK + chunk);
            f16* key = p.keys + ((first_token + row) * p.heads + head) * (p.own + SHARED) + p.own;
            *reinterpret_cast<u32x4*>(key + chunk) = piece.fp16();
        }
    }
}

}  // namespace rocforge
