// The target: AMD (hiprtc, or clang without HIP's headers), NVIDIA (NVRTC, nvcc) or the host (__HIPSIM__).
// Everything that differs between them is here, and kernels use these names alone.
//
// hiprtc and NVRTC put headers of their own before a program, which declare what they like at global scope. So our
// names live in namespace rocforge, macros begin with RF_, and kernels, which a module knows by their plain names, with
// rf_.
//
// RF_WAVE, the lanes of a wave (a warp), is 64 on gfx9, else 32; compile options say it where the target does not.
#pragma once

#if defined(__HIPSIM__)
#define RF_PLATFORM_HOST 1
#elif defined(__AMDGCN__)
#define RF_PLATFORM_AMD 1
#elif defined(__CUDACC__)
#define RF_PLATFORM_NVIDIA 1
#else
#error "platform.h knows AMD and NVIDIA device compilers, and the host under __HIPSIM__"
#endif

#ifndef RF_WAVE
#if defined(__GFX9__)
#define RF_WAVE 64
#else
#define RF_WAVE 32
#endif
#endif

// ---- The language: HIP's qualifiers; clang's attributes where there are no headers that bring them ----

#ifdef RF_PLATFORM_AMD
#define RF_GLOBAL __attribute__((global))
#define RF_FUNCTION __attribute__((device))
#define RF_SHARED __attribute__((shared))
// what HIP's headers make of __launch_bounds__; clang's own launch_bounds attribute does nothing for AMD
#define RF_BOUNDS(threads) __attribute__((amdgpu_flat_work_group_size(1, threads)))
#else
#define RF_GLOBAL __global__
#define RF_FUNCTION __device__
#define RF_SHARED __shared__
#define RF_BOUNDS(threads) __launch_bounds__(threads)
#endif

// Constant arrays in the device's memory.
#ifdef RF_PLATFORM_HOST
#define RF_TABLE static const
#else
#define RF_TABLE static RF_FUNCTION const
#endif

// RF_DEVICE functions, and RF_MEMBER functions of structs. The simulator runs a kernel for milliseconds: to inline
// everything would cost it more in compiling than it saves.
#ifdef RF_PLATFORM_HOST
#define RF_INLINE inline RF_FUNCTION
#else
#define RF_INLINE inline RF_FUNCTION __attribute__((always_inline))
#endif
#define RF_DEVICE static RF_INLINE
#define RF_MEMBER RF_INLINE
// Functions of constants, that run in the compiler.
#ifdef RF_PLATFORM_NVIDIA
#define RF_COMPILE_TIME __host__ __device__ constexpr
#else
#define RF_COMPILE_TIME constexpr
#endif
// RF_KERNEL(256) name(...) { ... }: launched under its own name, with blocks of at most 256 threads.
#define RF_KERNEL(threads) extern "C" RF_GLOBAL void RF_BOUNDS(threads)
// RF_KERNEL_WIDE(128, 512): a kernel that wants many loads in flight more than many waves. Compilers otherwise delay
// loads until their first use to save registers; here 512 threads a multiprocessor are enough for them, and on AMD as
// many a SIMD as the card's tuning has.
#if defined(RF_PLATFORM_NVIDIA)
#define RF_KERNEL_WIDE(threads, resident) extern "C" __global__ void __launch_bounds__(threads, (resident) / (threads))
#elif defined(RF_PLATFORM_AMD)
#define RF_KERNEL_WIDE(threads, resident)                                                                             \
    extern "C" RF_GLOBAL __attribute__((amdgpu_waves_per_eu(1, RF_TUNE_WIDE_SIMD_THREADS / RF_WAVE))) void RF_BOUNDS( \
        threads)
#else
#define RF_KERNEL_WIDE(threads, resident) RF_KERNEL(threads)
#endif
// RF_KERNEL_BOUND(256, 512): on NVIDIA no more registers than let 512 threads share a multiprocessor.
#ifdef RF_PLATFORM_NVIDIA
#define RF_KERNEL_BOUND(threads, resident) RF_KERNEL_WIDE(threads, resident)
#else
#define RF_KERNEL_BOUND(threads, resident) RF_KERNEL(threads)
#endif
// In a struct that a kernel takes: a pointer that may be null. rocforge.device.params reads such structs.
#define RF_NULLABLE
#ifdef __CUDACC_RTC__
#define RF_OFFSET(type, field) __INTADDR__(&((type*)0)->field)
#else
#define RF_OFFSET(type, field) __builtin_offsetof(type, field)
#endif
#ifdef RF_PLATFORM_NVIDIA
#define RF_MEMCPY memcpy
#else
#define RF_MEMCPY __builtin_memcpy
#endif
#if defined(__clang__) || defined(RF_PLATFORM_NVIDIA)
#define RF_UNROLL _Pragma("unroll")
#define RF_NO_UNROLL _Pragma("unroll 1")
#else
#define RF_UNROLL _Pragma("GCC unroll 64")
#define RF_NO_UNROLL _Pragma("GCC unroll 1")
#endif

namespace rocforge {

static_assert(RF_WAVE == 32 || RF_WAVE == 64, "RF_WAVE is 32 or 64");

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#ifdef RF_PLATFORM_AMD
RF_DEVICE u32 thread_x() { return __builtin_amdgcn_workitem_id_x(); }
RF_DEVICE u32 block_x() { return __builtin_amdgcn_workgroup_id_x(); }
RF_DEVICE u32 block_y() { return __builtin_amdgcn_workgroup_id_y(); }
RF_DEVICE u32 block_z() { return __builtin_amdgcn_workgroup_id_z(); }
#else
RF_DEVICE u32 thread_x() { return threadIdx.x; }
RF_DEVICE u32 block_x() { return blockIdx.x; }
RF_DEVICE u32 block_y() { return blockIdx.y; }
RF_DEVICE u32 block_z() { return blockIdx.z; }
#endif

// Lanes of a wave that share a row of a 16 x 16 operand of the matrix unit. Those of gfx11 16 apart hold the same.
#if defined(RF_PLATFORM_NVIDIA) || RF_WAVE == 64
const u32 FRAGMENT_LANES = 4;
#elif defined(__GFX11__)
const u32 FRAGMENT_LANES = 1;
#else
const u32 FRAGMENT_LANES = 2;
#endif

// Blocks have one dimension, so waves are runs of RF_WAVE threads.
RF_DEVICE u32 lane() { return thread_x() % RF_WAVE; }
RF_DEVICE u32 wave() { return thread_x() / RF_WAVE; }

// Every thread of the block waits; LDS and global writes before are seen after.
RF_DEVICE void barrier() {
#ifdef RF_PLATFORM_AMD
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
#else
    __syncthreads();
#endif
}

#ifndef RF_PLATFORM_AMD
// Barriers 1 to 15 of a block, of THREADS threads each, in whole waves. A number that is known takes one barrier,
// others take all 16.
template <u32 THREADS>
RF_DEVICE void wait_at_barrier(u32 number) {
#ifdef RF_PLATFORM_NVIDIA
    asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(THREADS) : "memory");
#else
    hipsim_named_barrier(number, THREADS);
#endif
}
template <u32 THREADS, u32 NUMBER>
RF_DEVICE void wait_at_barrier() {
#ifdef RF_PLATFORM_NVIDIA
    asm volatile("bar.sync %0, %1;" ::"n"(NUMBER), "n"(THREADS) : "memory");
#else
    hipsim_named_barrier(NUMBER, THREADS);
#endif
}
#endif

// The lanes of a wave wait for each other; LDS writes before are seen by the wave after.
RF_DEVICE void wave_barrier() {
#if defined(RF_PLATFORM_AMD)
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
#else
    __syncwarp();
#endif
}

// AMD's compiler moves no instruction across this, so that an unrolled loop does not load for all its rounds at once.
RF_DEVICE void schedule_barrier() {
#ifdef RF_PLATFORM_AMD
    __builtin_amdgcn_sched_barrier(0);
#endif
}

// The same number, which all lanes share, opaque to AMD's compiler: it computes what follows from it here, where it
// would otherwise keep every address that an unrolled loop will need, and run out of registers.
RF_DEVICE u32 rematerialize(u32 shared_by_lanes) {
#ifdef RF_PLATFORM_AMD
    asm volatile("" : "+s"(shared_by_lanes));
#endif
    return shared_by_lanes;
}

// AMD's compiler computes x before anything that follows from a rematerialize after this, where it might else load for
// that first.
RF_DEVICE void materialize(float& x) {
#ifdef RF_PLATFORM_AMD
    asm volatile("" : "+v"(x));
#endif
}

// AMD's compiler unpacks a load no earlier than here, where it might else wait for that before it loads something else.
template <class T>
RF_DEVICE void used_from_here(T& loaded) {
#ifdef RF_PLATFORM_AMD
    asm volatile("" : "+v"(loaded));
#endif
}

// A pointer that was itself read from memory: AMD's compiler then knows that it points there too, and not to LDS.
template <class T>
RF_DEVICE const T* in_memory(const T* p) {
#ifdef RF_PLATFORM_AMD
    return (const T*)(const T __attribute__((address_space(1)))*)(u64)p;
#else
    return p;
#endif
}

// The same address, which NVIDIA's compiler keeps in registers, where it might else compute it again at each load.
RF_DEVICE const u8* computed_once(const u8* p) {
#ifdef RF_PLATFORM_NVIDIA
    asm("" : "+l"(p));
#endif
    return p;
}

// The same word, of which NVIDIA's compiler computes all bits at once, where it might else compute those that each use
// needs apart.
RF_DEVICE u32 computed_once(u32 word) {
#ifdef RF_PLATFORM_NVIDIA
    asm("" : "+r"(word));
#endif
    return word;
}

// A constant that NVIDIA's compiler leaves in a register, where it might else put it there again for each use. It is
// made of what that cannot know: that there are fewer multiprocessors than 2^31.
RF_DEVICE u32 in_register(u32 constant) {
#ifdef RF_PLATFORM_NVIDIA
    u32 multiprocessors;
    asm("mov.u32 %0, %%nsmid;" : "=r"(multiprocessors));
    constant ^= multiprocessors >> 31;
#endif
    return constant;
}

// In a captured graph on NVIDIA a kernel begins while the one queued before it still runs (programmatic dependent
// launch), once all of that one's blocks have waited for the one before themselves. So every thread of every kernel
// calls wait_for_previous() before it reads or writes what the kernel queued before it may write or read, and before it
// returns. What lies before can load weights, and what older kernels of the graph wrote. A kernel whose successor loads
// weights alone may let_next_begin() before it waits itself. On AMD nothing can be gained so.
#ifdef RF_PLATFORM_AMD
const bool LOADS_BEFORE_WAIT = false;
#else
const bool LOADS_BEFORE_WAIT = true;
#endif
RF_DEVICE void let_next_begin() {
#if defined(RF_PLATFORM_NVIDIA) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#elif defined(RF_PLATFORM_HOST)
    hipsim_let_next_begin();
#endif
}
RF_DEVICE void wait_for_previous() {
#if defined(RF_PLATFORM_NVIDIA) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#elif defined(RF_PLATFORM_HOST)
    hipsim_wait_for_previous();
#endif
    let_next_begin();
}

// A kernel that is compiled with RF_BESIDE runs beside the one queued before it, of which it reads nothing: it calls
// wait_unless_beside() where others wait, and wait_beside() before it returns, so that who waits for it has waited for
// that one too. What comes after it may read before its own wait only what was there before that one.
#ifndef RF_BESIDE
#define RF_BESIDE 0
#endif
RF_DEVICE void wait_unless_beside() {
    if (RF_BESIDE)
        let_next_begin();
    else
        wait_for_previous();
}
RF_DEVICE void wait_beside() {
    if (RF_BESIDE) wait_for_previous();
}

// Calls f(true) once the kernel has waited. NVIDIA fetches instructions when a block comes to them, which may take
// longer than what they do: so before that, if it `can`, f(false) does the same with what nobody writes, and writes
// nothing. It is for kernels whose blocks find room while the one before still runs.
template <class F>
RF_DEVICE void rehearsed(F f, bool can) {
    RF_NO_UNROLL
    for (u32 turn = LOADS_BEFORE_WAIT && can ? 0 : 1; turn < 2; ++turn) {
        if (turn) wait_for_previous();
        f(turn == 1);
    }
}

// A word that blocks of the device count in, and the old value: writes of a block before a barrier, and before it
// counts, are seen by who counts later, or reads a later value, and by its block after a barrier.
RF_DEVICE u32 count_in(u32* word, u32 n) {
#if defined(RF_PLATFORM_AMD)
    return __hip_atomic_fetch_add(word, n, __ATOMIC_ACQ_REL, __HIP_MEMORY_SCOPE_AGENT);
#elif defined(RF_PLATFORM_NVIDIA)
    u32 old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(word), "r"(n) : "memory");
    return old;
#else
    return __atomic_fetch_add(word, n, __ATOMIC_ACQ_REL);
#endif
}
RF_DEVICE u32 counted(const u32* word) {
#if defined(RF_PLATFORM_AMD)
    return __hip_atomic_load(word, __ATOMIC_ACQUIRE, __HIP_MEMORY_SCOPE_AGENT);
#elif defined(RF_PLATFORM_NVIDIA)
    u32 value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
#else
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
#endif
}
// Before the first of these barriers, on the threads that have written, and after the second, on those that read. PTX
// orders what is before a barrier before what is counted after.
RF_DEVICE void fence_for_blocks() {
#if defined(RF_PLATFORM_AMD)
    __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "agent");
#elif defined(RF_PLATFORM_HOST)
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

// A word that threads of other cards read, or write, in memory that they share: writes of the block before a barrier,
// and before the word is told, are seen by who has heard it, and by its block after a barrier.
RF_DEVICE void tell_cards(u32* word, u32 value) {
#if defined(RF_PLATFORM_AMD)
    __hip_atomic_store(word, value, __ATOMIC_RELEASE, __HIP_MEMORY_SCOPE_SYSTEM);
#elif defined(RF_PLATFORM_NVIDIA)
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
#else
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
#endif
}
RF_DEVICE u32 hear_cards(const u32* word) {
#if defined(RF_PLATFORM_AMD)
    return __hip_atomic_load(word, __ATOMIC_ACQUIRE, __HIP_MEMORY_SCOPE_SYSTEM);
#elif defined(RF_PLATFORM_NVIDIA)
    u32 value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
#else
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
#endif
}
// Before that barrier, on the threads that have written. PTX orders what is before a barrier before what is told after.
RF_DEVICE void fence_for_cards() {
#if defined(RF_PLATFORM_AMD)
    __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "");
#elif defined(RF_PLATFORM_HOST)
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

// ---- Bits and memory ----

RF_DEVICE u32 float_bits(float x) {
    u32 bits;
    RF_MEMCPY(&bits, &x, 4);
    return bits;
}
RF_DEVICE float bits_float(u32 bits) {
    float x;
    RF_MEMCPY(&x, &bits, 4);
    return x;
}

RF_DEVICE float infinity() { return bits_float(0x7f800000); }

// 16 and 8 bytes that load and store as one instruction; elements by .x .y .z .w
#ifdef __clang__
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
typedef u32 u32x2 __attribute__((ext_vector_type(2)));
typedef float f32x4 __attribute__((ext_vector_type(4)));
RF_DEVICE u32x4 make_u32x4(u32 x, u32 y, u32 z, u32 w) { return u32x4{x, y, z, w}; }
RF_DEVICE f32x4 make_f32x4(float x, float y, float z, float w) { return f32x4{x, y, z, w}; }
#else
struct alignas(16) u32x4 {
    u32 x, y, z, w;
};
struct alignas(8) u32x2 {
    u32 x, y;
};
struct alignas(16) f32x4 {
    float x, y, z, w;
};
RF_DEVICE u32x4 make_u32x4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
RF_DEVICE f32x4 make_f32x4(float x, float y, float z, float w) { return {x, y, z, w}; }
#endif

template <class T>
RF_DEVICE T load(const void* p) {
    return *reinterpret_cast<const T*>(p);
}

// A load of weights: read once, so not worth a place in the first-level cache. p is aligned to the size of T. A source
// whose weights are in LDS when it reads them defines RF_WEIGHTS_IN_LDS first.
template <class T>
RF_DEVICE T load_once(const void* p) {
#if defined(RF_WEIGHTS_IN_LDS)
    return load<T>(p);
#elif defined(RF_PLATFORM_NVIDIA)
    if constexpr (sizeof(T) == 16) {
        u32x4 v;
        // volatile keeps it where the source has it: early, with the others, before the first use
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "l"(p));
        return reinterpret_cast<const T&>(v);
    }
    return *reinterpret_cast<const T*>(p);
#elif defined(RF_PLATFORM_AMD)
    return __builtin_nontemporal_load(reinterpret_cast<const T*>(p));
#else
    return *reinterpret_cast<const T*>(p);
#endif
}

// A load that stays where the source has it, for a value that is needed much later.
RF_DEVICE float load_early(const float* p) {
#ifdef RF_PLATFORM_NVIDIA
    float v;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
#else
    return *p;
#endif
}

// Asks for the 128 bytes at p to be brought into the last cache.
RF_DEVICE void prefetch(const void* p) {
#ifdef RF_PLATFORM_NVIDIA
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

// ---- Lanes: all lanes of the wave take part in each of these ----

#ifdef RF_PLATFORM_AMD
template <class T>
RF_DEVICE T shuffle(T value, u32 from) {
    static_assert(sizeof(T) == 4, "shuffle moves 4 bytes");
    i32 bits;
    RF_MEMCPY(&bits, &value, 4);
    bits = __builtin_amdgcn_ds_bpermute(from << 2, bits);
    RF_MEMCPY(&value, &bits, 4);
    return value;
}
RF_DEVICE u64 wave_ballot(bool predicate) {
#if RF_WAVE == 64
    return __builtin_amdgcn_ballot_w64(predicate);
#else
    return __builtin_amdgcn_ballot_w32(predicate);
#endif
}
#elif defined(RF_PLATFORM_NVIDIA)
template <class T>
RF_DEVICE T shuffle(T value, u32 from) {
    return __shfl_sync(0xffffffffu, value, from);
}
RF_DEVICE u64 wave_ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }
#else
template <class T>
RF_DEVICE T shuffle(T value, u32 from) {
    return __shfl(value, from);
}
RF_DEVICE u64 wave_ballot(bool predicate) { return __ballot(predicate); }
#endif

// The number of the lowest set bit of a mask that has one.
RF_DEVICE u32 lowest_bit(u64 mask) {
#ifdef RF_PLATFORM_NVIDIA
    return __ffsll(mask) - 1;
#else
    return __builtin_ctzll(mask);
#endif
}

// How many bits of a mask are set.
RF_DEVICE u32 set_bits(u64 mask) {
#ifdef RF_PLATFORM_NVIDIA
    return __popcll(mask);
#else
    return __builtin_popcountll(mask);
#endif
}

// The value of the lane whose number differs in the bits of mask; a compile-time mask.
template <u32 MASK, class T>
RF_DEVICE T shuffle_xor(T value) {
    static_assert(MASK < RF_WAVE, "shuffle_xor stays in the wave");
#if defined(RF_PLATFORM_NVIDIA)
    return __shfl_xor_sync(0xffffffffu, value, MASK);
#elif defined(RF_PLATFORM_AMD)
    static_assert(sizeof(T) == 4, "shuffle_xor moves 4 bytes");
    i32 bits;
    RF_MEMCPY(&bits, &value, 4);
    if constexpr (MASK == 1) {
        bits = __builtin_amdgcn_update_dpp(0, bits, 0xb1, 0xf, 0xf, true);  // quad_perm(1, 0, 3, 2)
    } else if constexpr (MASK == 2) {
        bits = __builtin_amdgcn_update_dpp(0, bits, 0x4e, 0xf, 0xf, true);  // quad_perm(2, 3, 0, 1)
    } else if constexpr (MASK == 4) {  // reversed in runs of 8, then of 4: no trip through LDS
        bits = __builtin_amdgcn_update_dpp(0, bits, 0x141, 0xf, 0xf, true);
        bits = __builtin_amdgcn_update_dpp(0, bits, 0x1b, 0xf, 0xf, true);
    } else if constexpr (MASK == 8) {  // reversed in runs of 16, then of 8
        bits = __builtin_amdgcn_update_dpp(0, bits, 0x140, 0xf, 0xf, true);
        bits = __builtin_amdgcn_update_dpp(0, bits, 0x141, 0xf, 0xf, true);
#ifndef __GFX9__
    } else if constexpr (MASK == 16) {
        bits = __builtin_amdgcn_permlanex16(bits, bits, 0x76543210, 0xfedcba98, true, false);
        // LLVM 19 sinks this instruction into a branch that its result is used in, where the other lanes are off
        asm volatile("" : "+v"(bits));
#endif
    } else {
        bits = __builtin_amdgcn_ds_bpermute((lane() ^ MASK) << 2, bits);
    }
    RF_MEMCPY(&value, &bits, 4);
    return value;
#else
    return __shfl_xor(value, MASK);
#endif
}

#ifdef RF_PLATFORM_NVIDIA  // NVRTC has these under their C names alone
RF_DEVICE float maximum(float a, float b) { return fmaxf(a, b); }
RF_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
RF_DEVICE float minimum(float a, float b) { return fminf(a, b); }
RF_DEVICE float absolute(float x) { return fabsf(x); }
RF_DEVICE float square_root(float x) { return sqrtf(x); }
#else
RF_DEVICE float maximum(float a, float b) { return __builtin_fmaxf(a, b); }
RF_DEVICE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
RF_DEVICE float minimum(float a, float b) { return __builtin_fminf(a, b); }
RF_DEVICE float absolute(float x) { return __builtin_fabsf(x); }
RF_DEVICE float square_root(float x) { return __builtin_sqrtf(x); }
#endif
RF_DEVICE i32 maximum(i32 a, i32 b) { return a > b ? a : b; }
RF_DEVICE i32 minimum(i32 a, i32 b) { return a < b ? a : b; }
// Of constants.
RF_COMPILE_TIME u32 at_most(u32 n, u32 limit) { return n < limit ? n : limit; }
RF_COMPILE_TIME u32 at_least(u32 n, u32 limit) { return n > limit ? n : limit; }

struct Add {
    template <class T>
    RF_MEMBER T operator()(T a, T b) const {
        return a + b;
    }
};
struct Maximum {
    template <class T>
    RF_MEMBER T operator()(T a, T b) const {
        return maximum(a, b);
    }
};

// Every lane gets the combined value of its run of LANES lanes (a power of two).
template <u32 LANES, class Combine, class T>
RF_DEVICE T reduce_lanes(T value, Combine combine) {
    if constexpr (LANES > 1) value = combine(value, shuffle_xor<1>(value));
    if constexpr (LANES > 2) value = combine(value, shuffle_xor<2>(value));
    if constexpr (LANES > 4) value = combine(value, shuffle_xor<4>(value));
    if constexpr (LANES > 8) value = combine(value, shuffle_xor<8>(value));
    if constexpr (LANES > 16) value = combine(value, shuffle_xor<16>(value));
    if constexpr (LANES > 32) value = combine(value, shuffle_xor<32>(value));
    return value;
}

template <class T>
RF_DEVICE T wave_sum(T value) {
    return reduce_lanes<RF_WAVE>(value, Add());
}
template <class T>
RF_DEVICE T wave_max(T value) {
    return reduce_lanes<RF_WAVE>(value, Maximum());
}

// Every thread of a block of THREADS (a multiple of RF_WAVE) gets the combined value; all must call it.
template <u32 THREADS, class Combine, class T>
RF_DEVICE T block_reduce(T value, Combine combine) {
    static_assert(THREADS % RF_WAVE == 0, "a block is whole waves");
    value = reduce_lanes<RF_WAVE>(value, combine);
    if constexpr (THREADS == RF_WAVE) return value;
    RF_SHARED T parts[THREADS / RF_WAVE];
    barrier();  // a previous call's parts have been read
    if (lane() == 0) parts[wave()] = value;
    barrier();
    value = parts[0];
    RF_UNROLL
    for (u32 i = 1; i < THREADS / RF_WAVE; ++i) value = combine(value, parts[i]);
    return value;
}
template <u32 THREADS, class T>
RF_DEVICE T block_sum(T value) {
    return block_reduce<THREADS>(value, Add());
}
template <u32 THREADS, class T>
RF_DEVICE T block_max(T value) {
    return block_reduce<THREADS>(value, Maximum());
}

// The old value; relaxed order, seen by the whole device.
template <class T>
RF_DEVICE T atomic_add(T* p, T value) {
#ifdef RF_PLATFORM_AMD
    return __hip_atomic_fetch_add(p, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
#else
    return atomicAdd(p, value);
#endif
}

// ---- Integer arithmetic on packed bytes ----

// c plus the dot product of four signed bytes.
RF_DEVICE i32 dot4(u32 a, u32 b, i32 c) {
#if defined(RF_PLATFORM_NVIDIA)
    i32 d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
#elif defined(RF_PLATFORM_AMD)
#if defined(__GFX11__) || defined(__GFX12__)
    return __builtin_amdgcn_sudot4(true, a, true, b, c, false);
#else
    return __builtin_amdgcn_sdot4(a, b, c, false);
#endif
#else
    for (int i = 0; i < 32; i += 8) c += i32(i8(a >> i)) * i32(i8(b >> i));
    return c;
#endif
}

// Four bytes of the eight in (high, low), each picked by the low 3 bits of a byte of `index`, other bits zero.
RF_DEVICE u32 pick_bytes(u32 high, u32 low, u32 index) {
#if defined(RF_PLATFORM_AMD)
    return __builtin_amdgcn_perm(high, low, index);
#elif defined(RF_PLATFORM_NVIDIA)
    return __byte_perm(low, high, (index & 7) | (index >> 4 & 0x70) | (index >> 8 & 0x700) | (index >> 12 & 0x7000));
#else
    u32 picked = 0;
    for (int i = 0; i < 32; i += 8) {
        u32 k = index >> i & 7;
        picked |= (k < 4 ? low >> 8 * k & 255 : high >> 8 * (k - 4) & 255) << i;
    }
    return picked;
#endif
}

#ifdef RF_PLATFORM_NVIDIA
// Four bytes of the eight in (high, low); a selector of 8 and more gives the sign of the byte that its other bits pick,
// eight times. __byte_perm would first clear that bit of each.
RF_DEVICE u32 prmt(u32 low, u32 high, u32 selectors) {
    u32 picked;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(picked) : "r"(low), "r"(high), "r"(selectors));
    return picked;
}
#endif

// (x & mask) | bits in one instruction; mask and bits are constants.
RF_DEVICE u32 and_or(u32 x, u32 mask, u32 bits) {
#ifdef RF_PLATFORM_NVIDIA
    // written out, as the compiler makes two of it rather than put one of the constants in a register
    u32 y;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(bits));
    return y;
#else
    return (x & mask) | bits;
#endif
}

// Words of LDS, a power of two of them, that are aligned to their size. A block's LDS itself begins at a multiple of 1
// KiB on NVIDIA, so what is larger is aligned within more. Every call gives the same memory.
template <u32 WORDS>
RF_DEVICE u32* aligned_lds() {
#ifdef RF_PLATFORM_NVIDIA
    const u32 SIZE = 4 * WORDS, UNIT = 1024, SLACK = SIZE > UNIT ? SIZE - UNIT : 0;
    RF_SHARED struct {
        alignas(SIZE < UNIT ? SIZE : UNIT) u8 bytes[SIZE + SLACK];
    } room;
    u32 at = (u32(__cvta_generic_to_shared(room.bytes)) + SLACK) & ~(SIZE - 1);
    return static_cast<u32*>(__cvta_shared_to_generic(at));
#else
    RF_SHARED u32 words[WORDS];
    return words;
#endif
}

// The word of a table in aligned LDS that lies at those bits of `offset` that are in `mask`: on NVIDIA one instruction
// makes an address of both.
RF_DEVICE u32 load_masked(const u32* table, u32 offset, u32 mask) {
#ifdef RF_PLATFORM_NVIDIA
    u32 base = u32(__cvta_generic_to_shared(table));
    return *reinterpret_cast<const u32*>(__cvta_shared_to_generic(and_or(offset, mask, base)));
#else
    return *reinterpret_cast<const u32*>(reinterpret_cast<const u8*>(table) + (offset & mask));
#endif
}

// All bits of each byte whose highest is set.
RF_DEVICE u32 byte_signs(u32 word) {
#ifdef RF_PLATFORM_NVIDIA
    return prmt(word, word, 0xba98);
#else
    return (word >> 7 & 0x01010101) * 255;
#endif
}

// A number below 2^23, as a float.
RF_DEVICE float small_float(u32 n) {
#ifdef RF_PLATFORM_NVIDIA
    return bits_float(0x4b000000 | n) - 8388608.0f;  // in the last places of 2^23: a sum takes no conversion's place
#else
    return float(n);
#endif
}

// Sums that begin with FLOAT_ZERO instead of 0, and stay within 2^22, as floats.
#ifdef RF_PLATFORM_NVIDIA
const i32 FLOAT_ZERO = 0x4b400000;  // 1.5 * 2^23
RF_DEVICE float sum_float(i32 sum) { return bits_float(u32(sum)) - 12582912.0f; }
#else
const i32 FLOAT_ZERO = 0;
RF_DEVICE float sum_float(i32 sum) { return float(sum); }
#endif

// Byte i of a word, 0 to 255, less ZERO, as a float.
template <u32 ZERO = 0>
RF_DEVICE float byte_float(u32 word, u32 i) {
#ifdef RF_PLATFORM_NVIDIA
    // in the last places of 2^23: conversions run at a quarter of the rate of sums
    return bits_float(__byte_perm(word, 0x4b000000, 0x7440 | i)) - (8388608.0f + ZERO);
#else
    return float(word >> 8 * i & 255) - float(ZERO);
#endif
}

// Eight selectors of bytes, of four bits, in a word as the target likes them: number i at bit selector_at(i). Four of
// its first half or its second are what pick_selected takes.
#ifdef RF_PLATFORM_NVIDIA
RF_COMPILE_TIME static u32 selector_at(u32 i) { return 4 * i; }
RF_DEVICE u32 selectors(u32 word, u32 half) { return word >> 16 * half; }
#else
RF_COMPILE_TIME static u32 selector_at(u32 i) { return 8 * (i % 4) + i / 4 * 4; }
RF_DEVICE u32 selectors(u32 word, u32 half) { return word >> 4 * half & 0x0f0f0f0f; }
#endif

// Four bytes of the eight in (high, low), by selectors of 0 to 7.
RF_DEVICE u32 pick_selected(u32 high, u32 low, u32 selectors) {
#ifdef RF_PLATFORM_NVIDIA
    return prmt(low, high, selectors);
#else
    return pick_bytes(high, low, selectors);
#endif
}

// Four entries of a table of 16 bytes (t0 has the first four), one for each byte of `index`, a byte being 0 to 15.
RF_DEVICE u32 lookup16(u32 t0, u32 t1, u32 t2, u32 t3, u32 index) {
#ifdef RF_PLATFORM_NVIDIA
    // prmt takes its selectors as nibbles: put the four in the low half
    u32 n = index | index >> 4;
    n = __byte_perm(n, 0, 0x4420);
    u32 low = __byte_perm(t0, t1, n & 0x7777), high = __byte_perm(t2, t3, n & 0x7777);
    return __byte_perm(low, high, 0x3210 | (n & 0x8888) >> 1);
#else
    u32 low = pick_bytes(t1, t0, index & 0x07070707), high = pick_bytes(t3, t2, index & 0x07070707);
    return pick_bytes(high, low, 0x03020100 | (index & 0x08080808) >> 1);
#endif
}

// The same by the first or second half of a word of selectors.
RF_DEVICE u32 select16(u32 t0, u32 t1, u32 t2, u32 t3, u32 word, u32 half) {
#ifdef RF_PLATFORM_NVIDIA
    u32 within = computed_once(word & 0x77777777), which = computed_once(0x32103210 | (word >> 1 & 0x44444444));
    u32 low = prmt(in_register(t0), t1, within >> 16 * half), high = prmt(in_register(t2), t3, within >> 16 * half);
    return prmt(low, high, which >> 16 * half);
#else
    u32 index = word >> 4 * half;
    u32 low = pick_bytes(t1, t0, index & 0x07070707), high = pick_bytes(t3, t2, index & 0x07070707);
    return pick_bytes(high, low, 0x03020100 | (index & 0x08080808) >> 1);
#endif
}

// ---- Floating point ----

// Quantized products and sums that are not contracted into a fused multiply-add, and keep subnormals on NVIDIA.
RF_DEVICE float mul_rn(float a, float b) {
#if defined(RF_PLATFORM_NVIDIA)
    float c;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
    return c;
#elif defined(RF_PLATFORM_AMD)
#pragma clang fp contract(off)
    return a * b;
#else
    float c = a * b;
    asm("" : "+x"(c));  // the compiler may not look through this
    return c;
#endif
}
RF_DEVICE float add_rn(float a, float b) {
#if defined(RF_PLATFORM_NVIDIA)
    float c;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
    return c;
#elif defined(RF_PLATFORM_AMD)
#pragma clang fp contract(off)
    return a + b;
#else
    asm("" : "+x"(a), "+x"(b));
    return a + b;
#endif
}
RF_DEVICE float sub_rn(float a, float b) { return add_rn(a, -b); }

// Approximations of a few units in the last place.
RF_DEVICE float fast_exp2(float x) {
#if defined(RF_PLATFORM_NVIDIA)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#elif defined(RF_PLATFORM_AMD)
    return __builtin_amdgcn_exp2f(x);
#else
    return __builtin_exp2f(x);
#endif
}
RF_DEVICE float fast_exp(float x) { return fast_exp2(x * 1.4426950408889634f); }
RF_DEVICE float fast_log(float x) {
#if defined(RF_PLATFORM_NVIDIA)
    return __logf(x);
#elif defined(RF_PLATFORM_AMD)
    return __builtin_amdgcn_logf(x) * 0.6931471805599453f;
#else
    return __builtin_logf(x);
#endif
}
RF_DEVICE float fast_reciprocal(float x) {
#if defined(RF_PLATFORM_NVIDIA)
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#elif defined(RF_PLATFORM_AMD)
    return __builtin_amdgcn_rcpf(x);
#else
    return 1.0f / x;
#endif
}
RF_DEVICE float fast_rsqrt(float x) {
#if defined(RF_PLATFORM_NVIDIA)
    return rsqrtf(x);
#elif defined(RF_PLATFORM_AMD)
    return __builtin_amdgcn_rsqf(x);
#else
    return 1.0f / square_root(x);
#endif
}
// To the nearest integer, ties to even.
RF_DEVICE i32 round_int(float x) {
#ifdef RF_PLATFORM_NVIDIA
    return __float2int_rn(x);
#else
    return i32(__builtin_rintf(x));
#endif
}

// Without overflow: tanh(x) = 1 - 2 / (exp(2x) + 1), and its series where that cancels.
RF_DEVICE float fast_tanh(float x) {
    float square = x * x;
    if (square < 0.01f) return x * (1.0f + square * (-0.33333334f + square * (0.13333334f - square * 0.05396825f)));
    return 1.0f - 2.0f * fast_reciprocal(fast_exp(2.0f * x) + 1.0f);
}

// 16-bit floats in memory. Arithmetic is in float: to_float(x), from_float<f16>(y), rounded to nearest even.
struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

RF_DEVICE float to_float(float x) { return x; }
RF_DEVICE float to_float(bf16 x) { return bits_float(u32(x.bits) << 16); }
RF_DEVICE float to_float(f16 x) {
#if defined(RF_PLATFORM_NVIDIA)
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#elif defined(RF_PLATFORM_AMD)
    _Float16 h;
    RF_MEMCPY(&h, &x.bits, 2);
    return float(h);
#else
    u32 sign = u32(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return bits_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    // scaling by 2^112 turns half's exponents, subnormal ones too, into float's
    return bits_float(sign | float_bits(bits_float(rest << 13) * bits_float(0x77800000)));
#endif
}
RF_DEVICE float low_half(u32 pair) { return to_float(f16{u16(pair)}); }
RF_DEVICE float high_half(u32 pair) { return to_float(f16{u16(pair >> 16)}); }

RF_DEVICE void round_into(float& y, float x) { y = x; }
RF_DEVICE void round_into(bf16& y, float x) {
    u32 bits = float_bits(x);
    bool nan = (bits & 0x7fffffff) > 0x7f800000;
    y.bits = u16(nan ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
RF_DEVICE void round_into(f16& y, float x) {
#if defined(RF_PLATFORM_NVIDIA)
    // a word, since of a 16-bit register with a float ptxas converts the value where a byte of it is stored
    u32 word;
    asm("{ .reg .b16 half; cvt.rn.f16.f32 half, %1; mov.b32 %0, {half, 0}; }" : "=r"(word) : "f"(x));
    y.bits = u16(word);
#elif defined(RF_PLATFORM_AMD)
    _Float16 h = _Float16(x);
    RF_MEMCPY(&y.bits, &h, 2);
#else
    u32 bits = float_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) {
        y.bits = u16(sign | 0x7e00);
    } else if (rest >= 0x477ff000) {  // rounds past the largest half, 65504
        y.bits = u16(sign | 0x7c00);
    } else if (rest < 0x38800000) {  // subnormal: adding 0.5 puts the last place at half's
        y.bits = u16(sign | (float_bits(bits_float(rest) + 0.5f) - 0x3f000000));
    } else {
        y.bits = u16(sign | (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13);
    }
#endif
}
template <class T>
RF_DEVICE T from_float(float x) {
    T y;
    round_into(y, x);
    return y;
}

// What float16 cannot hold becomes its largest value; infinities and NaNs stay.
RF_DEVICE float clamp_fp16(float x) {
    float cut = maximum(minimum(x, 65504.0f), -65504.0f);
    return absolute(x) < infinity() ? cut : x;
}

// Pairs of float16 in a word, the first in its low half.
RF_DEVICE u32 pack_fp16(float low, float high) {
#if defined(RF_PLATFORM_NVIDIA) && __CUDA_ARCH__ >= 800
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#endif
    return from_float<f16>(low).bits | u32(from_float<f16>(high).bits) << 16;
}

// ---- OCP's e4m3 ----

// Four floats of a word's bytes, to be multiplied by FP8_UNIT. No byte is a NaN or a negative zero.
#if defined(RF_PLATFORM_AMD) && (defined(__gfx942__) || defined(__gfx950__) || defined(__GFX12__))
#ifdef __gfx942__
const float FP8_UNIT = 2;  // its own format has an exponent bias of one more, and else the same numbers
#else
const float FP8_UNIT = 1;
#endif
RF_DEVICE void fp8_floats(float* x, u32 word) {
    auto low = __builtin_amdgcn_cvt_pk_f32_fp8(word, false), high = __builtin_amdgcn_cvt_pk_f32_fp8(word, true);
    x[0] = low[0], x[1] = low[1], x[2] = high[0], x[3] = high[1];
}
#else
#if defined(RF_PLATFORM_NVIDIA) && __CUDA_ARCH__ >= 890
const float FP8_UNIT = 1;
#else
const float FP8_UNIT = 256;  // float16's exponent bias is 8 more
#endif
RF_DEVICE void fp8_floats(float* x, u32 word) {
    u32 low, high;
#if defined(RF_PLATFORM_NVIDIA) && __CUDA_ARCH__ >= 890
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(low) : "h"(u16(word)));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(high) : "h"(u16(word >> 16)));
#else
    u32 even = word << 8 & 0xff00ff00, odd = word & 0xff00ff00;  // bytes 0 and 2, and 1 and 3
    even = (even & 0x80008000) | (even >> 1 & 0x3f803f80), odd = (odd & 0x80008000) | (odd >> 1 & 0x3f803f80);
    low = (even & 0xffff) | odd << 16, high = even >> 16 | (odd & 0xffff0000);
#endif
    x[0] = low_half(low), x[1] = high_half(low), x[2] = low_half(high), x[3] = high_half(high);
}
#endif
// The byte of a float: rounded to nearest even, and at most 448 either way.
RF_DEVICE u32 to_fp8(float x) {
    float size = minimum(absolute(x), 448.0f);
    u32 bits = float_bits(size);
    u32 code = size < 0.015625f ? u32(round_int(size * 512)) : ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
    return code | (x < 0 && code ? 0x80 : 0);
}

#ifdef RF_PLATFORM_AMD
typedef _Float16 half2 __attribute__((ext_vector_type(2)));
#endif
// a * b + c of each, rounded once (on the host to float first).
RF_DEVICE u32 fma_fp16(u32 a, u32 b, u32 c) {
#if defined(RF_PLATFORM_NVIDIA)
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
#elif defined(RF_PLATFORM_AMD)
    half2 d = __builtin_elementwise_fma(reinterpret_cast<half2&>(a), reinterpret_cast<half2&>(b),
                                        reinterpret_cast<half2&>(c));
    return reinterpret_cast<u32&>(d);
#else
    return pack_fp16(low_half(a) * low_half(b) + low_half(c), high_half(a) * high_half(b) + high_half(c));
#endif
}
RF_DEVICE u32 mul_fp16(u32 a, u32 b) { return fma_fp16(a, b, 0x80008000); }

// Bytes 0 and 1 of a word, or 2 and 3, plus 1,024: in the last places of that.
RF_DEVICE u32 bytes_fp16(u32 word, bool upper) { return pick_bytes(0x64646464, word, upper ? 0x04030402 : 0x04010400); }
const u32 FP16_ONES = 0x3c003c00, FP16_SIXTEENTHS = 0x2c002c00;
const u32 FP16_MINUS_72 = 0xd480d480, FP16_MINUS_1032 = 0xe408e408, FP16_MINUS_1152 = 0xe480e480;

}  // namespace rocforge
