"""Warmup: the kernels of a model are compiled, or loaded from their cache, while its weights arrive."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from rocforge.arrays import cupy_module, on_device
from rocforge.kernels import BackgroundCompilation, Kernel, launches_recorded
from rocforge.nn.transformer import Transformer
from rocforge.ops.sampling import Sampler
from rocforge.sampling import SamplingParams

PROMPT_TOKENS = 16
"""Tokens of a prompt that is long enough to take the kernels of long ones."""


def compile_for(model: Transformer) -> BackgroundCompilation:
    """Begin to compile what a request needs: its decode steps, a prompt, and sampling.

    Args:
        model: on a GPU; its weights need not have their values yet.
    """
    with on_device(model.device):
        compilation = BackgroundCompilation()
        try:
            record_kernels(model, compilation.add)
        except BaseException:
            compilation.cancel()
            raise
    return compilation


def record_kernels(model: Transformer, record: Callable[[Kernel], Any]) -> None:
    """Call `record` with each kernel that a decode step, a prompt and sampling would launch.

    The model itself is run, on zeros and with its launches left out. What it does by libraries is done, and so the BLAS
    library has been initialized after it.
    """
    with on_device(model.device):
        with _stream(model.device) as stream, launches_recorded(record):
            sampler = Sampler([SamplingParams(temperature=0, seed=0)], [0])
            sampler(model(np.zeros(1, np.int32)))
            model(np.zeros(PROMPT_TOKENS, np.int32))
        stream.synchronize()
        del sampler
        cupy_module().get_default_memory_pool().free_all_blocks(stream)


@functools.cache
def _stream(device: str) -> Any:
    """One for all models, since attention keeps an array for each stream that it was on."""
    return cupy_module().cuda.Stream(non_blocking=True)
