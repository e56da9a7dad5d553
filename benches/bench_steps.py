"""Times decode steps over the length of the context: one request's, or a batch's; on one card, or several; and prompts.

    python benches/bench_steps.py MODEL.gguf
    python benches/bench_steps.py MODEL.gguf --batch 8 --contexts 1,1000
    python benches/bench_steps.py MODEL.gguf --batch 32 --contexts 1 --constrained
    python benches/bench_steps.py MODEL.gguf --contexts 16384,32768 -ctk q8_0 -ctv q4_0
    python benches/bench_steps.py MODEL.gguf --batch 1 8 64 --contexts 1 --tensor-parallel 2
    python benches/bench_steps.py MODEL.gguf --batch 1 8 64 --contexts 1 --prompt 2048
    python benches/bench_steps.py MODEL.gguf --contexts 1 --prompt 2048 --rest 2

Microseconds of a step, the median over rounds of new random prompts, and tokens a second. A prompt of the given length
comes first, and a few steps in which the graph is captured; the next steps are timed, which lengthen the context. Of a
prompt it is the time to its first token, in steps of up to 2,048 tokens. A card at its power limit lowers its clock:
with --rest it has been idle before each round.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rocforge as rf
from rocforge.device.libraries import cupy_module
from rocforge.engine.capacity import MAX_REQUESTS
from rocforge.engine.request import Constraint
from rocforge.formats.kv_cache import CACHE_TYPES
from rocforge.text.grammar import Grammar, GrammarCompiler

CONTEXTS = "1,32,64,96,120,160,224,300,420,600,1000,2000,4000"
WARM, ROUNDS = 6, 6
"""Decode steps before those that are timed, in which the graph is captured; rounds, of which the first is dropped."""
STEP_TOKENS = 2048
"""The most prompt tokens of a step."""


PATTERN = "[a-z ]*"
"""Of constrained requests: any number of letters."""


def room(batch: int, context: int, steps: int) -> int:
    """Cache tokens that a request needs: the first decode while the others' prompts are read."""
    return context + steps + 64 + 2 * batch * context // STEP_TOKENS


def start(engine: rf.Engine, batch: int, context: int, constraints: Sequence[Constraint] = ()) -> None:
    """In place of what an engine has: new random prompts, past them and their first decode steps, without an end.

    The first requests get the constraints.
    """
    engine.cancel_all()
    params = rf.SamplingParams(temperature=0, ignore_eos=True)
    prompts = np.random.default_rng().integers(0, engine.model.config.vocabulary, (batch, context)).tolist()
    pairs = itertools.zip_longest(prompts, constraints)
    requests = [engine.add(prompt, params, constraint) for prompt, constraint in pairs]
    while any(len(request.output) < WARM for request in requests):
        if errors := [token.error for token in engine.step() if token.error]:
            raise RuntimeError(f"a request has ended: {errors[0]}")


def seconds_of_a_step(engine: rf.Engine, batch: int, context: int, steps: int, grammar: Grammar | None = None) -> float:
    """Of one round: the mean of its steps, each of which gives all requests a token."""
    start(engine, batch, context, [grammar.copy()] if grammar else ())
    cupy_module().cuda.Device().synchronize()
    began = time.perf_counter()
    tokens = sum(len(engine.step()) for _ in range(steps))
    took = time.perf_counter() - began
    if tokens != steps * batch:
        raise RuntimeError(f"{steps} steps of {batch} requests gave {tokens} tokens")
    return took / steps


def seconds_of_a_prompt(engine: rf.Engine, tokens: int) -> float:
    """Of one request alone with a new prompt, of which the cache has seen nothing, to its first token."""
    prompt = np.random.default_rng().integers(0, engine.model.config.vocabulary, tokens).tolist()
    began = time.perf_counter()
    engine.add(prompt, rf.SamplingParams(max_tokens=1, temperature=0))
    while engine.busy:
        engine.step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="requests at a time")
    parser.add_argument("--contexts", default=CONTEXTS, help="tokens of the prompts, separated by commas")
    parser.add_argument("--constrained", action="store_true", help="one of the requests obeys a regular expression")
    parser.add_argument("--tensor-parallel", type=int, metavar="N", default=1, help="cards that compute together")
    parser.add_argument("--split", choices=["rows", "layers"], default="rows", help="what each card has of a model")
    parser.add_argument("--prompt", type=int, metavar="TOKENS", help="also the time of a prompt of so many")
    parser.add_argument("--rest", type=float, default=0.0, metavar="SECONDS", help="pause before each round")
    parser.add_argument("--steps", type=int, default=24, help="timed steps of a round")
    for letter, of in (("k", "keys"), ("v", "values")):
        options = {"choices": CACHE_TYPES, "help": f"type of the {of} in the KV cache"}
        parser.add_argument(f"--cache-type-{letter}", f"-ct{letter}", **options)
    options = parser.parse_args()
    contexts = [int(context) for context in options.contexts.split(",")]
    types = {"cache_type_k": options.cache_type_k, "cache_type_v": options.cache_type_v}
    longest = max(room(max(options.batch), max(contexts), options.steps), (options.prompt or 1) + 64)
    cards = options.tensor_parallel
    where: dict[str, Any] = {"devices": cards, "shares": [1] * cards if options.split == "layers" else None}
    where = where if cards > 1 else {"device": "gpu"}
    model, tokenizer = rf.load(options.model, context=longest, **where, **types)
    grammar = GrammarCompiler(tokenizer).regex(PATTERN) if options.constrained else None

    def rested(seconds: Callable[..., float], *args: Any) -> float:
        time.sleep(options.rest)
        return seconds(*args)

    for batch in options.batch:
        tokens = batch * room(batch, max(contexts), options.steps)
        limits = {"max_batch_tokens": STEP_TOKENS, "max_requests": max(batch, MAX_REQUESTS)}
        with rf.Engine(model, cache_tokens=tokens, **limits) as engine:
            for context in contexts:
                timed = seconds_of_a_step, engine, batch, context, options.steps, grammar
                rounds = [rested(*timed) for _ in range(ROUNDS)]
                step = statistics.median(rounds[1:])  # the first may compile
                took = f"{step * 1e6:9.1f} us a step {batch / step:9.1f} tokens/s"
                print(f"batch {batch} context {context:6} {took}", flush=True)
    if options.prompt:
        with rf.Engine(model, cache_tokens=longest, max_batch_tokens=STEP_TOKENS) as engine:
            rounds = [rested(seconds_of_a_prompt, engine, options.prompt) for _ in range(ROUNDS + 1)]
        took = statistics.median(rounds[2:])
        print(f"prompt of {options.prompt} {took * 1e3:9.2f} ms {options.prompt / took:9.1f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
