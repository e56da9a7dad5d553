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
static bool wanted, after_kernel, overlapping, is_old, next_may_begin;

// Into buffers that mostly fit, since allocations seldom come and go between two kernels.
static void copy_memory(std::vector<Copy>& copies) {
    size_t count = 0;
    for_each_allocation([&](const Allocation& a) {
        if (!a.owned || a.is_workspace || a.type != hipMemoryTypeDevice) return;
        if (count == copies.size()) copies.emplace_back();
        copies[count].base = a.base;
        copies[count++].bytes.assign(a.base, a.base + a.size);
    });
    copies.resize(count);
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
    wanted = setting("HIPSIM_OVERLAP", 0);
    next_may_begin = false;
    overlapping = wanted && kernel.name.rfind("cupy_", 0); // CuPy's own know nothing of it
    if (!wanted) return end_of_overlap();
    if (overlapping && after_kernel) changed = differences(before);
    copy_memory(present);
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
    if (!wanted) return;
    if (is_old) exchange(); // a fault ended the kernel before its block had waited
    if (!next_may_begin || !after_kernel) std::swap(before, present);
    after_kernel = true;
    changed.clear();
    overlapping = false;
}

void end_of_overlap() { after_kernel = false; }

} // namespace hipsim

void hipsim_wait_for_previous() {
    if (!hipsim::overlapping) return;
    hipsim_barrier(0, {"wait_for_previous", "", 0});
    if (hipsim::is_old) hipsim::exchange(); // the first thread that goes on
}

void hipsim_let_next_begin() {
    if (hipsim::is_old) hipsim::next_may_begin = true;
}
