// Products of one token with packed weights on Hopper: y = x @ w.T, as matvec.hip has them, of weights that come to LDS
// by bulk copies, far ahead of use.
//
// Compiled with RF_QTYPE, the weights' format (a struct of quants.h), RF_QTYPE_LAST, that of the last matrix of a
// launch, where it differs, and RF_LDS, a block's bytes of dynamic LDS.
//
// A block a multiprocessor stays for all rows that it takes, and each of its waves has a ring of slots in LDS. A stage,
// which fills one, is up to 32 cells of a row, a cell a lane, or several short rows. A wave asks for its first stages
// before it waits for the kernel before, and then for another with each that it has read: so memory is read while
// kernels begin, wait and end.
#define RF_WEIGHTS_IN_LDS
#include "target/hopper.h"
#define RF_TOKENS 1
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "products.h"

namespace rocforge {

// variants: RF_QTYPE=PLANAR RF_LDS=114688
// variants: RF_QTYPE=Q4_K RF_QTYPE_LAST=Q6_K RF_LDS=114688
// targets: sm_90
#ifndef RF_QTYPE_LAST
#define RF_QTYPE_LAST RF_QTYPE
#endif
const u32 WAVES = 8, THREADS = WAVES * RF_WAVE, STAGE_CELLS = RF_WAVE;
const u32 RUN = 32, RUN_ROWS = RUN / WAVES;  // rows whose results share a scale; and those of them that a wave takes
RF_DEVICE constexpr u32 larger(u32 a, u32 b) { return a > b ? a : b; }
// Bytes of a row's cells, or of those of two rows half as many, whose planes are filled up.
template <class F>
RF_DEVICE constexpr u32 stage_bytes() {
    return larger(F::row_bytes(STAGE_CELLS), 2 * F::row_bytes(STAGE_CELLS / 2));
}
const u32 STAGE = larger(stage_bytes<RF_QTYPE>(), stage_bytes<RF_QTYPE_LAST>());
// A lane has a cell of two rows at a time, where there is room for three slots of them.
const u32 TOGETHER = RF_LDS / (WAVES * (2 * STAGE + sizeof(u64))) >= 3 ? 2 : 1;
const u32 SLOT = TOGETHER * STAGE, SLOTS = RF_LDS / (WAVES * (SLOT + sizeof(u64)));
static_assert(SLOTS >= 2, "a stage is read while another is filled");

// The rows that a wave multiplies at a time: `count` from `at` on, none past the last; `last` of RF_QTYPE_LAST.
struct Rows {
    const u8* at;
    u32 count;
    bool last;
};

// One row's length in cells, lanes that share it, 16 or 32, and its stages. Of a group of rows a lane has every
// `apart`th.
struct Shape {
    u32 cells, log_lanes;
    RF_MEMBER u32 apart() const { return RF_WAVE >> log_lanes; }
    RF_MEMBER u32 rows() const { return apart() * TOGETHER; }
    RF_MEMBER u32 rank() const { return lane() & ((1 << log_lanes) - 1); }
    // Whether a lane has the sum of one of the group's rows in the end; and which.
    RF_MEMBER u32 sharing() const { return (1 << log_lanes) / TOGETHER; }
    RF_MEMBER bool has_sum() const { return rank() % sharing() == 0; }
    RF_MEMBER u32 own_row() const { return (lane() >> log_lanes) + rank() / sharing() * apart(); }
    RF_MEMBER u32 stages() const { return (cells + STAGE_CELLS - 1) / STAGE_CELLS; }
    RF_MEMBER u32 cells_of(u32 stage) const { return minimum(i32(cells - stage * STAGE_CELLS), i32(STAGE_CELLS)); }
};

// A wave's slots, and where it is in them: groups of rows by number, `locate(group)` says where, a stage after another.
template <class Locate>
struct Ring {
    Shape shape;
    Locate locate;
    u8* slots;
    u64* full;
    u32 group = 0, stage = 0, slot = 0;  // to be asked for next
    u32 read_slot = 0, read_phase = 0;   // to be read next

    RF_MEMBER Ring(Shape shape, Locate locate) : shape(shape), locate(locate) {
        extern __shared__ __align__(128) u8 memory[];
        slots = memory + wave() * SLOTS * SLOT;
        full = reinterpret_cast<u64*>(memory + WAVES * SLOTS * SLOT) + wave() * SLOTS;
        if (lane() == 0) {
            for (u32 i = 0; i < SLOTS; ++i) init_barrier(full + i, 1);
            fence_barriers();
        }
        wave_barrier();
        for (u32 i = 0; i < SLOTS; ++i) ask();
    }

    template <class F>
    RF_MEMBER void copy(const Rows& rows) {
        u8* to = slots + slot * SLOT;
        if (shape.stages() == 1) {
            u32 bytes = rows.count * F::row_bytes(shape.cells);
            if (lane() != 0) return;
            expect_bytes(full + slot, bytes);
            copy_bulk(to, rows.at, bytes, full + slot);
            return;
        }
        // a piece of each plane of each row, a lane each
        u32 n = shape.cells_of(stage), first = stage * STAGE_CELLS;
        u32 r = lane() / (F::PLANES + 2), piece = lane() % (F::PLANES + 2);
        if (lane() == 0) expect_bytes(full + slot, rows.count * F::row_bytes(n));
        wave_barrier();
        if (r >= rows.count) return;
        const u8* from = rows.at + r * F::row_bytes(shape.cells);
        to += r * F::row_bytes(n);
        if (piece < F::PLANES)
            copy_bulk(to + 16 * piece * n, from + 16 * (piece * shape.cells + first), 16 * n, full + slot);
        else if (piece == F::PLANES && F::TAIL > 0)
            copy_bulk(to + F::tail_at(n), from + F::tail_at(shape.cells) + F::TAIL * first, round16(F::TAIL * n),
                      full + slot);
        else if (piece == F::PLANES + 1 && F::SUPER > 0)
            copy_bulk(to + F::super_at(n), from + F::super_at(shape.cells) + F::SUPER * first / 2,
                      round16(F::SUPER * n / 2), full + slot);
    }

    // Asks for one more stage.
    RF_MEMBER void ask() {
        Rows rows = locate(group);
        if (rows.count == 0) return;
        if (rows.last)
            copy<RF_QTYPE_LAST>(rows);
        else
            copy<RF_QTYPE>(rows);
        if (++slot == SLOTS) slot = 0;
        if (++stage == shape.stages()) stage = 0, ++group;
    }

    // Adds the products of a stage's cells with x, a lane its cell.
    template <class F>
    RF_MEMBER void add(float (&sum)[TOGETHER], u32 part, const Activation& x) {
        u32 n = shape.stages() == 1 ? shape.cells : shape.cells_of(part), c = shape.rank();
        const u8* row = slots + read_slot * SLOT + (lane() >> shape.log_lanes) * F::row_bytes(n);
        wait_phase(full + read_slot, read_phase);
        F w[TOGETHER];
        RF_UNROLL
        for (u32 j = 0; j < TOGETHER; ++j) load_cell(w[j], row + j * shape.apart() * F::row_bytes(n), n, c < n ? c : 0);
        wave_barrier();
        ask();
        if (++read_slot == SLOTS) read_slot = 0, read_phase ^= 1;
        RF_UNROLL
        for (u32 j = 0; j < TOGETHER; ++j) {
            w[j].ready();
            sum[j] += c < n ? dot(w[j], x) : 0.0f;
        }
    }

    // The products of a group's rows: of own_row() where a lane has_sum().
    RF_MEMBER float products(const Rows& rows, const u8* x, Activation& kept) {
        float sums[TOGETHER] = {};
        for (u32 part = 0; part < shape.stages(); ++part) {
            if (shape.stages() > 1)
                kept.load(x, shape.cells, minimum(i32(part * STAGE_CELLS + shape.rank()), i32(shape.cells - 1)));
            if (rows.last)
                add<RF_QTYPE_LAST>(sums, part, kept);
            else
                add<RF_QTYPE>(sums, part, kept);
        }
        float sum = sums[0];
        if constexpr (TOGETHER == 2) {  // half of the lanes that share both rows go on with either
            bool second = shape.rank() >= shape.sharing();
            sum = (second ? sums[1] : sums[0]) + shuffle(second ? sums[0] : sums[1], lane() ^ shape.sharing());
        }
        sum = reduce_lanes<8>(sum, Add());
        if (shape.sharing() > 8) sum += shuffle_xor<8>(sum);
        if (shape.sharing() > 16) sum += shuffle_xor<16>(sum);
        return sum;
    }
};
template <class Locate>
RF_DEVICE Ring<Locate> ring_of(Shape shape, Locate locate) {
    return {shape, locate};
}

// x in int8; what it lacks of its norm, as in GemvParams.
struct StreamX {
    const void* x;
    RF_NULLABLE const float* squares;
    u32 columns;
    float eps;
    u32 cells, log_lanes, grid;
};
RF_DEVICE Shape shape_of(const StreamX& x) { return {x.cells, x.log_lanes}; }
// A lane's cell, where a row has no more than one for each.
RF_DEVICE Activation load_kept(const StreamX& x) {
    Activation kept;
    u32 c = lane() & ((1 << x.log_lanes) - 1);
    kept.load(row_of(x.x, 0), x.cells, minimum(i32(c), i32(x.cells - 1)));
    return kept;
}
RF_DEVICE float factor_of(const StreamX& x) {
    if (!x.squares) return 1.0f;
    Norm norm = {x.squares, x.columns, x.eps};
    float sum = 0.0f;
    for (u32 i = lane(); i < norm.runs(); i += RF_WAVE) sum += x.squares[i];
    return norm.factor_of(wave_sum(sum));
}

// A residual, of the shape of the first result, is added to that. `rows` of a matrix are counted in groups of a wave's.
struct StreamParams {
    StreamX x;
    Matrix matrices[3];
    RF_NULLABLE const float* residual;
};
RF_DEVICE u32 groups_of(u32 rows, u32 each) { return (rows + each - 1) / each; }

RF_KERNEL_WIDE(THREADS, 2 * THREADS)
rf_stream_products(StreamParams p) {
    Shape shape = shape_of(p.x);
    u32 each = shape.rows();
    // the matrix and the first row of a group
    auto place = [&](u32 group, u32& number, u32& row) {
        u32 at = (block_x() + group * p.x.grid) * WAVES + wave(), first = groups_of(p.matrices[0].rows, each);
        u32 second = groups_of(p.matrices[1].rows, each);
        number = at < first ? 0 : at - first < second ? 1 : 2;
        row = each * (at - (number > 0 ? first : 0) - (number > 1 ? second : 0));
        return number == 0 ? p.matrices[0] : number == 1 ? p.matrices[1] : p.matrices[2];
    };
    auto locate = [&](u32 group) -> Rows {
        u32 number, row;
        Matrix m = place(group, number, row);
        if (row >= m.rows) return {nullptr, 0, false};
        u32 bytes = number == 2 ? RF_QTYPE_LAST::row_bytes(shape.cells) : RF_QTYPE::row_bytes(shape.cells);
        return {row_of(m.w, u64(row) * bytes), u32(minimum(i32(each), i32(m.rows - row))), number == 2};
    };
    auto ring = ring_of(shape, locate);
    wait_for_previous();
    Activation x = load_kept(p.x);
    float factor = factor_of(p.x);
    for (u32 group = 0;; ++group) {
        Rows rows = locate(group);
        if (rows.count == 0) return;
        float sum = factor * ring.products(rows, row_of(p.x.x, 0), x);
        u32 number, row, own = shape.own_row();
        Matrix m = place(group, number, row);
        if (!shape.has_sum() || own >= rows.count) continue;
        if (m.bias) sum += m.bias[row + own];
        if (number == 0 && p.residual) sum += p.residual[row + own];
        m.y[row + own] = sum;
    }
}

// Where a wave's groups of rows lie, of blocks that take runs of RUN rows, of one matrix or of two in turn.
struct Runs {
    const u8 *first, *second;
    u32 rows, row_bytes, each, grid;
    RF_MEMBER Rows operator()(u32 group) const {
        u32 which = 0, groups = RUN_ROWS / each;
        if (second) which = group % 2, group /= 2;
        u32 row = RUN * (block_x() + group / groups * grid) + RUN_ROWS * wave() + each * (group % groups);
        if (row >= rows) return {nullptr, 0, false};
        return {(which ? second : first) + u64(row) * row_bytes, u32(minimum(i32(each), i32(rows - row))), false};
    }
};

// As `gated_product`.
struct StreamGatedParams {
    StreamX x;
    Gated matrices;
    GatedOutput out;
};
RF_KERNEL_WIDE(THREADS, 2 * THREADS)
rf_stream_gated(StreamGatedParams p) {
    RF_SHARED struct {
        alignas(16) float gate[2][RUN], up[2][RUN];
    } sums;
    Shape shape = shape_of(p.x);
    const Gated& m = p.matrices;
    u32 each = shape.rows(), end = p.out.quantized ? p.out.cells * CELL : m.rows;
    Runs runs = {row_of(m.gate, 0), row_of(m.up, 0), m.rows, RF_QTYPE::row_bytes(shape.cells), each, p.x.grid};
    auto ring = ring_of(shape, runs);
    wait_for_previous();
    Activation x = load_kept(p.x);
    float factor = factor_of(p.x);
    u32 group = 0, number = 0;
    for (u32 run = block_x(); RUN * run < end; run += p.x.grid, ++number) {
        u32 buffer = number % 2;
        for (u32 i = 0; i < RUN_ROWS; i += each) {
            float both[2] = {};
            for (u32 which = 0; which < 2; ++which, ++group) {
                Rows rows = runs(group);
                if (rows.count) both[which] = ring.products(rows, row_of(p.x.x, 0), x);
            }
            if (shape.has_sum()) {
                u32 at = RUN_ROWS * wave() + i + shape.own_row();
                sums.gate[buffer][at] = both[0], sums.up[buffer][at] = both[1];
            }
        }
        barrier();
        if (wave() != number % WAVES) continue;
        u32 r = RUN * run + lane();
        float value = 0.0f;
        if (r < m.rows) {
            float g = factor * sums.gate[buffer][lane()] + (m.gate_bias ? m.gate_bias[r] : 0.0f);
            float u = factor * sums.up[buffer][lane()] + (m.up_bias ? m.up_bias[r] : 0.0f);
            value = gated(m.activation, g, u);
            if (p.out.y) p.out.y[r] = value;
        }
        if (!p.out.quantized) continue;
        sums.gate[buffer][lane()] = value;
        wave_barrier();
        u32 at = 4 * lane() % RUN;
        store_activation(p.out.quantized, p.out.cells, 4 * lane() < RUN ? RUN * run + at : p.out.cells * CELL,
                         load<f32x4>(sums.gate[buffer] + at));
    }
}

// As rf_matvec_then_norm.
struct StreamThenNormParams {
    StreamX x;
    const void* w;
    RF_NULLABLE const float *bias, *residual;
    float* y;
    const float* weight;
    u8* quantized;
    float* squares;
    u32 rows, out_cells;
};
RF_KERNEL_WIDE(THREADS, 2 * THREADS)
rf_stream_then_norm(StreamThenNormParams p) {
    RF_SHARED struct {
        alignas(16) float y[2][RUN], scaled[2][RUN];
    } results;
    Shape shape = shape_of(p.x);
    u32 each = shape.rows();
    Runs runs = {row_of(p.w, 0), nullptr, p.rows, RF_QTYPE::row_bytes(shape.cells), each, p.x.grid};
    auto ring = ring_of(shape, runs);
    wait_for_previous();
    Activation x = load_kept(p.x);
    u32 group = 0, number = 0;
    for (u32 run = block_x(); RUN * run < p.out_cells * CELL; run += p.x.grid, ++number) {
        u32 buffer = number % 2;
        for (u32 i = 0; i < RUN_ROWS; i += each, ++group) {
            Rows rows = runs(group);
            float value = rows.count ? ring.products(rows, row_of(p.x.x, 0), x) : 0.0f;
            if (!shape.has_sum()) continue;
            u32 within = RUN_ROWS * wave() + i + shape.own_row(), r = RUN * run + within;
            if (r < p.rows) {
                if (p.bias) value += p.bias[r];
                if (p.residual) value += p.residual[r];
                p.y[r] = value;
            } else {
                value = 0.0f;
            }
            results.y[buffer][within] = value, results.scaled[buffer][within] = value * p.weight[r < p.rows ? r : 0];
        }
        barrier();
        if (wave() != number % WAVES) continue;
        u32 at = 4 * lane() % RUN;
        f32x4 v = load<f32x4>(results.y[buffer] + at), scaled = load<f32x4>(results.scaled[buffer] + at);
        float square = reduce_lanes<RUN / 4>(v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w, Add());
        if (lane() == 0 && RUN * run < p.rows) p.squares[run] = square;
        store_activation(p.quantized, p.out_cells, 4 * lane() < RUN ? RUN * run + at : p.out_cells * CELL, scaled);
    }
}

}  // namespace rocforge
