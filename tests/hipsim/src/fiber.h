// Threads of a block as fibers: a stack each, switched by hand. x86-64 only, as the wheel is.
#pragma once
#include <cstddef>

namespace hipsim {

// Saves the callee-saved registers and the stack pointer to *save, and goes on where `load` was saved.
extern "C" void hipsim_switch(void** save, void* load);

constexpr size_t stack_bytes = 256 << 10;
char* take_stack();            // the top of a stack; below its other end lies a guard page
void give_stack(char* top);
bool in_stack_guard(const void* address);
// The stack pointer from which hipsim_switch enters `entry`, which must not return.
void* prepare_fiber(char* top, void (*entry)());

} // namespace hipsim
