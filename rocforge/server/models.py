"""The models of a server: names and files, from what a user says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rocforge.gguf.hub import is_on_hub, members, model_files

_FIRST = re.compile(r"-00001-of-\d{5}(?=\.gguf$)")
"""In the name of the first file of a split set."""


@dataclass(frozen=True)
class Model:
    """A model that a server may load.

    Attributes:
        name: for clients.
        path: as `rf.load` takes it.
        nbytes: of its files on this machine; 0 for names of the Hub.
    """

    name: str
    path: str
    nbytes: int


def model_name(path: str | os.PathLike[str]) -> str:
    """A model's default name, from its file."""
    return Path(path).name.removesuffix(".gguf")


def find_models(places: Sequence[str]) -> list[Model]:
    """The models of files, of folders with GGUF files, of checkpoints and of the Hub ("hf:owner/repo[:quant]").

    Those of a folder are named by their paths in it.

    Raises:
        FileNotFoundError: there is no such file, or no model in a folder.
        ValueError: two models have the same name.
    """
    found: dict[str, Model] = {}
    for model in (model for place in places for model in _models_at(place)):
        if (other := found.setdefault(model.name, model)) is not model:
            raise ValueError(f"two models are named {model.name!r}: {other.path} and {model.path}")
        if len(places) > 1 and not is_on_hub(model.path) and not Path(model.path).exists():
            raise FileNotFoundError(f"no such file: {model.path}")  # one alone says so when it is loaded
    return list(found.values())


def _models_at(place: str) -> Iterator[Model]:
    folder = Path(place)
    if is_on_hub(place):
        yield Model(model_name(place), place, 0)
    elif not folder.is_dir() or (folder / "config.json").exists():
        yield Model(model_name(place), place, _nbytes(folder))
    else:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf") if path.is_file())
        if not files:
            raise FileNotFoundError(f"no model in {place}: no .gguf file, and no config.json of a checkpoint")
        for file in model_files(files):
            path = folder / file
            yield Model(_FIRST.sub("", file).removesuffix(".gguf"), str(path), _nbytes(path))


def _nbytes(path: Path) -> int:
    """Bytes of a file, of all of a split set, or of a checkpoint's weights; 0 where there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    files = (path.with_name(name) for name in members(path.name))
    return sum(file.stat().st_size for file in files if file.exists())
