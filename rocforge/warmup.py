"""Warmup: the kernels of a model are compiled, or loaded from their cache, while its weights arrive."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rocforge.arrays import cupy_module, on_device
from rocforge.kernels import BackgroundCompilation, Kernel, recorded_launches
from rocforge.nn.transformer import Transformer
from rocforge.ops.sampling import Sampler
from rocforge.sampling import SamplingParams

PROMPT_TOKENS = 16
"""Tokens of a prompt that is long enough to take the kernels of long ones."""


def compile_for(model: Transformer) -> BackgroundCompilation:
    """Begin to compile what one request needs: a prompt, a decode step, and sampling.

    Args:
        model: on a GPU; its weights need not have their values yet.
    """
    with on_device(model.device):
        return BackgroundCompilation(kernels_of(model))


def kernels_of(model: Transformer) -> list[Kernel]:
    """The kernels that a prompt, a decode step and sampling launch, in order: what the model itself would launch."""
    with on_device(model.device):
        with _stream(model.device) as stream, recorded_launches() as recorded:
            model(np.zeros(PROMPT_TOKENS, np.int32))
            logits = model(np.zeros(1, np.int32))
            Sampler([SamplingParams(temperature=0, seed=0)], [0])(logits)
            del logits
        stream.synchronize()
        cupy_module().get_default_memory_pool().free_all_blocks(stream)
    return list(dict.fromkeys(recorded))


@functools.cache
def _stream(device: str) -> Any:
    """One for all models, since attention keeps an array for each stream that it was on."""
    return cupy_module().cuda.Stream(non_blocking=True)
