// Barriers, fences, shuffles and votes. Masks have 64 bits, as in HIP; a shuffle reads 0 from a lane that took no part.
#pragma once

#define INCLUDE_GUARD_CUPY_HIP_WORKAROUND_H // CuPy would make __syncwarp a fence, which does not hold fibers together

inline void __syncthreads(HIPSIM_HERE) { hipsim_barrier(0, HIPSIM_SITE("__syncthreads")); }
inline int __syncthreads_count(int p, HIPSIM_HERE) { return hipsim_barrier(p != 0, HIPSIM_SITE("__syncthreads_count")); }
inline int __syncthreads_or(int p, HIPSIM_HERE) { return hipsim_barrier(p != 0, HIPSIM_SITE("__syncthreads_or")) != 0; }
inline int __syncthreads_and(int p, HIPSIM_HERE) { return hipsim_barrier(p == 0, HIPSIM_SITE("__syncthreads_and")) == 0; }
inline void hipsim_named_barrier(unsigned number, unsigned count, HIPSIM_HERE) { hipsim_named_barrier(number, count, HIPSIM_SITE("named barrier")); }
inline void __syncwarp(unsigned long long mask, HIPSIM_HERE) { hipsim_exchange(0, mask, HIPSIM_SITE("__syncwarp")); }
inline void __syncwarp(HIPSIM_HERE) { hipsim_exchange(0, 0, HIPSIM_SITE("__syncwarp")); }

inline void hipsim_fence() { __asm__ volatile("" ::: "memory"); }
inline void __threadfence() { hipsim_fence(); }
inline void __threadfence_block() { hipsim_fence(); }
inline void __threadfence_system() { hipsim_fence(); }

template <class T>
inline T hipsim_shuffle(T value, unsigned long long mask, int source, hipsim_site site) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = hipsim_exchange(bits, mask, site)[source];
    if (!(hipsim_self->active >> source & 1)) bits = 0;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The lane each kind of shuffle reads, within groups of `width` lanes.
inline int hipsim_lane_at(int source, int width) { return (hipsim_self->lane & ~(width - 1)) + (source & (width - 1)); }
inline int hipsim_lane_xor(int mask, int width) {
    int lane = hipsim_self->lane, source = lane ^ mask;
    return source >= ((lane + width) & ~(width - 1)) ? lane : source;
}
inline int hipsim_lane_up(unsigned delta, int width) {
    int lane = hipsim_self->lane, source = lane - int(delta);
    return source < (lane & ~(width - 1)) ? lane : source;
}
inline int hipsim_lane_down(unsigned delta, int width) {
    int lane = hipsim_self->lane;
    return (lane & (width - 1)) + int(delta) >= width ? lane : lane + int(delta);
}

#define HIPSIM_SHUFFLE(name, A, pick)                                                                           \
    template <class T>                                                                                          \
    inline T name(T value, A a, int width = hipsim_wave_size, HIPSIM_HERE) {                                    \
        return hipsim_shuffle(value, 0, pick(a, width), HIPSIM_SITE(#name));                                    \
    }                                                                                                           \
    template <class M, class T>                                                                                 \
    inline T name##_sync(M mask, T value, A a, int width = hipsim_wave_size, HIPSIM_HERE) {                     \
        static_assert(sizeof(M) == 8, "the mask must have 64 bits");                                            \
        return hipsim_shuffle(value, mask, pick(a, width), HIPSIM_SITE(#name "_sync"));                         \
    }
HIPSIM_SHUFFLE(__shfl, int, hipsim_lane_at)
HIPSIM_SHUFFLE(__shfl_xor, int, hipsim_lane_xor)
HIPSIM_SHUFFLE(__shfl_up, unsigned, hipsim_lane_up)
HIPSIM_SHUFFLE(__shfl_down, unsigned, hipsim_lane_down)
#undef HIPSIM_SHUFFLE

inline unsigned long long hipsim_vote(bool predicate, unsigned long long mask, hipsim_site site) {
    const unsigned long long* votes = hipsim_exchange(predicate, mask, site);
    unsigned long long result = 0;
    for (int lane = 0; lane < hipsim_wave_size; lane++)
        if (hipsim_self->active >> lane & 1) result |= votes[lane] << lane;
    return result;
}
inline unsigned long long __ballot(int p, HIPSIM_HERE) { return hipsim_vote(p, 0, HIPSIM_SITE("__ballot")); }
inline unsigned long long __ballot64(int p, HIPSIM_HERE) { return hipsim_vote(p, 0, HIPSIM_SITE("__ballot64")); }
inline int __any(int p, HIPSIM_HERE) { return hipsim_vote(p, 0, HIPSIM_SITE("__any")) != 0; }
inline int __all(int p, HIPSIM_HERE) { return hipsim_vote(!p, 0, HIPSIM_SITE("__all")) == 0; }
template <class M>
inline unsigned long long __ballot_sync(M mask, int p, HIPSIM_HERE) {
    static_assert(sizeof(M) == 8, "the mask must have 64 bits");
    return hipsim_vote(p, mask, HIPSIM_SITE("__ballot_sync"));
}
template <class M>
inline int __any_sync(M mask, int p, HIPSIM_HERE) {
    static_assert(sizeof(M) == 8, "the mask must have 64 bits");
    return hipsim_vote(p, mask, HIPSIM_SITE("__any_sync")) != 0;
}
template <class M>
inline int __all_sync(M mask, int p, HIPSIM_HERE) {
    static_assert(sizeof(M) == 8, "the mask must have 64 bits");
    return hipsim_vote(!p, mask, HIPSIM_SITE("__all_sync")) == 0;
}
inline unsigned __lane_id() { return hipsim_self->lane; }

// assert, abort and __trap end the kernel, not the process.
inline void __trap(HIPSIM_HERE) { hipsim_trap("reached", HIPSIM_SITE("__trap")); }
extern "C" __attribute__((weak, visibility("hidden"), noreturn)) void __assert_fail(const char* what, const char* hipsim_file,
                                                                                    unsigned hipsim_line,
                                                                                    const char*) noexcept {
    hipsim_trap(what, hipsim_site{"assert", hipsim_file, int(hipsim_line)});
}

inline unsigned long long hipsim_ticks() { return __builtin_ia32_rdtsc(); }
inline long long clock64() { return hipsim_ticks(); }
inline long long wall_clock64() { return hipsim_ticks(); }
inline int clock() { return hipsim_ticks(); }
