"""Products with packed weights on a device, at the shapes of Llama 3: against the card's own limits.

    pytest benches/bench_ops.py --benchmark-enable --benchmark-json=ops.json

Small products are launched from a captured graph, one after another over copies of the weight that are together larger
than the card's last cache, so that each reads its weight from memory, and launches cost what they cost in decoding,
where they overlap. The limits, a streaming read and the library's float16 product, are measured in the same run. Each
record's extra_info has the microseconds of one launch, its bytes, and the share of the limit.
"""

import functools
import time

import numpy as np
import pytest
from measure import cp

import rocforge.ops.device.matvec as matvec
from rocforge.device import tuning
from rocforge.device.arrays import available_memory
from rocforge.device.cards import card_of
from rocforge.device.kernels import launches_overlap
from rocforge.device.timing import seconds_of
from rocforge.formats.blocks import QTYPES, row_nbytes
from rocforge.ops.device.dequantize import dequantize_device, pack, unpack
from rocforge.ops.device.float_tiles import float_tile_products
from rocforge.ops.device.gemm import gemm_fp16
from rocforge.ops.device.operands import quantized, to_fp16
from rocforge.ops.device.plan import OperandForm, fragments_for
from rocforge.ops.device.tiles import tile_gated, tile_products
from rocforge.ops.device.wide import wide_gated, wide_products
from rocforge.quant import QuantizedArray
from rocforge.selftest.figures import library_product_rate

CACHE_NBYTES = 400 << 20
"""Copies of a weight add up to this at least: several times the last cache."""
ROUNDS = 15

READ = r"""
extern "C" __global__ void read_all(const uint4* p, unsigned* out) {
    p += 2048ull * blockIdx.x + threadIdx.x;
    uint4 v[8];
    for (int i = 0; i < 8; ++i) v[i] = p[256 * i];
    unsigned sum = 0;
    for (int i = 0; i < 8; ++i) sum += v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    if (sum == 12345) *out = sum;
}
"""

READ_SEGMENTS = r"""
extern "C" __global__ void read_segments(const uint4* p, unsigned* out, int rows, int plane, int lanes) {
    // lanes that share a row read consecutive words of each of its four planes, of two runs of rows at a time
    int lane = threadIdx.x % 32, group = (blockIdx.x * blockDim.x + threadIdx.x) / 32, at_once = 32 / lanes;
    unsigned sum = 0;
    for (int first = 2 * at_once * group; first < rows; first += 2 * at_once * (gridDim.x * blockDim.x / 32))
        for (int c = lane % lanes; c < plane; c += lanes) {
            uint4 v[8];
            for (int i = 0; i < 8; ++i)
                v[i] = p[4ll * plane * (first + i / 4 * at_once + lane / lanes) + i % 4 * plane + c];
            for (int i = 0; i < 8; ++i) sum += v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
        }
    if (sum == 12345) *out = sum;
}
"""


@pytest.fixture(scope="module", autouse=True)
def stream():
    with cp.cuda.Stream(non_blocking=True) as stream:
        yield stream


@pytest.fixture(scope="module")
def bandwidth(stream) -> float:
    """Bytes a second that a plain kernel reads."""
    nbytes = min(3 << 30, available_memory("gpu:0") // 4) >> 20 << 20
    data, out, kernel = noise(nbytes), cp.zeros(1, np.uint32), cp.RawKernel(READ, "read_all")
    return data.nbytes / float(np.median(seconds_of(lambda: kernel((data.size // 32768,), (256,), (data, out)))))


@pytest.fixture(scope="module")
def product_rate(stream) -> float:
    return library_product_rate()


def noise(nbytes: int):
    """Random bytes on the device; 16 MiB of them again and again."""
    return cp.resize(cp.asarray(np.random.default_rng(0).integers(0, 256, 1 << 24, dtype=np.uint8)), nbytes)


def random_weights(qtype: str, rows: int, columns: int, copies: int) -> list[QuantizedArray]:
    """Weights of random bytes, on the device in its own layout."""
    blocks = noise(rows * row_nbytes(columns, QTYPES[qtype])).reshape(rows, -1)
    first = QuantizedArray(blocks, (rows, columns), qtype).to_device("gpu")
    weights = [first]
    for _ in range(copies - 1):
        copy = first[:]
        copy.data = first.data.copy()
        weights.append(copy)
    return weights


def copies_of(qtype: str, rows: int, columns: int) -> int:
    return max(4, min(64, CACHE_NBYTES // (rows * row_nbytes(columns, QTYPES[qtype]))))


def run_graph(benchmark, stream, launches: list, bytes_each: int, bandwidth: float) -> None:
    """Time a graph of the launches, and record what one of them costs."""
    for launch in launches:
        launch()
    stream.begin_capture()
    with launches_overlap():
        for launch in launches:
            launch()
    graph = stream.end_capture()
    seconds = float(np.median(seconds_of(lambda: graph.launch(stream)))) / len(launches)
    share = bytes_each / seconds / bandwidth
    benchmark.extra_info.update(microseconds=seconds * 1e6, megabytes=bytes_each / 1e6, share_of_read=share)

    def replay():
        graph.launch(stream)
        stream.synchronize()

    benchmark.pedantic(replay, rounds=ROUNDS, warmup_rounds=2)


@pytest.mark.parametrize("nbytes", [64, 128, 256])
def test_segments(benchmark, stream, bandwidth, nbytes):
    """What memory gives to waves that read so many consecutive bytes of a row at a time, as tiles do of weights."""
    rows, plane, lanes = 1 << 19, 32, nbytes // 16
    data, out, kernel = noise(64 * rows * plane), cp.zeros(1, np.uint32), cp.RawKernel(READ_SEGMENTS, "read_segments")
    units = card_of(0).compute_units
    run = functools.partial(kernel, (4 * units,), (256,), (data, out, np.int32(rows), np.int32(plane), np.int32(lanes)))
    run_events(benchmark, run, share_of_read=lambda seconds: data.nbytes / seconds / bandwidth)


SHAPES = [(4096, 4096), (6144, 4096), (1024, 4096), (4096, 14336), (2048, 2048), (3072, 2048), (2048, 8192)]
FAST = ["Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "IQ4_XS", "IQ3_S", "IQ2_XS"]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("qtype", FAST)
def test_gemv(benchmark, stream, bandwidth, qtype, rows, columns):
    """One token, in int8."""
    weights = random_weights(qtype, rows, columns, copies_of(qtype, rows, columns))
    x = quantized(cp.ones((1, columns), np.float32))
    launches = [lambda w=w: matvec.products(x, [w]) for w in weights]
    run_graph(benchmark, stream, launches, weights[0].nbytes, bandwidth)


@pytest.mark.parametrize("result", [OperandForm.FLOAT32, OperandForm.INT8])
@pytest.mark.parametrize(("rows", "columns"), [(14336, 4096), (8192, 2048)])
@pytest.mark.parametrize("qtype", ["Q8_0", "Q4_K", "Q6_K"])
def test_gated(benchmark, stream, bandwidth, qtype, rows, columns, result):
    """Gate and up with SwiGLU; in int8 too, for the product that follows."""
    weights = random_weights(qtype, 2 * rows, columns, copies_of(qtype, 2 * rows, columns))
    x = quantized(cp.ones((1, columns), np.float32))
    launches = [
        lambda w=w: matvec.gated_product(x, w[:rows], w[rows:], (None, None), "swiglu", result) for w in weights
    ]
    run_graph(benchmark, stream, launches, weights[0].nbytes, bandwidth)


def test_output(benchmark, stream, bandwidth):
    """The output layer of Llama 3 8B in Q4_K_M: 128256 rows of Q6_K."""
    weights = random_weights("Q6_K", 128256, 4096, 4)
    x = quantized(cp.ones((1, 4096), np.float32))
    run_graph(benchmark, stream, [lambda w=w: matvec.products(x, [w]) for w in weights], weights[0].nbytes, bandwidth)


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(4096, 4096), (28672, 4096), (4096, 14336)])
@pytest.mark.parametrize("qtype", ["Q4_K", "Q6_K", "Q8_0"])
def test_tokens(benchmark, stream, bandwidth, qtype, rows, columns, n):
    """Two to eight tokens, with the dot instruction."""
    weights = random_weights(qtype, rows, columns, copies_of(qtype, rows, columns))
    x = quantized(cp.ones((n, columns), np.float32))
    launches = [lambda w=w: matvec.products(x, [w]) for w in weights]
    run_graph(benchmark, stream, launches, weights[0].nbytes, bandwidth)


@pytest.mark.parametrize("n", [8, 16, 32, 64])
@pytest.mark.parametrize(("rows", "columns"), [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)])
@pytest.mark.parametrize("qtype", ["Q4_K", "Q6_K", "Q8_0"])
def test_tiles(benchmark, stream, bandwidth, qtype, rows, columns, n):
    """Up to 64 tokens, with the matrix unit; 28,672 rows as gate and up, in fragments for the product that follows."""
    weights = random_weights(qtype, rows, columns, copies_of(qtype, rows, columns))
    form, half = fragments_for(n), rows // 2
    x = quantized(cp.ones((n, columns), np.float32), form)
    if rows == 28672:
        launches = [lambda w=w: tile_gated(x, w[:half], w[half:], (None, None), "swiglu", form) for w in weights]
    else:
        launches = [lambda w=w: tile_products(x, [w], None, None) for w in weights]
    run_graph(benchmark, stream, launches, weights[0].nbytes, bandwidth)


@pytest.mark.parametrize("n", [1, 2, 8, 16, 32, 64])
@pytest.mark.parametrize(("rows", "columns"), [(4096, 4096), (28672, 4096), (4096, 14336)])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_floats(benchmark, stream, bandwidth, dtype, rows, columns, n):
    """Float weights: one or two tokens in float32, more on the matrix unit."""
    weights = random_weights(dtype, rows, columns, copies_of(dtype, rows, columns))
    x = cp.ones((n, columns), np.float32)
    run = functools.partial(matvec.products, x) if n <= 2 else functools.partial(float_tile_products, to_fp16(x))
    launches = [functools.partial(run, [w]) for w in weights]
    run_graph(benchmark, stream, launches, weights[0].nbytes, bandwidth)


def run_events(benchmark, run, **figures) -> None:
    seconds = float(np.median(seconds_of(run)))
    benchmark.extra_info.update(microseconds=seconds * 1e6, **{name: f(seconds) for name, f in figures.items()})
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("n", [64, 128, 256, 2048])
@pytest.mark.parametrize(("rows", "columns", "gated"), [(6144, 4096, False), (28672, 4096, True), (4096, 14336, False)])
@pytest.mark.parametrize("qtype", ["Q4_K", "Q6_K", "Q8_0"])
def test_warpgroups(benchmark, stream, bandwidth, qtype, rows, columns, gated, n):
    """Many tokens with packed weights, on Hopper's matrix unit; with SwiGLU, to the form of the next product."""
    if tuning.current().wide_from >= tuning.ANY:
        pytest.skip("wide.hip is for Hopper")
    weights = random_weights(qtype, rows, columns, copies_of(qtype, rows, columns))
    x, half, form = quantized(cp.ones((n, columns), np.float32), OperandForm.SWIZZLED), rows // 2, OperandForm.SWIZZLED
    if gated:
        launches = [lambda w=w: wide_gated(x, w[:half], w[half:], (None, None), "swiglu", form) for w in weights]
    else:
        launches = [lambda w=w: wide_products(x, [w]) for w in weights]
    run_graph(benchmark, stream, launches, weights[0].nbytes, bandwidth)


@pytest.mark.parametrize("n", [16, 64, 512, 2048])
@pytest.mark.parametrize(("rows", "columns"), [(4096, 4096), (28672, 4096), (4096, 14336)])
@pytest.mark.parametrize("qtype", ["Q4_K", "Q6_K", "Q8_0"])
def test_gemm(benchmark, product_rate, qtype, rows, columns, n):
    """Many tokens: float16 tiles and the BLAS library."""
    (weight,) = random_weights(qtype, rows, columns, 1)
    x = cp.ones((n, columns), np.float32)
    rate = {"share_of_product": lambda s: 2 * n * rows * columns / s / product_rate}
    run_events(benchmark, lambda: gemm_fp16(to_fp16(x), weight), **rate)


@pytest.mark.parametrize("qtype", FAST)
def test_dequantize(benchmark, qtype):
    """To float16: bytes read and written."""
    (weight,) = random_weights(qtype, 28672, 4096, 1)
    out = cp.empty(weight.shape, np.float16)
    total = weight.nbytes + out.nbytes
    figures = {"terabytes_a_second": lambda s: total / s / 1e12}
    run_events(benchmark, lambda: dequantize_device(weight, "float16", out=out), **figures)


@pytest.mark.parametrize("qtype", FAST)
def test_pack(benchmark, qtype):
    """GGUF's blocks to planes: gigabytes a second of blocks."""
    (weight,) = random_weights(qtype, 28672, 4096, 1)
    blocks = unpack(weight.data, weight.qtype, 4096)
    figures = {"gigabytes_a_second": lambda s: blocks.nbytes / s / 1e9}
    run_events(benchmark, lambda: pack(blocks, weight.qtype, 4096), **figures)


def test_python_launch(benchmark):
    """What one call costs the host: 1000 launches, not waited for."""
    (weight,) = random_weights("Q4_K", 64, 256, 1)
    x = quantized(cp.ones((1, 256), np.float32))
    matvec.products(x, [weight])

    def launch_1000():
        for _ in range(1000):
            matvec.products(x, [weight])

    start = time.perf_counter()
    launch_1000()
    benchmark.extra_info["microseconds"] = (time.perf_counter() - start) * 1e3
    cp.cuda.get_current_stream().synchronize()
    benchmark.pedantic(launch_1000, rounds=5)
