"""Admission: what an engine is asked to do, checked before anything of it runs."""

from __future__ import annotations

from collections.abc import Sequence

from rocforge.engine.breakers import breakers_of
from rocforge.engine.request import Constraint, Request
from rocforge.nn.transformer import Transformer, check_generates
from rocforge.ops.mirostat import Mirostat
from rocforge.ops.sampling import SamplingParams


class Admission:
    """Checks prompts, and makes requests of them.

    Args:
        model: its weights loaded.
        limit: the longest sequence that can be served, in tokens.
        eog_token_ids: tokens that end a generation.
    """

    def __init__(self, model: Transformer, limit: int, eog_token_ids: frozenset[int]):
        self._model, self._limit, self._eog_token_ids = model, limit, eog_token_ids

    def request(self, prompt: Sequence[int], params: SamplingParams, constraint: Constraint | None) -> Request:
        """The request for a prompt; arguments and errors as in `Engine.add`."""
        prompt = [int(token) for token in prompt]
        self.check(prompt, params)
        longest = self._limit if params.max_tokens is None else min(self._limit, len(prompt) + params.max_tokens)
        lora = None if params.lora is None else self._model.adapters.placed(params.lora)
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eog_token_ids)
        mirostat = Mirostat(params.mirostat, params.mirostat_tau, params.mirostat_eta) if params.mirostat else None
        return Request(prompt, params, constraint, longest, ends, lora, breakers_of(params), mirostat)

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """As `Engine.check`."""
        check_generates(self._model)
        self._check_ids(prompt, replies=True)
        vocabulary = self._model.config.vocabulary
        if params.logit_bias and not 0 <= min(params.logit_bias) <= max(params.logit_bias) < vocabulary:
            raise ValueError(f"logit_bias has a token id outside 0 to {vocabulary - 1}")
        if params.stop_token_ids and not 0 <= min(params.stop_token_ids) <= max(params.stop_token_ids) < vocabulary:
            raise ValueError(f"stop_token_ids has a token id outside 0 to {vocabulary - 1}")
        if params.lora is not None:
            self._model.adapters.placed(params.lora)

    def check_prompts(self, prompts: Sequence[Sequence[int]], lora: str | None) -> None:
        """Whether prompts can run that get no reply.

        Raises:
            ValueError: as in `Engine.embed`.
        """
        for prompt in prompts:
            self._check_ids(prompt)
        if lora is not None:
            self._model.adapters.placed(lora)

    def _check_ids(self, prompt: Sequence[int], replies: bool = False) -> None:
        vocabulary = self._model.config.vocabulary
        if not prompt:
            raise ValueError("the prompt is empty")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(f"the prompt has a token id outside 0 to {vocabulary - 1}")
        if len(prompt) + replies > self._limit:
            reply = " with the reply" if replies else ""
            raise ValueError(f"the prompt has {len(prompt)} tokens; the limit is {self._limit}{reply}")
