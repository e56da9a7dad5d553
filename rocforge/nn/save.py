"""Saving a model: its tensors and its metadata as a GGUF file, and what of a loaded file that takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rocforge.device.arrays import asnumpy, to_device
from rocforge.gguf.writer import Planned, planned, write_gguf
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.nn.reader import ROPE_TENSORS, Reader
from rocforge.quant import QuantizedArray


class Source:
    """What a model keeps of the file that it was loaded from, so as to be written as it was.

    Args:
        file: a mapping of tensors, as rf.open_gguf gives.
        parameters: those of the model, by name.
        unread: names of tensors that the model does not read.

    Attributes:
        paths: the files.
        order: the names of all tensors, in file order.
        others: the tensors that are no parameters: those that say how to rotate, and those that are not read.
        cast: copies of the parameters that the file does not have in the type that the model takes.
    """

    def __init__(self, file: Any, parameters: Mapping[str, Parameter], unread: Iterable[str] = ()):
        self.paths: list[Path] = list(getattr(file, "paths", ()))
        self.order = list(file)
        self.others = {name: _copied(file[name]) for name in ROPE_TENSORS.values() if name in file}
        self.others |= {name: file[name] for name in unread if name in file}
        self.cast = {
            name: _copied(file[name])
            for name, place in parameters.items()
            if name in file and _is_cast(file, name, place)
        }


def _is_cast(file: Any, name: str, place: Parameter) -> bool:
    return not place.matrix and (isinstance(file[name], QuantizedArray) or file[name].dtype != np.float32)


def _copied(array: Any) -> Any:
    return array.with_data(array.data.copy()) if isinstance(array, QuantizedArray) else array.copy()


class _Tensors(dict[str, Any]):
    """Tensors with metadata, as an open file has them."""

    def __init__(self, arrays: Mapping[str, Any], metadata: Mapping[str, Any]):
        super().__init__(arrays)
        self.metadata = metadata


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a Transformer, as its method `save` says."""
    source: Source = model.source
    arrays = _Tensors(_arrays(model), model.metadata)
    _check(model, arrays)
    tensors = {name: _planned(arrays[name], source.cast.get(name)) for name in arrays}
    write_gguf(path, model.metadata, tensors, source.paths)


def _arrays(model: Any) -> dict[str, Any]:
    """What is to be written, by name: first what the file had, in its order."""
    arrays = {**dict(model.named_parameters()), **model.source.others}
    if arrays.get("output.weight") is arrays.get("token_embd.weight"):
        arrays.pop("output.weight", None)  # tied: a file has it once
    return {name: arrays[name] for name in [*model.source.order, *arrays] if name in arrays}


def _check(model: Any, arrays: _Tensors) -> None:
    """Whether the file would load, and give this model: of these modules, with these parameters."""
    empty = [name for name, array in arrays.items() if isinstance(array, Parameter)]
    if empty:
        raise ValueError(f"cannot save: {empty[0]} has not been loaded")
    loaded: Module = type(model)(Reader(arrays, defaults=model.defaults))
    expected = dict(loaded.named_modules())
    for name, module in model.named_modules():
        if type(module) is not type(expected.get(name)):
            kind = type(expected[name]).__name__ if name in expected else "no module"
            raise ValueError(
                f"cannot save: {name} is a {type(module).__name__}; a GGUF file holds tensors and no code, and {kind} "
                "is what would be loaded there"
            )
    loaded.load_weights({name: arrays[name] for name in arrays if name not in model.source.others})


def _planned(array: Any, stored: Any) -> Planned:
    """An array as it goes into the file; as the file had it that was loaded, where the values are the same."""
    if isinstance(array, QuantizedArray) and array.transposed:
        array = array.dequantize()
    if stored is not None and _same(asnumpy(array), stored):
        array = stored
    return planned(array, lambda array: to_device(array, "cpu"))


def _same(values: np.ndarray, stored: Any) -> bool:
    """Whether float32 values are, bit for bit, those of an array of another type."""
    others = stored.dequantize() if isinstance(stored, QuantizedArray) else stored.astype(np.float32)
    return values.dtype == np.float32 and values.tobytes() == others.tobytes()
