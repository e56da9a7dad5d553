// The instructions of AMD's matrix units, as wave operations: 16 x 16 x 16, float16 in, float32 out.
//
// Each says which lane, and which of its elements, holds what, as the ISA manuals do; the layouts are those that AMD's
// calculator prints (github.com/ROCm/amd_matrix_instruction_calculator, 2ef9189, `matrix_calculator.py -R`) for
// v_mfma_f32_16x16x16_f16 of CDNA 1 to 3 and v_wmma_f32_16x16x16_f16 of RDNA 3 and RDNA 4. A column of B is laid out as a
// row of A. In CDNA 4's manual the first of these is as in CDNA 3's.
#pragma once

typedef _Float16 hipsim_half4 __attribute__((vector_size(8)));
typedef _Float16 hipsim_half8 __attribute__((vector_size(16)));
typedef _Float16 hipsim_half16 __attribute__((vector_size(32)));
typedef float hipsim_float4 __attribute__((vector_size(16)));
typedef float hipsim_float8 __attribute__((vector_size(32)));

struct hipsim_mfma {
    typedef hipsim_half4 Operand;
    typedef hipsim_float4 Sum;
    static constexpr int lanes = 64, copies = 1;
    static int lane_of_row(int row, int k) { return row + 16 * (k / 4); }
    static int element_of_row(int k) { return k % 4; }
    static int lane_of_sum(int row, int column) { return column + 16 * (row / 4); }
    static int element_of_sum(int row) { return row % 4; }
};

struct hipsim_wmma_gfx11 { // lanes 16 apart hold the same rows
    typedef hipsim_half16 Operand;
    typedef hipsim_float8 Sum;
    static constexpr int lanes = 32, copies = 2;
    static int lane_of_row(int row, int) { return row; }
    static int element_of_row(int k) { return k; }
    static int lane_of_sum(int row, int column) { return column + 16 * (row % 2); }
    static int element_of_sum(int row) { return row / 2; }
};

struct hipsim_wmma_gfx12 {
    typedef hipsim_half8 Operand;
    typedef hipsim_float8 Sum;
    static constexpr int lanes = 32, copies = 1;
    static int lane_of_row(int row, int k) { return row + 16 * (k / 4 % 2); }
    static int element_of_row(int k) { return k % 4 + k / 8 * 4; }
    static int lane_of_sum(int row, int column) { return column + 16 * (row / 8); }
    static int element_of_sum(int row) { return row % 8; }
};

// What a lane brings, and is given.
template <class Unit>
struct hipsim_matrix_lane {
    typename Unit::Operand a, b;
    typename Unit::Sum sum;
    bool done;
};

template <class Unit>
inline void hipsim_matrix_multiply(hipsim_matrix_lane<Unit>* const* lanes, hipsim_site site) {
    float a[16][16], b[16][16];
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++) {
            int lane = Unit::lane_of_row(row, k), element = Unit::element_of_row(k);
            a[row][k] = lanes[lane]->a[element], b[row][k] = lanes[lane]->b[element];
        }
    for (int lane = 0; Unit::copies == 2 && lane < 16; lane++)
        if (memcmp(&lanes[lane]->a, &lanes[lane + 16]->a, sizeof lanes[0]->a) || memcmp(&lanes[lane]->b, &lanes[lane + 16]->b, sizeof lanes[0]->b))
            hipsim_trap("lanes 16 apart bring different rows", site);
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++) {
            hipsim_matrix_lane<Unit>& lane = *lanes[Unit::lane_of_sum(row, column)];
            float sum = lane.sum[Unit::element_of_sum(row)];
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[column][k];
            lane.sum[Unit::element_of_sum(row)] = sum;
        }
    for (int lane = 0; lane < Unit::lanes; lane++) lanes[lane]->done = true;
}

// Once all lanes are here the first to go on multiplies for all of them, while what the others brought is still theirs.
template <class Unit>
inline typename Unit::Sum hipsim_matrix(typename Unit::Operand a, typename Unit::Operand b, typename Unit::Sum sum, hipsim_site site) {
    typedef hipsim_matrix_lane<Unit> Lane;
    Lane mine{a, b, sum, false};
    auto* lanes = reinterpret_cast<Lane* const*>(hipsim_exchange(reinterpret_cast<unsigned long long>(&mine), 0, site));
    if (hipsim_wave_size != Unit::lanes || hipsim_self->active != ~0ull >> (64 - Unit::lanes))
        hipsim_trap("a matrix instruction wants every lane of its wave", site);
    if (!mine.done) hipsim_matrix_multiply<Unit>(lanes, site);
    __asm__ volatile("" : "+m"(mine)); // another lane may have written it
    return mine.sum;
}

inline hipsim_float4 hipsim_mfma_f32_16x16x16f16(hipsim_half4 a, hipsim_half4 b, hipsim_float4 sum, int, int, int, HIPSIM_HERE) {
    return hipsim_matrix<hipsim_mfma>(a, b, sum, HIPSIM_SITE("mfma"));
}
inline hipsim_float8 hipsim_wmma_f32_16x16x16_f16(hipsim_half16 a, hipsim_half16 b, hipsim_float8 sum, HIPSIM_HERE) {
    return hipsim_matrix<hipsim_wmma_gfx11>(a, b, sum, HIPSIM_SITE("wmma"));
}
inline hipsim_float8 hipsim_wmma_f32_16x16x16_f16_gfx12(hipsim_half8 a, hipsim_half8 b, hipsim_float8 sum, HIPSIM_HERE) {
    return hipsim_matrix<hipsim_wmma_gfx12>(a, b, sum, HIPSIM_SITE("wmma"));
}

// compile.py replaces the marker that an instruction's name brings, for the targets that have it. No macro that is defined
// for a target may be named here: behind it, the precompiled prelude would not be used.
#define __builtin_amdgcn_mfma_f32_16x16x16f16(...) (void(__hipsim_on_GFX9__), hipsim_mfma_f32_16x16x16f16(__VA_ARGS__))
#define __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(...) (void(__hipsim_on_GFX11__), hipsim_wmma_f32_16x16x16_f16(__VA_ARGS__))
#define __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(...) (void(__hipsim_on_GFX12__), hipsim_wmma_f32_16x16x16_f16_gfx12(__VA_ARGS__))

// NVIDIA's of sm_80, 16 x 8, for kernels that are written for it, with 32 lanes (PTX ISA, "Matrix Fragments for mma"):
// of a, b and c the lanes 4 g + t have rows, or columns, g.
struct hipsim_mma_lane {
    const unsigned *a, *b;
    void* c;
    bool done;
};

// Element k of a word.
template <class T>
inline float hipsim_mma_element(unsigned word, int k) {
    T elements[4 / sizeof(T)];
    memcpy(elements, &word, 4);
    return float(elements[k]);
}

template <class T, class Sum>
inline void hipsim_mma(Sum* c, const unsigned* a, const unsigned* b, hipsim_site site) {
    constexpr int count = 4 / sizeof(T), depth = 8 * count;
    hipsim_mma_lane mine{a, b, c, false};
    auto* lanes = reinterpret_cast<hipsim_mma_lane* const*>(hipsim_exchange(reinterpret_cast<unsigned long long>(&mine), 0, site));
    if (hipsim_wave_size != 32 || hipsim_self->active != 0xffffffff) hipsim_trap("a matrix instruction wants every lane of its wave", site);
    if (!mine.done) {
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 8; column++) {
                Sum& sum = static_cast<Sum*>(lanes[row % 8 * 4 + column / 2]->c)[row / 8 * 2 + column % 2];
                for (int k = 0; k < depth; k++) {
                    int t = k / count % 4, half = k / (4 * count);
                    float x = hipsim_mma_element<T>(lanes[row % 8 * 4 + t]->a[row / 8 + 2 * half], k % count);
                    float y = hipsim_mma_element<T>(lanes[column * 4 + t]->b[half], k % count);
                    sum += Sum(x * y);
                }
            }
        for (int lane = 0; lane < 32; lane++) lanes[lane]->done = true;
    }
    __asm__ volatile("" ::: "memory"); // another lane may have written it
}

inline void hipsim_mma_halves(float* c, const unsigned* a, unsigned b0, unsigned b1, HIPSIM_HERE) {
    const unsigned b[2] = {b0, b1};
    hipsim_mma<_Float16>(c, a, b, HIPSIM_SITE("mma"));
}
inline void hipsim_mma_bytes(int* c, const unsigned* a, unsigned b0, unsigned b1, HIPSIM_HERE) {
    const unsigned b[2] = {b0, b1};
    hipsim_mma<signed char>(c, a, b, HIPSIM_SITE("mma"));
}
