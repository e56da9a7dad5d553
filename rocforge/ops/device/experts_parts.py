"""Experts' matrices as kernels take them: as they lie, or unpacked to float16, some at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rocforge.device import tuning
from rocforge.device.libraries import cupy_module
from rocforge.ops.device.dequantize import dequantize_device, rows_by_id
from rocforge.ops.device.strided import copy_into
from rocforge.ops.device.weights import UNPACKED, WeightFormat, format_of
from rocforge.ops.types import Array, Matrices, Weight
from rocforge.quant import QuantizedArray


class Part(NamedTuple):
    """Matrices of some experts, or of the experts of some token-expert pairs.

    Attributes:
        span: which experts or pairs.
        data, biases: of each of the matrices.
        kind: their format.
    """

    span: slice
    data: list[Array]
    biases: list[Array]
    kind: WeightFormat

    @property
    def experts(self) -> int:
        """How many matrices there are of each kind."""
        return len(self.data[0])


def kind_of(*matrices: Matrices) -> WeightFormat | None:
    """The format that one launch can take of all of them; None where it has no kernel, or they are of two."""
    first, *others = (format_of(m.weight) for m in matrices)
    return None if first.kernel is None or any(other.kernel != first.kernel for other in others) else first


def parts(matrices: Sequence[Matrices], chosen: Array = None) -> Iterator[Part]:
    """All experts' matrices as they lie; or, of formats that have no kernel, and of two formats, in float16.

    The latter are unpacked as many at a time as `experts_unpacked_nbytes` hold, one at least, each part where the one
    before was: those of all experts, or, if given, of those in `chosen`, one after the other.
    """
    cupy, kind = cupy_module(), kind_of(*matrices)
    if kind is not None:
        weights = [m.weight.data if isinstance(m.weight, QuantizedArray) else m.weight for m in matrices]
        every = slice(0, len(weights[0]))
        yield Part(every, [cupy.ascontiguousarray(w) for w in weights], [m.bias for m in matrices], kind)
        return
    count, sizes = len(matrices[0].weight if chosen is None else chosen), [m.weight[0].size for m in matrices]
    most = max(tuning.current().experts_unpacked_nbytes // 2, sum(sizes))
    room = cupy.empty(min(count * sum(sizes), most), np.float16)
    step = room.size // sum(sizes)
    ends = [step * end for end in itertools.accumulate(sizes)]
    for start in range(0, count, step):
        span, data = slice(start, min(start + step, count)), []
        which = span if chosen is None else chosen[span]
        for m, size, end in zip(matrices, sizes, ends, strict=True):
            data.append(room[end - step * size :][: (span.stop - start) * size].reshape(-1, *m.weight.shape[1:]))
            _unpack(_of_experts(m.weight, which), data[-1])
        yield Part(span, data, [None if m.bias is None else _of_experts(m.bias, which) for m in matrices], UNPACKED)


def _of_experts(values: Array | QuantizedArray, which: slice | Array) -> Array | QuantizedArray:
    """What a weight or a bias has for some experts: a slice of them, or ids on the device."""
    if isinstance(which, slice):
        return values[which]
    if isinstance(values, QuantizedArray):
        return values.with_data(rows_by_id(values.data, which), values.planar)
    return rows_by_id(values, which)


def _unpack(weight: Weight, out: Array) -> None:
    if isinstance(weight, QuantizedArray):
        dequantize_device(weight, "float16", out=out)
    else:
        copy_into(out, weight)
