// All-reduce of few numbers over memory that cards see of each other. Each card writes its part to the inbox of every
// card and tells a word there, in one launch; the next one waits for the words in its own inbox, and sums. So no launch
// waits for one of another card that waits itself.
//
// An inbox has two turns, each with a part from every card, taken in alternation: a card writes to a turn again only
// when all have told the other turn's words, and so have read this one.
#include "target/platform.h"

namespace rocforge {

constexpr u32 THREADS = 256, SEGMENT = 4 * THREADS, BLOCKS = 64;

struct Inbox {
    u8* memory;
    u32 cards;
    RF_MEMBER u32* word(u32 turn, u32 card, u32 block) const {
        return reinterpret_cast<u32*>(memory) + (turn * cards + card) * BLOCKS + block;
    }
    RF_MEMBER float* part(u32 turn, u32 card, u32 block) const {
        float* parts = reinterpret_cast<float*>(memory + u64(2) * cards * BLOCKS * 4);
        return parts + (u64(turn * cards + card) * BLOCKS + block) * SEGMENT;
    }
};

RF_DEVICE Inbox inbox_of(const u64* inboxes, u32 card, u32 cards) {
    Inbox inbox;
    inbox.memory = const_cast<u8*>(in_memory(reinterpret_cast<const u8*>(inboxes[card]))), inbox.cards = cards;
    return inbox;
}

// x has `count` numbers, a multiple of 4, a block for each SEGMENT of them. `counters` (BLOCKS,) says how often each
// block has summed; `inboxes` where each card's is.
RF_KERNEL(THREADS)
rf_tell_peers(const float* x, const u64* inboxes, const u32* counters, u32 rank, u32 cards, u32 count) {
    wait_for_previous();
    u32 block = block_x(), time = counters[block] + 1, turn = time % 2, i = 4 * thread_x();
    if (block * SEGMENT + i < count) {
        f32x4 own = load<f32x4>(x + block * SEGMENT + i);
        for (u32 card = 0; card < cards; ++card)
            *reinterpret_cast<f32x4*>(inbox_of(inboxes, card, cards).part(turn, rank, block) + i) = own;
    }
    fence_for_cards();
    barrier();
    u32 card = thread_x();
    if (card < cards) tell_cards(inbox_of(inboxes, card, cards).word(turn, rank, block), time);
}

// x becomes the sum, in the order of cards. Ends without one where `stop` is not zero.
RF_KERNEL(THREADS)
rf_sum_of_peers(float* x, const u64* inboxes, u32* counters, const u32* stop, u32 rank, u32 cards, u32 count) {
    wait_for_previous();
    u32 block = block_x(), time = counters[block] + 1, turn = time % 2, i = 4 * thread_x();
    Inbox inbox = inbox_of(inboxes, rank, cards);
    if (thread_x() < cards)
        while (hear_cards(inbox.word(turn, thread_x(), block)) != time && !hear_cards(stop)) {}
    barrier();
    if (thread_x() == 0) counters[block] = time;
    if (block * SEGMENT + i >= count) return;
    f32x4 sum = load<f32x4>(inbox.part(turn, 0, block) + i);
    for (u32 card = 1; card < cards; ++card) {
        f32x4 more = load<f32x4>(inbox.part(turn, card, block) + i);
        sum = make_f32x4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
    }
    *reinterpret_cast<f32x4*>(x + block * SEGMENT + i) = sum;
}

}  // namespace rocforge
