// The rules of state_rule.h for many tokens: in chunks of CHUNK, of which the state is read and written at once.
//
// With G the sums of a chunk's logarithms of decay, D[i, j] = exp(G[i] - G[j]) and S the state before it, token i
// writes w[i] under k[i] and reads y[i]:
//     w[i] = b[i] (v[i] - exp(G[i]) S k[i] - sum over j < i of D[i, j] (k[i] . k[j]) w[j])
//     y[i] = exp(G[i]) S q[i] + sum over j <= i of D[i, j] (q[i] . k[j]) w[j]
// so w = U - W S for the solutions U and W of one triangular system. What is the same for every S is made of all chunks
// at a time (rf_chunk_parts); then a block goes from chunk to chunk, by products of small matrices (rf_chunk_scan).
// All is float32, without a matrix unit. Chunks are of the rows of a batch: of several sequences in one, each
// sees its own rows, also where others' are not finite, as those may be that fill up a batch and have no state.
// Source: Yang et al., https://arxiv.org/abs/2406.06484.
#include "fours.h"
#include "state_rule.h"

namespace rocforge {

// variants: RF_KEY_DIM=64,128
// variants: RF_KEY_DIM=64,128 RF_STATE_SPACE=1
constexpr u32 CHUNK = 16, THREADS = 2 * KEY_DIM, PITCH = KEY_DIM + 4;
static_assert(THREADS % 64 == 0, "a block is whole waves");

// What a head has of a chunk, in floats: rows of W, with which S is taken from U, and of queries times their decay;
// keys times what is left of them at the end; what rows read of others' writes; decays; U, in runs of COLUMNS.
constexpr u32 FACTORS = RF_STATE_SPACE ? 1 : 2, FACTOR_ROWS = FACTORS * CHUNK;
constexpr u32 FACTOR_SIZE = FACTOR_ROWS * KEY_DIM, KEYS_SIZE = CHUNK * KEY_DIM, READS_SIZE = CHUNK * CHUNK;
struct Chunk {
    float *factors, *keys, *reads, *decays, *writes;
    RF_MEMBER Chunk(const RuleParams& p, u32 chunk, u32 head) {
        u64 size = FACTOR_SIZE + KEYS_SIZE + READS_SIZE + CHUNK + runs_of(p) * CHUNK * COLUMNS;
        factors = p.chunks + (u64(chunk) * p.value_heads + head) * size;
        keys = factors + FACTOR_SIZE, reads = keys + KEYS_SIZE, decays = reads + READS_SIZE, writes = decays + CHUNK;
    }
};

// A row of a chunk: those of its sequence that are in the chunk are `first` to `last`; sum of the logarithms of decay
// from the first on; b, or in a state space what its value is multiplied by.
struct Rows {
    i32 first[CHUNK], last[CHUNK], wanted;
    float log[CHUNK], beta[CHUNK];
};

// By one wave.
RF_DEVICE void find_rows(Rows& rows, const RuleParams& p, i32 start, u32 head) {
    const i32* starts = p.sequences.query_starts;
    i32 i = lane(), row = start + i, tokens = starts[p.count];
    u32 sequence = sequence_of(starts, p.count, start);
    bool there = i < i32(CHUNK) && row < tokens;
    while (there && starts[sequence + 1] <= row) ++sequence;
    i32 first = i, last = i;
    float log = 0, beta = 0;
    bool wanted = false;
    if (there) {
        first = maximum(starts[sequence] - start, 0);
        last = minimum(starts[sequence + 1] - start, i32(CHUNK)) - 1;
        wanted = starts[sequence + 1] - starts[sequence] > p.few && p.sequences.slots[sequence] >= 0;
        float step = softplus(p.alpha[row * p.alpha_stride + head] + (p.bias ? p.bias[head] : 0.0f));
        log = p.decay[head] * step;
        beta = RF_STATE_SPACE ? step : sigmoid(p.beta[row * p.beta_stride + head]);
    }
    RF_UNROLL
    for (u32 step = 1; step < CHUNK; step *= 2) {
        float other = shuffle(log, lane() - step);
        if (i - i32(step) >= first) log += other;
    }
    bool some = wave_ballot(wanted) != 0;
    if (i < i32(CHUNK)) rows.first[i] = first, rows.last[i] = last, rows.log[i] = log, rows.beta[i] = beta;
    if (i == 0) rows.wanted = some;
}

// Grid: (tokens / CHUNK, value_heads).
RF_KERNEL(THREADS) rf_chunk_parts(RuleParams p) {
    wait_for_previous();
    RF_SHARED Rows rows;
    RF_SHARED struct {
        alignas(16) float q[CHUNK][PITCH], k[CHUNK][PITCH], system[CHUNK][CHUNK];
    } own;
    const u32 LANES = THREADS / CHUNK, LOADS = KEY_DIM / (4 * LANES);  // of a row
    u32 head = block_y(), row = thread_x() / LANES, rank = thread_x() % LANES;
    i32 start = block_x() * CHUNK, tokens = p.sequences.query_starts[p.count];
    if (wave() == 0) find_rows(rows, p, start, head);
    f32x4 q[LOADS], k[LOADS];
    float squares_q = 0, squares_k = 0;
    RF_UNROLL
    for (u32 j = 0; j < LOADS; ++j) {
        u32 at = key_head_of(p, head) * KEY_DIM + 4 * (j * LANES + rank);
        u64 from = start + row;
        bool there = start + i32(row) < tokens;
        q[j] = there ? load<f32x4>(p.q + from * p.q_stride + at) : make_f32x4(0, 0, 0, 0);
        k[j] = there ? load<f32x4>(p.k + from * p.k_stride + at) : make_f32x4(0, 0, 0, 0);
        squares_q += dot(q[j], q[j]), squares_k += dot(k[j], k[j]);
    }
    if (!RF_STATE_SPACE) {
        float of_q = fast_rsqrt(reduce_lanes<LANES>(squares_q, Add()) + p.eps) * fast_rsqrt(float(KEY_DIM));
        float of_k = fast_rsqrt(reduce_lanes<LANES>(squares_k, Add()) + p.eps);
        RF_UNROLL
        for (u32 j = 0; j < LOADS; ++j) q[j] = times(q[j], of_q), k[j] = times(k[j], of_k);
    }
    RF_UNROLL
    for (u32 j = 0; j < LOADS; ++j) {
        u32 at = 4 * (j * LANES + rank);
        *reinterpret_cast<f32x4*>(&own.q[row][at]) = q[j], *reinterpret_cast<f32x4*>(&own.k[row][at]) = k[j];
    }
    barrier();
    if (!rows.wanted) return;
    Chunk chunk(p, block_x(), head);
    float kept = fast_exp(rows.log[row]), left = fast_exp(rows.log[rows.last[row]] - rows.log[row]);
    if (rank == 0) chunk.decays[row] = kept;
    RF_UNROLL
    for (u32 j = 0; j < LOADS; ++j) {
        u32 at = row * KEY_DIM + 4 * (j * LANES + rank);
        *reinterpret_cast<f32x4*>(chunk.factors + (FACTORS - 1) * KEYS_SIZE + at) = times(q[j], kept);
        *reinterpret_cast<f32x4*>(chunk.keys + at) = times(k[j], left);
    }
    for (u32 n = thread_x(); n < READS_SIZE; n += THREADS) {
        u32 i = n / CHUNK, j = n % CHUNK;
        float read = 0, between = 0;
        if (j <= i && i32(j) >= rows.first[i]) {
            for (u32 at = 0; at < KEY_DIM; at += 4) {
                f32x4 key = load<f32x4>(&own.k[j][at]);
                read += dot(load<f32x4>(&own.q[i][at]), key), between += dot(load<f32x4>(&own.k[i][at]), key);
            }
            float share = fast_exp(rows.log[i] - rows.log[j]);
            read *= share, between = j < i ? between * share * rows.beta[i] : 0.0f;
        }
        chunk.reads[n] = read, own.system[i][j] = between;
    }
    barrier();
    // a thread has a column of W or of U
    for (u32 c = thread_x() + (RF_STATE_SPACE ? KEY_DIM : 0); c < KEY_DIM + runs_of(p) * COLUMNS; c += THREADS) {
        u32 column = c - KEY_DIM;
        float x[CHUNK];
        RF_UNROLL
        for (u32 i = 0; i < CHUNK; ++i) {
            if (c < KEY_DIM) {
                x[i] = own.k[i][c] * fast_exp(rows.log[i]);
            } else {
                bool there = start + i32(i) < tokens && column < p.value_dim;
                x[i] = there ? p.v[u64(start + i) * p.v_stride + head * p.value_dim + column] : 0.0f;
            }
            x[i] *= rows.beta[i];
        }
        float* to =
            c < KEY_DIM ? chunk.factors + c : chunk.writes + column / COLUMNS * CHUNK * COLUMNS + column % COLUMNS;
        RF_UNROLL
        for (u32 i = 0; i < CHUNK; ++i) {
            if (!RF_STATE_SPACE) {
                RF_UNROLL
                for (u32 j = 0; j < i; ++j) x[i] -= own.system[i][j] * x[j];
            }
            to[i * (c < KEY_DIM ? KEY_DIM : COLUMNS)] = x[i];
            x[i] = maximum(minimum(x[i], 3e38f), -3e38f);  // rows of other sequences take it times zero
        }
    }
}

// Of a block's products with S: 4 columns of rows r * GROUPS + g of the factors, for r below TILE_ROWS; each of PARTS
// runs of threads multiplies DEPTH of the keys.
constexpr u32 GROUPS = 8, LANE_COLUMNS = COLUMNS / 4, TILES = GROUPS * LANE_COLUMNS, TILE_ROWS = FACTOR_ROWS / GROUPS;
constexpr u32 PARTS = THREADS / TILES, DEPTH = KEY_DIM / PARTS;

struct Scan {
    union {
        alignas(16) float factors[FACTOR_ROWS][PITCH];
        float sums[PARTS][TILE_ROWS * 4][TILES];
    };
    alignas(16) float keys[CHUNK][KEY_DIM], state[KEY_DIM][COLUMNS], writes[CHUNK][COLUMNS], reads[CHUNK][CHUNK];
};

// A thread's share of a chunk on its way to LDS; it is loaded while the one before is worked on.
struct ChunkShare {
    static constexpr u32 FACTOR_LOADS = FACTOR_SIZE / 4 / THREADS, KEY_LOADS = KEYS_SIZE / 4 / THREADS;
    static constexpr u32 READ_LOADS = READS_SIZE / THREADS;
    f32x4 factors[FACTOR_LOADS], keys[KEY_LOADS];
    float reads[READ_LOADS];

    RF_MEMBER void load(const Chunk& chunk) {
        RF_UNROLL
        for (u32 j = 0; j < FACTOR_LOADS; ++j) factors[j] = at(chunk.factors, j);
        RF_UNROLL
        for (u32 j = 0; j < KEY_LOADS; ++j) keys[j] = at(chunk.keys, j);
        RF_UNROLL
        for (u32 j = 0; j < READ_LOADS; ++j) reads[j] = chunk.reads[j * THREADS + thread_x()];
    }
    static RF_MEMBER f32x4 at(const float* all, u32 j) {
        return rocforge::load<f32x4>(all + 4 * (j * THREADS + thread_x()));
    }
    RF_MEMBER void store_factors(Scan& scan) const {
        RF_UNROLL
        for (u32 j = 0; j < FACTOR_LOADS; ++j) {
            u32 i = 4 * (j * THREADS + thread_x());
            *reinterpret_cast<f32x4*>(&scan.factors[i / KEY_DIM][i % KEY_DIM]) = factors[j];
        }
    }
    // Of keys the rows that the sequence has in the chunk which begins at row `start`, and zeros for others.
    RF_MEMBER void store_rest(Scan& scan, const Sequence& s, i32 start) const {
        RF_UNROLL
        for (u32 j = 0; j < KEY_LOADS; ++j) {
            u32 i = 4 * (j * THREADS + thread_x());
            i32 row = start + i32(i / KEY_DIM);
            *reinterpret_cast<f32x4*>(&scan.keys[i / KEY_DIM][i % KEY_DIM]) =
                row >= s.begin && row < s.end ? keys[j] : make_f32x4(0, 0, 0, 0);
        }
        RF_UNROLL
        for (u32 j = 0; j < READ_LOADS; ++j) {
            u32 i = j * THREADS + thread_x();
            scan.reads[i / CHUNK][i % CHUNK] = reads[j];
        }
    }
};

// Of one sequence.
RF_DEVICE void scan_chunks(Scan& scan, const RuleParams& p, const Sequence& s) {
    u32 runs = runs_of(p), head = block_x() / runs, run = block_x() % runs, n = p.value_dim;
    barrier();  // what a sequence before has left there has been used
    u32 part = thread_x() / TILES, tile = thread_x() % TILES, group = tile / LANE_COLUMNS;
    u32 four = thread_x() % LANE_COLUMNS * 4, key = thread_x() / LANE_COLUMNS * 4, column = run * COLUMNS + four;
    float* state = p.state + s.state + u64(head) * KEY_DIM * n;
    f32x4 own[4];  // of rows from `key` on
    RF_UNROLL
    for (u32 r = 0; r < 4; ++r) {
        own[r] = s.fresh ? make_f32x4(0, 0, 0, 0) : load4(state + u64(key + r) * n, column, n);
        *reinterpret_cast<f32x4*>(&scan.state[key + r][four]) = own[r];
    }
    i32 first = s.begin / i32(CHUNK), end = (s.end + i32(CHUNK) - 1) / i32(CHUNK);
    float skip = p.skip ? p.skip[head] : 0.0f;
    ChunkShare next;
    next.load(Chunk(p, first, head));
    next.store_factors(scan), next.store_rest(scan, s, first * i32(CHUNK));
    barrier();
    for (i32 number = first; number < end; ++number) {
        Chunk chunk(p, number, head);
        const i32 start = number * i32(CHUNK), from = maximum(s.begin - start, 0);
        const i32 until = minimum(s.end - start, i32(CHUNK));
        if (number + 1 < end) next.load(Chunk(p, number + 1, head));
        // the rows that a thread adds up: of W, whose U it takes, or of queries
        const u32 OWN_ROWS = (TILE_ROWS + PARTS - 1) / PARTS;
        f32x4 given[OWN_ROWS];
        RF_UNROLL
        for (u32 m = 0; m < OWN_ROWS; ++m) {
            u32 row = ((m * PARTS + part) * GROUPS + group) % CHUNK;
            given[m] = load<f32x4>(chunk.writes + (run * CHUNK + row) * COLUMNS + four);
        }
        float decay = chunk.decays[until - 1];
        f32x4 sums[TILE_ROWS] = {};
        for (u32 at = part * DEPTH; at < (part + 1) * DEPTH; at += 4) {
            f32x4 of_state[4];
            RF_UNROLL
            for (u32 i = 0; i < 4; ++i) of_state[i] = load<f32x4>(&scan.state[at + i][four]);
            RF_UNROLL
            for (u32 r = 0; r < TILE_ROWS; ++r) {
                f32x4 factor = load<f32x4>(&scan.factors[r * GROUPS + group][at]);
                RF_UNROLL
                for (u32 i = 0; i < 4; ++i) sums[r] = plus(sums[r], times(of_state[i], element(factor, i)));
            }
        }
        barrier();
        RF_UNROLL
        for (u32 r = 0; r < TILE_ROWS; ++r) {
            RF_UNROLL
            for (u32 i = 0; i < 4; ++i) scan.sums[part][4 * r + i][tile] = element(sums[r], i);
        }
        barrier();
        f32x4 read[OWN_ROWS];
        RF_UNROLL
        for (u32 m = 0; m < OWN_ROWS; ++m) {
            u32 r = m * PARTS + part, row = (r * GROUPS + group) % CHUNK;
            if (r >= TILE_ROWS) continue;
            float total[4] = {};
            RF_UNROLL
            for (u32 i = 0; i < 4; ++i) {
                RF_UNROLL
                for (u32 each = 0; each < PARTS; ++each) total[i] += scan.sums[each][4 * r + i][tile];
            }
            read[m] = make_f32x4(total[0], total[1], total[2], total[3]);
            bool writes = r * GROUPS < FACTOR_ROWS - CHUNK;
            if (!writes && !RF_STATE_SPACE) continue;
            f32x4 value = writes ? plus(given[m], times(read[m], -1.0f)) : given[m];
            bool of_sequence = i32(row) >= from && i32(row) < until;
            *reinterpret_cast<f32x4*>(&scan.writes[row][four]) = of_sequence ? value : make_f32x4(0, 0, 0, 0);
        }
        barrier();
        RF_UNROLL
        for (u32 m = 0; m < OWN_ROWS; ++m) {
            u32 r = m * PARTS + part, row = (r * GROUPS + group) % CHUNK;
            if (r >= TILE_ROWS || r * GROUPS < FACTOR_ROWS - CHUNK || i32(row) < from || i32(row) >= until) continue;
            for (u32 j = 0; j < CHUNK; ++j)
                read[m] = plus(read[m], times(load<f32x4>(&scan.writes[j][four]), scan.reads[row][j]));
            u64 at = u64(start) + row;
            if (p.skip) {
                const float* value = p.v + at * p.v_stride + head * n;  // four elements of which may not be aligned
                float v[4];
                RF_UNROLL
                for (u32 i = 0; i < 4; ++i) v[i] = column + i < n ? skip * value[column + i] : 0.0f;
                read[m] = plus(read[m], make_f32x4(v[0], v[1], v[2], v[3]));
            }
            store4(p.y + (at * p.value_heads + head) * n, column, n, read[m]);
        }
        RF_UNROLL
        for (u32 r = 0; r < 4; ++r) own[r] = times(own[r], decay);
        for (u32 j = 0; j < CHUNK; ++j) {
            f32x4 keys = load<f32x4>(&scan.keys[j][key]), value = load<f32x4>(&scan.writes[j][four]);
            RF_UNROLL
            for (u32 r = 0; r < 4; ++r) own[r] = plus(own[r], times(value, element(keys, r)));
        }
        RF_UNROLL
        for (u32 r = 0; r < 4; ++r) *reinterpret_cast<f32x4*>(&scan.state[key + r][four]) = own[r];
        next.store_factors(scan);
        barrier();
        next.store_rest(scan, s, start + i32(CHUNK));
    }
    RF_UNROLL
    for (u32 r = 0; r < 4; ++r) store4(state + u64(key + r) * n, column, n, own[r]);
}

// Of sequences of more than `few` tokens. Grid: (value_heads times value_dim / COLUMNS, turns).
RF_KERNEL(THREADS) rf_chunk_scan(RuleParams p) {
    wait_for_previous();
    RF_SHARED Scan scan;
    auto takes = [&](i32 tokens) { return tokens > p.few; };
    each_of_block(p.sequences.query_starts, p.count, p.turns, takes, [&](u32 number) {
        Sequence s = sequence_at(p.sequences, number);
        if (s.begin < s.end) scan_chunks(scan, p, s);
    });
}

}  // namespace rocforge
