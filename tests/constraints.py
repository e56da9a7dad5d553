"""Constraints of other kinds than grammars, and requests that have them."""

import itertools

import numpy as np

import rocforge as rf

OPTIONS = [
    {"temperature": 0},
    {"temperature": 0.9, "top_p": 0.9, "logprobs": 2},
    {"temperature": 0.8, "repetition_penalty": 1.3, "dry_multiplier": 2.0, "dry_sequence_breakers": [[3]]},
    {"temperature": 1.0, "mirostat": 2, "logit_bias": {7: 3.0, 9: -2.0}},
]
"""Of four requests."""


class Alternating:
    """Even tokens after odd ones and odd ones after even ones, at first any.

    Args:
        vocabulary: how many tokens there are.
        fail: what raises an error, "bits" or "accept", or "dead end" for a mask that allows nothing, from the fourth
            token on; None for nothing.
        until: after so many tokens any may come; None: never.
    """

    def __init__(self, vocabulary, fail=None, until=None):
        self.vocabulary, self.fail, self.until, self.accepted, self.closed = vocabulary, fail, until, [], False

    def bits(self):
        if len(self.accepted) >= 3 and self.fail == "bits":
            raise RuntimeError("no bits")
        allowed = np.ones(-(-self.vocabulary // 32) * 32, bool)
        if self.accepted:
            allowed[self.accepted[-1] % 2 :: 2] = False
        if len(self.accepted) >= 3 and self.fail == "dead end":
            allowed[:] = False
        return np.packbits(allowed, bitorder="little").view(np.uint32)

    def accept(self, token):
        if len(self.accepted) >= 3 and self.fail == "accept":
            raise RuntimeError("not accepted")
        self.accepted.append(token)
        return len(self.accepted) == self.until

    def close(self):
        self.closed = True


def obeys(constraint, tokens):
    """Whether a text alternates as long as it has to, and its constraint has seen that."""
    return alternates(tokens[: constraint.until]) and constraint.accepted == tokens[: constraint.until]


def alternates(tokens):
    return all((a + b) % 2 for a, b in itertools.pairwise(tokens))


def prompts_of(model, *lengths):
    """Random ones."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, model.config.vocabulary, length).tolist() for length in lengths]


def run(model, prompts, constraints, max_tokens=8, **options):
    """The tokens of a request for each prompt, and the errors of those that failed."""
    params = [
        rf.SamplingParams(max_tokens=max_tokens, seed=i, ignore_eos=True, **given)
        for i, given in enumerate(OPTIONS[: len(prompts)])
    ]
    errors = {}
    with rf.Engine(model, **options) as engine:
        requests = [engine.add(*request) for request in zip(prompts, params, constraints, strict=True)]
        while engine.busy:
            errors.update({requests.index(token.request): token.error for token in engine.step() if token.error})
        assert engine.scheduler.state.idle
    return [request.output for request in requests], errors
