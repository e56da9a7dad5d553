// Mixture of experts, few tokens: products whose matrix the routing chooses.
//
// A token-expert pair is numbered token * used + choice. Every pair is a product of one token with its expert's matrix,
// found by the id that the kernel reads, or chooses by the token's logits, so that a launch depends on shapes alone and
// a token gets the same result alone and in a batch. Compiled with RF_QTYPE, as products.h.
#define RF_TOKENS 1
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "products.h"
#include "routing.h"

namespace rocforge {

// variants: RF_QTYPE=KINDS,Floats<f16>,Floats<bf16>
// variants: RF_QTYPE=Floats<float>
const u32 CELL_NBYTES = sizeof(RF_QTYPE), NARROW_NBYTES = RF_TUNE_EXPERTS_GATED_NARROW_NBYTES;
// Where a cell is few bytes, more blocks hide each other's waits; else a lane has several cells in flight.
const bool NARROW = CELL_NBYTES > 16 && RF_QTYPE::POINTS == 0 && CELL_NBYTES <= NARROW_NBYTES;
const u32 GROUPS = GATED_THREADS / GATED_LANES, DOWN_ROWS = 2, MOST_DOWN_ROWS = 2 * DOWN_ROWS;  // of a group

// Which experts tokens go to: ids (tokens, used), or logits (tokens, experts), by which every block chooses those of
// its token; where both are null, each pair has a matrix of its own.
struct Chosen {
    RF_NULLABLE const i32* ids;
    RF_NULLABLE const float* logits;
    Routing routing;
};

// activation(x @ gate.T, x @ up.T) of each pair's expert, as `gated_product`, to y (pairs, rows) or to int8 rows. The
// first is pair `first` of the tokens in x. gate and up are (experts, step, ...), biases (experts, rows).
struct ExpertsGatedParams {
    const void* x;
    u32 cells, first;
    Chosen chosen;
    Gated matrices;
    GatedOutput out;
};

// Grid: (rows / BLOCK_ROWS, pairs).
RF_KERNEL_WIDE(GATED_THREADS, NARROW ? RF_TUNE_EXPERTS_GATED_RESIDENT_NARROW : RF_TUNE_GATED_RESIDENT)
rf_experts_gated(ExpertsGatedParams p) {
    wait_unless_beside();
    u32 pair = block_y(), used = p.chosen.routing.used, expert = p.chosen.ids ? p.chosen.ids[pair] : pair;
    if (p.chosen.logits) {
        RF_SHARED Choice choice;
        choose<GATED_THREADS>(choice, logits_of(p.chosen.logits, p.chosen.routing, pair / used), p.chosen.routing);
        expert = choice.ids[pair % used];
    }
    u64 token = (p.first + pair) / used;
    TokensInRow<RF_QTYPE> x = {row_of(p.x, token * token_bytes(RF_QTYPE(), p.cells)), 1, p.cells};
    gated_product<!NARROW>(gated_of(p.matrices, expert, p.cells), x, {}, p.cells, p.out, pair);
    wait_beside();
}

// y (tokens, rows): residual plus the sum over a token's pairs of weight times (x @ w.T + bias). x has a row a
// pair; bias, residual and weights (of one, where logits give none) may be null. A block takes all pairs of a few rows,
// up to GROUPS products, so `used` is at most GROUPS; and several such runs of rows, `step` apart.
struct ExpertsDownParams {
    const void* x;
    u32 cells;
    Chosen chosen;
    RF_NULLABLE const float* weights;
    const void* w;
    RF_NULLABLE const float* bias;
    RF_NULLABLE const float* residual;
    float* y;
    i32 rows;
    u32 step;
};

// Grid: (step, tokens).
RF_MATVEC_GATED
rf_experts_down(ExpertsDownParams p) {
    load_grid<RF_QTYPE>(GATED_THREADS);
    RF_SHARED float results[GROUPS][MOST_DOWN_ROWS];
    // where half of a group's lanes have all cells of a row, the others take more rows
    bool halves = p.cells <= GATED_LANES / 2;
    u32 lanes = halves ? GATED_LANES / 2 : GATED_LANES, rank = thread_x() % lanes;
    u32 half = thread_x() % GATED_LANES / lanes, group = thread_x() / GATED_LANES, token = block_y();
    u32 used = p.chosen.routing.used, together = GROUPS / used, of_group = halves ? MOST_DOWN_ROWS : DOWN_ROWS;
    // groups to spare do the last products again
    u32 choice = minimum(i32(group / together), i32(used - 1)), pair = token * used + choice, expert = pair;
    float weight = 1.0f;
    if (p.chosen.logits) {
        // they were there before the gated product began, and before what it may run beside
        RF_SHARED Choice chosen;
        choose_and_weigh<GATED_THREADS>(chosen, logits_of(p.chosen.logits, p.chosen.routing, token), p.chosen.routing);
        expert = chosen.ids[choice], weight = chosen.weights[choice];
    } else {
        if (p.chosen.ids || p.weights) wait_for_previous();
        if (p.chosen.ids) expert = p.chosen.ids[pair];
        if (p.weights) weight = p.weights[pair];
    }
    TokensInRow<RF_QTYPE> x = {row_of(p.x, u64(pair) * token_bytes(RF_QTYPE(), p.cells)), 1, p.cells};
    for (u32 first = together * of_group * block_x(); first < u32(p.rows); first += together * of_group * p.step) {
        u32 own = thread_x(), at = first + own;
        bool writes = own < together * of_group && at < u32(p.rows);
        u64 out = u64(token) * p.rows + at;
        float total = 0.0f;
        u32 row[DOWN_ROWS];
        const u8* w[DOWN_ROWS];
        RF_UNROLL
        for (u32 r = 0; r < DOWN_ROWS; ++r) {
            u32 within = group % together * of_group + half * DOWN_ROWS + r;
            row[r] = expert * p.rows + minimum(i32(first + within), p.rows - 1);
            w[r] = row_of(p.w, u64(row[r]) * RF_QTYPE::row_bytes(p.cells));
        }
        float sum[DOWN_ROWS][1] = {};
        accumulate<RF_QTYPE, DOWN_ROWS>(sum, w, x, p.cells, rank, lanes, [&] {
            wait_for_previous();
            if (writes && p.residual) total = p.residual[out];
        });
        RF_UNROLL
        for (u32 r = 0; r < DOWN_ROWS; ++r) {
            sum[r][0] = reduce_lanes<GATED_LANES / 2>(sum[r][0], Add());
            if (!halves) sum[r][0] += shuffle_xor<GATED_LANES / 2>(sum[r][0]);
            if (rank == r)
                results[group][half * DOWN_ROWS + r] = weight * (sum[r][0] + (p.bias ? p.bias[row[r]] : 0.0f));
        }
        barrier();
        for (u32 i = 0; writes && i < used; ++i) total += results[i * together + own / of_group][own % of_group];
        if (writes) p.y[out] = total;
        barrier();
    }
}

}  // namespace rocforge
