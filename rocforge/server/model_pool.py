"""ModelPool: which of a server's models are loaded."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Protocol

from rocforge.errors import OutOfMemoryError

MODELS_MAX = 4
"""The default maximum of loaded models, llama.cpp's."""


class ModelState(enum.Enum):
    """The state of a model, as /v1/models says it."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


class Actions(Protocol):
    """What a pool has done for it."""

    def check(self, name: str) -> None:
        """Raise what is wrong with a model's file, as far as its beginning shows that."""

    def start(self, name: str) -> None:
        """Start the engine of a model: `loaded` or `ended` follow."""

    def tell(self, name: str, state: ModelState, error: str | None) -> None:
        """Tell a model's state to those who serve it, with what it failed of.

        Of one that is to be unloaded, `drained` follows when its requests have ended.
        """

    def end(self, name: str) -> None:
        """End the engine of a model: `ended` follows."""


class ModelPool:
    """Loads models as they are wanted, and unloads the least recently used ones to make room.

    One is loaded or unloaded at a time. It is unloaded when its requests have ended. What does not load for lack of
    memory is tried again with fewer others beside it, at last with none.

    Args:
        names: of all models.
        most: that are loaded at a time; 0: as many as the memory holds.
        last_use: of a model, on any clock.
        actions: done for it.

    Attributes:
        states: model -> its state.
    """

    def __init__(self, names: Iterable[str], most: int, last_use: Callable[[str], float], actions: Actions):
        self.states = dict.fromkeys(names, ModelState.UNLOADED)
        self._most, self._last_use, self._actions = most, last_use, actions
        self._wanted: list[str] = []

    @property
    def loaded(self) -> list[str]:
        """The models that are."""
        return [name for name, state in self.states.items() if state is ModelState.LOADED]

    def want(self, name: str) -> None:
        """Somebody waits for a model."""
        if name not in self._wanted and self.states[name] in (ModelState.UNLOADED, ModelState.UNLOADING):
            self._wanted.append(name)
        self._go_on()

    def has_loaded(self, name: str) -> None:
        """A model's engine serves."""
        self._set(name, ModelState.LOADED)
        self._go_on()

    def drained(self, name: str) -> None:
        """The requests of a model that is to be unloaded have ended."""
        self._actions.end(name)

    def ended(self, name: str, error: BaseException) -> None:
        """A model's engine has ended, with this error where nobody wanted it to."""
        state = self.states[name]
        if state is ModelState.LOADING and isinstance(error, (OutOfMemoryError, MemoryError)) and self.loaded:
            self.states[name] = ModelState.UNLOADED  # for all others it is still being loaded
            self._wanted.insert(0, name)
            self._make_room_for(name)
            return
        self._set(name, ModelState.UNLOADED, None if state is ModelState.UNLOADING else str(error))
        self._go_on()

    def _go_on(self) -> None:
        """Load what is wanted next, once nothing is under way."""
        if not self._wanted or {ModelState.LOADING, ModelState.UNLOADING} & {*self.states.values()}:
            return
        name = self._wanted[0]
        if self._most and len(self.loaded) >= self._most:
            self._make_room_for(name)
            return
        self._wanted.pop(0)
        self._set(name, ModelState.LOADING)
        self._actions.start(name)

    def _make_room_for(self, name: str) -> None:
        """Unload the least recently used model, unless this one would not load anyway."""
        try:
            self._actions.check(name)
        except Exception as error:
            self._wanted.remove(name)
            self._set(name, ModelState.UNLOADED, str(error))
            self._go_on()
        else:
            self._set(min(self.loaded, key=self._last_use), ModelState.UNLOADING)

    def _set(self, name: str, state: ModelState, error: str | None = None) -> None:
        self.states[name] = state
        self._actions.tell(name, state, error)
