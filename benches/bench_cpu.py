"""The main job on the CPU, with the demo model: import, open, load, cold start, prefill and decode.

    pytest benches/bench_cpu.py --benchmark-enable

With llama-cpp-python installed, prefill and decode are measured side by side with llama.cpp: the same file, the same
number of threads, turns taken one after the other. Compared are the medians of the turns, and the tenth of decoding's
steps that were fastest, which other processes on the same cores disturb less.
"""

import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from history import note_rate

import rocforge as rf
from rocforge.nn.batch import Batch, Chunk

(DEMO,) = (Path(__file__).parents[1] / "examples" / "demo_model").glob("*.gguf")
PROMPT = 512
DECODE = 128
THREADS = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def model():
    """The demo model, its weights unpacked by one run."""
    model, _ = rf.load(DEMO, device="cpu")
    model([1])
    return model


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_import(benchmark):
    """`import rocforge` in a fresh process, less an empty process."""
    empty = statistics.median(timed(lambda: run("import sys")) for _ in range(5))
    benchmark.extra_info["empty_process_s"] = empty
    benchmark.pedantic(run, args=("import rocforge",), rounds=7, warmup_rounds=1)


def test_cold_start_to_first_token(benchmark):
    """A fresh process to its first token: import, open, load, tokenize, prefill."""
    code = (
        f"import rocforge as rf; m, t = rf.load({str(DEMO)!r}, device='cpu'); "
        "next(rf.stream_generate(m, t, 'def fibonacci(n):'))"
    )
    benchmark.pedantic(run, args=(code,), rounds=5, warmup_rounds=1)


def test_open(benchmark):
    """open_gguf, metadata and tensor table read."""
    benchmark(lambda: rf.open_gguf(DEMO).close())


def test_load(benchmark):
    """rf.load: model and tokenizer."""
    benchmark.pedantic(rf.load, args=(DEMO, "cpu"), rounds=7, warmup_rounds=1)


def prefill(model, tokens):
    """One prompt, the last token's logits."""
    blocks = -(-len(tokens) // 32)
    batch = Batch.of(model.new_cache(blocks), [Chunk(0, len(tokens), range(blocks))])
    return model(tokens, batch)


def decode(model, count):
    """That many greedy steps after a short prompt; returns the seconds that each took."""
    with rf.Engine(model) as engine:
        engine.add(list(range(1, 13)), rf.SamplingParams(max_tokens=count + 1, temperature=0, ignore_eos=True))
        engine.step()
        return [timed(engine.step) for _ in range(count)]


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def tokens(count):
    return np.random.default_rng(0).integers(0, 4096, count)


def test_prefill(benchmark, model):
    """pp512."""
    benchmark.pedantic(prefill, args=(model, tokens(PROMPT)), rounds=9, warmup_rounds=1)
    note_rate(benchmark, f"prompt of {PROMPT} tokens", DEMO.stem, PROMPT / benchmark.stats["median"])


def test_decode(benchmark, model):
    """tg128."""
    benchmark.pedantic(decode, args=(model, DECODE), rounds=9, warmup_rounds=1)
    note_rate(benchmark, "decode, 1 request", DEMO.stem, DECODE / benchmark.stats["median"])


@pytest.mark.parametrize("recipe", ["Q8_0", "F32"])
def test_against_llama_cpp(benchmark, tmp_path, recipe):
    """Decode and prefill beside llama.cpp, as bundled and with every tensor in F32."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from golden import demo

    demo.build(tmp_path / "demo.gguf", recipe)
    ours, _ = rf.load(tmp_path / "demo.gguf", device="cpu")
    theirs = llama_cpp.Llama(
        str(tmp_path / "demo.gguf"), n_ctx=1024, n_threads=THREADS, n_threads_batch=THREADS, verbose=False
    )

    def their_decode(count):
        theirs.reset()
        theirs.eval(list(range(1, 13)))
        return [timed(partial(theirs.eval, [i + 5])) for i in range(count)]

    def their_prefill():
        theirs.reset()
        return timed(lambda: theirs.eval(tokens(PROMPT).tolist()))

    seconds = {"decode": [], "their_decode": [], "prefill": [], "their_prefill": []}

    def turn():
        seconds["decode"].append(decode(ours, DECODE))
        seconds["their_decode"].append(their_decode(DECODE))
        seconds["prefill"].append([timed(lambda: prefill(ours, tokens(PROMPT)))])
        seconds["their_prefill"].append([their_prefill()])

    benchmark.pedantic(turn, rounds=9, warmup_rounds=1)
    median = {name: np.median(np.sum(values[1:], axis=-1)) for name, values in seconds.items()}
    for name, count in (("decode", DECODE), ("prefill", PROMPT)):
        benchmark.extra_info[f"{name}_tokens_per_s"] = count / median[name]
        benchmark.extra_info[f"{name}_tokens_per_s_llama_cpp"] = count / median[f"their_{name}"]
        benchmark.extra_info[f"{name}_times_slower"] = median[name] / median[f"their_{name}"]
    benchmark.extra_info["fast_step_ms"] = 1e3 * np.quantile(seconds["decode"][1:], 0.1)
    benchmark.extra_info["fast_step_ms_llama_cpp"] = 1e3 * np.quantile(seconds["their_decode"][1:], 0.1)
    benchmark.extra_info["load_average"] = os.getloadavg()[0]
    print("\n" + ", ".join(f"{key} {value:.2f}" for key, value in benchmark.extra_info.items()))
