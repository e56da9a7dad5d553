"""The HTTP side of the server on a machine without a GPU: text, JSON, streams and sockets, and no model.

    python benches/bench_frontend.py
    python benches/bench_frontend.py model.gguf --rates 20000 --streams 256 --processes 2

The engine is synthetic, in its own process: it makes tokens at a given rate over all streams, each a whole word, and
gives each request its first one at once. So the time to the first token is what HTTP adds. A core's tokens a second are
those that clients got over the CPU time of the processes for HTTP, from /proc; that of the engine's process, which
hands the tokens over, is shown apart. With `--processes 0` one process does all of it, and its time is counted. Where
clients got less than the rate, the processes for HTTP were overloaded, or the clients (`busy`) were.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from serving import client
from serving.load import Load
from serving.server import cpu_seconds, running

DEMO = Path(__file__).parents[1] / "examples" / "demo_model" / "demo-11M-Q8_0.gguf"
VOCABULARY = 1000
"""Prompts have token ids under it."""
HEAD = "| streams | rate | tokens/s | a core | engine's process | TTFT p50 / p99, ms | gap p50 / p99, ms | busy |"


def measure(options: argparse.Namespace, rate: float, streams: int) -> dict[str, Any]:
    """The figures of so many streams at a rate, with a core's tokens a second."""
    load = Load(concurrency=streams, lengths=options.lengths, seconds=options.seconds)
    with running("serving.synthetic", options.gguf, rate, options.processes) as (url, pid, said):
        engine = int(next(line for line in said if line.startswith("engine ")).split()[1])
        endpoint = client.Endpoint(url, "model", VOCABULARY)
        client.measure(endpoint, Load(concurrency=8, lengths=(64, 16), seconds=0.5), 1)
        clocks = Clocks(pid, engine)
        found = client.measure(endpoint, load, options.clients, clocks.front_ends)
    tokens = found["output_tokens_per_second"] * found["seconds"]
    return found | {"tokens_a_core": tokens / found["server_cpu_seconds"], "engine_share": clocks.engine_share(found)}


class Clocks:
    """CPU time of a server's processes.

    Args:
        server: id of the process that started the others.
        engine: id of the engine's; the same as `server` where one process does all.
    """

    def __init__(self, server: int, engine: int):
        self.server, self.engine = server, engine
        self._engine: list[float] = []

    def front_ends(self) -> float:
        """Seconds that all but the engine's process have taken; notes those of the engine's."""
        total, engine = cpu_seconds(self.server), cpu_seconds(self.engine)
        self._engine.append(engine)
        return total if self.engine == self.server else total - engine

    def engine_share(self, found: dict[str, Any]) -> float:
        """Of a core, within the timed window."""
        return (self._engine[-1] - self._engine[-2]) / found["seconds"]


def row(rate: float, streams: int, f: dict[str, Any]) -> str:
    """A line of the table."""
    times = [f"{f[name]['p50']:.1f} / {f[name]['p99']:.1f}" if f[name] else "-" for name in ("ttft_ms", "gap_ms")]
    rates = [f"{number:,.0f}" for number in (streams, rate, f["output_tokens_per_second"], f["tokens_a_core"])]
    shares = [f"{f[name]:.0%}" for name in ("engine_share", "client_busy")]
    line = f"| {' | '.join([*rates, shares[0], *times, shares[1]])} |"
    return line + (f"  {f['errors']} errors: {f['error']}" if f["errors"] else "")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", nargs="?", type=Path, default=DEMO, help="a GGUF file, for its tokenizer")
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rates", type=float, nargs="+", default=[2000, 5000, 10000, 20000], help="tokens a second")
    parser.add_argument("--lengths", type=int, nargs=2, default=(512, 128), help="tokens in and out")
    parser.add_argument("--processes", type=int, default=1, help="for HTTP; 0: one for HTTP and the engine")
    parser.add_argument("--clients", type=int, default=1, help="client processes")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the timed window")
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    options.lengths = tuple(options.lengths)
    results = []
    print(f"{HEAD}\n|{'---:|' * (HEAD.count('|') - 1)}", flush=True)
    for streams in options.streams:
        for rate in options.rates:
            found = measure(options, rate, streams)
            results.append({"streams": streams, "rate": rate, "processes": options.processes, "figures": found})
            print(row(rate, streams, found), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
