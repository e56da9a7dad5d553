"""Backend: what the HTTP endpoints need of an engine, wherever it runs; and that of a service in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import anyio
import numpy as np
from anyio import to_thread

from rocforge.engine.reply import Reply
from rocforge.engine.request import Constraint
from rocforge.engine.service import Service, State
from rocforge.ops.sampling import SamplingParams
from rocforge.server.grammars import COMPILING, Grammars, GrammarSource
from rocforge.text.tokenizer import Tokenizer

Answer = Callable[[str, str], Any]
"""The answer, of what JSON can say, to a question with its argument, or None."""


class Backend(Protocol):
    """An engine, and what else is served with it. For the event loop alone."""

    @property
    def state(self) -> State:
        """The engine's."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's, once it is loaded."""

    @property
    def limit(self) -> int:
        """Tokens of prompt and reply together; 0 until the model is loaded."""

    @property
    def pooling(self) -> str:
        """What `embed` makes of a prompt, as `rf.embed` names it: "rank" of a reranker; "" until it is loaded."""

    async def start(self) -> None:
        """Called once, before anything else."""

    async def submit(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        grammar: GrammarSource | None,
        timeout: float,
    ) -> list[Reply]:
        """Submit each prompt with each of its params; all or none.

        Args:
            prompts: token ids.
            params: how each is continued.
            grammar: what each text must obey, or None.
            timeout: seconds until they fail.

        Raises:
            ValueError: they can never be served; GrammarError for the grammar.
            QueueFullError: too many are in flight.
            ServiceError: the engine is not there.
        """

    async def embed(self, prompts: Sequence[list[int]], lora: str | None) -> np.ndarray:
        """Vectors of prompts of token ids, float32 (prompts, dim), normalized; of a reranker (prompts, labels).

        Raises:
            As `submit`.
        """

    async def score(self, prompts: Sequence[list[int]], top: int, lora: str | None) -> np.ndarray:
        """Scores of the tokens of prompts, as `Engine.score` has them.

        Raises:
            As `submit`.
        """

    async def ask(self, question: str, argument: str = "") -> list[Any]:
        """What the other processes that answer HTTP answer to a question; None is left out."""

    def answer_with(self, answer: Answer) -> None:
        """How this process answers."""

    async def stop(self, drain: float) -> None:
        """Refuse further requests, give those in flight so many seconds to finish, and fail the rest."""


class LocalBackend:
    """A service of this process, which whoever made it starts."""

    def __init__(self, service: Service):
        self._service = service
        self._grammars: Grammars | None = None
        self._compiling = anyio.CapacityLimiter(COMPILING)

    async def start(self) -> None:
        """Its service is started already."""

    @property
    def state(self) -> State:
        return self._service.state

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._service.tokenizer

    @property
    def limit(self) -> int:
        engine = self._service.engine
        return engine.limit if engine else 0

    @property
    def pooling(self) -> str:
        engine = self._service.engine
        return engine.pooling if engine else ""

    async def submit(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        grammar: GrammarSource | None,
        timeout: float,
    ) -> list[Reply]:
        pairs = [(prompt, param) for prompt in prompts for param in params]
        constraints = [None] * len(pairs) if grammar is None else await self._compiled(grammar, len(pairs))
        replies: list[Reply] = []
        try:
            for (prompt, param), constraint in zip(pairs, constraints, strict=True):
                replies.append(self._service.submit(prompt, param, constraint, timeout))
        except BaseException:
            for reply in replies:
                reply.cancel()
            raise
        return replies

    async def _compiled(self, grammar: GrammarSource, count: int) -> Sequence[Constraint]:
        tokenizer = self._service.tokenizer
        assert tokenizer is not None, "the prompt was made with it"
        self._grammars = grammars = self._grammars or Grammars(tokenizer)
        return await to_thread.run_sync(
            grammars.compile, grammar, count, abandon_on_cancel=True, limiter=self._compiling
        )

    async def embed(self, prompts: Sequence[list[int]], lora: str | None) -> np.ndarray:
        return await asyncio.wrap_future(self._service.embed(prompts, lora))

    async def score(self, prompts: Sequence[list[int]], top: int, lora: str | None) -> np.ndarray:
        return await asyncio.wrap_future(self._service.embed(prompts, lora, top))

    async def ask(self, question: str, argument: str = "") -> list[Any]:
        return []

    def answer_with(self, answer: Answer) -> None:
        """There is nobody who could ask."""

    async def stop(self, drain: float) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._service.stop, drain, drain + 1)
