// Search of scales, as rocforge/formats/quantizers/search.py has it: which scale (and minimum) makes the weighted
// squared error of a group of elements smallest. A lane holds N elements of a group that LANES lanes share, a power of
// two.
#pragma once

#include "formats/quants.h"

namespace rocforge {

RF_DEVICE bool finite(float x) { return (float_bits(x) & 0x7f800000) != 0x7f800000; }
// 1 / x, and 0 where x is 0 or so small that the quotient is infinite.
RF_DEVICE float reciprocal(float x) {
    float inverse = 1.0f / x;
    return finite(inverse) ? inverse : 0.0f;
}
RF_DEVICE float rounded_fp16(float x) { return to_float(from_float<f16>(x)); }

template <u32 LANES>
RF_DEVICE float sum_lanes(float x) {
    return reduce_lanes<LANES>(x, Add());
}

// ---- What values are rounded to ----

// The integers from low to high.
struct Integers {
    float low, high;
    RF_MEMBER float nearest(float x) const { return float(round_int(minimum(maximum(x, low), high))); }
};

// The values of IQ4_NL and IQ4_XS.
struct Iq4Values {
    static RF_MEMBER float value(u32 code) { return float(i8(IQ4Values::of_bytes(code))); }
    static RF_MEMBER u32 code(float x) {
        u32 code = 0;
        RF_UNROLL
        for (u32 i = 0; i < 15; ++i) code += x >= (value(i) + value(i + 1)) * 0.5f;
        return code;
    }
    RF_MEMBER float nearest(float x) const { return value(code(x)); }
};

// ---- What the largest magnitude is tried as ----

struct Steps {
    float first, step;
    u32 count;
    RF_MEMBER float at(u32 i) const { return first + step * float(i); }
};
// About the largest code, in magnitude, and for scales of groups about the largest of their integers.
RF_DEVICE Steps steps(float largest) {
    return largest < 0 ? Steps{largest + 0.9f, -0.3f, 9} : Steps{largest - 0.9f, 0.3f, 9};
}
RF_DEVICE Steps scale_steps(float largest) { return {0.6f * largest, largest / 40, 25}; }

struct Iq4Steps {
    static constexpr u32 count = 9;
    static RF_MEMBER float at(u32 i) { return i < 7 ? -145.0f + 6.0f * float(i) : 28.0f + 12.0f * float(i); }
};

// ---- The searches ----

// The element of the largest magnitude, with its sign.
template <u32 LANES, u32 N>
RF_DEVICE float signed_peak(const float (&x)[N]) {
    float high = x[0], low = -x[0];
    RF_UNROLL
    for (u32 i = 1; i < N; ++i) {
        high = maximum(high, x[i]);
        low = maximum(low, -x[i]);
    }
    high = reduce_lanes<LANES>(high, Maximum());
    low = reduce_lanes<LANES>(low, Maximum());
    return high > low ? high : -low;
}

template <u32 LANES, u32 N, class Candidates, class Rounding>
RF_DEVICE float best_scale(const float (&x)[N], const float (&weight)[N], Candidates candidates, Rounding rounding) {
    float peak = signed_peak<LANES>(x), inverse = reciprocal(peak), gain = 0, scale = 0;
    auto consider = [&](float factor) {
        float product = 0, square = 0;
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) {
            float unit = x[i] * inverse, value = rounding.nearest(unit * factor), weighted = weight[i] * value;
            product += weighted * unit;
            square += weighted * value;
        }
        product = sum_lanes<LANES>(product);
        float fitted = product * reciprocal(sum_lanes<LANES>(square));
        if (product * fitted > gain) {
            gain = product * fitted;
            scale = fitted;
        }
    };
    RF_NO_UNROLL
    for (u32 i = 0; i < candidates.count; ++i) consider(candidates.at(i));
    consider(reciprocal(scale));
    return scale * peak;
}

struct Affine {
    float scale, minimum;
};

// x is about scale * code - minimum, codes from 0 to levels, of a group that the lane has alone.
template <u32 N>
RF_DEVICE Affine best_affine(const float (&x)[N], const float (&weight)[N], float levels, Steps candidates) {
    float low = 0, high = x[0], sum_w = 0, sum_x = 0;
    RF_UNROLL
    for (u32 i = 0; i < N; ++i) {
        low = minimum(low, x[i]);
        high = maximum(high, x[i]);
    }
    float span = high - low, inverse = reciprocal(span), ceiling = -low * inverse;
    RF_UNROLL
    for (u32 i = 0; i < N; ++i) {
        sum_w += weight[i];
        sum_x += weight[i] * ((x[i] - low) * inverse);
    }
    float gain = -infinity(), scale = 1.0f / levels, shift = 0;
    Integers codes{0, levels};
    auto consider = [&](float factor, float offset) {
        float sum_l = 0, sum_l2 = 0, sum_xl = 0;
        RF_UNROLL
        for (u32 i = 0; i < N; ++i) {
            float unit = (x[i] - low) * inverse, code = codes.nearest((unit - offset) * factor);
            float weighted = weight[i] * code;
            sum_l += weighted;
            sum_l2 += weighted * code;
            sum_xl += weighted * unit;
        }
        float variance = sum_w * sum_l2 - sum_l * sum_l;
        if (!(variance > 1e-6f * sum_w * sum_l2)) return;
        float determinant = reciprocal(variance);
        float fitted = (sum_w * sum_xl - sum_x * sum_l) * determinant;
        float moved = (sum_l2 * sum_x - sum_l * sum_xl) * determinant;
        if (moved > ceiling) {
            moved = ceiling;
            fitted = (sum_xl - moved * sum_l) * reciprocal(sum_l2);
        }
        float reached = fitted * (2 * (sum_xl - moved * sum_l) - fitted * sum_l2) + moved * (2 * sum_x - moved * sum_w);
        if (reached > gain && determinant > 0) {
            gain = reached;
            scale = fitted;
            shift = moved;
        }
    };
    RF_NO_UNROLL
    for (u32 i = 0; i < candidates.count; ++i) consider(candidates.at(i), 0);
    consider(reciprocal(scale), shift);
    return {scale * span, -(low + shift * span)};
}

// The integer of this lane's scale among those of a block's lanes, and the scale of these, a float16's value.
struct Scale {
    float code, unit;
};
template <u32 LANES>
RF_DEVICE Scale block_scale(float scale, float weight, Steps candidates, Integers codes) {
    float x[1] = {scale}, w[1] = {weight};
    float unit = rounded_fp16(best_scale<LANES>(x, w, candidates, codes));
    return {codes.nearest(scale * reciprocal(unit)), unit};
}

}  // namespace rocforge
