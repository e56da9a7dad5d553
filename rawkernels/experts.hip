// Mixture of experts, few tokens: products whose matrix the routing chooses.
//
// A token-expert pair is numbered token * used + choice. Every pair is a product of one token with its expert's matrix,
// found by the id that the kernel reads, so that a launch depends on shapes alone and a token gets the same result
// alone and in a batch. Compiled with RF_QTYPE, as products.h.
#define RF_TOKENS 1
#define RF_ROWS 1
#define RF_GATED_ROWS 1
#include "products.h"

namespace rocforge {

// variants: RF_QTYPE=KINDS,Floats<f16>,Floats<bf16>
// variants: RF_QTYPE=Floats<float>
const u32 GROUPS = GATED_THREADS / GATED_LANES;

// The expert of a pair; where ids is null, each pair has one of its own.
RF_DEVICE u32 expert_of(const i32* ids, u32 pair) { return ids ? ids[pair] : pair; }

// activation(x @ gate.T, x @ up.T) of each pair's expert, as `gated_product`, to y (pairs, rows) or to int8 rows. The
// first is pair `first` of the tokens in x. gate and up are (experts, rows, ...), biases (experts, rows).
struct ExpertsGatedParams {
    const void* x;
    u32 cells;
    RF_NULLABLE const i32* ids;
    u32 first, used;
    Gated matrices;
    GatedOutput out;
};

// Grid: (rows / BLOCK_ROWS, pairs).
RF_MATVEC_GATED
rf_experts_gated(ExpertsGatedParams p) {
    wait_for_previous();
    u32 pair = block_y(), bias_at = expert_of(p.ids, pair) * p.matrices.rows;
    u64 at = u64(bias_at) * RF_QTYPE::row_bytes(p.cells);
    Gated m = {row_of(p.matrices.gate, at), row_of(p.matrices.up, at), nullptr, nullptr, p.matrices.rows,
               p.matrices.activation};
    if (p.matrices.gate_bias) m.gate_bias = p.matrices.gate_bias + bias_at;
    if (p.matrices.up_bias) m.up_bias = p.matrices.up_bias + bias_at;
    u64 token = (p.first + pair) / p.used;
    gated_product(m, row_of(p.x, token * token_bytes(RF_QTYPE(), p.cells)), {}, 1, p.cells, p.out, pair);
}

// y (tokens, rows): residual plus the sum over a token's pairs of weight times (x @ w.T + bias). x has a row a
// pair; bias, residual and weights (of one) may be null. A block takes all pairs of a few rows, up to GROUPS
// products, so used is at most GROUPS. Grid: (rows / (GROUPS / used), tokens).
RF_MATVEC_GATED
rf_experts_down(const u8* x, i32 cells, const i32* ids, const float* weights, i32 used, const u8* w, const float* bias,
                const float* residual, float* y, i32 rows) {
    wait_for_previous();
    RF_SHARED float results[GROUPS];
    u32 rank = thread_x() % GATED_LANES, group = thread_x() / GATED_LANES, token = block_y();
    u32 together = GROUPS / used, first = together * block_x();
    // groups to spare do the last product again
    u32 choice = minimum(i32(group / together), used - 1), pair = token * used + choice;
    u32 r = expert_of(ids, pair) * rows + minimum(i32(first + group % together), rows - 1);
    const u8* row[1] = {w + u64(r) * RF_QTYPE::row_bytes(cells)};
    float sum[1][1] = {};
    accumulate<RF_QTYPE, 1>(sum, row, x + u64(pair) * token_bytes(RF_QTYPE(), cells), 1, cells, rank, GATED_LANES,
                            [] { load_grid<RF_QTYPE>(GATED_THREADS); });
    reduce_group<1>(sum, GATED_LANES);
    if (rank == 0) results[group] = (weights ? weights[pair] : 1.0f) * (sum[0][0] + (bias ? bias[r] : 0.0f));
    barrier();
    u32 own = first + thread_x();
    if (thread_x() >= together || own >= u32(rows)) return;
    float total = 0.0f;
    for (i32 i = 0; i < used; ++i) total += results[i * together + thread_x()];
    u64 at = u64(token) * rows + own;
    y[at] = total + (residual ? residual[at] : 0.0f);
}

}  // namespace rocforge
