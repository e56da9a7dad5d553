"""ModelSupervisor: a supervisor with an engine's process for each loaded model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from socket import socket
from typing import Any

from rocforge.engine.reply import EngineDeadError
from rocforge.server.model_pool import ModelPool, ModelState
from rocforge.server.supervisor import ENGINE, Body, Child, Notes, Supervisor

log = logging.getLogger("rocforge.server")


class ModelSupervisor(Supervisor):
    """Starts the engine of a model when a process for HTTP wants it, and ends it to make room for another one.

    The processes for HTTP hear ("state", model, state, error), and say ("want", model) and, of a model that is to be
    unloaded, ("drained", model) once they have no request of it. A model that does not load, and an engine that dies,
    harm no other model.

    Args:
        engines: model -> what its process runs, beside these other models.
        check: raises what is wrong with a model's file.
        note_end: told of a model whose engine has ended.
        most, last_use: as in ModelPool.
        front_ends, listeners, grace, on_ready: as in Supervisor.
    """

    def __init__(
        self,
        engines: Mapping[str, Callable[[list[str], Notes], None]],
        check: Callable[[str], None],
        note_end: Callable[[str], None],
        most: int,
        last_use: Callable[[str], float],
        front_ends: Sequence[Body],
        listeners: Sequence[socket],
        grace: float,
        on_ready: Callable[[], Any],
    ):
        super().__init__(None, front_ends, listeners, restart_engine=False, grace=grace, on_ready=on_ready)
        self._pool = ModelPool(engines, most, last_use, self)
        self._check, self._note_end = check, note_end
        self._engines, self._models = engines, {_child_of(name): name for name in engines}
        self._undrained: dict[str, set[str]] = {name: set() for name in engines}
        """The processes for HTTP that still have requests of a model that is to be unloaded."""

    def check(self, name: str) -> None:
        """As Actions say."""
        self._check(name)

    def start(self, name: str) -> None:
        """As Actions say."""
        self._start(_child_of(name), partial(self._engines[name], self._pool.loaded))

    def tell(self, name: str, state: ModelState, error: str | None) -> None:
        """As Actions say."""
        front_ends = [child for child in self._children.values() if not child.is_engine]
        if state is ModelState.UNLOADING:
            self._undrained[name] = {child.name for child in front_ends}
        for child in front_ends:
            child.say("state", name, state.value, error)

    def end(self, name: str) -> None:
        """As Actions say."""
        self._children[_child_of(name)].process.terminate()

    def _start(self, name: str, body: Body | None = None) -> None:
        super()._start(name, body)
        if name not in self._models:  # a new process for HTTP has to know how things stand
            for model, state in self._pool.states.items():
                if state is not ModelState.UNLOADED:
                    self._children[name].say("state", model, state.value, None)

    def _heard(self, child: Child, *message: str) -> None:
        if self._stopping:
            return
        kind, name = message
        if kind == "want":
            self._pool.want(name)
        else:
            self._undrained[name].discard(child.name)
            self._end_drained()

    def _end_drained(self) -> None:
        for name, state in self._pool.states.items():
            if state is ModelState.UNLOADING and not self._undrained[name]:
                self._pool.drained(name)

    def _is_ready(self, child: Child) -> None:
        if child.name in self._models and not self._stopping:
            self._pool.has_loaded(self._models[child.name])

    def _ended(self, child: Child) -> None:
        model = self._models.get(child.name)
        if self._stopping:
            self._forget(child)
            return
        if model is None:
            for undrained in self._undrained.values():
                undrained.discard(child.name)
            self._end_drained()
            super()._ended(child)
            return
        self._forget(child)
        self._note_end(model)
        error = child.error or EngineDeadError(f"its process has ended: {child.fate}")
        if self._pool.states[model] is not ModelState.UNLOADING:
            log.error("model %s: %s", model, error)
        self._pool.ended(model, error)


def _child_of(model: str) -> str:
    """The name of the process of a model's engine."""
    return f"{ENGINE}-{model}"
