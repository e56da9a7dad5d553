// Products of 64 and more tokens with packed weights on Hopper's matrix unit: y = x @ w.T, weights unpacked in
// registers.
//
// Compiled with RF_QTYPE, the weights' format (a struct of quants.h), RF_QTYPE_LAST, that of the last matrix of a
// launch, where it differs, RF_TOKENS, the tokens of a block (64, 128 or 256; x as `store_swizzled` leaves it),
// RF_SPLIT, the blocks of a cluster, RF_BLOCKS, those of a multiprocessor, and RF_LDS, a block's bytes of LDS.
//
// A block multiplies ROWS rows with RF_TOKENS tokens. Each of its waves copies its own 16 rows, packed as they are,
// into LDS, some cells at a time and several times ahead of use, and unpacks them to fragments. x comes to LDS in tiles
// of 64 elements of all tokens, as the matrix unit reads it. The blocks of a cluster share out the depth of the same
// rows; in the end each adds up, from all their LDS, the sums of a part of the tokens.
#define RF_WEIGHTS_IN_LDS
#include "target/fragments.h"
#include "target/hopper.h"
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "products.h"
#include "unpack.h"

namespace rocforge {

// variants: RF_QTYPE=PLANAR RF_TOKENS=128 RF_SPLIT=1 RF_BLOCKS=1 RF_LDS=232448
// variants: RF_QTYPE=Q4_K RF_TOKENS=64 RF_SPLIT=2 RF_BLOCKS=2 RF_LDS=115712
// variants: RF_QTYPE=Q8_0,Q4_K,Q6_K RF_TOKENS=256 RF_SPLIT=4 RF_BLOCKS=1 RF_LDS=232448
// variants: RF_QTYPE=Q4_K RF_QTYPE_LAST=Q6_K RF_TOKENS=128 RF_SPLIT=2 RF_BLOCKS=1 RF_LDS=232448
// targets: sm_90
const u32 WAVES = 8, ROWS = 16 * WAVES, THREADS = RF_WAVE * WAVES;
const u32 TILE = 64, TILE_BYTES = 2 * TILE * RF_TOKENS;  // of x: elements of a token, and bytes of all
const u32 X_STAGES = RF_TOKENS == 256 ? 3 : 4, MOST_STAGES = 4;
const u32 PITCH = ROWS + 4;  // of sums: so that a wave's columns lie in different LDS banks
static_assert(4 * PITCH * RF_TOKENS <= RF_LDS, "the sums fit in LDS");

struct Barriers {
    u64 full[X_STAGES], empty[X_STAGES];
};

// How a wave's rows lie in LDS: each as a row of CELLS cells lies in memory, of which PITCH leaves every lane of a wave
// that reads the same word of eight rows its own bank.
template <class F>
struct Stages {
    static const u32 CELLS = F::SUPER == 2 ? 4 : 2;  // copies have four bytes at least
    static const u32 PITCH = 16 * (F::row_bytes(CELLS) / 16 | 1);
    static const u32 FIT = (RF_LDS - X_STAGES * TILE_BYTES - sizeof(Barriers)) / (ROWS * PITCH);
    static const u32 COUNT = FIT < MOST_STAGES ? FIT : MOST_STAGES;
    static_assert(COUNT >= 2, "a stage of weights is read while another is filled");
};

struct Shared {
    u8* x;
    u8* weights;
    Barriers* barriers;
};
RF_DEVICE Shared shared_memory() {
    extern __shared__ __align__(1024) u8 memory[];
    return {memory, memory + X_STAGES * TILE_BYTES, reinterpret_cast<Barriers*>(memory + RF_LDS - sizeof(Barriers))};
}

// What a block multiplies: cells `first` to `end` of rows with the tokens from `token` on.
struct Work {
    const u8* x;
    u32 width, token, cells, first, end;
};

// Copies cells c and following of a wave's rows: two lanes share a row.
template <class F>
RF_DEVICE void copy_cells(u8* to, const u8* row, u32 cells, u32 c) {
    using S = Stages<F>;
    u32 rank = lane() % 2, at = lds_address(to + lane() / 2 * S::PITCH);
    RF_UNROLL
    for (u32 p = 0; p < F::PLANES; ++p) {
        RF_UNROLL
        for (u32 r = 0; r < S::CELLS; r += 2)
            copy_async<16>(at + 16 * (p * S::CELLS + r + rank), row + 16 * (p * cells + c + r + rank));
    }
    // what lies past the last cell is copied too, but not past the row
    const u32 tail = F::TAIL * S::CELLS, unit = tail < 16 ? tail : 16;
    if (rank * unit < tail) {
        u32 from = F::tail_at(cells) + F::TAIL * c + rank * unit;
        copy_async<unit>(at + F::tail_at(S::CELLS) + rank * unit,
                         row + minimum(i32(from), i32(F::row_bytes(cells) - unit)));
    }
    if constexpr (F::SUPER > 0) {
        const u32 bytes = F::SUPER * S::CELLS / 2;
        if (rank == 0) copy_async<bytes>(at + F::super_at(S::CELLS), row + F::super_at(cells) + F::SUPER * (c / 2));
    }
}

// The tiles of x in LDS, X_STAGES at a time: thread 0 brings them.
struct Tiles {
    u8* stages;
    Barriers* barriers;
    const u8* from;
    u32 step, left;   // bytes from tile to tile, and tiles to be brought yet
    u32 slot, phase;  // of the tile to be multiplied next
    bool started;     // there is a tile before

    RF_MEMBER void bring(u32 to) {
        copy_bulk(stages + to * TILE_BYTES, from, TILE_BYTES, &barriers->full[to]);
        from += step, --left;
    }
    // All threads; x is read from here on.
    RF_MEMBER void begin() {
        if (thread_x() != 0) return;
        for (u32 i = 0; i < X_STAGES && left; ++i) bring(i);
    }
    // The tile to be multiplied next is there: what swizzled_rows gives for it.
    RF_MEMBER u64 next() {
        wait_phase(&barriers->full[slot], phase);
        return swizzled_rows(lds_address(stages) + slot * TILE_BYTES);
    }
    // The wave has multiplied that tile; what all have multiplied of the one before is filled again.
    RF_MEMBER void release() {
        if (lane() == 0) arrive(&barriers->empty[slot]);
        if (thread_x() == 0 && started && left) {
            u32 before = slot ? slot - 1 : X_STAGES - 1;
            wait_phase(&barriers->empty[before], slot ? phase : phase ^ 1);
            bring(before);
        }
        wave_barrier();
        started = true;
        if (++slot == X_STAGES) slot = 0, phase ^= 1;
    }
};

// Adds the products of the wave group's rows; `row` is that of lane / 2, and `staged` where the wave's rows lie.
template <class F>
RF_DEVICE void multiply(float (&sums)[RF_TOKENS / 2], const Shared& shared, const Work& work, const u8* row) {
    using S = Stages<F>;
    const u32 STAGE = ROWS * S::PITCH;
    u8* own = shared.weights + 16 * wave() * S::PITCH;
    u32 next = work.first, to = 0, from = 0;
    auto copy_next = [&] {
        if (next < work.end) copy_cells<F>(own + to * STAGE, row, work.cells, next);
        end_copy_group();
        next += S::CELLS, to = to + 1 == S::COUNT ? 0 : to + 1;
    };
    RF_UNROLL
    for (u32 i = 0; i + 1 < S::COUNT; ++i) copy_next();
    wait_for_previous();
    Tiles x = {shared.x,
               shared.barriers,
               work.x + u64(2 * work.first * work.width + work.token) * (2 * TILE),
               2 * TILE * work.width,
               2 * (work.end - work.first),
               0,
               0,
               false};
    x.begin();
    const u8* rows = own;
    u32 r = S::CELLS - 1;
    F w[2];
    auto next_cell = [&] {
        if (++r == S::CELLS) {
            wait_for_copy_groups<S::COUNT - 2>();
            wave_barrier();
            copy_next();
            rows = own + from * STAGE, r = 0;
            from = from + 1 == S::COUNT ? 0 : from + 1;
        }
        RF_UNROLL
        for (u32 p = 0; p < 2; ++p) {
            w[p].load_scales(rows + part_row(p) * S::PITCH, S::CELLS, r);
            w[p].ready();
        }
    };
    auto unpack = [&](u32(&a)[4][4], u32 half) {
        RF_UNROLL
        for (u32 j = 0; j < 4; ++j) {
            u32 s = 2 * half + j / 2, h = j % 2;
            RF_UNROLL
            for (u32 p = 0; p < 2; ++p) {
                u32 codes = stored_codes<F>(rows + part_row(p) * S::PITCH, S::CELLS, r, s, h, part_lane());
                float scale = w[p].outer_scale() * w[p].scale(s, h), min = w[p].outer_min() * w[p].min(s, h);
                unpack_four<F>(a[j][p], a[j][2 + p], codes, h, scale, min);
            }
        }
    };
    auto begin = [&](const u32(&a)[4][4]) {
        u64 tile = x.next();
        begin_products();
        RF_UNROLL
        for (u32 j = 0; j < 4; ++j) WarpGroupProduct<RF_TOKENS>::add(sums, a[j], tile + 2 * j);
        end_products();
    };
    auto end = [&] {
        wait_for_products<0>();
        x.release();
    };
    u32 even[4][4], odd[4][4];
    next_cell();
    unpack(even, 0);
    RF_NO_UNROLL
    for (u32 c = work.first; c < work.end; ++c) {
        begin(even);
        unpack(odd, 1);
        end();
        begin(odd);
        if (c + 1 < work.end) {
            next_cell();
            unpack(even, 0);
        }
        end();
    }
}

// The sums of the block, in LDS: of each token those of ROWS rows.
RF_DEVICE float* share(const Shared& shared, const float (&sums)[RF_TOKENS / 2]) {
    float* all = reinterpret_cast<float*>(shared.x);
    barrier();  // what was there has been used
    RF_UNROLL
    for (u32 i = 0; i < RF_TOKENS / 2; ++i) {
        u32 token = i / 4 * 8 + part_lane() * 2 + i % 2;
        all[token * PITCH + 16 * wave() + part_row(i / 2 % 2)] = sums[i];
    }
    if (RF_SPLIT > 1)
        cluster_barrier();
    else
        barrier();
    return all;
}

RF_DEVICE f32x4 summed(const float* at) {
    if (RF_SPLIT == 1) return load<f32x4>(at);
    f32x4 sum = load_from_block(at, 0);
    RF_UNROLL
    for (u32 rank = 1; rank < RF_SPLIT; ++rank) {
        f32x4 v = load_from_block(at, rank);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    return sum;
}

// The block's place: clusters are RF_SPLIT neighbours, then come the blocks of tokens, then those of rows.
struct BlockPlace {
    u32 rank, token, rows;
};
RF_DEVICE BlockPlace place_of(u32 width_blocks) {
    u32 cluster = block_x() / RF_SPLIT;
    return {block_x() % RF_SPLIT, cluster % width_blocks * RF_TOKENS, cluster / width_blocks};
}
// The share of the depth of a cluster's block, in whole stages of weights.
template <class F>
RF_DEVICE Work work_of(const u8* x, u32 width, const BlockPlace& place, u32 cells) {
    const u32 step = Stages<F>::CELLS;
    u32 runs = (cells + step - 1) / step;
    u32 first = place.rank * runs / RF_SPLIT * step, end = (place.rank + 1) * runs / RF_SPLIT * step;
    return {x, width, place.token, cells, first, u32(minimum(i32(end), i32(cells)))};
}

// The products of the block's rows, in LDS; `row_of` gives where row 0 to ROWS - 1 begins.
template <class F, class RowOf>
RF_DEVICE const float* block_sums(const Shared& shared, const Work& work, RowOf row_of) {
    if (thread_x() == 0) {
        RF_UNROLL
        for (u32 i = 0; i < X_STAGES; ++i)
            init_barrier(&shared.barriers->full[i], 1), init_barrier(&shared.barriers->empty[i], WAVES);
        fence_barriers();
    }
    barrier();
    float sums[RF_TOKENS / 2];
    RF_UNROLL
    for (u32 i = 0; i < RF_TOKENS / 2; ++i) sums[i] = 0.0f;
    multiply<F>(sums, shared, work, computed_once(row_of(16 * wave() + lane() / 2)));
    return share(shared, sums);
}

// x as `store_swizzled` leaves it, for `width` tokens. A residual, of the shape of the first result, is added to that.
struct WideParams {
    const u8* x;
    u32 tokens, width, token_blocks, cells;
    Matrix matrices[3];
    RF_NULLABLE const float* residual;
};

template <class F>
RF_DEVICE void product(const WideParams& p, const Matrix& m, u32 number, const BlockPlace& place) {
    u32 first = place.rows * ROWS;
    const float* sums = block_sums<F>(shared_memory(), work_of<F>(p.x, p.width, place, p.cells), [&](u32 r) {
        return row_of(m.w, u64(minimum(i32(first + r), i32(m.rows - 1))) * F::row_bytes(p.cells));
    });
    const float* residual = number == 0 ? p.residual : nullptr;
    const u32 share = RF_TOKENS / RF_SPLIT;
    u32 row = first + 4 * lane();
    RF_NO_UNROLL
    for (u32 k = place.rank * share + wave(); k < (place.rank + 1) * share; k += WAVES) {
        f32x4 sum = summed(sums + k * PITCH + 4 * lane());
        if (place.token + k >= p.tokens) continue;
        u64 at = u64(place.token + k) * m.rows;
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i) {
            if (row + i >= m.rows) continue;
            float value = element(sum, i);
            if (m.bias) value += m.bias[row + i];
            if (residual) value += residual[at + row + i];
            m.y[at + row + i] = value;
        }
    }
    if (RF_SPLIT > 1) cluster_barrier();  // the others still read this block's LDS
}

#if RF_SPLIT > 1
#define RF_CLUSTER __cluster_dims__(RF_SPLIT, 1, 1)
#else
#define RF_CLUSTER
#endif

extern "C" __global__ void RF_CLUSTER __launch_bounds__(THREADS, RF_BLOCKS) rf_wide_products(WideParams p) {
    BlockPlace place = place_of(p.token_blocks);
    u32 number;
    Matrix m = matrix_of(place.rows, number, p.matrices, [](u32 rows) { return (rows + ROWS - 1) / ROWS; });
#ifdef RF_QTYPE_LAST
    if (number == 2) return product<RF_QTYPE_LAST>(p, m, 2, place);
#endif
    product<RF_QTYPE>(p, m, number, place);
}

// As `gated_product` of products.h, where what is quantized is as `store_swizzled` has it. Each wave has eight rows of
// gate and the same eight of up. Rows past the last fill up the last cell with zeros.
struct WideGatedParams {
    const u8* x;
    u32 tokens, width, token_blocks, cells;
    Gated matrices;
    GatedOutput out;
};

extern "C" __global__ void RF_CLUSTER __launch_bounds__(THREADS, RF_BLOCKS) rf_wide_gated(WideGatedParams p) {
    using F = RF_QTYPE;
    const Gated& m = p.matrices;
    BlockPlace place = place_of(p.token_blocks);
    u32 first = place.rows * (ROWS / 2);
    const float* sums = block_sums<F>(shared_memory(), work_of<F>(p.x, p.width, place, p.cells), [&](u32 r) {
        u32 row = minimum(i32(first + r / 16 * 8 + r % 8), i32(m.rows - 1));
        return row_of(r % 16 < 8 ? m.gate : m.up, u64(row) * F::row_bytes(p.cells));
    });
    const u32 share = RF_TOKENS / RF_SPLIT;
    u32 own = lane() % 16 * 4, row = first + own;  // of four rows
    RF_NO_UNROLL
    for (u32 k = place.rank * share + 2 * wave() + lane() / 16; k < (place.rank + 1) * share; k += 2 * WAVES) {
        const float* at = sums + k * PITCH + own / 8 * 16 + own % 8;
        f32x4 g = summed(at), u = summed(at + 8);
        u32 token = place.token + k;
        if (token >= p.tokens) continue;
        float value[4];
        RF_UNROLL
        for (u32 i = 0; i < 4; ++i) {
            value[i] = 0.0f;
            if (row + i >= m.rows) continue;
            float gate = element(g, i) + (m.gate_bias ? m.gate_bias[row + i] : 0.0f);
            float up = element(u, i) + (m.up_bias ? m.up_bias[row + i] : 0.0f);
            value[i] = gated(m.activation, gate, up);
            if (p.out.y) p.out.y[u64(token) * m.rows + row + i] = value[i];
        }
        if (p.out.quantized)
            store_swizzled(p.out.quantized, p.width, p.out.cells, token, row,
                           make_f32x4(value[0], value[1], value[2], value[3]));
    }
    if (RF_SPLIT > 1) cluster_barrier();
}

}  // namespace rocforge
