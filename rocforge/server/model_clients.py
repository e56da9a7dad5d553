"""ModelClients: the models of a server as a process for HTTP sees them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi import FastAPI

from rocforge.engine.reply import ServiceError
from rocforge.engine.service import State
from rocforge.ops.types import HostArray
from rocforge.server.client import EngineClient
from rocforge.server.model_pool import ModelState
from rocforge.server.supervisor import Notes

IN_USE = float("inf")
STOPPED = "the service is stopped"
Connect = Callable[[str, Callable[[], None]], EngineClient]
"""The client of a model's engine; the callback says that it is ready."""
Endpoints = Callable[[str, EngineClient], FastAPI]
"""The endpoints over a model's engine."""


class ModelClient:
    """A model as a process for HTTP sees it.

    Args:
        want: asks for it to be loaded.
        drained: says that no request of it is in progress here.
        note_use: notes that it was used now, or is in use: IN_USE.
        connect: makes the client of its engine, which is started when the model is loaded, and closed afterwards.
        endpoints: makes the endpoints over it. They are made once, since FastAPI keeps some of what it was given.

    Attributes:
        state, error: as the supervisor says; `error` is why it did not load, or None.
        client: of its engine.
    """

    def __init__(
        self,
        want: Callable[[], None],
        drained: Callable[[], None],
        note_use: Callable[[float], None],
        connect: Callable[[Callable[[], None]], EngineClient],
        endpoints: Callable[[EngineClient], FastAPI],
    ):
        self.state, self.error = ModelState.UNLOADED, None
        self.client = connect(self._is_ready)
        self._want, self._drained, self._note_use = want, drained, note_use
        self._endpoints = functools.cache(lambda: endpoints(self.client))
        self._starting: asyncio.Future[None] | None = None
        self._users = 0
        self._loaded: asyncio.Future[FastAPI] | None = None
        self._unloaded: asyncio.Future[None] | None = None

    error: str | None

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[FastAPI]:
        """The model's endpoints, once it is loaded. It stays so meanwhile.

        Raises:
            ServiceError: it does not load; the message says why.
        """
        while self._unloaded is not None:
            await asyncio.shield(self._unloaded)
        self._users += 1
        self._note_use(IN_USE)
        try:
            if self._loaded is None:
                self._want()
                self._loaded = asyncio.get_running_loop().create_future()
            yield await asyncio.shield(self._loaded)
        finally:
            self._users -= 1
            if not self._users:
                self._note_use(time.monotonic())
                if self.state is ModelState.UNLOADING:
                    self._drained()

    def change(self, state: ModelState, error: str | None) -> None:
        """Take what the supervisor says."""
        self.state, self.error = state, error
        loop = asyncio.get_running_loop()
        if state is ModelState.UNLOADED:
            self._leave(ServiceError(f"the model does not load: {error}" if error else "the model was unloaded"))
            return
        if self._loaded is None:
            self._loaded = loop.create_future()
        if self._starting is None:
            self._starting = asyncio.ensure_future(self.client.start())
        if state is ModelState.UNLOADING:
            self._unloaded = loop.create_future()
            if not self._users:
                self._drained()

    def _is_ready(self) -> None:
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(self._endpoints())

    def _leave(self, error: ServiceError) -> None:
        """Its engine has ended: fail who waits for it, and let those begin anew that wait for its end."""
        loaded, unloaded, starting = self._loaded, self._unloaded, self._starting
        self._loaded = self._unloaded = self._starting = None
        if starting is not None:
            starting.cancel()
            self.client.close()
            self._endpoints().state.generator.forget()
            asyncio.get_running_loop().call_soon(_free)
        if loaded is not None and not loaded.done():
            loaded.set_exception(error)
            loaded.exception()  # which may be nobody's
        if unloaded is not None:
            unloaded.set_result(None)

    async def stop(self, drain: float) -> None:
        """As in Backend."""
        if self._starting is not None:
            await self.client.stop(drain)
        self._want, self._drained = _refuse, lambda: None
        self._leave(ServiceError(STOPPED))


def _free() -> None:
    """Free a vocabulary that nobody uses any more, which EngineClient has frozen."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _refuse() -> None:
    raise ServiceError(STOPPED)


class ModelClients:
    """All models of a server, in a process for HTTP.

    Args:
        names: of the models.
        notes: to the supervisor, a ModelSupervisor.
        uses: of each model, the time of its last use here, or IN_USE.
        connect, endpoints: of a model.

    Attributes:
        state: READY from `start` to `stop`.
        models: name -> model.
    """

    def __init__(self, names: list[str], notes: Notes, uses: HostArray, connect: Connect, endpoints: Endpoints):
        self.state, self._notes = State.NEW, notes
        uses[:] = 0  # a process that was here before may have died with some in use

        def model(index: int, name: str) -> ModelClient:
            return ModelClient(
                want=lambda: notes.say("want", name),
                drained=lambda: notes.say("drained", name),
                note_use=lambda when: uses.__setitem__(index, when),
                connect=lambda on_ready: connect(name, on_ready),
                endpoints=lambda client: endpoints(name, client),
            )

        self.models: Mapping[str, ModelClient] = {name: model(index, name) for index, name in enumerate(names)}

    state: State

    async def start(self) -> None:
        """Listen to the supervisor."""
        asyncio.get_running_loop().add_reader(self._notes.connection.fileno(), self._hear)
        self.state = State.READY
        self._notes.ready()

    def _hear(self) -> None:
        try:
            while self._notes.connection.poll():
                _kind, name, state, error = self._notes.connection.recv()
                self.models[name].change(ModelState(state), error)
        except (EOFError, OSError):  # the server ends
            asyncio.get_running_loop().remove_reader(self._notes.connection.fileno())

    async def ask(self, question: str, argument: str = "") -> list[Any]:
        """As in Backend: by any engine, since all processes for HTTP are connected to each."""
        for model in self.models.values():
            if model.client.state is State.READY:
                return await model.client.ask(question, argument)
        return []

    async def stop(self, drain: float) -> None:
        """As in Backend."""
        self.state = State.STOPPING
        await asyncio.gather(*(model.stop(drain) for model in self.models.values()))
        self.state = State.STOPPED
