// The AMDGPU builtins of the compiler that can be said in C++.
#pragma once

#define __builtin_amdgcn_workitem_id_x() (threadIdx.x)
#define __builtin_amdgcn_workitem_id_y() (threadIdx.y)
#define __builtin_amdgcn_workitem_id_z() (threadIdx.z)
#define __builtin_amdgcn_workgroup_id_x() (blockIdx.x)
#define __builtin_amdgcn_workgroup_id_y() (blockIdx.y)
#define __builtin_amdgcn_workgroup_id_z() (blockIdx.z)
#define __builtin_amdgcn_fence(order, scope) hipsim_fence()
#define __builtin_amdgcn_sched_barrier(mask) hipsim_fence()
#define __builtin_amdgcn_s_sleep(n) hipsim_fence()
#define __builtin_amdgcn_s_setprio(n) hipsim_fence()
#define __builtin_amdgcn_s_waitcnt(n) hipsim_fence()
#define __builtin_amdgcn_s_barrier() hipsim_barrier(0, hipsim_site{"s_barrier", __FILE__, __LINE__})
#define __builtin_amdgcn_wave_barrier() hipsim_exchange(0, 0, hipsim_site{"wave_barrier", __FILE__, __LINE__})
#define __builtin_amdgcn_wavefrontsize() (hipsim_wave_size)

inline unsigned __builtin_amdgcn_mbcnt_lo(unsigned mask, unsigned sum) {
    unsigned lane = hipsim_self->lane;
    return sum + __builtin_popcount(lane < 32 ? mask & ((1u << lane) - 1) : mask);
}
inline unsigned __builtin_amdgcn_mbcnt_hi(unsigned mask, unsigned sum) {
    unsigned lane = hipsim_self->lane;
    return sum + (lane < 32 ? 0 : __builtin_popcount(mask & ((1u << (lane - 32)) - 1)));
}

inline int __builtin_amdgcn_ds_bpermute(int byte_lane, int value, HIPSIM_HERE) {
    return hipsim_shuffle(value, 0, byte_lane / 4 & (hipsim_wave_size - 1), HIPSIM_SITE("ds_bpermute"));
}
inline int __builtin_amdgcn_readlane(int value, int lane, HIPSIM_HERE) {
    return hipsim_shuffle(value, 0, lane, HIPSIM_SITE("readlane"));
}
inline int __builtin_amdgcn_readfirstlane(int value, HIPSIM_HERE) {
    const unsigned long long* values = hipsim_exchange(unsigned(value), 0, HIPSIM_SITE("readfirstlane"));
    return int(values[__builtin_ctzll(hipsim_self->active)]);
}
inline unsigned __builtin_amdgcn_ballot_w32(bool p, HIPSIM_HERE) { return hipsim_vote(p, 0, HIPSIM_SITE("ballot_w32")); }
inline unsigned long long __builtin_amdgcn_ballot_w64(bool p, HIPSIM_HERE) { return hipsim_vote(p, 0, HIPSIM_SITE("ballot_w64")); }

inline float __builtin_amdgcn_rcpf(float x) { return 1.0f / x; }
inline float __builtin_amdgcn_rsqf(float x) { return 1.0f / sqrtf(x); }
inline float __builtin_amdgcn_sqrtf(float x) { return sqrtf(x); }
inline float __builtin_amdgcn_exp2f(float x) { return exp2f(x); }
inline float __builtin_amdgcn_logf(float x) { return log2f(x); }
inline float __builtin_amdgcn_fractf(float x) { return x - floorf(x); }
inline float __builtin_amdgcn_fmed3f(float a, float b, float c) { return fmaxf(fminf(a, b), fminf(fmaxf(a, b), c)); }
inline unsigned __builtin_amdgcn_ubfe(unsigned x, unsigned offset, unsigned width) {
    return x >> (offset & 31) & ((1ull << (width & 31)) - 1);
}
inline unsigned __builtin_amdgcn_alignbyte(unsigned high, unsigned low, unsigned shift) {
    return ((unsigned long long)high << 32 | low) >> 8 * (shift & 3);
}
inline unsigned __builtin_amdgcn_perm(unsigned high, unsigned low, unsigned selector) {
    unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = selector >> 8 * i & 0xFF;
        unsigned byte = s < 8    ? bytes >> 8 * s & 0xFF
                        : s < 12 ? (bytes >> (16 * (s - 8) + 15) & 1 ? 0xFF : 0)
                        : s == 12 ? 0 : 0xFF;
        result |= byte << 8 * i;
    }
    return result;
}

template <class A, class B>
inline int hipsim_dot4(int a, int b, int c, bool clamp) {
    long long sum = c;
    for (int i = 0; i < 4; i++) sum += int(A(a >> 8 * i)) * int(B(b >> 8 * i));
    return clamp ? int(min(max(sum, -2147483648LL), 2147483647LL)) : int(sum);
}
inline int __builtin_amdgcn_sdot4(int a, int b, int c, bool clamp) { return hipsim_dot4<signed char, signed char>(a, b, c, clamp); }
inline unsigned __builtin_amdgcn_udot4(unsigned a, unsigned b, unsigned c, bool) {
    return hipsim_dot4<unsigned char, unsigned char>(a, b, c, false);
}
inline int __builtin_amdgcn_sudot4(bool a_signed, int a, bool b_signed, int b, int c, bool clamp) {
    if (a_signed) return b_signed ? hipsim_dot4<signed char, signed char>(a, b, c, clamp) : hipsim_dot4<signed char, unsigned char>(a, b, c, clamp);
    return b_signed ? hipsim_dot4<unsigned char, signed char>(a, b, c, clamp) : hipsim_dot4<unsigned char, unsigned char>(a, b, c, clamp);
}
