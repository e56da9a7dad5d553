"""Warmup: compiles a model's kernels, or loads them from the cache, while its weights load."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rocforge.device.arrays import on_device
from rocforge.device.background import BackgroundCompilation
from rocforge.device.kernels import Kernel, launches_recorded
from rocforge.device.libraries import cupy_module
from rocforge.engine.inputs import begin_step
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.module import Module
from rocforge.nn.state import SharedKV, blocks_for
from rocforge.nn.transformer import Transformer
from rocforge.ops.device.plan import MAX_TILE_TOKENS
from rocforge.ops.device.sampling import Sampler
from rocforge.ops.sampling import SamplingParams

PROMPT_TOKENS = (16, MAX_TILE_TOKENS + 1)
"""A short prompt and a long one. Prompts of 3 to 64 tokens use one of four tile widths, of which warmup compiles one:
the others take a second or two each, once."""


def compile_for(model: Transformer) -> BackgroundCompilation:
    """Begin to compile what a request needs: its decode steps, prompts, and sampling.

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
    """Call `record` with each kernel that a decode step, prompts and sampling would launch.

    Runs the model itself on zeros, with launches recorded instead, and without layers that add no new kernel. Library
    calls do run, which initializes the BLAS library.
    """
    model = copy.copy(model)
    model.blk = _with_shared(distinct(model.blk), model.blk)
    with on_device(model.device):
        with cupy_module().cuda.Stream(non_blocking=True) as stream, launches_recorded(record):
            if model.generates:
                record(begin_step)
                sampler = Sampler(model.config.vocabulary, 1)
                sampler.begin(0, SamplingParams(temperature=0, seed=0), None, _ignored)
                host_tokens = cupy_module().zeros(1, np.int32)
                sampler(model(np.zeros(1, np.int32)), [0], [0], {}, host_tokens, _ignored)
                del sampler, host_tokens
            for tokens in PROMPT_TOKENS:
                blocks = blocks_for(tokens)
                # beside a sequence that decodes
                chunks = [Chunk(0, tokens - 1, range(blocks)), Chunk(0, 1, [blocks], False, slot=1)]
                run = model if model.generates else model.hidden
                run(np.zeros(tokens, np.int32), Batch.of(model.new_cache(blocks + 1, slots=2), chunks))
        stream.synchronize()
        cupy_module().get_default_memory_pool().free_all_blocks(stream)


def _with_shared(layers: Sequence[Module], every: Sequence[Module]) -> list[Module]:
    """Layers, after those whose keys and values they share."""
    states = [vars(module).get("state") for layer in layers for _, module in layer.named_modules()]
    shared = {state.layer for state in states if isinstance(state, SharedKV)}
    return [layer for layer in every if any(module in shared for _, module in layer.named_modules())] + [*layers]


def _ignored(array: Any, out: Any) -> None:
    """In place of an upload: no kernel runs that would read it."""


def distinct(layers: Sequence[Module]) -> list[Module]:
    """The fewest layers that use all of the model's kernels: every pair of kinds that follow each other, and the last.
    Recording takes host time, which loading needs itself."""
    kinds = [repr(layer) for layer in layers]
    pairs: dict[tuple[str, str], int] = {}
    for i, pair in enumerate(itertools.pairwise(kinds)):
        pairs.setdefault(pair, i)
    return [layer for i in pairs.values() for layer in layers[i : i + 2]] + [layers[-1]]
