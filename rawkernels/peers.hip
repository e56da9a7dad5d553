// All-reduce of rows over memory that cards see of each other. Each card writes its part to the inbox of every other
// one, tells a word there, waits for the words in its own inbox, and sums. A card's block waits for that of the same
// number on the others alone, which wait for nothing before they have told; all blocks of a launch find room at a time.
//
// An inbox has two turns, each with a part from every card, taken in alternation: a card writes to a turn again only
// when all have told the other turn's words, and so have read this one.
#include "rows.h"

namespace rocforge {

constexpr u32 WIDTH = 16384, BLOCKS = 64;  // the most floats of a row, and rows
constexpr u32 PATIENCE = 1024;             // rounds of waiting after which a block looks whether it should end

struct Inbox {
    u8* memory;
    u32 cards;
    RF_MEMBER u32* word(u32 turn, u32 card, u32 block) const {
        return reinterpret_cast<u32*>(memory) + (turn * cards + card) * BLOCKS + block;
    }
    RF_MEMBER float* part(u32 turn, u32 card, u32 block) const {
        float* parts = reinterpret_cast<float*>(memory + u64(2) * cards * BLOCKS * 4);
        return parts + (u64(turn * cards + card) * BLOCKS + block) * WIDTH;
    }
};

RF_DEVICE Inbox inbox_of(const u64* inboxes, u32 card, u32 cards) {
    Inbox inbox;
    inbox.memory = const_cast<u8*>(in_memory(reinterpret_cast<const u8*>(inboxes[card]))), inbox.cards = cards;
    return inbox;
}

// x has `count` numbers, a block for each `n` of them, both multiples of 4; it becomes the sum, in the order of cards.
// `counters` (BLOCKS,) says how often each block has summed; `inboxes` where each card's is. Ends without a sum where
// `stop` is not zero. With a weight (n,) the sum's RMS norm is written too, of rows of n.
struct SumParams {
    float* x;
    const u64* inboxes;
    u32* counters;
    const u32* stop;
    u32 rank, cards, count, n;
    RF_NULLABLE const float* weight;
    RF_NULLABLE float* floats;
    RF_NULLABLE f16* fp16;
    RF_NULLABLE u8* quantized;
    u32 width;
    float eps;
};
RF_KERNEL(THREADS)
rf_sum_over_cards(SumParams p) {
    wait_for_previous();
    u32 block = block_x(), time = p.counters[block] + 1, turn = time % 2;
    u32 n = minimum(i32(p.n), i32(p.count - block * p.n));
    float* x = p.x + u64(block) * p.n;
    Row own(x, n), weights(p.weight, n, 1.0f);
    for (u32 card = 0; card < p.cards; ++card) {
        if (card == p.rank) continue;
        float* part = inbox_of(p.inboxes, card, p.cards).part(turn, p.rank, block);
        each_four(n, [&](u32 k, u32 i) {
            if (i < n) *reinterpret_cast<f32x4*>(part + i) = own.at(k, i);
        });
    }
    fence_for_cards();
    barrier();
    Inbox inbox = inbox_of(p.inboxes, p.rank, p.cards);
    u32 other = thread_x();
    if (other < p.cards && other != p.rank) {
        tell_cards(inbox_of(p.inboxes, other, p.cards).word(turn, p.rank, block), time);
        const u32* word = inbox.word(turn, other, block);
        for (u32 round = 1; hear_cards(word) != time; ++round)
            if (round % PATIENCE == 0 && hear_cards(p.stop)) break;
    }
    barrier();
    if (thread_x() == 0) p.counters[block] = time;
    const float* parts = inbox.part(turn, 0, block);
    f32x4 kept[KEPT] = {};
    float squared = 0.0f;
    each_four(n, [&](u32 k, u32 i) {
        if (i >= n) return;
        f32x4 mine = own.at(k, i), sum = p.rank ? load<f32x4>(parts + i) : mine;
        for (u32 card = 1; card < p.cards; ++card)
            sum = plus(sum, card == p.rank ? mine : load<f32x4>(parts + card * (BLOCKS * WIDTH) + i));
        if (k < KEPT) kept[k < KEPT ? k : 0] = sum;
        *reinterpret_cast<f32x4*>(x + i) = sum;
        squared += squares(sum);
    });
    if (!p.weight) return;
    float factor = fast_rsqrt(block_sum<THREADS>(squared) / float(n) + p.eps);
    Output output = {p.floats, p.fp16, {p.quantized, p.width, cells_of(n)}, n};
    each_four(output.end(), [&](u32 k, u32 i) {
        f32x4 v = k < KEPT ? kept[k < KEPT ? k : 0] : load4(x, i, n);
        output.write(i, scaled(v, factor, weights.at(k, i), make_f32x4(0, 0, 0, 0)));
    });
}

}  // namespace rocforge
