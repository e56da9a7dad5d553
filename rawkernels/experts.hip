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

// variants: RF_QTYPE=PLANAR,Floats<f16>,Floats<bf16>
// variants: RF_QTYPE=Floats<float>
const u32 GROUPS = GATED_THREADS / GATED_LANES;

// Which experts tokens go to: ids (tokens, used), or logits (tokens, experts), by which every block chooses those of
// its token; where both are null, each pair has a matrix of its own.
struct Chosen {
    RF_NULLABLE const i32* ids;
    RF_NULLABLE const float* logits;
    Routing routing;
};

// activation(x @ gate.T, x @ up.T) of each pair's expert, as `gated_product`, to y (pairs, rows) or to int8 rows. The
// first is pair `first` of the tokens in x. gate and up are (experts, rows, ...), biases (experts, rows).
struct ExpertsGatedParams {
    const void* x;
    u32 cells, first;
    Chosen chosen;
    Gated matrices;
    GatedOutput out;
};

// Grid: (rows / BLOCK_ROWS, pairs).
RF_MATVEC_GATED
rf_experts_gated(ExpertsGatedParams p) {
    wait_for_previous();
    u32 pair = block_y(), used = p.chosen.routing.used, expert = p.chosen.ids ? p.chosen.ids[pair] : pair;
    if (p.chosen.logits) {
        RF_SHARED Choice choice;
        choose<GATED_THREADS>(choice, p.chosen.logits + u64(pair / used) * p.chosen.routing.experts, p.chosen.routing);
        expert = choice.ids[pair % used];
    }
    u32 bias_at = expert * p.matrices.rows;
    u64 at = u64(bias_at) * RF_QTYPE::row_bytes(p.cells);
    Gated m = {row_of(p.matrices.gate, at), row_of(p.matrices.up, at), nullptr, nullptr, p.matrices.rows,
               p.matrices.activation};
    if (p.matrices.gate_bias) m.gate_bias = p.matrices.gate_bias + bias_at;
    if (p.matrices.up_bias) m.up_bias = p.matrices.up_bias + bias_at;
    u64 token = (p.first + pair) / used;
    gated_product(m, row_of(p.x, token * token_bytes(RF_QTYPE(), p.cells)), {}, 1, p.cells, p.out, pair);
}

// y (tokens, rows): residual plus the sum over a token's pairs of weight times (x @ w.T + bias). x has a row a
// pair; bias, residual and weights (of one, where logits give none) may be null. A block takes all pairs of a few rows,
// up to GROUPS products, so `used` is at most GROUPS.
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
};

// Grid: (rows / (GROUPS / used), tokens).
RF_MATVEC_GATED
rf_experts_down(ExpertsDownParams p) {
    RF_SHARED float results[GROUPS];
    u32 rank = thread_x() % GATED_LANES, group = thread_x() / GATED_LANES, token = block_y();
    u32 used = p.chosen.routing.used, together = GROUPS / used, first = together * block_x();
    // groups to spare do the last product again
    u32 choice = minimum(i32(group / together), i32(used - 1)), pair = token * used + choice, expert = pair;
    float weight = 1.0f;
    if (p.chosen.logits) {
        // they were there before the gated product began
        RF_SHARED Choice chosen;
        choose_and_weigh<GATED_THREADS>(chosen, p.chosen.logits + u64(token) * p.chosen.routing.experts,
                                        p.chosen.routing);
        expert = chosen.ids[choice], weight = chosen.weights[choice];
    } else {
        wait_for_previous();
        if (p.chosen.ids) expert = p.chosen.ids[pair];
        if (p.weights) weight = p.weights[pair];
    }
    u32 r = expert * p.rows + minimum(i32(first + group % together), p.rows - 1);
    const u8* row[1] = {row_of(p.w, u64(r) * RF_QTYPE::row_bytes(p.cells))};
    float sum[1][1] = {};
    accumulate<RF_QTYPE, 1>(sum, row, row_of(p.x, u64(pair) * token_bytes(RF_QTYPE(), p.cells)), 1, p.cells, rank,
                            GATED_LANES);
    reduce_group<1>(sum, GATED_LANES);
    if (rank == 0) results[group] = weight * (sum[0][0] + (p.bias ? p.bias[r] : 0.0f));
    barrier();
    u32 own = first + thread_x();
    if (thread_x() >= together || own >= u32(p.rows)) return;
    float total = 0.0f;
    for (u32 i = 0; i < used; ++i) total += results[i * together + thread_x()];
    u64 at = u64(token) * p.rows + own;
    p.y[at] = total + (p.residual ? p.residual[at] : 0.0f);
}

}  // namespace rocforge
