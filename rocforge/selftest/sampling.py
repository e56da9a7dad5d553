"""Choosing tokens: on the card the same ones as on the host, and their log-probabilities."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rocforge.device.libraries import cupy_module
from rocforge.device.streams import Stream
from rocforge.ops.device.sampling import Sampler, count_tokens, logprobs_device
from rocforge.ops.sampling import SamplingParams, logprobs, sample
from rocforge.selftest.check import Check, Error, Outcome, Sizes
from rocforge.selftest.products import floats

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "plain": {"temperature": 0.9},
    "top_k": {"temperature": 0.9, "top_k": 40},
    "top_p": {"temperature": 0.9, "top_p": 0.95},
    "min_p": {"temperature": 1.2, "min_p": 0.05},
    "flat": {"temperature": 2.0, "top_p": 0.999, "top_k": 5000},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    "chain": {"temperature": 1.0, "top_n_sigma": 2.0, "typical_p": 0.9, "xtc_probability": 0.5, "xtc_threshold": 0.05},
    "bias": {"temperature": 0.8, "logit_bias": {3: 9.0, 17: -100.0}},
}


def checks(sizes: Sizes) -> list[Check]:
    shape = sizes.rows, sizes.vocabulary
    return [
        *(Check(name, functools.partial(_tokens, options, shape)) for name, options in KINDS.items()),
        Check("log-probabilities", functools.partial(_logprobs, shape)),
    ]


def _logits(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A few likely tokens over a broad rest, as language models give."""
    logits = 2 * floats(rng, *shape)
    logits[:, rng.integers(0, shape[1], 40)] += rng.uniform(4, 14, 40).astype(np.float32)
    return logits


def _tokens(options: dict[str, Any], shape: tuple[int, int], rng: np.random.Generator) -> Outcome:
    """One row in 64 may differ: a draw within float32's rounding of the border between two tokens."""
    rows, vocabulary = shape
    logits, seeds = _logits(rng, shape), rng.integers(1 << 62, size=rows)
    params = [SamplingParams(seed=int(seed), **options) for seed in seeds]
    prompts, outputs = (rng.integers(0, vocabulary, (rows, 20)).tolist() for _ in range(2))
    with Stream("gpu") as stream:
        sampler, tokens = Sampler(vocabulary, rows), cupy_module().empty(rows, np.int32)
        for slot, (p, prompt, output) in enumerate(zip(params, prompts, outputs, strict=True)):
            counts = count_tokens(prompt, output, vocabulary) if p.counts_tokens else None
            sampler.begin(slot, p, counts, stream.upload)
        sampler(stream.upload(logits), range(rows), [20] * rows, {}, tokens, stream.upload)
        tokens = stream.download(tokens).get()
    expected = [sample(*row) for row in zip(logits, params, prompts, outputs, strict=True)]
    return Outcome({"tokens": Error(float(np.mean(tokens != expected)), 1 / 64)})


def _logprobs(shape: tuple[int, int], rng: np.random.Generator) -> Outcome:
    """Natural logarithms, off by at most 1e-4."""
    logits, chosen = _logits(rng, shape), rng.integers(0, shape[1], shape[0]).astype(np.int32)
    asarray = cupy_module().asarray
    values, ids, tops = (a.get() for a in logprobs_device(asarray(logits), asarray(chosen), 20))
    expected = [logprobs(row, int(token), 20) for row, token in zip(logits, chosen, strict=True)]
    return Outcome(
        {
            "of the tokens": Error(float(np.abs(values - [e.token for e in expected]).max()), 1e-4),
            "of the likeliest": Error(float(np.abs(tops - [list(e.top.values()) for e in expected]).max()), 1e-4),
            "which are likeliest": Error(float(np.mean(ids != [list(e.top) for e in expected])), 0.0),
        }
    )
