"""Loading whole models onto a device: what is there afterwards, and what is not after an error."""

import gc
import importlib

import cupy as cp
import numpy as np
import pytest
from golden import build
from packed_vectors import TYPES, with_vectors_in
from simulated import little_memory, on_the_simulator, only_simulated

import rocforge as rf
from rocforge.device import background, kernels, tuning
from rocforge.engine.capacity import CacheSizes
from rocforge.load import load_model
from rocforge.loading import warmup
from rocforge.loading.fit import check_fit
from rocforge.loading.upload import device_nbytes
from rocforge.models import build_model
from rocforge.nn.state import states_of
from rocforge.ops.device.plan import MAX_TILE_TOKENS

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

load = importlib.import_module("rocforge.load")  # as an attribute of the package, that is the function


@pytest.fixture
def pool(path):
    """CuPy's pool, with nothing unused in it, after a first load, and no limit when the test ends."""
    load_model(rf.open_gguf(path), "gpu")
    pool = cp.get_default_memory_pool()
    gc.collect()
    pool.free_all_blocks()
    yield pool
    pool.set_limit(0)


def weights_of(model):
    arrays = dict(model.named_parameters())
    return {name: array.data if hasattr(array, "qtype") else array for name, array in arrays.items()}


def test_same_model_as_without_overlap(path, rng):
    """Weights have the bytes that `to_device` gives, and the warmup has left no trace in what is computed."""
    model, file = load_model(rf.open_gguf(path), "gpu"), rf.open_gguf(path)
    plain = build_model(file)
    plain.load_weights(file, lambda weight: rf.to_device(weight, "gpu"))
    plain.device = "gpu:0"
    expected, got = weights_of(plain), weights_of(model)
    assert expected.keys() == got.keys()
    assert all(cp.asnumpy(got[name]).tobytes() == cp.asnumpy(expected[name]).tobytes() for name in expected)
    few = {"tile_tokens": MAX_TILE_TOKENS, "tile_tokens_alone": MAX_TILE_TOKENS, "wide_from": tuning.ANY}
    with tuning.trying(**few):  # with float16 copies and without
        for count in (MAX_TILE_TOKENS + 6, 40, 1):
            tokens = rng.integers(0, plain.config.vocabulary, count)
            assert (model(tokens).get() == plain(tokens).get()).all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["gpt-oss", "gemma3"])
def test_vectors_of_any_type(tmp_path, name, kind):
    """Norms, biases, sinks, experts' biases and rope factors in any type give what the same values in F32 give."""
    build(tmp_path / "golden.gguf", name, "Q8_0")
    with rf.open_gguf(tmp_path / "golden.gguf") as file:
        packed, plain = (load_model(each, "gpu")(np.arange(5, 8)).get() for each in with_vectors_in(file, kind))
    assert np.isfinite(packed).all() and (packed == plain).all()


def module_of(kernel):
    return (kernel.source, *sorted(kernel.defines.items()))


def test_kernels_of_a_request_are_known(path, monkeypatch):
    """The warmup names the modules that prompts and decode steps then need, and launches nothing of them itself."""
    model, known, launched = load_model(rf.open_gguf(path), "gpu"), set(), set()
    with monkeypatch.context() as patch:
        patch.setattr(kernels.Kernel, "_load", lambda *args: pytest.fail("a kernel was launched"))
        warmup.record_kernels(model, lambda kernel: known.add(module_of(kernel)))
    launch_of = kernels.Kernel.launch_of

    def recorded(kernel, *args, **options):
        launched.add(module_of(kernel))
        return launch_of(kernel, *args, **options)

    monkeypatch.setattr(kernels.Kernel, "launch_of", recorded)
    with rf.Engine(model, cache_tokens=128) as engine:
        for tokens in warmup.PROMPT_TOKENS:
            engine.add(list(range(tokens)), rf.SamplingParams(max_tokens=4, temperature=0))
            while engine.busy:
                engine.step()
    assert launched == known


@pytest.mark.parametrize("what", ["tokenizer", "interrupt", "warmup", "fp16_weights"])
def test_error_leaves_nothing(path, pool, monkeypatch, what):
    """Whatever fails, and although the error is kept: no weights stay on the device, no compilation goes on."""
    error, cancelled = {"interrupt": KeyboardInterrupt}.get(what, ValueError), []
    exits, cancel = load.Uploader.__exit__, background.BackgroundCompilation.cancel

    def fail(*args, **options):
        raise error(what)

    if what == "tokenizer":
        monkeypatch.setattr(load, "Tokenizer", fail)
    elif what == "interrupt":
        monkeypatch.setattr(load.Uploader, "__exit__", lambda *args: exits(*args) or fail())
    elif what == "fp16_weights":
        monkeypatch.setattr("rocforge.loading.fp16_weights.dequantize_device", fail)
    else:
        monkeypatch.setattr(kernels.Kernel, "__call__", fail)
    monkeypatch.setattr(background.BackgroundCompilation, "cancel", lambda self: cancelled.append(cancel(self)))
    used = pool.used_bytes()
    with pytest.raises(error, match=what) as kept:
        rf.load(path, "gpu", fp16_weights=True)
    assert pool.used_bytes() - used <= 1024 and kept.traceback  # the frequencies of rope, of which a few stay
    assert len(cancelled) == 1


def test_too_little_memory_is_told_before(path, pool):
    """Weights fit and the cache that is asked for does not: the error says what is needed, free, and would fit."""
    file = rf.open_gguf(path)
    model = build_model(file)
    sizes = CacheSizes(states_of(model).values(), "gpu:0")
    weights = sum(device_nbytes(file[name]) for name in file)
    room = sizes.nbytes(96) * 8 // 7 + 8
    pool.set_limit(pool.total_bytes() + weights + room)
    used = pool.used_bytes()
    with pytest.raises(rf.DeviceError) as error:
        load_model(file, "gpu", context=200)
    message = str(error.value)
    assert f"needs {(weights + sizes.nbytes(200) + room // 8) / 2**20:.2f} MiB" in message
    assert f"({weights:,} bytes) for weights" in message and f"({weights + room:,} bytes) are free" in message
    assert message.endswith("a smaller quantization or a shorter context (context=96 fits)")
    assert pool.used_bytes() == used
    check_fit(sizes, [file[name] for name in file], 96, model.config.context)
    pool.set_limit(pool.total_bytes() + weights // 2)
    with pytest.raises(rf.DeviceError, match=r"smaller quantization$"):
        load_model(file, "gpu", context=96)


def test_cache_fills_what_is_free(path, pool):
    """A cache of the size that fits is allocated, its bytes are as predicted, and a margin stays free."""
    model = load_model(rf.open_gguf(path), "gpu")
    pool.set_limit(pool.total_bytes() + (8 << 20))
    sizes = CacheSizes(states_of(model).values(), "gpu:0")
    tokens = sizes.tokens_that_fit(1 << 30, 1)
    cache = model.new_cache(tokens // 32)
    assert cache.nbytes == sizes.nbytes(tokens) == sizes.nbytes(tokens - 31)
    assert 6 << 20 < cache.nbytes <= 7 << 20
    assert sizes.tokens_that_fit(40, 1) == 40
    pool.set_limit(pool.total_bytes() + 1000)
    with pytest.raises(rf.DeviceError, match=r"a KV cache of 32 tokens .*\(1,000 bytes"):
        sizes.tokens_that_fit(40, 1)


OUT_OF_MEMORY = """
import cupy as cp
from rocforge.load import load_model
hog = cp.cuda.runtime.malloc(cp.cuda.runtime.memGetInfo()[0] - (1 << 20))
free = cp.cuda.runtime.memGetInfo()[0]
try:
    load_model(rf.open_gguf(path), "gpu")
except rf.DeviceError as error:
    print("before:", error)
sys.modules["rocforge.load"].check_fit = lambda *args: None
try:
    load_model(rf.open_gguf(path), "gpu")
except rf.DeviceError as error:
    print("during:", error)
    assert cp.cuda.runtime.memGetInfo()[0] == free
cp.cuda.runtime.free(hog)
model = load_model(rf.open_gguf(path), "gpu")
print("after:", model([1, 2, 3]).shape)
"""


@only_simulated
def test_device_that_is_full(path):
    """A device's memory is taken: told before, and by the allocation too, as DeviceError; then there is room."""
    before, during, after = on_the_simulator(OUT_OF_MEMORY, path, MEMORY=little_memory(64 << 20)).splitlines()
    assert "the model needs" in before and "(1,048,576 bytes) are free" in before
    assert during.startswith("during: loading: Out of memory allocating") and "gpu:0 has 1.00 MiB" in during
    assert after.startswith("after: (3, ")


@only_simulated
def test_nothing_on_the_null_stream(path):
    """Copies, repacking and the warmup are all on streams of their own."""
    code = 'model, tokenizer = rf.load(path, "gpu"); print(model.device)'
    assert on_the_simulator(code, path, STRICT_STREAM=1) == "gpu:0\n"
