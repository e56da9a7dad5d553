// The adversary of launches that overlap (HIPSIM_OVERLAP=1): a kernel may begin before the one queued before it has
// written anything, and runs on until hipsim_wait_for_previous. So until its threads have come there, a block sees memory
// as it was before that kernel ran; and if that kernel let the next begin before it waited itself, as it was before the
// one before that. What a kernel reads too early is then old, each time. Any other work, such as a copy, is in order.
#include <algorithm>
#include <cstring>

#include "sim.h"

namespace hipsim {

struct Copy {
    char* base;
    std::vector<char> bytes;
};
// Memory that differed before, and what is not there now: its old content, or while that is there, its new one.
struct Piece {
    char* at;
    std::vector<char> other;
};

static std::vector<Copy> before, present; // memory before the last kernel, and before this one
static std::vector<Piece> changed;
static bool overlapping, is_old, next_may_begin;

static std::vector<Copy> copy_of_memory() {
    std::vector<Copy> copies;
    for_each_allocation([&](const Allocation& a) {
        if (a.owned && a.type == hipMemoryTypeDevice) copies.push_back({a.base, {a.base, a.base + a.size}});
    });
    return copies;
}

static std::vector<Piece> differences(const std::vector<Copy>& old) {
    constexpr size_t line = 64;
    std::vector<Piece> pieces;
    for (const Copy& copy : old) {
        const Allocation* a = find_allocation(copy.base);
        if (!a || a->base != copy.base || a->size != copy.bytes.size()) continue; // freed since
        for (size_t at = 0; at < a->size; at += line) {
            const char* bytes = copy.bytes.data() + at;
            size_t size = std::min(line, a->size - at);
            if (memcmp(a->base + at, bytes, size)) pieces.push_back({a->base + at, {bytes, bytes + size}});
        }
    }
    return pieces;
}

static void exchange() {
    for (Piece& piece : changed) std::swap_ranges(piece.other.begin(), piece.other.end(), piece.at);
    is_old = !is_old;
}

void begin_overlapping(const Kernel& kernel) {
    next_may_begin = false;
    overlapping = setting("HIPSIM_OVERLAP", 0) && kernel.name.rfind("cupy_", 0); // CuPy's own know nothing of it
    if (!setting("HIPSIM_OVERLAP", 0)) return before.clear();
    if (overlapping) changed = differences(before);
    present = copy_of_memory();
}

void begin_overlapping_block() {
    if (overlapping) exchange();
}

std::string end_overlapping_block() {
    if (!is_old) return "";
    exchange();
    return "it returned before it waited for the kernel queued before";
}

void end_overlapping() {
    if (!next_may_begin) before = std::move(present);
    present.clear();
    changed.clear();
    overlapping = false;
}

void end_of_overlap() { before.clear(); }

} // namespace hipsim

void hipsim_wait_for_previous() {
    if (!hipsim::overlapping) return;
    hipsim_barrier(0, {"wait_for_previous", "", 0});
    if (hipsim::is_old) hipsim::exchange(); // the first thread that goes on
}

void hipsim_let_next_begin() {
    if (hipsim::is_old) hipsim::next_may_begin = true;
}
