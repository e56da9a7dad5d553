// libhipblas: the real matrix and vector products that CuPy's dot and matmul call, as plain loops that are queued on the
// handle's stream. Sums of half and bfloat16 products are kept in float, as the library does with a float compute type.
//
// A handle's workspace is rocBLAS's own, which it frees and allocates anew where a product wants more than there is, or the
// user's, which products then make do with. While a product runs, its workspace is written.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "sim.h"

using hipsim::hipFree;
using hipsim::hipMalloc;
using hipsim::hipStream_t;

enum hipblasStatus_t { HIPBLAS_STATUS_SUCCESS = 0, HIPBLAS_STATUS_ALLOC_FAILED = 2, HIPBLAS_STATUS_INVALID_VALUE = 3, HIPBLAS_STATUS_INTERNAL_ERROR = 6, HIPBLAS_STATUS_NOT_SUPPORTED = 7 };
enum hipblasOperation_t { HIPBLAS_OP_N = 111, HIPBLAS_OP_T = 112, HIPBLAS_OP_C = 113 };
enum hipblasPointerMode_t { HIPBLAS_POINTER_MODE_HOST, HIPBLAS_POINTER_MODE_DEVICE };
enum hipDataType { HIP_R_32F = 0, HIP_R_64F = 1, HIP_R_16F = 2, HIP_R_16BF = 14 };
enum hipblasComputeType_t { HIPBLAS_COMPUTE_16F = 0, HIPBLAS_COMPUTE_16F_PEDANTIC = 1, HIPBLAS_COMPUTE_64F = 7, HIPBLAS_COMPUTE_64F_PEDANTIC = 8 };

struct Handle {
    hipStream_t stream = nullptr;
    hipblasPointerMode_t mode = HIPBLAS_POINTER_MODE_HOST;
    void* workspace = nullptr;
    size_t workspace_bytes = 0;
    bool workspace_is_the_users = false;

    bool drop_workspace() {
        workspace_bytes = 0;
        if (!workspace_is_the_users && hipFree(workspace)) return false;
        workspace = nullptr, workspace_is_the_users = false;
        return true;
    }
    // As much as is wanted, or of the user's as much as there is.
    bool want_workspace(size_t bytes) {
        if (workspace_is_the_users || bytes <= workspace_bytes) return true;
        if (!drop_workspace() || hipMalloc(&workspace, bytes)) return false;
        workspace_bytes = bytes;
        return true;
    }
};

struct BFloat16 {
    uint16_t bits;
    BFloat16(float value = 0) {
        uint32_t word;
        memcpy(&word, &value, 4);
        bits = std::isnan(value) ? word >> 16 | 0x40 : (word + 0x7FFF + (word >> 16 & 1)) >> 16;
    }
    operator float() const {
        uint32_t word = uint32_t(bits) << 16;
        float value;
        memcpy(&value, &word, 4);
        return value;
    }
};

static hipblasStatus_t queue(Handle* handle, const char* what, std::function<void()> run) {
    return hipsim::submit_call(handle->stream, what, std::move(run)) ? HIPBLAS_STATUS_INTERNAL_ERROR : HIPBLAS_STATUS_SUCCESS;
}

static hipblasStatus_t queue_product(Handle* handle, const char* what, size_t wanted, std::function<void()> run) {
    if (!handle->want_workspace(wanted)) return HIPBLAS_STATUS_ALLOC_FAILED;
    size_t bytes = std::min(wanted, handle->workspace_bytes);
    return queue(handle, what, [=, workspace = handle->workspace] {
        if (bytes) hipsim::scribble(workspace, bytes, what);
        run();
    });
}

// A scalar argument: read now if it lies on the host, when the work runs if on the device.
template <class T>
static std::function<T()> scalar(Handle* handle, const T* pointer) {
    if (handle->mode == HIPBLAS_POINTER_MODE_DEVICE) return [pointer] { return *pointer; };
    return [value = *pointer] { return value; };
}

// One matrix as the BLAS describes it: column-major, perhaps transposed.
template <class T>
struct Matrix {
    const T* data;
    int leading;
    bool transposed;
    T operator()(int row, int column) const { return transposed ? data[column + size_t(row) * leading] : data[row + size_t(column) * leading]; }
};

template <class In, class Out, class Sum>
static void gemm(int m, int n, int k, Sum alpha, Matrix<In> a, Matrix<In> b, Sum beta, Out* c, int ldc) {
    std::vector<Sum> packed(size_t(m) * k), column(m);
    for (int p = 0; p < k; p++)
        for (int i = 0; i < m; i++) packed[size_t(p) * m + i] = Sum(a(i, p));
    for (int j = 0; j < n; j++) {
        std::fill(column.begin(), column.end(), Sum(0));
        for (int p = 0; p < k; p++) {
            const Sum factor = Sum(b(p, j)), *source = &packed[size_t(p) * m];
            for (int i = 0; i < m; i++) column[i] += source[i] * factor;
        }
        Out* out = c + size_t(j) * ldc;
        for (int i = 0; i < m; i++) out[i] = Out(alpha * column[i] + (beta == 0 ? Sum(0) : beta * Sum(out[i])));
    }
}

struct Shape {
    hipblasOperation_t op_a, op_b;
    int m, n, k, lda, ldb, ldc;
    long long stride_a = 0, stride_b = 0, stride_c = 0;
    int batches = 1;
};

template <class In, class Out, class Sum>
static hipblasStatus_t queue_gemm(Handle* handle, const Shape& s, std::function<Sum()> alpha, const void* a, const void* b,
                                  std::function<Sum()> beta, void* c) {
    return queue_product(handle, "hipblas gemm", sizeof(Sum) * s.m * s.n, [=] {
        for (int i = 0; i < s.batches; i++)
            gemm<In, Out, Sum>(s.m, s.n, s.k, alpha(), {static_cast<const In*>(a) + i * s.stride_a, s.lda, s.op_a != HIPBLAS_OP_N},
                               {static_cast<const In*>(b) + i * s.stride_b, s.ldb, s.op_b != HIPBLAS_OP_N}, beta(),
                               static_cast<Out*>(c) + i * s.stride_c, s.ldc);
    });
}

static hipblasStatus_t gemm_ex(Handle* handle, const Shape& s, const void* alpha, const void* a, hipDataType a_type, const void* b,
                               hipDataType b_type, const void* beta, void* c, hipDataType c_type, hipblasComputeType_t compute) {
    if (a_type != b_type) return HIPBLAS_STATUS_NOT_SUPPORTED;
    if (compute == HIPBLAS_COMPUTE_64F || compute == HIPBLAS_COMPUTE_64F_PEDANTIC) {
        if (a_type != HIP_R_64F || c_type != HIP_R_64F) return HIPBLAS_STATUS_NOT_SUPPORTED;
        return queue_gemm<double, double, double>(handle, s, scalar(handle, static_cast<const double*>(alpha)), a, b,
                                                  scalar(handle, static_cast<const double*>(beta)), c);
    }
    auto read = [&](const void* pointer) -> std::function<float()> {
        if (compute == HIPBLAS_COMPUTE_16F || compute == HIPBLAS_COMPUTE_16F_PEDANTIC)
            return [value = scalar(handle, static_cast<const _Float16*>(pointer))] { return float(value()); };
        return scalar(handle, static_cast<const float*>(pointer));
    };
    auto x = read(alpha), y = read(beta);
    if (a_type == HIP_R_32F && c_type == HIP_R_32F) return queue_gemm<float, float, float>(handle, s, x, a, b, y, c);
    if (a_type == HIP_R_16F && c_type == HIP_R_16F) return queue_gemm<_Float16, _Float16, float>(handle, s, x, a, b, y, c);
    if (a_type == HIP_R_16F && c_type == HIP_R_32F) return queue_gemm<_Float16, float, float>(handle, s, x, a, b, y, c);
    if (a_type == HIP_R_16BF && c_type == HIP_R_16BF) return queue_gemm<BFloat16, BFloat16, float>(handle, s, x, a, b, y, c);
    if (a_type == HIP_R_16BF && c_type == HIP_R_32F) return queue_gemm<BFloat16, float, float>(handle, s, x, a, b, y, c);
    return HIPBLAS_STATUS_NOT_SUPPORTED;
}

HIPSIM_API hipblasStatus_t hipblasCreate(Handle** out) {
    *out = new Handle;
    return HIPBLAS_STATUS_SUCCESS;
}

HIPSIM_API hipblasStatus_t hipblasDestroy(Handle* handle) {
    bool dropped = handle->drop_workspace();
    delete handle;
    return dropped ? HIPBLAS_STATUS_SUCCESS : HIPBLAS_STATUS_INTERNAL_ERROR;
}

HIPSIM_API hipblasStatus_t hipblasSetWorkspace(Handle* handle, void* workspace, size_t bytes) {
    if (!handle->drop_workspace()) return HIPBLAS_STATUS_INTERNAL_ERROR;
    if (!workspace || !bytes) return HIPBLAS_STATUS_SUCCESS;
    handle->workspace = workspace, handle->workspace_bytes = bytes, handle->workspace_is_the_users = true;
    hipsim::mark_workspace(workspace);
    return HIPBLAS_STATUS_SUCCESS;
}

HIPSIM_API hipblasStatus_t hipblasSetStream(Handle* handle, hipStream_t stream) {
    handle->stream = stream;
    return HIPBLAS_STATUS_SUCCESS;
}

HIPSIM_API hipblasStatus_t hipblasGetStream(Handle* handle, hipStream_t* stream) {
    *stream = handle->stream;
    return HIPBLAS_STATUS_SUCCESS;
}

HIPSIM_API hipblasStatus_t hipblasSetPointerMode(Handle* handle, hipblasPointerMode_t mode) {
    handle->mode = mode;
    return HIPBLAS_STATUS_SUCCESS;
}

HIPSIM_API hipblasStatus_t hipblasGetPointerMode(Handle* handle, hipblasPointerMode_t* mode) {
    *mode = handle->mode;
    return HIPBLAS_STATUS_SUCCESS;
}

HIPSIM_API hipblasStatus_t hipblasGemmEx(Handle* handle, hipblasOperation_t op_a, hipblasOperation_t op_b, int m, int n, int k,
                                         const void* alpha, const void* a, hipDataType a_type, int lda, const void* b,
                                         hipDataType b_type, int ldb, const void* beta, void* c, hipDataType c_type, int ldc,
                                         hipblasComputeType_t compute, int) {
    return gemm_ex(handle, {op_a, op_b, m, n, k, lda, ldb, ldc}, alpha, a, a_type, b, b_type, beta, c, c_type, compute);
}

HIPSIM_API hipblasStatus_t hipblasGemmStridedBatchedEx(Handle* handle, hipblasOperation_t op_a, hipblasOperation_t op_b, int m, int n,
                                                       int k, const void* alpha, const void* a, hipDataType a_type, int lda,
                                                       long long stride_a, const void* b, hipDataType b_type, int ldb, long long stride_b,
                                                       const void* beta, void* c, hipDataType c_type, int ldc, long long stride_c,
                                                       int batches, hipblasComputeType_t compute, int) {
    return gemm_ex(handle, {op_a, op_b, m, n, k, lda, ldb, ldc, stride_a, stride_b, stride_c, batches}, alpha, a, a_type, b, b_type, beta,
                   c, c_type, compute);
}

template <class T>
static void gemv(hipblasOperation_t op, int m, int n, T alpha, const T* a, int lda, const T* x, int incx, T beta, T* y, int incy) {
    int rows = op == HIPBLAS_OP_N ? m : n, columns = op == HIPBLAS_OP_N ? n : m;
    Matrix<T> matrix{a, lda, op != HIPBLAS_OP_N};
    for (int i = 0; i < rows; i++) {
        T sum = 0;
        for (int j = 0; j < columns; j++) sum += matrix(i, j) * x[size_t(j) * incx];
        T& out = y[size_t(i) * incy];
        out = alpha * sum + (beta == 0 ? T(0) : beta * out);
    }
}

// A function that reduces vectors to one number writes it to the device on the stream, or waits and gives it to the host.
template <class T>
static hipblasStatus_t queue_result(Handle* handle, const char* what, T* result, std::function<T()> compute) {
    if (handle->mode == HIPBLAS_POINTER_MODE_DEVICE) return queue(handle, what, [=] { *result = compute(); });
    hipblasStatus_t status = queue(handle, what, [=] { *result = compute(); });
    return status || hipStreamSynchronize(handle->stream) ? HIPBLAS_STATUS_INTERNAL_ERROR : HIPBLAS_STATUS_SUCCESS;
}

// c = alpha op(a) + beta op(b), which CuPy transposes with; c may be a or b.
template <class T>
static void geam(int m, int n, T alpha, Matrix<T> a, T beta, Matrix<T> b, T* c, int ldc) {
    std::vector<T> sums(size_t(m) * n);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++)
            sums[i + size_t(j) * m] = (alpha == 0 ? T(0) : alpha * a(i, j)) + (beta == 0 ? T(0) : beta * b(i, j));
    for (int j = 0; j < n; j++) std::copy_n(&sums[size_t(j) * m], m, c + size_t(j) * ldc);
}

#define REAL_FUNCTIONS(P, T)                                                                                                     \
    HIPSIM_API hipblasStatus_t hipblas##P##gemm(Handle* handle, hipblasOperation_t op_a, hipblasOperation_t op_b, int m, int n,    \
                                                int k, const T* alpha, const T* a, int lda, const T* b, int ldb, const T* beta,   \
                                                T* c, int ldc) {                                                                  \
        return queue_gemm<T, T, T>(handle, {op_a, op_b, m, n, k, lda, ldb, ldc}, scalar(handle, alpha), a, b,                     \
                                   scalar(handle, beta), c);                                                                      \
    }                                                                                                                             \
    HIPSIM_API hipblasStatus_t hipblas##P##gemmStridedBatched(                                                                    \
        Handle* handle, hipblasOperation_t op_a, hipblasOperation_t op_b, int m, int n, int k, const T* alpha, const T* a,        \
        int lda, long long stride_a, const T* b, int ldb, long long stride_b, const T* beta, T* c, int ldc, long long stride_c,   \
        int batches) {                                                                                                            \
        return queue_gemm<T, T, T>(handle, {op_a, op_b, m, n, k, lda, ldb, ldc, stride_a, stride_b, stride_c, batches},           \
                                   scalar(handle, alpha), a, b, scalar(handle, beta), c);                                         \
    }                                                                                                                             \
    HIPSIM_API hipblasStatus_t hipblas##P##gemmBatched(Handle* handle, hipblasOperation_t op_a, hipblasOperation_t op_b, int m,   \
                                                       int n, int k, const T* alpha, const T* const* a, int lda,                  \
                                                       const T* const* b, int ldb, const T* beta, T* const* c, int ldc,           \
                                                       int batches) {                                                             \
        auto x = scalar(handle, alpha), y = scalar(handle, beta);                                                                 \
        return queue_product(handle, "hipblas gemmBatched", sizeof(T) * m * n, [=] {                                              \
            for (int i = 0; i < batches; i++)                                                                                     \
                gemm<T, T, T>(m, n, k, x(), {a[i], lda, op_a != HIPBLAS_OP_N}, {b[i], ldb, op_b != HIPBLAS_OP_N}, y(), c[i], ldc); \
        });                                                                                                                       \
    }                                                                                                                             \
    HIPSIM_API hipblasStatus_t hipblas##P##gemv(Handle* handle, hipblasOperation_t op, int m, int n, const T* alpha, const T* a,  \
                                                int lda, const T* x, int incx, const T* beta, T* y, int incy) {                   \
        auto p = scalar(handle, alpha), q = scalar(handle, beta);                                                                 \
        return queue(handle, "hipblas gemv", [=] { gemv<T>(op, m, n, p(), a, lda, x, incx, q(), y, incy); });                     \
    }                                                                                                                             \
    HIPSIM_API hipblasStatus_t hipblas##P##ger(Handle* handle, int m, int n, const T* alpha, const T* x, int incx, const T* y,    \
                                               int incy, T* a, int lda) {                                                         \
        auto p = scalar(handle, alpha);                                                                                           \
        return queue(handle, "hipblas ger", [=] {                                                                                 \
            for (int j = 0; j < n; j++)                                                                                           \
                for (int i = 0; i < m; i++) a[i + size_t(j) * lda] += p() * x[size_t(i) * incx] * y[size_t(j) * incy];            \
        });                                                                                                                       \
    }                                                                                                                             \
    HIPSIM_API hipblasStatus_t hipblas##P##geam(Handle* handle, hipblasOperation_t op_a, hipblasOperation_t op_b, int m, int n,    \
                                                const T* alpha, const T* a, int lda, const T* beta, const T* b, int ldb, T* c,    \
                                                int ldc) {                                                                        \
        auto p = scalar(handle, alpha), q = scalar(handle, beta);                                                                 \
        return queue(handle, "hipblas geam", [=] {                                                                                \
            geam<T>(m, n, p(), {a, lda, op_a != HIPBLAS_OP_N}, q(), {b, ldb, op_b != HIPBLAS_OP_N}, c, ldc);                      \
        });                                                                                                                       \
    }                                                                                                                             \
    HIPSIM_API hipblasStatus_t hipblas##P##dot(Handle* handle, int n, const T* x, int incx, const T* y, int incy, T* result) {    \
        return queue_result<T>(handle, "hipblas dot", result, [=] {                                                               \
            T sum = 0;                                                                                                            \
            for (int i = 0; i < n; i++) sum += x[size_t(i) * incx] * y[size_t(i) * incy];                                         \
            return sum;                                                                                                           \
        });                                                                                                                       \
    }                                                                                                                             \
    HIPSIM_API hipblasStatus_t hipblas##P##nrm2(Handle* handle, int n, const T* x, int incx, T* result) {                         \
        return queue_result<T>(handle, "hipblas nrm2", result, [=] {                                                              \
            double sum = 0;                                                                                                       \
            for (int i = 0; i < n; i++) sum += double(x[size_t(i) * incx]) * x[size_t(i) * incx];                                 \
            return T(std::sqrt(sum));                                                                                             \
        });                                                                                                                       \
    }
REAL_FUNCTIONS(S, float)
REAL_FUNCTIONS(D, double)
