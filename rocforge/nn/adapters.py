"""Adapters: the LoRA adapters of a model, by name, and what they add to its modules.

Each adapter has an id, by which steps choose it, token by token; what all of them add to one module is a table by id.
A captured step reads ids and tables on the device, so it serves any choice, also of adapters that come later. It is
captured anew only where other modules are updated than before, or a table has no room.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from rocforge.device.arrays import on_device
from rocforge.device.libraries import cupy_module
from rocforge.device.memory import out_of_memory_explained
from rocforge.errors import UnsupportedModelError
from rocforge.lora.adapter import LoRA
from rocforge.lora.gguf import read_gguf
from rocforge.lora.peft import WEIGHTS, read_peft
from rocforge.nn.attention import Attention
from rocforge.nn.layers import Embedding, Linear
from rocforge.nn.low_rank import PlacedLoRA, Tables
from rocforge.nn.module import Module
from rocforge.ops.low_rank import LowRank, LowRankTable

LEAST_CAPACITY, LEAST_RANK = 16, 16
"""Of tables; beyond, they double: so that few of the adapters that come later need others."""
_changing = threading.Lock()


class AdapterState:
    """What a model keeps of its adapters.

    Attributes:
        placed: those that have a name, by that.
        tables: of the modules that adapters update: another mapping once these, or a table's room, are others.
    """

    def __init__(self) -> None:
        self.placed: dict[str, PlacedLoRA] = {}
        self.tables: Tables = {}
        self._all: list[weakref.ref[PlacedLoRA]] = []

    def in_use(self) -> list[PlacedLoRA]:
        """Those that have a name, or are some request's."""
        return [placed for ref in self._all if (placed := ref()) is not None]

    def place(self, lora: LoRA, updates: Mapping[Module, LowRank], device: str) -> PlacedLoRA:
        """Give an adapter an id, and write it into the tables."""
        taken = {placed.id for placed in self.in_use()}
        placed = PlacedLoRA(lora, updates, next(id for id in itertools.count() if id not in taken))
        self._all = [*map(weakref.ref, self.in_use()), weakref.ref(placed)]
        self.update(device)
        return placed

    def update(self, device: str) -> None:
        """Bring the tables to what is in use. Ids that a step may use keep their entries."""
        used = self.in_use()
        capacity = _doubled(LEAST_CAPACITY, max((placed.id + 1 for placed in used), default=0))
        ranks: dict[Module, int] = {}
        for placed in used:
            for module, update in placed.updates.items():
                ranks[module] = max(ranks.get(module, 0), update.rank)
        with on_device(device), out_of_memory_explained(device, "adapter"):
            tables = {module: self._table(module, capacity, rank, device) for module, rank in ranks.items()}
            for module, table in tables.items():
                table.fill({placed.id: placed.updates.get(module) for placed in used})
            if device != "cpu":
                cupy_module().cuda.get_current_stream().synchronize()  # engines have streams of their own
        if tables != self.tables:
            self.tables = tables

    def _table(self, module: Any, capacity: int, rank: int, device: str) -> LowRankTable:
        """That which a module has, if it has room."""
        known = self.tables.get(module)
        if known is not None and known.capacity >= capacity and known.rank >= rank:
            return known
        rows, columns = _update_shape(module)
        lookup = isinstance(module, Embedding)
        return LowRankTable(rows, columns, capacity, _doubled(LEAST_RANK, rank), device != "cpu", lookup)


class Adapters(MutableMapping[str, LoRA]):
    """The LoRA adapters of a model: name -> rf.LoRA. Requests choose one each by its name, whatever else runs.

        model.adapters.load("pirate", "pirate-lora.gguf")
        rf.generate(model, tokenizer, ["Hello", "Hello"], lora=["pirate", None])

    They may come and go at any time; a request that has one keeps it to its end.

    Args:
        model: whose they are.
        device: that it is on.
        architecture: its name in files.
        state: what it keeps of them.
    """

    def __init__(self, model: Module, device: str, architecture: str, state: AdapterState):
        self._model, self._device, self._architecture, self._state = model, device, architecture, state

    def load(self, name: str, path: str | os.PathLike[str], scale: float = 1.0) -> LoRA:
        """Put the adapter of a file on the model.

        Args:
            name: to call it by.
            path: a GGUF file, as llama.cpp has adapters, or a folder with PEFT's adapter_config.json and
                adapter_model.safetensors.
            scale: factor on what the adapter adds.

        Raises:
            FileNotFoundError: no such file.
            GGUFError, CheckpointError: a file is malformed.
            UnsupportedModelError: it is no LoRA adapter, is of a kind that is not supported, or does not fit the model.
            OutOfMemoryError: the device has no room for it.
        """
        path = Path(path)
        try:
            if path.is_dir() or path.name == WEIGHTS:
                folder = path if path.is_dir() else path.parent
                lora = read_peft(folder, self._architecture, _rotated(self._model))
            else:
                lora = read_gguf(path, self._architecture)
        except ValueError as error:
            raise UnsupportedModelError(f"{path}: {error}") from error
        self[name] = lora if scale == 1 else lora * scale
        return self[name]

    def placed(self, name: str) -> PlacedLoRA:
        """An adapter with its id.

        Raises:
            ValueError: there is none of that name.
        """
        found = self._state.placed.get(name)
        if found is None:
            known = ", ".join(map(repr, self)) or "none; model.adapters.load(name, path) loads one"
            raise ValueError(f"lora is {name!r}; the model's adapters are {known}")
        return found

    def __getitem__(self, name: str) -> LoRA:
        if name not in self._state.placed:
            raise KeyError(f"there is no adapter {name!r}; there are {', '.join(map(repr, self)) or 'none'}")
        return self._state.placed[name].lora

    def __setitem__(self, name: str, lora: LoRA) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"adapters: a name is {name!r}; allowed are strings that are not empty")
        if not isinstance(lora, LoRA):
            given = type(lora).__name__
            raise TypeError(f"adapters[{name!r}] is {given}; allowed is rf.LoRA; adapters.load(name, path) reads one")
        updates = _updates_of(self._model, name, lora)
        with _changing:
            self._state.placed[name] = self._state.place(lora, updates, self._device)
            self._state.update(self._device)

    def __delitem__(self, name: str) -> None:
        with _changing:
            del self._state.placed[name]
            self._state.update(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._state.placed))

    def __len__(self) -> int:
        return len(self._state.placed)

    def __repr__(self) -> str:
        return f"Adapters({', '.join(f'{name!r}: {lora}' for name, lora in self.items())})"


def _doubled(least: int, wanted: int) -> int:
    """At least so many, in powers of two times the least."""
    size = least
    while size < wanted:
        size *= 2
    return size


def _updates_of(model: Module, name: str, lora: LoRA) -> dict[Module, LowRank]:
    """What an adapter adds, by module, all of it checked."""
    modules, found, faults = dict(model.named_modules()), {}, []
    for path, update in lora.items():
        module, shape = modules.get(path), (len(update.b), update.a.shape[1])
        if module is None:
            faults.append(f"{path} is no module of the model")
        elif type(module) not in (Linear, Embedding):
            faults.append(f"{path} is a {type(module).__name__}, not a Linear or an Embedding")
        elif shape != _update_shape(module):
            faults.append(f"{path} is {shape} and should be {_update_shape(module)}")
        else:
            found[module] = update
    if faults:
        shown, rest = faults[:4], faults[4:]
        more = f"; and {len(rest)} more" if rest else ""
        raise UnsupportedModelError(f"adapter {name!r} does not fit the model: {'; '.join(shown)}{more}")
    return found


def _update_shape(module: Any) -> tuple[int, int]:
    """Rows of b, and columns of a: an embedding's columns are token ids."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Embedding) else (rows, columns)


def _rotated(model: Module) -> dict[str, int]:
    """The heads of q and k whose rows lie otherwise in GGUF than in checkpoints: where rope turns neighbours."""
    heads: dict[str, int] = {}
    names = {module: path for path, module in model.named_modules()}
    for attn in names:
        if isinstance(attn, Attention) and attn.rope is not None and not attn.rope.neox:
            pairs = (("attn_q", attn.heads), ("attn_k", attn.kv_heads))
            heads |= {names[vars(attn)[key]]: count for key, count in pairs if key in vars(attn)}
    return heads
