// The switch between fibers, and the pool of their stacks.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <vector>

asm(R"(
    .text
    .globl hipsim_switch
    .hidden hipsim_switch
    .type hipsim_switch, @function
hipsim_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size hipsim_switch, .-hipsim_switch
)");

namespace hipsim {

constexpr size_t page = 4096, stacks_at_once = 64;
static std::vector<char*> free_stacks;
static std::vector<char*> slabs;

static void map_stacks() {
    size_t bytes = stacks_at_once * stack_bytes;
    void* slab = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) abort();
    slabs.push_back(static_cast<char*>(slab));
    for (size_t i = 0; i < stacks_at_once; i++) {
        char* stack = slabs.back() + i * stack_bytes;
        mprotect(stack, page, PROT_NONE);
        free_stacks.push_back(stack + stack_bytes - i * 64); // staggered, or all tops fall into the same cache sets
    }
}

char* take_stack() {
    if (free_stacks.empty()) map_stacks();
    char* top = free_stacks.back();
    free_stacks.pop_back();
    return top;
}

void give_stack(char* top) { free_stacks.push_back(top); }

bool in_stack_guard(const void* address) {
    for (char* slab : slabs) {
        size_t offset = static_cast<const char*>(address) - slab;
        if (address >= slab && offset < stacks_at_once * stack_bytes) return offset % stack_bytes < page;
    }
    return false;
}

void* prepare_fiber(char* top, void (*entry)()) {
    auto* stack = reinterpret_cast<void**>(top);
    *--stack = nullptr; // a return address for entry, and the alignment the ABI asks for
    *--stack = reinterpret_cast<void*>(entry);
    return stack - 6; // what hipsim_switch pops
}

} // namespace hipsim
