// libhiprand: uniform, normal and integer numbers. The sequences are not those of the real library.
#include <cmath>
#include <random>

#include "sim.h"

using hipsim::hipStream_t;

enum hiprandStatus_t { HIPRAND_STATUS_SUCCESS = 0, HIPRAND_STATUS_LAUNCH_FAILURE = 201 };

struct Generator {
    std::mt19937_64 bits;
    uint64_t seed = 0;
    hipStream_t stream = nullptr;
};

template <class T, class Draw>
static hiprandStatus_t generate(Generator* generator, T* out, size_t count, Draw draw) {
    // Drawn at the call, so that the numbers do not depend on the order in which streams run.
    std::vector<T> numbers(count);
    for (T& number : numbers) number = draw(generator->bits);
    hipError_t error = hipsim::submit_call(generator->stream, "hiprand", [out, numbers = std::move(numbers)] {
        std::copy(numbers.begin(), numbers.end(), out);
    });
    return error ? HIPRAND_STATUS_LAUNCH_FAILURE : HIPRAND_STATUS_SUCCESS;
}

template <class T>
static T uniform(std::mt19937_64& bits) { // in (0, 1], as the library has it
    constexpr int digits = std::is_same_v<T, float> ? 24 : 53;
    return T((bits() >> (64 - digits)) + 1) / T(1ull << digits);
}

template <class T>
static hiprandStatus_t normals(Generator* generator, T* out, size_t count, T mean, T deviation, bool exponential) {
    std::normal_distribution<T> distribution(mean, deviation);
    return generate(generator, out, count, [&](std::mt19937_64& bits) {
        T value = distribution(bits);
        return exponential ? std::exp(value) : value;
    });
}

HIPSIM_API hiprandStatus_t hiprandCreateGenerator(Generator** out, int) {
    *out = new Generator;
    return HIPRAND_STATUS_SUCCESS;
}

HIPSIM_API hiprandStatus_t hiprandDestroyGenerator(Generator* generator) {
    delete generator;
    return HIPRAND_STATUS_SUCCESS;
}

HIPSIM_API hiprandStatus_t hiprandGetVersion(int* version) {
    *version = 300000;
    return HIPRAND_STATUS_SUCCESS;
}

HIPSIM_API hiprandStatus_t hiprandSetStream(Generator* generator, hipStream_t stream) {
    generator->stream = stream;
    return HIPRAND_STATUS_SUCCESS;
}

HIPSIM_API hiprandStatus_t hiprandSetPseudoRandomGeneratorSeed(Generator* generator, unsigned long long seed) {
    generator->seed = seed;
    generator->bits.seed(seed);
    return HIPRAND_STATUS_SUCCESS;
}

HIPSIM_API hiprandStatus_t hiprandSetGeneratorOffset(Generator* generator, unsigned long long offset) {
    generator->bits.seed(generator->seed);
    generator->bits.discard(offset);
    return HIPRAND_STATUS_SUCCESS;
}

HIPSIM_API hiprandStatus_t hiprandGenerate(Generator* generator, unsigned* out, size_t count) {
    return generate(generator, out, count, [](std::mt19937_64& bits) { return unsigned(bits() >> 32); });
}

HIPSIM_API hiprandStatus_t hiprandGenerateUniform(Generator* generator, float* out, size_t count) {
    return generate(generator, out, count, uniform<float>);
}

HIPSIM_API hiprandStatus_t hiprandGenerateUniformDouble(Generator* generator, double* out, size_t count) {
    return generate(generator, out, count, uniform<double>);
}

HIPSIM_API hiprandStatus_t hiprandGenerateNormal(Generator* generator, float* out, size_t count, float mean, float deviation) {
    return normals(generator, out, count, mean, deviation, false);
}

HIPSIM_API hiprandStatus_t hiprandGenerateNormalDouble(Generator* generator, double* out, size_t count, double mean, double deviation) {
    return normals(generator, out, count, mean, deviation, false);
}

HIPSIM_API hiprandStatus_t hiprandGenerateLogNormal(Generator* generator, float* out, size_t count, float mean, float deviation) {
    return normals(generator, out, count, mean, deviation, true);
}

HIPSIM_API hiprandStatus_t hiprandGenerateLogNormalDouble(Generator* generator, double* out, size_t count, double mean, double deviation) {
    return normals(generator, out, count, mean, deviation, true);
}

HIPSIM_API hiprandStatus_t hiprandGeneratePoisson(Generator* generator, unsigned* out, size_t count, double lambda) {
    std::poisson_distribution<unsigned> distribution(lambda);
    return generate(generator, out, count, distribution);
}
