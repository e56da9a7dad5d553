"""Importance matrices: the sums of squares of what each weight matrix multiplied, in llama.cpp's files.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rocforge.errors import GGUFError
from rocforge.gguf.file import open_gguf
from rocforge.gguf.metadata import Metadata
from rocforge.gguf.writer import planned, write_gguf

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Inputs:
    """What one weight multiplied.

    Attributes:
        sums: float32 (matrices, columns), the sums of squares of the inputs: of one matrix, or a row an expert.
        counts: float32 (matrices,), of how many inputs.
    """

    sums: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class ImportanceMatrix:
    """An importance matrix.

    Attributes:
        inputs: tensor name -> what it multiplied.
        datasets: names of the texts.
        chunks, chunk_size: how many pieces of text were read, of how many tokens.
        path: the file.
    """

    inputs: Mapping[str, Inputs]
    datasets: list[str] = field(default_factory=list)
    chunks: int = 0
    chunk_size: int = 0
    path: str = ""

    def weights(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Importance of the columns of a tensor of that shape: float32 (matrices, columns); None where there is none.

        An expert that saw no input has ones.

        Raises:
            GGUFError: it is of another shape, or not finite.
        """
        if name not in self.inputs:
            return None
        inputs, columns = self.inputs[name], shape[-1]
        matrices = int(np.prod(shape[:-2], dtype=np.int64))
        if inputs.sums.size != matrices * columns:
            if name == "token_embd.weight":
                return None  # tied to an output, but its rows are gathered
            found = f"{inputs.sums.size} values for {name}"
            raise GGUFError(f"importance matrix {self.path} has {found}; its shape {shape} takes {matrices * columns}")
        counts = inputs.counts[:, None]
        rows = inputs.sums.reshape(len(counts), -1)
        means = np.divide(rows, counts, out=np.ones_like(rows), where=counts > 0).reshape(matrices, columns)
        if not np.isfinite(means).all():
            raise GGUFError(f"importance matrix {self.path} has values for {name} that are not finite")
        return means

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a GGUF file, as llama.cpp reads it."""
        metadata = {
            "general.type": "imatrix",
            "imatrix.datasets": self.datasets,
            "imatrix.chunk_count": self.chunks,
            "imatrix.chunk_size": self.chunk_size,
        }
        arrays = {}
        for name in sorted(self.inputs):
            arrays[name + _SUMS] = np.asarray(self.inputs[name].sums, np.float32)
            arrays[name + _COUNTS] = np.asarray(self.inputs[name].counts, np.float32)[:, None]
        write_gguf(path, metadata, {name: planned(array) for name, array in arrays.items()})


def read_imatrix(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Read an importance matrix, a GGUF file or one in llama.cpp's older format (.dat).

    Raises:
        GGUFError: the file is neither, or incomplete.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    return _read_gguf(Path(path)) if is_gguf else _read_dat(Path(path))


def _read_gguf(path: Path) -> ImportanceMatrix:
    inputs = {}
    with open_gguf(path) as file:
        metadata = Metadata(file.metadata, "imatrix.")
        for name in [name.removesuffix(_SUMS) for name in file if name.endswith(_SUMS)]:
            if name + _COUNTS not in file:
                raise GGUFError(f"{path}: tensor {name}{_COUNTS} is missing")
            sums, counts = (np.array(file[name + suffix], np.float32) for suffix in (_SUMS, _COUNTS))
            if not counts.size or sums.size % counts.size:
                raise GGUFError(f"{path}: {name} has {sums.size} sums, which is no multiple of {counts.size} counts")
            inputs[name] = Inputs(sums.reshape(counts.size, -1), counts.reshape(-1))
        if not inputs:
            raise GGUFError(f"{path}: no importance matrix: no tensor's name ends in {_SUMS}")
        return ImportanceMatrix(
            inputs,
            metadata.array("datasets", str, default=[]),
            metadata.integer("chunk_count", 0, default=0),
            metadata.integer("chunk_size", 0, default=0),
            str(path),
        )


def _read_dat(path: Path) -> ImportanceMatrix:
    """The older format: a count of entries; of each its name, calls, and means times calls; calls; the text's name."""
    data, position = path.read_bytes(), 0

    def integers(count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}i", take(4 * count))

    def take(size: int) -> bytes:
        nonlocal position
        if not 0 <= size <= len(data) - position:
            raise GGUFError(f"{path}: no importance matrix: {size} bytes are missing at byte {position}")
        position += size
        return data[position - size : position]

    def entries() -> Iterator[tuple[str, Inputs]]:
        for _ in range(integers(1)[0]):
            name = take(integers(1)[0]).decode("utf-8", "replace")
            calls, values = integers(2)
            sums = np.frombuffer(take(4 * values), "<f4")
            yield name, Inputs(sums[None].astype(np.float32), np.array([max(calls, 1)], np.float32))

    inputs = dict(entries())
    if not inputs:
        raise GGUFError(f"{path}: no importance matrix: it has no entries")
    rest = position < len(data)
    chunks = integers(1)[0] if rest else 0
    datasets = [take(integers(1)[0]).decode("utf-8", "replace")] if rest else []
    return ImportanceMatrix(inputs, datasets, chunks, path=str(path))
