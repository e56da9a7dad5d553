"""How long a model's kernels take AMD's compiler at a first start, and to be found again at a later one.

    python tests/hipsim/amd_compiler.py
    HIPSIM_HIPRTC=amd tests/hipsim/run --arch gfx1100 python benches/bench_first_start.py

The simulated card says which kernels the model launches; what compiles them, in as many processes as a load has, is
hiprtc of ROCm itself. Nothing is run.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rocforge as rf
from rocforge.device import background, compiler, kernel_cache
from rocforge.device.cards import card_of
from rocforge.device.compile_process import CompileProcess
from rocforge.loading import warmup
from rocforge.loading.upload import Uploader
from rocforge.models import build_model
from rocforge.nn.config import ROPE_TENSORS
from rocforge.ops.device import gemm
from rocforge.selftest.synthetic import SHAPES, RandomModel

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "demo-11M-Q8_0.gguf"


class Placed(Uploader):
    """Gives weights their places, and leaves them empty."""

    def _send(self, *args: Any) -> None:
        pass


def programs(file: Any) -> list[str]:
    """The programs that a model's kernels are compiled from, in the order in which a load compiles them."""
    texts: dict[str, None] = {}
    model = build_model(file, 512)
    weights = {name: file[name] for name in file if name not in ROPE_TENSORS.values()}
    with Placed(weights.values(), "gpu:0") as uploader:
        model.load_weights(weights, uploader.place)
        model.device = "gpu:0"
        warmup.record_kernels(model, lambda kernel: texts.setdefault(kernel.module(0).text))
    return list(texts)


def seconds(texts: list[str], processes: int) -> float:
    """What it takes to compile these programs, as far as they are on no disk."""
    compiles = [CompileProcess() for _ in range(processes)]

    def share(number: int) -> None:
        for text in texts[number::processes]:
            compiler.compiled_file(text, card_of(0), compiles[number])

    start = time.perf_counter()
    with ThreadPoolExecutor(processes) as threads:
        list(threads.map(share, range(processes)))
    taken = time.perf_counter() - start
    for compile in compiles:
        compile.close()
    return taken


def report(name: str, texts: list[str]) -> None:
    """Print what the programs take, with one process and with as many as a load has, in an empty cache each."""
    print(f"{name} on {card_of(0).arch}: {len(texts)} programs")
    for processes in sorted({1, background.processors()}):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ROCFORGE_CACHE_DIR"] = folder
            kernel_cache.folder.cache_clear()
            first, later = seconds(texts, processes), seconds(texts, processes)
        print(f"  {processes} processes: {first:.1f} s at first, {1000 * later:.0f} ms later")


def main() -> None:
    os.environ["AMD_COMGR_CACHE"] = "0"  # ROCm's compiler has a cache of its own
    gemm._multiply = lambda *args: None  # the library's products would be computed, by the simulator
    shape = SHAPES["llama-3.1-8b"]._replace(layers=8, vocabulary=1024)
    report("Llama 3.1 8B Q4_K_M", programs(RandomModel(shape, "Q4_K_M", 512)))
    with rf.open_gguf(DEMO) as file:
        report("the demo model", programs(file))


if __name__ == "__main__":
    main()
