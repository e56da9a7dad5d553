// Floats to GGUF's blocks, by the searches of rocforge/formats/quantizers. Compiled with RF_QTYPE, a format of
// quants.h.
#include "formats/quants.h"
#include "scale_search.h"

namespace rocforge {

// variants: RF_QTYPE=Q4_0,Q4_1,Q8_0,Q2_K,Q4_K,Q6_K,IQ4_XS
typedef RF_QTYPE F;

// What lanes of a block share on the way to its bytes.
struct Block {
    u8 codes[F::ELEMENTS], scales[16], minima[16], bytes[F::BYTES];
    RF_MEMBER void put_fp16(u32 at, float x) {
        u16 bits = from_float<f16>(x).bits;
        bytes[at] = u8(bits);
        bytes[at + 1] = u8(bits >> 8);
    }
};

// What a lane has of a block: N elements from element N * part on, and its importance, null where there is none.
template <u32 N>
struct Part {
    float x[N];
    const float* importance;
    u32 part;

    // What the error of each element counts: its importance, and more the larger it is.
    template <u32 LANES>
    RF_MEMBER void weights(float (&weight)[N]) const {
        float square = 0;
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) square += x[i] * x[i];
        if (!importance) {
            float size = square_root(square / N);
            RF_UNROLL
            for (u32 i = 0; i < N; ++i) weight[i] = absolute(x[i]) + size;
            return;
        }
        float variance = sum_lanes<LANES>(square) * (2.0f / (N * LANES));
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) weight[i] = importance[i] * square_root(variance + x[i] * x[i]);
    }
};

// ---- Blocks of 32 that a lane has alone. Each gives codes, and writes the block's header ----

struct Alone {
    static constexpr u32 N = 32, LANES = 1;
    typedef Part<32> Elements;
};

template <u32 LEVELS>
struct SignedBlock : Alone {
    static RF_MEMBER void quantize(const Elements& e, u32 (&codes)[N], Block& block) {
        float scale;
        if (e.importance) {
            float weight[N];
            e.weights<1>(weight);
            Integers levels{-float(LEVELS), float(LEVELS) - 1};
            scale = rounded_fp16(best_scale<1>(e.x, weight, steps(-float(LEVELS)), levels));
            float inverse = reciprocal(scale);
            RF_UNROLL
            for (u32 i = 0; i < N; ++i) codes[i] = u32(i32(levels.nearest(e.x[i] * inverse)) + i32(LEVELS));
        } else {
            scale = signed_peak<1>(e.x) / -float(LEVELS);
            float inverse = reciprocal(scale);
            RF_UNROLL
            for (u32 i = 0; i < N; ++i) {
                u32 code = u32(add_rn(mul_rn(e.x[i], inverse), LEVELS + 0.5f));
                codes[i] = code < 2 * LEVELS ? code : 2 * LEVELS - 1;
            }
        }
        block.put_fp16(0, scale);
    }
};

template <u32 LEVELS>
struct AffineBlock : Alone {
    static RF_MEMBER void quantize(const Elements& e, u32 (&codes)[N], Block& block) {
        if (e.importance) {
            float weight[N];
            e.weights<1>(weight);
            Affine found = best_affine(e.x, weight, LEVELS, steps(LEVELS));
            float scale = rounded_fp16(found.scale), low = rounded_fp16(-found.minimum), inverse = reciprocal(scale);
            RF_UNROLL
            for (u32 i = 0; i < N; ++i) codes[i] = u32(Integers{0, float(LEVELS)}.nearest((e.x[i] - low) * inverse));
            block.put_fp16(0, scale);
            block.put_fp16(2, low);
            return;
        }
        float low = e.x[0], high = e.x[0];
        RF_UNROLL
        for (u32 i = 1; i < N; ++i) {
            low = minimum(low, e.x[i]);
            high = maximum(high, e.x[i]);
        }
        float scale = sub_rn(high, low) / float(LEVELS), inverse = reciprocal(scale);
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) {
            u32 code = u32(add_rn(mul_rn(sub_rn(e.x[i], low), inverse), 0.5f));
            codes[i] = code < LEVELS ? code : LEVELS;
        }
        block.put_fp16(0, scale);
        block.put_fp16(2, low);
    }
};

struct RoundedBlock : Alone {
    static RF_MEMBER void quantize(const Elements& e, u32 (&codes)[N], Block& block) {
        float scale = absolute(signed_peak<1>(e.x)) / 127.0f, inverse = reciprocal(scale);
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) {
            float scaled = mul_rn(e.x[i], inverse);
            codes[i] = u32(i32(add_rn(scaled, scaled < 0 ? -0.5f : 0.5f))) & 255;
        }
        block.put_fp16(0, scale);
    }
};

struct Iq4Block : Alone {
    static RF_MEMBER void quantize(const Elements& e, u32 (&codes)[N], Block& block) {
        float weight[N];
        e.weights<1>(weight);
        float scale = rounded_fp16(best_scale<1>(e.x, weight, Iq4Steps(), Iq4Values())), inverse = reciprocal(scale);
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) codes[i] = Iq4Values::code(e.x[i] * inverse);
        block.put_fp16(0, scale);
    }
};

struct Fp4Block : Alone {
    static RF_MEMBER void quantize(const Elements& e, u32 (&codes)[N], Block& block) {
        u32 exponent = float_bits(absolute(signed_peak<1>(e.x))) >> 23;
        MXFP4 scale;
        scale.tail = exponent < 2 ? 0 : exponent - 2;
        block.bytes[0] = u8(scale.tail);
        float inverse = reciprocal(scale.scale(0, 0));
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) {
            float size = absolute(e.x[i]) * inverse;
            u32 code = (size > 0.5f) + (size > 1.5f) + (size > 2.5f) + (size > 3.5f) + (size > 5) + (size > 7);
            code += size > 10;
            codes[i] = e.x[i] < 0 && code ? code | 8 : code;
        }
    }
};

// ---- Blocks that several lanes share ----

struct SignBlock {
    static constexpr u32 N = 32, LANES = 4;
    static RF_MEMBER void quantize(const Part<N>& e, u32 (&codes)[N], Block& block) {
        float sum = 0;
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) {
            sum += absolute(e.x[i]);
            codes[i] = e.x[i] >= 0;
        }
        sum = sum_lanes<LANES>(sum);
        if (e.part == 0) block.put_fp16(0, sum / 128.0f);
    }
};

template <u32 N_, u32 LEVELS, u32 SCALE_LEVELS>
struct AffineSuperBlock {
    static constexpr u32 N = N_, LANES = 256 / N;

    static RF_MEMBER void quantize(const Part<N>& e, u32 (&codes)[N], Block& block) {
        float weight[N], total = 0;
        e.template weights<LANES>(weight);
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) total += weight[i];
        Integers levels{0, LEVELS}, scale_levels{0, SCALE_LEVELS};
        Affine found = best_affine(e.x, weight, LEVELS, steps(LEVELS));
        Scale low = block_scale<LANES>(found.minimum, total, scale_steps(SCALE_LEVELS), scale_levels);

        // The scales that fit best once rounded minima are added.
        float lift = low.unit * low.code, inverse = reciprocal(found.scale), product = 0, square = 0;
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) {
            float lifted = e.x[i] + lift, code = levels.nearest(lifted * inverse), weighted = weight[i] * code;
            product += weighted * lifted;
            square += weighted * code;
        }
        float fitted = product * reciprocal(square);
        Scale scale = block_scale<LANES>(fitted, square, scale_steps(SCALE_LEVELS), scale_levels);

        refit(e.x, weight, levels, scale, low);
        inverse = reciprocal(scale.unit * scale.code);
        lift = low.unit * low.code;
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) codes[i] = u32(levels.nearest((e.x[i] + lift) * inverse));
        block.scales[e.part] = u8(scale.code);
        block.minima[e.part] = u8(low.code);
        wave_barrier();
        if (e.part == 0) write_header(block, scale.unit, low.unit);
    }

    // The units that fit the codes of the whole block best, by least squares; as they were where there are none.
    static RF_MEMBER void refit(const float (&x)[N], const float (&weight)[N], Integers levels, Scale& scale,
                                Scale& low) {
        float inverse = reciprocal(scale.unit * scale.code), lift = low.unit * low.code;
        float w = 0, l = 0, ll = 0, xl = 0, xw = 0;
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) {
            float code = levels.nearest((x[i] + lift) * inverse), weighted = weight[i] * code;
            w += weight[i];
            l += weighted;
            ll += weighted * code;
            xl += weighted * x[i];
            xw += weight[i] * x[i];
        }
        ll = sum_lanes<LANES>(ll * scale.code * scale.code);
        l = sum_lanes<LANES>(l * scale.code * low.code);
        w = sum_lanes<LANES>(w * low.code * low.code);
        xl = sum_lanes<LANES>(xl * scale.code);
        xw = sum_lanes<LANES>(xw * low.code);
        float variance = ll * w - l * l;
        if (!(variance > 1e-6f * ll * w)) return;
        float determinant = reciprocal(variance), fitted = (xl * w - xw * l) * determinant;
        float lifted = (xl * l - xw * ll) * determinant;
        if (fitted > 0 && lifted > 0) {
            scale.unit = rounded_fp16(fitted);
            low.unit = rounded_fp16(lifted);
        }
    }

    static RF_MEMBER void write_header(Block& block, float unit, float low) {
        constexpr u32 at = LEVELS < 4 ? F::SUPER_FROM : 0;
        block.put_fp16(at, unit);
        block.put_fp16(at + 2, low);
        const u8 *scales = block.scales, *minima = block.minima;
        if constexpr (LEVELS < 4) {
            for (u32 j = 0; j < 16; ++j) block.bytes[j] = u8(scales[j] | minima[j] << 4);
        } else {
            for (u32 j = 0; j < 4; ++j) {
                block.bytes[4 + j] = u8(scales[j] | scales[j + 4] >> 4 << 6);
                block.bytes[8 + j] = u8(minima[j] | minima[j + 4] >> 4 << 6);
                block.bytes[12 + j] = u8((scales[j + 4] & 15) | (minima[j + 4] & 15) << 4);
            }
        }
    }
};

template <u32 LEVELS, u32 SCALE_LEVELS>
struct SignedSuperBlock {
    static constexpr u32 N = 16, LANES = 16;

    static RF_MEMBER void quantize(const Part<N>& e, u32 (&codes)[N], Block& block) {
        float weight[N], total = 0;
        e.template weights<LANES>(weight);
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) total += weight[i];
        Integers levels{-float(LEVELS), float(LEVELS) - 1}, scale_levels{-float(SCALE_LEVELS), float(SCALE_LEVELS) - 1};
        float found = best_scale<1>(e.x, weight, steps(-float(LEVELS)), levels);
        Scale scale = block_scale<LANES>(found, total, scale_steps(-float(SCALE_LEVELS)), scale_levels);
        float inverse = reciprocal(scale.unit * scale.code), product = 0, square = 0;
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) {
            float value = levels.nearest(e.x[i] * inverse) * scale.code, weighted = weight[i] * value;
            product += weighted * e.x[i];
            square += weighted * value;
        }
        product = sum_lanes<LANES>(product);
        scale.unit = rounded_fp16(product * reciprocal(sum_lanes<LANES>(square)));
        inverse = reciprocal(scale.unit * scale.code);
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) codes[i] = u32(i32(levels.nearest(e.x[i] * inverse)) + i32(LEVELS));
        block.scales[e.part] = u8(i32(scale.code) + (LEVELS == 4 ? 32 : 0));
        wave_barrier();
        if (e.part == 0) write_header(block, scale.unit);
    }

    static RF_MEMBER void write_header(Block& block, float unit) {
        const u8* scales = block.scales;
        if constexpr (LEVELS == 4) {
            block.put_fp16(108, unit);
            for (u32 j = 0; j < 8; ++j) block.bytes[96 + j] = u8((scales[j] & 15) | (scales[j + 8] & 15) << 4);
            for (u32 j = 0; j < 4; ++j) {
                u32 high = 0;
                for (u32 k = 0; k < 4; ++k) high |= scales[j + 4 * k] >> 4 << 2 * k;
                block.bytes[104 + j] = u8(high);
            }
        } else {
            block.put_fp16(208, unit);
            for (u32 j = 0; j < 16; ++j) block.bytes[192 + j] = scales[j];
        }
    }
};

struct Iq4SuperBlock {
    static constexpr u32 N = 32, LANES = 8;
    static RF_MEMBER void quantize(const Part<N>& e, u32 (&codes)[N], Block& block) {
        float weight[N], total = 0;
        e.weights<LANES>(weight);
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) total += weight[i];
        float found = best_scale<1>(e.x, weight, Iq4Steps(), Iq4Values());
        Scale scale = block_scale<LANES>(found, total, scale_steps(-32), Integers{-32, 31});
        float inverse = reciprocal(scale.unit * scale.code);
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) codes[i] = Iq4Values::code(e.x[i] * inverse);
        block.scales[e.part] = u8(i32(scale.code) + 32);
        wave_barrier();
        if (e.part) return;
        block.put_fp16(0, scale.unit);
        const u8* scales = block.scales;
        for (u32 j = 0; j < 2; ++j) {
            u32 high = 0;
            for (u32 k = 0; k < 4; ++k) high |= scales[4 * j + k] >> 4 << 2 * k;
            block.bytes[2 + j] = u8(high);
        }
        for (u32 j = 0; j < 4; ++j) block.bytes[4 + j] = u8((scales[2 * j] & 15) | (scales[2 * j + 1] & 15) << 4);
    }
};

template <class Format>
struct Quantizer;
template <>
struct Quantizer<Q4_0> : SignedBlock<8> {};
template <>
struct Quantizer<Q5_0> : SignedBlock<16> {};
template <>
struct Quantizer<Q4_1> : AffineBlock<15> {};
template <>
struct Quantizer<Q5_1> : AffineBlock<31> {};
template <>
struct Quantizer<Q8_0> : RoundedBlock {};
template <>
struct Quantizer<IQ4_NL> : Iq4Block {};
template <>
struct Quantizer<MXFP4> : Fp4Block {};
template <>
struct Quantizer<Q1_0> : SignBlock {};
template <>
struct Quantizer<Q2_K> : AffineSuperBlock<16, 3, 15> {};
template <>
struct Quantizer<Q4_K> : AffineSuperBlock<32, 15, 63> {};
template <>
struct Quantizer<Q5_K> : AffineSuperBlock<32, 31, 63> {};
template <>
struct Quantizer<Q3_K> : SignedSuperBlock<4, 32> {};
template <>
struct Quantizer<Q6_K> : SignedSuperBlock<32, 128> {};
template <>
struct Quantizer<IQ4_XS> : Iq4SuperBlock {};

typedef Quantizer<F> Chosen;
constexpr u32 N = Chosen::N, LANES = Chosen::LANES, THREADS = 64, A_TIME = THREADS / LANES;

// Writes codes into the bytes of a block, in which those are 0.
RF_DEVICE void store_code(Block& block, u32 e, u32 code) {
    Place low = F::low_place(e);
    block.bytes[low.byte] |= (code & ((1 << F::LOW) - 1)) << low.shift;
    if constexpr (F::HIGH > 0) {
        Place high = F::high_place(e);
        block.bytes[high.byte] |= code >> F::LOW << high.shift;
    }
}

// x is (matrices, matrix_rows, row_blocks blocks), importance (matrices, row_blocks blocks) or null. Where an element
// or a scale is not finite, `refused` becomes 1. LANES threads a block of F.
RF_KERNEL(THREADS)
rf_quantize_weights(const float* x, const float* importance, u8* y, i32* refused, i32 count, i32 row_blocks,
                    i32 matrix_rows, float largest) {
    wait_for_previous();
    RF_SHARED Block blocks[A_TIME];
    u32 first = block_x() * A_TIME, own = first + thread_x() / LANES, part = thread_x() % LANES;
    u32 i = own < u32(count) ? own : count - 1, matrix = i / row_blocks / matrix_rows;
    Block& block = blocks[thread_x() / LANES];
    for (u32 k = part; k < F::BYTES; k += LANES) block.bytes[k] = 0;
    wave_barrier();

    Part<N> elements;
    elements.part = part;
    u64 column = u64(i % row_blocks) * F::ELEMENTS + part * N;
    bool usable = true;
    elements.importance = importance ? importance + u64(matrix) * row_blocks * F::ELEMENTS + column : nullptr;
    RF_UNROLL
    for (u32 k = 0; k < N; ++k) {
        elements.x[k] = x[u64(i) * F::ELEMENTS + part * N + k];
        usable = usable && absolute(elements.x[k]) <= largest;
    }
    if (!usable) *refused = 1;
    u32 codes[N];
    Chosen::quantize(elements, codes, block);
    if constexpr (F::ELEMENTS < 256) {
        RF_UNROLL
        for (u32 k = 0; k < N; ++k) store_code(block, part * N + k, codes[k]);
    } else {  // codes that share a byte are a multiple of 16 elements apart, so that one lane has them
        RF_UNROLL
        for (u32 k = 0; k < N; ++k) block.codes[part * N + k] = u8(codes[k]);
        wave_barrier();
        for (u32 e = part; e < F::ELEMENTS; e += LANES) store_code(block, e, block.codes[e]);
    }
    barrier();
    y += u64(first) * F::BYTES;
    u32 bytes = minimum(i32(A_TIME), i32(count - first)) * F::BYTES;
    for (u32 k = thread_x(); k < bytes; k += THREADS) y[k] = blocks[k / F::BYTES].bytes[k % F::BYTES];
}

}  // namespace rocforge
