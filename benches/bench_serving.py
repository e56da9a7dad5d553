"""Serving as its users meet it: tokens a second, time to first token and gap between tokens, under load.

    python benches/bench_serving.py model.gguf --preset table                  # the engine alone
    python benches/bench_serving.py model.gguf --preset http                   # `rocforge serve`, clients beside it
    python benches/bench_serving.py model.gguf --preset curve --inter-token-ms 20 50 100 --plot docs/scheduling.svg
    python benches/bench_serving.py --url http://127.0.0.1:8000 --model NAME --preset http    # any such server
    python benches/bench_serving.py model.gguf -c 64 --lengths sharegpt --constrained 0.1 --cancelled 0.1

Prompts are random token ids (or words, with `--text`), so no two begin alike unless they are to share a prefix; replies
go on past their end, to the length that was asked for, at a temperature of 0.7. What is timed is a window: it begins
when as many requests have ended as are in flight (or come in a second), after `--seconds` at the latest, and ends after
`--seconds`; `benches/serving/figures.py` says what counts. Requests that come all at once are timed from the beginning
to the last token, or for a minute. A short run that is not timed comes first.

The longest step and the host's share of the time, in which the GPU waited for it between steps, are known of the engine
alone. Gaps are between two arrivals of a stream's text, which holds more than one token where the server sends several
at a time. Rates count tokens, as the server reports them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from serving import client
from serving.load import Load

BUSY = 0.8
"""Share of the time from which a client process is what is measured."""
Measure = Callable[[Load], dict[str, Any]]

SHORT = Load(concurrency=4, lengths=(32, 8), seconds=1)
"""Not timed: it fills what a first request would wait for."""
IN_FLIGHT = (1, 4, 16, 32, 64, 128, 256)
PRESETS = {
    "table": [
        *(Load(concurrency=number) for number in (1, 16, 64, 256)),
        Load(concurrency=256, lengths=(220, 200)),
        Load(at_once=1000, lengths=(220, 200)),
    ],
    "http": [Load(concurrency=64), Load(concurrency=256)],
    "curve": [Load(concurrency=number, seconds=6) for number in IN_FLIGHT],
    "mix": [
        Load(concurrency=64, lengths="sharegpt"),
        Load(rate=20, lengths="sharegpt"),
        Load(concurrency=64, shared_prefix=1024),
        Load(concurrency=64, constrained=0.1),
        Load(concurrency=64, cancelled=0.1),
    ],
}


def loads(options: argparse.Namespace) -> list[Load]:
    """The loads that the command line asks for."""
    given = [
        *(Load(concurrency=number) for number in options.concurrency or ()),
        *(Load(rate=rate) for rate in options.rate or ()),
        *(Load(at_once=number) for number in options.at_once or ()),
    ]
    changes = {"constrained": options.constrained, "cancelled": options.cancelled, "lengths": options.lengths}
    changes |= {"shared_prefix": options.shared_prefix, "seconds": options.seconds}
    changes = {name: value for name, value in changes.items() if value is not None}
    chosen = [replace(load, **changes) for load in given or PRESETS[options.preset]]
    return [replace(load, seed=seed) for seed, load in enumerate(chosen)]  # no prompt comes twice


def lengths(text: str) -> tuple[int, int] | str:
    """`512/128`, or `sharegpt`."""
    if text == "sharegpt":
        return text
    prompt, _, tokens = text.partition("/")
    if not prompt.isdigit() or not tokens.isdigit() or not int(prompt) or not int(tokens):
        raise argparse.ArgumentTypeError(f"the lengths are {text!r}; allowed are TOKENS_IN/TOKENS_OUT and sharegpt")
    return int(prompt), int(tokens)


def url(text: str) -> str:
    """That of a server without TLS."""
    try:
        client.Endpoint(text, "", 0).address()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def targets(options: argparse.Namespace) -> Iterator[tuple[str, Measure]]:
    """What is measured, by name, one open at a time."""
    if options.url:
        endpoint = client.Endpoint(options.url, options.model, options.vocabulary, options.text, options.api_key)
        yield options.url, lambda load: client.measure(endpoint, load, options.clients)
        return
    settings = {}
    for milliseconds in options.inter_token_ms or [None]:
        every = {"max_requests": options.max_requests, "max_batch_tokens": options.max_batch_tokens}
        every |= {"cache_tokens": options.cache_tokens, "inter_token_ms": milliseconds}
        name = "default" if milliseconds is None else f"{milliseconds:g} ms"
        settings[name] = {key: value for key, value in every.items() if value is not None}
    if not options.serve:
        yield from alone(options, settings)
        return
    for name, chosen in settings.items():
        yield from through_http(options, name, chosen)


def alone(options: argparse.Namespace, settings: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Measure]]:
    """The engine in this process, with each of the settings, by name."""
    from serving.alone import measure

    import rocforge as rf
    from rocforge.text.grammar import GrammarCompiler

    where = {"device": options.device} if options.tensor_parallel == 1 else {"devices": options.tensor_parallel}
    model, tokenizer = rf.load(options.gguf, **where)
    for name, chosen in settings.items():
        with rf.Engine(model, tokenizer.eog_token_ids, **chosen) as engine, ExitStack() as stack:
            engine.prepare()
            constraint = None
            if any(load.constrained for load in loads(options)):
                constraint = stack.enter_context(closing(GrammarCompiler(tokenizer).json_schema(client.SCHEMA))).copy
            yield f"engine, {name}", partial(measure, engine, constraint=constraint)


def through_http(options: argparse.Namespace, name: str, settings: dict[str, Any]) -> Iterator[tuple[str, Measure]]:
    """`rocforge serve`, and clients beside it."""
    from serving.server import cpu_seconds, running

    import rocforge as rf

    settings = {"max_queue": 1024, **settings, **({"device": options.device} if options.device else {})}
    settings |= {"tensor_parallel": options.tensor_parallel} if options.tensor_parallel > 1 else {}
    flags = [text for key, value in settings.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    with rf.open_gguf(options.gguf) as file:
        vocabulary = len(file.metadata["tokenizer.ggml.tokens"])
    with running("rocforge", "serve", options.gguf, "--name", "model", "--port", 0, *flags) as (at, pid, _):
        endpoint = client.Endpoint(at, "model", vocabulary)
        yield f"serve, {name}", lambda load: client.measure(endpoint, load, options.clients, lambda: cpu_seconds(pid))


HEAD = "| | output | total | requests | TTFT p50 / p99 | gap p50 / p99 / longest | step | host | ended | errors |"
UNITS = "| | tokens/s | tokens/s | /s | ms | ms | ms, longest | | | |"


def row(load: Load, f: dict[str, Any]) -> str:
    """A load's line of the table."""
    times = [_times(f["ttft_ms"], "p50", "p99"), _times(f["gap_ms"], "p50", "p99", "max"), _times(f["step_ms"], "max")]
    rates = [f"{f[name]:,.0f}" for name in ("output_tokens_per_second", "total_tokens_per_second")]
    host = "-" if f.get("host_share") is None else f"{f['host_share']:.0%}"
    cells = [str(load), *rates, f"{f['requests_per_second']:.1f}", *times, host, str(f["finished"]), str(f["errors"])]
    line = f"| {' | '.join(cells)} |"
    if f["waiting"] and f["waiting_ms"] > (f["ttft_ms"] or {"max": 0})["max"]:
        line += f"  {f['waiting']} wait for their first token, the longest for {f['waiting_ms'] / 1e3:.1f} s"
    if f.get("client_busy", 0) > BUSY:
        line += f"  a client process was busy for {f['client_busy']:.0%} of the time: take more (--clients)"
    return line + (f"  {f['error']}" if f["error"] else "")


def _times(values: dict[str, float] | None, *names: str) -> str:
    return " / ".join(f"{values[name]:,.1f}" for name in names) if values else "-"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", nargs="?", type=Path, help="a GGUF file, for the engine alone and --serve")
    parser.add_argument("--serve", action="store_true", help="measure `rocforge serve` in place of the engine alone")
    parser.add_argument("--url", type=url, help="measure the server there, for example http://127.0.0.1:8000")
    parser.add_argument("--model", help="with --url: the model's name there")
    parser.add_argument("--vocabulary", type=int, default=32000, help="with --url: prompts have token ids under it")
    parser.add_argument("--api-key", help="with --url: bearer token")
    parser.add_argument("--text", action="store_true", help="with --url: prompts are words, not token ids")
    parser.add_argument("--preset", choices=PRESETS, default="table")
    parser.add_argument("-c", "--concurrency", type=int, nargs="+", help="closed loops, in place of a preset")
    parser.add_argument("--rate", type=float, nargs="+", help="Poisson arrivals a second")
    parser.add_argument("--at-once", type=int, nargs="+", help="that many requests at the beginning")
    parser.add_argument("--lengths", type=lengths, help="tokens in/out, as 512/128, or sharegpt")
    parser.add_argument("--shared-prefix", type=int, help="tokens with which prompts begin alike")
    parser.add_argument("--constrained", type=float, help="share of requests whose text is JSON of a schema")
    parser.add_argument("--cancelled", type=float, help="share of requests that their clients leave")
    parser.add_argument("--seconds", type=float, help="length of the timed window")
    parser.add_argument("--max-requests", type=int, help="of the engine")
    parser.add_argument("--max-batch-tokens", type=int, help="of the engine")
    parser.add_argument("--cache-tokens", type=int, help="of the engine")
    parser.add_argument("--inter-token-ms", type=float, nargs="+", help="of the engine; of several, each is measured")
    parser.add_argument("--device", help="of the engine: cpu, gpu, gpu:N")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="cards that compute together")
    clients = max(1, min(4, (os.cpu_count() or 1) // 4))
    parser.add_argument("--clients", type=int, default=clients, help="client processes, with --serve and --url")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--plot", type=Path, help="write throughput over latency there, as SVG (needs matplotlib)")
    options = parser.parse_args(argv)
    if bool(options.gguf) == bool(options.url):
        parser.error("give either a GGUF file or --url")
    if options.url and not options.model:
        parser.error("--url needs --model")
    if options.gguf and not options.gguf.is_file():
        parser.error(f"there is no file {options.gguf}")
    return options


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    results: list[dict[str, Any]] = []
    for name, measure in targets(options):
        print(f"{name}\n\n{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}\n{UNITS}", flush=True)
        measure(SHORT)
        for load in loads(options):
            found = measure(load)
            results.append({"target": name, "load": asdict(load), "figures": found})
            print(row(load, found), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
        print()
    if options.plot:
        from serving.plot import plot

        plot(results, options.plot)


if __name__ == "__main__":
    main()
