// __half and __hip_bfloat16: the part of HIP's types that CuPy and plain kernels use.
#pragma once

struct __half_raw {
    union {
        _Float16 data;
        unsigned short x;
    };
};

struct __half {
    _Float16 data;
    __half() = default;
    __half(const __half_raw& raw) : data(raw.data) {}
    __half(_Float16 value) : data(value) {}
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
    __half(T value) : data(_Float16(value)) {}
    operator float() const { return data; }
    operator __half_raw() const {
        __half_raw raw;
        raw.data = data;
        return raw;
    }
    __half operator-() const { return _Float16(-data); }
    __half& operator+=(__half other) { return *this = _Float16(data + other.data); }
    __half& operator-=(__half other) { return *this = _Float16(data - other.data); }
    __half& operator*=(__half other) { return *this = _Float16(data * other.data); }
    __half& operator/=(__half other) { return *this = _Float16(data / other.data); }
    friend __half operator+(__half a, __half b) { return a += b; }
    friend __half operator-(__half a, __half b) { return a -= b; }
    friend __half operator*(__half a, __half b) { return a *= b; }
    friend __half operator/(__half a, __half b) { return a /= b; }
};
typedef __half half;

struct __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half x, __half y) : x(x), y(y) {}
};
typedef __half2 half2;

inline __half __float2half(float x) { return __half(_Float16(x)); }
inline __half __float2half_rn(float x) { return __float2half(x); }
inline float __half2float(__half x) { return x.data; }
inline unsigned short __half_as_ushort(__half x) { return hipsim_bits<unsigned short>(x.data); }
inline short __half_as_short(__half x) { return hipsim_bits<short>(x.data); }
inline __half __ushort_as_half(unsigned short x) { return hipsim_bits<_Float16>(x); }
inline __half __short_as_half(short x) { return hipsim_bits<_Float16>(x); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float __low2float(__half2 x) { return x.x; }
inline float __high2float(__half2 x) { return x.y; }
inline __half __hadd(__half a, __half b) { return a + b; }
inline __half __hmul(__half a, __half b) { return a * b; }
inline __half __hfma(__half a, __half b, __half c) { return _Float16(fmaf(a, b, c)); }
inline __half2 __hadd2(__half2 a, __half2 b) { return {a.x + b.x, a.y + b.y}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {a.x * b.x, a.y * b.y}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

struct __hip_bfloat16 {
    unsigned short bits;
    __hip_bfloat16() = default;
    __hip_bfloat16(float value) {
        unsigned word = __float_as_uint(value);
        bool nan = value != value;
        bits = nan ? word >> 16 | 0x40 : (word + 0x7FFF + (word >> 16 & 1)) >> 16; // to the nearest even
    }
    operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};
inline __hip_bfloat16 __float2bfloat16(float x) { return x; }
inline float __bfloat162float(__hip_bfloat16 x) { return x; }
inline unsigned short __bfloat16_as_ushort(__hip_bfloat16 x) { return x.bits; }
inline __hip_bfloat16 __ushort_as_bfloat16(unsigned short x) { return hipsim_bits<__hip_bfloat16>(x); }
inline bool __hisnan(__hip_bfloat16 x) { return (x.bits & 0x7FFF) > 0x7F80; }
inline bool __hisinf(__hip_bfloat16 x) { return (x.bits & 0x7FFF) == 0x7F80; }
