// Products of 64 and more tokens with packed weights on Hopper's matrix unit: y = x @ w.T, weights unpacked in
// registers.
//
// Compiled with RF_QTYPE, the weights' format (a struct of quants.h), RF_QTYPE_LAST, that of the last matrix of a
// launch, where it differs, RF_TOKENS, the tokens of a block (64, 128 or 256; x as `store_swizzled` leaves it),
// RF_SPLIT and RF_SHARE, the blocks of a cluster, RF_BLOCKS, those of a multiprocessor, and RF_LDS, a block's bytes of
// LDS.
//
// A block multiplies ROWS rows with RF_TOKENS tokens. Each of its waves copies its own 16 rows, packed as they are,
// into LDS, two cells at a time and several times ahead of use, and unpacks a cell to fragments while the matrix unit
// multiplies the one before. x comes to LDS a cell of all tokens at a time, as the matrix unit reads it. Of a cluster,
// RF_SPLIT blocks share out the depth of the same rows; in the end each adds up, from all their LDS, the sums of a part
// of the tokens. RF_SHARE blocks, 1 or 2, have different rows and the same x, of which each brings a part to both.
#define RF_WEIGHTS_IN_LDS
#include "target/fragments.h"
#include "target/hopper.h"
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "products.h"
#include "unpack.h"

namespace rocforge {

// variants: RF_QTYPE=WIDE RF_TOKENS=128 RF_SPLIT=1 RF_SHARE=1 RF_BLOCKS=1 RF_LDS=232448
// variants: RF_QTYPE=Q4_K RF_TOKENS=64 RF_SPLIT=2 RF_SHARE=1 RF_BLOCKS=2 RF_LDS=115712
// variants: RF_QTYPE=Q8_0,Q4_K,Q6_K RF_TOKENS=256 RF_SPLIT=1 RF_SHARE=2 RF_BLOCKS=1 RF_LDS=232448
// variants: RF_QTYPE=Q4_K RF_QTYPE_LAST=Q6_K RF_TOKENS=128 RF_SPLIT=2 RF_SHARE=1 RF_BLOCKS=1 RF_LDS=232448
// targets: sm_90
const u32 WAVES = 8, ROWS = 16 * WAVES, THREADS = RF_WAVE * WAVES;
const u32 TILE_BYTES = 128 * RF_TOKENS, STAGE_BYTES = 2 * TILE_BYTES;  // of x: of 64 elements, and of a cell
const u32 X_FIT = RF_LDS / 5 * 3 / STAGE_BYTES, X_STAGES = X_FIT < 3 ? X_FIT : 3, MOST_STAGES = 4;
const u32 PITCH = ROWS + 4;  // of sums: so that a wave's columns lie in different LDS banks
static_assert(4 * PITCH * RF_TOKENS <= RF_LDS, "the sums fit in LDS");

struct Barriers {
    u64 full[X_STAGES], empty[X_STAGES];
};

// How a wave's rows lie in LDS: each as a row of CELLS cells lies in memory, of which PITCH leaves every lane of a wave
// that reads the same word of eight rows its own bank.
template <class F>
struct Stages {
    static const u32 CELLS = 2;
    static const u32 PITCH = 16 * (F::row_bytes(CELLS) / 16 | 1);
    static const u32 FIT = (RF_LDS - X_STAGES * STAGE_BYTES - sizeof(Barriers)) / (ROWS * PITCH);
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
    return {memory, memory + X_STAGES * STAGE_BYTES, reinterpret_cast<Barriers*>(memory + RF_LDS - sizeof(Barriers))};
}

// The block's place in the grid: clusters are RF_SPLIT blocks that share out the depth, times RF_SHARE of different
// rows, which share x; then come the blocks of tokens, then those of rows. A last cluster may have idle blocks.
struct BlockPlace {
    u32 split, side, token, rows;
    bool idle;
};
RF_DEVICE BlockPlace place_of(u32 token_blocks, u32 row_blocks) {
    u32 rank = block_x() % (RF_SPLIT * RF_SHARE), cluster = block_x() / (RF_SPLIT * RF_SHARE);
    u32 side = rank / RF_SPLIT, rows = cluster / token_blocks * RF_SHARE + side;
    bool idle = rows >= row_blocks;  // it multiplies the rows of another, and keeps nothing
    return {rank % RF_SPLIT, side, cluster % token_blocks * RF_TOKENS, idle ? row_blocks - 1 : rows, idle};
}
RF_DEVICE u32 rank_of(u32 side, u32 split) { return side * RF_SPLIT + split; }

// What a block multiplies: cells `first` to `end` of its rows with its tokens.
struct Work {
    const u8* x;
    u32 width, cells, first, end;
};
RF_DEVICE Work work_of(const u8* x, u32 width, const BlockPlace& place, u32 cells) {
    u32 pairs = (cells + 1) / 2, first = 2 * (place.split * pairs / RF_SPLIT);
    u32 end = 2 * ((place.split + 1) * pairs / RF_SPLIT);
    return {x, width, cells, first, u32(minimum(i32(end), i32(cells)))};
}

// Copies cells c (an even number) and c + 1 of a wave's rows: two lanes share a row.
template <class F>
RF_DEVICE void copy_cells(u8* to, const u8* row, u32 cells, u32 c) {
    using S = Stages<F>;
    u32 rank = lane() % 2, at = lds_address(to + lane() / 2 * S::PITCH);
    RF_UNROLL
    for (u32 p = 0; p < F::PLANES; ++p)
        copy_async<16>(at + 16 * (p * S::CELLS + rank), row + 16 * (p * cells + c + rank));
    // what lies past the last cell is copied too, but not past the row
    const u32 tail = F::TAIL * S::CELLS, unit = tail < 16 ? tail : 16;
    if (rank * unit < tail) {
        u32 from = F::tail_at(cells) + F::TAIL * c + rank * unit;
        copy_async<unit>(at + F::tail_at(S::CELLS) + rank * unit,
                         row + minimum(i32(from), i32(F::row_bytes(cells) - unit)));
    }
    if constexpr (F::SUPER > 0) {  // of two bytes those of the block before or after come too
        if (rank == 1) copy_async<4>(at + F::super_at(S::CELLS), row + F::super_at(cells) + F::SUPER * (c / 2) / 4 * 4);
    }
}

// The stages of x in LDS, of all the block's tokens: thread 0 brings them, a part for each block that shares them.
struct Stream {
    u8* stages;
    Barriers* barriers;
    const u8* from;
    u32 step, left;  // bytes from tile to tile, and stages to be brought yet
    u32 split, side;
    u32 slot, phase;  // of the stage to be multiplied next
    bool started;     // there is one before

    RF_MEMBER void bring(u32 to) {
        expect_bytes(&barriers->full[to], STAGE_BYTES);
        RF_UNROLL
        for (u32 tile = 0; tile < 2; ++tile) {
            u8* at = stages + to * STAGE_BYTES + tile * TILE_BYTES;
            if (RF_SHARE == 1)
                copy_bulk(at, from + tile * step, TILE_BYTES, &barriers->full[to]);
            else if (tile == side)
                copy_bulk_to(at, from + tile * step, TILE_BYTES, &barriers->full[to],
                             1 << rank_of(0, split) | 1 << rank_of(1, split));
        }
        from += 2 * step, --left;
    }
    RF_MEMBER void begin() {
        if (thread_x() != 0) return;
        for (u32 i = 0; i < X_STAGES && left; ++i) bring(i);
    }
    // The stage to be multiplied next is there: what swizzled_rows gives for it.
    RF_MEMBER u64 next() {
        wait_phase(&barriers->full[slot], phase);
        return swizzled_rows(lds_address(stages) + slot * STAGE_BYTES);
    }
    // What all have multiplied of the stage before is filled again.
    RF_MEMBER void refill() {
        if (thread_x() == 0 && started && left) {
            u32 before = slot ? slot - 1 : X_STAGES - 1;
            wait_phase(&barriers->empty[before], slot ? phase : phase ^ 1);
            bring(before);
        }
        wave_barrier();
        started = true;
    }
    // The wave has multiplied the stage.
    RF_MEMBER void release() {
        if (RF_SHARE == 1) {
            if (lane() == 0) arrive(&barriers->empty[slot]);
        } else if (lane() < RF_SHARE) {
            arrive_at(&barriers->empty[slot], rank_of(lane(), split));
        }
        if (++slot == X_STAGES) slot = 0, phase ^= 1;
    }
};

// Adds the products of the wave group's rows; `row` is that of lane / 2.
template <class F>
RF_DEVICE void multiply(float (&sums)[RF_TOKENS / 2], const Shared& shared, const Work& work, const BlockPlace& place,
                        const u8* row) {
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
    u32 step = 128 * work.width;
    Stream x = {shared.x,
                shared.barriers,
                work.x + u64(2 * work.first) * step + 128 * place.token,
                step,
                work.end - work.first,
                place.split,
                place.side,
                0,
                0,
                false};
    x.begin();
    const u8* rows = own;
    auto next_stage = [&] {
        wait_for_copy_groups<S::COUNT - 2>();
        wave_barrier();
        copy_next();
        rows = own + from * STAGE + part_row(0) * S::PITCH;
        from = from + 1 == S::COUNT ? 0 : from + 1;
    };
    // Cell r of the stage, the block's number c / 2: eight fragments of 16 elements.
    auto unpack = [&](u32(&a)[8][4], u32 r, u32 block) {
        RF_UNROLL
        for (u32 p = 0; p < 2; ++p) {
            const u8* part = rows + (part_row(p) - part_row(0)) * S::PITCH;
            F w;
            if constexpr (F::SUPER == 2)
                w.load_scales(part, S::CELLS, r, block % 2);
            else
                w.load_scales(part, S::CELLS, r);
            w.ready();
            CellScales<F> scales(w);
            RF_UNROLL
            for (u32 j = 0; j < 8; ++j) {
                u32 s = j / 2, h = j % 2, codes = stored_codes<F>(part, S::CELLS, r, s, h, part_lane());
                unpack_four<F>(a[j][p], a[j][2 + p], codes, h, scales.scale[j], scales.min[j]);
            }
        }
    };
    auto begin = [&](const u32(&a)[8][4]) {
        u64 stage = x.next();
        begin_products();
        RF_UNROLL
        for (u32 j = 0; j < 8; ++j)
            WarpGroupProduct<RF_TOKENS>::add(sums, a[j], stage + j / 4 * (TILE_BYTES / 16) + j % 4 * 2);
        end_products();
        x.refill();
    };
    auto end = [&] {
        wait_for_products<0>();
        x.release();
    };
    u32 even[8][4], odd[8][4];
    next_stage();
    unpack(even, 0, work.first / 2);
    RF_NO_UNROLL
    for (u32 c = work.first; c < work.end; c += 2) {
        begin(even);
        if (c + 1 < work.end) unpack(odd, 1, c / 2);
        end();
        if (c + 1 >= work.end) break;
        begin(odd);
        if (c + 2 < work.end) {
            next_stage();
            unpack(even, 0, c / 2 + 1);
        }
        end();
    }
}

RF_DEVICE void block_barrier() {
    if (RF_SPLIT * RF_SHARE > 1)
        cluster_barrier();
    else
        barrier();
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
    block_barrier();
    return all;
}

RF_DEVICE f32x4 summed(const float* at, const BlockPlace& place) {
    if (RF_SPLIT == 1) return load<f32x4>(at);
    f32x4 sum = load_from_block(at, rank_of(place.side, 0));
    RF_UNROLL
    for (u32 split = 1; split < RF_SPLIT; ++split) {
        f32x4 v = load_from_block(at, rank_of(place.side, split));
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    return sum;
}

// The products of the block's rows, in LDS; `row_of` gives where row 0 to ROWS - 1 begins.
template <class F, class RowOf>
RF_DEVICE const float* block_sums(const Shared& shared, const Work& work, const BlockPlace& place, RowOf row_of) {
    if (thread_x() == 0) {
        RF_UNROLL
        for (u32 i = 0; i < X_STAGES; ++i)
            init_barrier(&shared.barriers->full[i], 1), init_barrier(&shared.barriers->empty[i], WAVES * RF_SHARE);
        fence_barriers();
    }
    block_barrier();
    float sums[RF_TOKENS / 2];
    RF_UNROLL
    for (u32 i = 0; i < RF_TOKENS / 2; ++i) sums[i] = 0.0f;
    multiply<F>(sums, shared, work, place, computed_once(row_of(16 * wave() + lane() / 2)));
    return share(shared, sums);
}

// x as `store_swizzled` leaves it, for `width` tokens. A residual, of the shape of the first result, is added to that.
struct WideParams {
    const u8* x;
    u32 tokens, width, token_blocks, row_blocks, cells;
    Matrix matrices[3];
    RF_NULLABLE const float* residual;
};

template <class F>
RF_DEVICE void product(const WideParams& p, const Matrix& m, u32 number, const BlockPlace& place) {
    u32 first = place.rows * ROWS;
    const float* sums = block_sums<F>(shared_memory(), work_of(p.x, p.width, place, p.cells), place, [&](u32 r) {
        return row_of(m.w, u64(minimum(i32(first + r), i32(m.rows - 1))) * F::row_bytes(p.cells));
    });
    const float* residual = number == 0 ? p.residual : nullptr;
    const u32 share = RF_TOKENS / RF_SPLIT;
    u32 row = first + 4 * lane();
    RF_NO_UNROLL
    for (u32 k = place.split * share + wave(); k < (place.split + 1) * share; k += WAVES) {
        f32x4 sum = summed(sums + k * PITCH + 4 * lane(), place);
        if (place.token + k >= p.tokens || place.idle) continue;
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
    if (RF_SPLIT * RF_SHARE > 1) cluster_barrier();  // the others still use this block's LDS
}

#if RF_SPLIT * RF_SHARE > 1
#define RF_CLUSTER __cluster_dims__(RF_SPLIT* RF_SHARE, 1, 1)
#else
#define RF_CLUSTER
#endif
#define RF_KERNEL_CLUSTER(threads, blocks) extern "C" __global__ void RF_CLUSTER __launch_bounds__(threads, blocks)

RF_KERNEL_CLUSTER(THREADS, RF_BLOCKS)
rf_wide_products(WideParams p) {
    BlockPlace place = place_of(p.token_blocks, p.row_blocks);
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
    u32 tokens, width, token_blocks, row_blocks, cells;
    Gated matrices;
    GatedOutput out;
};

RF_KERNEL_CLUSTER(THREADS, RF_BLOCKS)
rf_wide_gated(WideGatedParams p) {
    using F = RF_QTYPE;
    const Gated& m = p.matrices;
    BlockPlace place = place_of(p.token_blocks, p.row_blocks);
    u32 first = place.rows * (ROWS / 2);
    const float* sums = block_sums<F>(shared_memory(), work_of(p.x, p.width, place, p.cells), place, [&](u32 r) {
        u32 row = minimum(i32(first + r / 16 * 8 + r % 8), i32(m.rows - 1));
        return row_of(r % 16 < 8 ? m.gate : m.up, u64(row) * F::row_bytes(p.cells));
    });
    const u32 share = RF_TOKENS / RF_SPLIT;
    u32 own = lane() % 16 * 4, row = first + own;  // of four rows
    RF_NO_UNROLL
    for (u32 k = place.split * share + 2 * wave() + lane() / 16; k < (place.split + 1) * share; k += 2 * WAVES) {
        const float* at = sums + k * PITCH + own / 8 * 16 + own % 8;
        f32x4 g = summed(at, place), u = summed(at + 8, place);
        u32 token = place.token + k;
        if (token >= p.tokens || place.idle) continue;
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
    if (RF_SPLIT * RF_SHARE > 1) cluster_barrier();
}

}  // namespace rocforge
