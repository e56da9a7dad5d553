// What a compiled kernel and the runtime know of each other. Included on both sides, so plain C++ without headers.
#pragma once

struct hipsim_dim3 {
    unsigned x, y, z;
};

struct hipsim_thread {
    hipsim_dim3 index;     // threadIdx
    unsigned linear, lane; // place in the block and in the wave
    unsigned long long active; // lanes that took part in the wave operation this thread last came out of
};

// Where a thread waits: the operation's name and its place in the source.
struct hipsim_site {
    const char* operation;
    const char* file;
    int line;
};

// One __global__ function (or, with call == nullptr, one variable) of a module, as the compiled module lists it.
struct hipsim_entry {
    const char* name;
    void* address;
    void (*call)(void* address, void** arguments);
    const unsigned* argument_sizes;
    unsigned arguments;
    unsigned max_threads;
    unsigned long long size; // of a variable
};

#pragma GCC visibility push(default)
extern "C" {
extern hipsim_thread* hipsim_self;
extern hipsim_dim3 hipsim_block_index, hipsim_block_dim, hipsim_grid_dim;
extern int hipsim_wave_size;
extern char hipsim_dynamic_lds[];

// Waits for the whole block; returns how many threads came with a non-zero predicate.
unsigned hipsim_barrier(unsigned predicate, hipsim_site site);
// Waits until `count` threads of the block are at the barrier of that number, as on NVIDIA.
void hipsim_named_barrier(unsigned number, unsigned count, hipsim_site site);
// Waits for the lanes in mask (0: the whole wave); returns the value each lane brought, indexed by lane.
const unsigned long long* hipsim_exchange(unsigned long long value, unsigned long long mask, hipsim_site site);
// The order of launches that overlap: see overlap.cpp.
void hipsim_wait_for_previous();
void hipsim_let_next_begin();
[[noreturn]] void hipsim_trap(const char* message, hipsim_site site);
}
#pragma GCC visibility pop
