// char2 ... double4 and their make_ functions.
#pragma once

#define HIPSIM_VECTORS(T, name)                                                                                   \
    struct alignas(sizeof(T)) name##1 { T x; };                                                                   \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                                            \
    struct name##3 { T x, y, z; };                                                                                \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; };                            \
    inline name##1 make_##name##1(T x) { return {x}; }                                                            \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                    \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                            \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

HIPSIM_VECTORS(unsigned, uint)
HIPSIM_VECTORS(signed char, char)
HIPSIM_VECTORS(unsigned char, uchar)
HIPSIM_VECTORS(short, short)
HIPSIM_VECTORS(unsigned short, ushort)
HIPSIM_VECTORS(int, int)
HIPSIM_VECTORS(long, long)
HIPSIM_VECTORS(unsigned long, ulong)
HIPSIM_VECTORS(long long, longlong)
HIPSIM_VECTORS(unsigned long long, ulonglong)
HIPSIM_VECTORS(float, float)
HIPSIM_VECTORS(double, double)
#undef HIPSIM_VECTORS

struct dim3 : hipsim_dim3 {
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : hipsim_dim3{x, y, z} {}
};
