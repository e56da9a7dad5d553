"""Float16 copies of a model's packed matrices, kept beside the blocks where memory is ample.

GEMMs then read them instead of unpacking the blocks each time: prefill and large batches run about as fast as the BLAS
library multiplies float16, for several times the memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import available_memory, on_device
from rocforge.device.libraries import cupy_module
from rocforge.device.memory import out_of_memory_explained
from rocforge.engine.capacity import CacheSizes
from rocforge.nn.layers import Embedding
from rocforge.nn.state import kept_of
from rocforge.nn.transformer import Transformer
from rocforge.ops.device.dequantize import dequantize_device
from rocforge.quant import QuantizedArray


def keep_fp16_weights(model: Transformer, wanted: bool | None = None) -> None:
    """Unpack the matrices to float16, and keep the copies.

    Args:
        model: on a GPU, its weights loaded.
        wanted: True, False, or None: if they take at most half of what a KV cache of one full context leaves free; and
            of formats that our own kernels multiply only on cards where `Tuning.fp16_copies` says that it pays.

    Raises:
        DeviceError: wanted is True, and they do not fit.
    """
    with on_device(model.device):
        matrices, pays = list(_matrices(model)), tuning.current().fp16_copies
    if wanted is None:
        matrices = [matrix for matrix in matrices if pays or not matrix.planar]
        cache = CacheSizes(kept_of(model).values(), model.device).nbytes(model.config.context)
        free = available_memory(model.device) - cache
        wanted = 2 * sum(matrix.size for matrix in matrices) <= free // 2
    if wanted:
        with on_device(model.device), out_of_memory_explained(model.device, "fp16 weights"):
            with cupy_module().cuda.Stream(non_blocking=True) as stream:
                for columns, run in itertools.groupby(matrices, lambda matrix: matrix.shape[1]):
                    _keep_together(list(run), columns)
            stream.synchronize()


def _keep_together(matrices: Sequence[QuantizedArray], columns: int) -> None:
    """Stacked in one array, so that neighbours such as q, k and v can be multiplied by one GEMM."""
    ends = list(itertools.accumulate(map(len, matrices)))
    whole = cupy_module().empty((ends[-1], columns), np.float16)
    for matrix, end in zip(matrices, ends, strict=True):
        matrix.fp16 = dequantize_device(matrix, "float16", out=whole[end - len(matrix) : end])


def _matrices(model: Transformer) -> Iterator[QuantizedArray]:
    """The matrices of GEMMs: not embeddings, unless they are tied to the output, nor experts."""
    embeddings = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Embedding)}
    joined = {id(weight) for expert in model.fused.joined for _, weight in expert.named_parameters()}
    for path, weight in model.named_parameters():
        others = path not in embeddings and id(weight) not in joined
        if others and isinstance(weight, QuantizedArray) and weight.ndim == 2:
            yield weight
