// Atomics. One thread of the host runs a kernel, and fibers switch only at barriers and wave operations, so a plain
// read and write is atomic. The types are those that HIP has.
#pragma once

#define HIPSIM_ATOMIC(name, T, result)                       \
    inline T name(T* address, T value) {                     \
        T old = *address;                                    \
        *address = result;                                   \
        return old;                                          \
    }                                                        \
    inline T name##_system(T* address, T value) { return name(address, value); }

#define HIPSIM_INTEGER_ATOMICS(T)                                               \
    HIPSIM_ATOMIC(atomicAnd, T, old & value)                                    \
    HIPSIM_ATOMIC(atomicOr, T, old | value)                                     \
    HIPSIM_ATOMIC(atomicXor, T, old ^ value)

#define HIPSIM_ORDER_ATOMICS(T)                                                 \
    HIPSIM_ATOMIC(atomicMin, T, value < old ? value : old)                      \
    HIPSIM_ATOMIC(atomicMax, T, old < value ? value : old)

#define HIPSIM_SUM_ATOMICS(T)                                                   \
    HIPSIM_ATOMIC(atomicAdd, T, old + value)                                    \
    HIPSIM_ATOMIC(atomicSub, T, old - value)                                    \
    HIPSIM_ATOMIC(atomicExch, T, value)                                         \
    inline T atomicCAS(T* address, T compare, T value) {                        \
        T old = *address;                                                       \
        if (old == compare) *address = value;                                   \
        return old;                                                             \
    }

HIPSIM_INTEGER_ATOMICS(int)
HIPSIM_INTEGER_ATOMICS(unsigned)
HIPSIM_INTEGER_ATOMICS(unsigned long)
HIPSIM_INTEGER_ATOMICS(unsigned long long)
HIPSIM_ORDER_ATOMICS(int)
HIPSIM_ORDER_ATOMICS(unsigned)
HIPSIM_ORDER_ATOMICS(unsigned long)
HIPSIM_ORDER_ATOMICS(unsigned long long)
HIPSIM_ORDER_ATOMICS(long long)
HIPSIM_ORDER_ATOMICS(float)
HIPSIM_ORDER_ATOMICS(double)
HIPSIM_SUM_ATOMICS(int)
HIPSIM_SUM_ATOMICS(unsigned)
HIPSIM_SUM_ATOMICS(unsigned long)
HIPSIM_SUM_ATOMICS(unsigned long long)
HIPSIM_SUM_ATOMICS(float)
HIPSIM_SUM_ATOMICS(double)
HIPSIM_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
HIPSIM_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
inline float unsafeAtomicAdd(float* address, float value) { return atomicAdd(address, value); }
inline double unsafeAtomicAdd(double* address, double value) { return atomicAdd(address, value); }

#undef HIPSIM_ATOMIC
#undef HIPSIM_INTEGER_ATOMICS
#undef HIPSIM_ORDER_ATOMICS
#undef HIPSIM_SUM_ATOMICS
