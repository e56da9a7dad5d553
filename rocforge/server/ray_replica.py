"""Replica: an engine with its endpoints, as an actor of Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.types import Message

from rocforge.engine.reply import ServiceError
from rocforge.engine.service import Service, State
from rocforge.server.app import endpoints
from rocforge.server.backend import Answer, LocalBackend
from rocforge.server.engine_options import LoadEngine
from rocforge.server.jobs import Jobs
from rocforge.server.ray_router import ask_all
from rocforge.server.router import replayed
from rocforge.server.run import observed_service
from rocforge.server.settings import Settings

log = logging.getLogger("rocforge.server")
PAUSE = 0.02
"""Seconds between two messages of a stream to a Front, each of which costs both of them as much as several tokens."""


class Replica:
    """An engine in a thread, and the endpoints over it, which a Front reaches by `answer`.

    It is ready once it is made. The actor ends when its engine fails, and Ray Serve starts another one.

    Args:
        load: makes the engine.
        max_queue: as in Service.
        settings: the server's.
        app: the name of the application in Ray Serve.
    """

    def __init__(self, load: LoadEngine, max_queue: int, settings: Settings, app: str):
        context = serve.get_replica_context()
        self.id: str = context.replica_id.unique_id
        self._service, metrics = observed_service(load, max_queue)
        self._backend = ReplicaBackend(self._service, app, context.deployment)
        self._jobs, self._metrics, self._retried = Jobs(), metrics, 0
        self._endpoints = endpoints(self._backend, settings, metrics, self._jobs)
        self._service.start()
        try:
            self._service.wait_until_ready()
        except ServiceError as error:
            raise ServiceError(f"on {ray.util.get_node_ip_address()}: {error}") from error
        threading.Thread(target=self._end_with_engine, daemon=True).start()

    def _end_with_engine(self) -> None:
        self._service.wait()
        if self._service.state is State.FAILED:
            log.error("the engine has failed, and its replica ends", exc_info=self._service.error)
            os._exit(1)

    async def answer(
        self, scope: Mapping[str, Any], body: bytes, again: bool, prefix: str
    ) -> AsyncIterator[list[Message]]:
        """The messages of ASGI that answer a request, as many as there are at a time.

        Args:
            scope: the request's.
            body: all of it.
            again: whether another replica had it before, and has ended.
            prefix: for PrefixRouter.
        """
        self._retried += again
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        never = asyncio.Event()

        async def nothing_more() -> Message:
            await never.wait()  # a client that leaves has this cancelled
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._endpoints(dict(scope), replayed(body, nothing_more), messages.put)
            finally:
                messages.put_nowait(None)

        task, ended = asyncio.ensure_future(run()), False
        try:
            while not ended:
                found = [await messages.get()]
                if self._service.state is State.FAILED:
                    await never.wait()  # the end of this actor says to the Front what to do
                while not messages.empty():
                    found.append(messages.get_nowait())
                ended = found[-1] is None
                if batch := _merged([self._named(message) for message in found if message is not None]):
                    yield batch
                if not ended:
                    await asyncio.sleep(PAUSE)
            await task
        finally:
            task.cancel()

    def _named(self, message: Message) -> Message:
        """A message, which names this replica where it is the head of a response."""
        if message["type"] != "http.response.start":
            return message
        return {**message, "headers": [*message["headers"], (b"x-replica", self.id.encode())]}

    async def ask(self, question: str, argument: str) -> Any:
        """What this replica answers a question, as `Backend.ask` has them."""
        return self._backend.answer(question, argument)

    async def numbers(self) -> tuple[str, np.ndarray, int]:
        """Its id, the numbers of its Table, and how many requests it got again."""
        return self.id, self._metrics.updated().numbers, self._retried

    async def state(self) -> tuple[str, str]:
        """Its id, and the state of its engine."""
        return self.id, self._service.state.value

    async def stop(self, drain: float) -> None:
        """Give requests in flight so many seconds to finish, and fail the rest."""
        await self._backend.stop(drain)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """How full it is: tokens in flight by those that its KV cache holds."""
        engine = self._service.engine
        return {"load": self._jobs.tokens_in_flight / engine.cache_tokens if engine else 0.0}

    async def check_health(self) -> None:
        """Have an engine that has nothing to do find out whether its cards are there; Ray Serve calls it."""
        self._service.look()


def _merged(messages: list[Message]) -> list[Message]:
    """Messages, with parts of a body that follow each other as one."""
    found: list[Message] = []
    for message in messages:
        if found and found[-1]["type"] == message["type"] == "http.response.body":
            message = {**message, "body": found.pop()["body"] + message["body"]}
        found.append(message)
    return found


class ReplicaBackend(LocalBackend):
    """A service of this process, beside those of other replicas.

    Args:
        service: of this process.
        app, deployment: the names of the replicas in Ray Serve.
    """

    def __init__(self, service: Service, app: str, deployment: str):
        super().__init__(service)
        self._app, self._deployment = app, deployment

    async def ask(self, question: str, argument: str = "") -> list[Any]:
        replicas = serve.get_deployment_handle(self._deployment, self._app)
        return await ask_all(replicas, "ask", question, argument)

    def answer_with(self, answer: Answer) -> None:
        self.answer = answer
