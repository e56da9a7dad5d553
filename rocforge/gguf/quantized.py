"""Quantizing the tensors of a file: one after another, in pieces of rows, each weighed by its importance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_VERSION, GGMLQuantizationType

from rocforge.formats.blocks import row_nbytes
from rocforge.gguf.imatrix import ImportanceMatrix
from rocforge.gguf.mixes import Mix
from rocforge.gguf.values import KeyValues
from rocforge.gguf.writer import Planned, planned
from rocforge.quant import QuantizedArray

PIECE = 1 << 22
"""Elements that are quantized at a time."""
FLOATS = ("F32", "F16", "BF16")
Pack = Callable[[np.ndarray, GGMLQuantizationType, "np.ndarray | None"], np.ndarray]
"""Gives the blocks of float32 rows, uint8, weighed by the importance of the columns."""


@dataclass(frozen=True)
class Form:
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    qtype: GGMLQuantizationType

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        return math.prod(self.shape[:-1]) * row_nbytes(self.shape[-1], self.qtype) if self.shape else 4


class Quantized:
    """The tensors of a file as a mix has them, by name, each quantized when it is asked for.

    It stands for an open file: it has a file's `metadata`, and `paths`. What a mix leaves as it is, is the file's own.

    Args:
        file: an open GGUF file, or a checkpoint: name -> array, `metadata`, `tensor_info(name)`.
        mix: which tensor gets which type.
        importance: of the columns, which better quantizers go by; the least mixes need it.
        pack: the quantizer.
        keep_packed: leave as they are what the file has in fewer than 16 bits.

    Attributes:
        before, after: shape and type of each tensor, in the file and here.
        metadata, paths: as of a file.

    Raises:
        UnsupportedModelError: a tensor has an unknown type.
    """

    def __init__(
        self,
        file: Any,
        mix: Mix,
        pack: Pack,
        importance: ImportanceMatrix | None = None,
        keep_packed: bool = False,
    ):
        self._file, self._mix, self._pack, self._importance = file, mix, pack, importance
        infos = {name: file.tensor_info(name) for name in file}
        types = mix.types(infos, file.metadata, importance is not None)
        self.before = {name: Form(info.shape, info.qtype) for name, info in infos.items()}
        kept = [name for name, form in self.before.items() if keep_packed and form.qtype.name not in FLOATS]
        types |= {name: self.before[name].qtype for name in kept}
        self.after = {name: Form(info.shape, types[name]) for name, info in infos.items()}
        self.metadata = _metadata(file.metadata, None if kept and mix.base in FLOATS else mix, importance)
        self.paths = list(file.paths)
        self._made: dict[str, Any] = {}

    def check(self, again: bool = False) -> None:
        """Whether this makes sense.

        Args:
            again: tensors may be quantized that already are.

        Raises:
            ValueError: the mix needs importance weights, or a tensor is already quantized.
        """
        for name in self.changed:
            before, after = self.before[name].qtype.name, self.after[name].qtype
            if self._importance is None and self._mix.needs_importance(name, after):
                raise ValueError(f"{self._mix.name} has {name} in {after.name}, which needs an importance matrix")
            if not again and before not in FLOATS:
                raise ValueError(
                    f"tensor {name} is {before} already, and loses more where it is quantized again: "
                    "take a file in F32, F16 or BF16, or allow it: rocforge quantize --allow-requantize"
                )

    @property
    def changed(self) -> list[str]:
        """The tensors whose type is another than the file's."""
        return [name for name in self.after if self.after[name].qtype != self.before[name].qtype]

    def __iter__(self) -> Iterator[str]:
        return iter(self.after)

    def __contains__(self, name: object) -> bool:
        return name in self.after

    def __getitem__(self, name: str) -> Any:
        """A tensor: made once, and kept."""
        if name not in self._made:
            self._made[name] = self._tensor(name)
        return self._made[name]

    def _tensor(self, name: str) -> Any:
        form = self.after[name]
        if form.qtype == self.before[name].qtype:
            return self._file[name]
        data = np.concatenate([part.reshape(-1) for part in self._parts(name)])
        if form.qtype.name == "F32":
            return data.view(np.float32).reshape(form.shape)
        return QuantizedArray(data.reshape(*form.shape[:-1], -1), form.shape, form.qtype)

    def planned(self, progress: Callable[[int], Any] = lambda nbytes: None) -> dict[str, Planned]:
        """What `write_gguf` writes; `progress` is called with the bytes of the file that have been read."""
        return {name: self._planned(name, progress) for name in self}

    def _planned(self, name: str, progress: Callable[[int], Any]) -> Planned:
        form = self.after[name]
        whole = form.qtype == self.before[name].qtype

        def parts() -> Iterator[np.ndarray]:
            yield from planned(self._file[name]).parts() if whole else self._parts(name)
            progress(self.before[name].nbytes)

        return Planned(form.shape, form.qtype, parts)

    def _parts(self, name: str) -> Iterator[np.ndarray]:
        """The bytes of a quantized tensor, piece by piece."""
        array, form = self._file[name], self.after[name]
        weights = None if self._importance is None else self._importance.weights(name, form.shape)
        matrices = [array] if array.ndim < 3 else [array[index] for index in np.ndindex(array.shape[:-2])]
        step = max(1, PIECE // form.shape[-1])
        for i, matrix in enumerate(matrices):
            for start in range(0, len(matrix), step):
                yield self._packed(matrix[start : start + step], form.qtype, None if weights is None else weights[i])

    def _packed(self, rows: Any, qtype: GGMLQuantizationType, importance: np.ndarray | None) -> np.ndarray:
        values = rows.dequantize() if isinstance(rows, QuantizedArray) else np.asarray(rows, np.float32)
        if qtype.name == "F32":
            return np.ascontiguousarray(values).view(np.uint8)
        return self._pack(values, qtype, importance)


def _metadata(metadata: Any, mix: Mix | None, importance: ImportanceMatrix | None) -> KeyValues:
    """The metadata of the quantized file; without a mix it is called what it was."""
    changed = KeyValues(metadata, getattr(metadata, "types", {}))
    changed["general.quantization_version"] = GGML_QUANT_VERSION
    if mix is not None:
        changed["general.file_type"] = mix.file_type
    if importance is not None:
        changed["quantize.imatrix.file"] = importance.path
        if importance.datasets:
            changed["quantize.imatrix.dataset"] = importance.datasets[0]
        changed["quantize.imatrix.entries_count"] = len(importance.inputs)
        if importance.chunks:
            changed["quantize.imatrix.chunks_count"] = importance.chunks
    return changed
