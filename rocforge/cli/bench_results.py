"""Results of `rocforge bench`, under llama-bench's names and in its formats."""

from __future__ import annotations

import csv
import datetime
import enum
import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocforge import __version__
from rocforge.cli.errors import UsageError
from rocforge.cli.models import ModelFile
from rocforge.cli.output import binary_size, count, write_json
from rocforge.device.arrays import DeviceInfo


class Form(str, enum.Enum):
    """How the results are written."""

    markdown = "md"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


@dataclass(frozen=True)
class Measurement:
    """One test: its sizes in tokens, and the seconds of each repetition."""

    prompt: int
    generated: int
    seconds: tuple[float, ...]

    @property
    def name(self) -> str:
        """As llama-bench calls it: pp512, tg128, pp512+tg128."""
        sizes = {"pp": self.prompt, "tg": self.generated}
        return "+".join(f"{kind}{size}" for kind, size in sizes.items() if size)

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [(self.prompt + self.generated) / seconds for seconds in self.seconds]


@dataclass(frozen=True)
class Result:
    """A measurement, and what it is of.

    Attributes:
        threads: of NumPy's products.
        layers: of the model, with its output's, all of which a GPU holds.
        batch: the most tokens a step.
        cache_types: of keys and of values in the KV cache.
    """

    model: ModelFile
    device: DeviceInfo
    threads: int
    layers: int
    batch: int
    cache_types: tuple[str, str]
    measured: Measurement
    time: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc))

    @property
    def backend(self) -> str:
        """CPU, ROCm or CUDA."""
        return "CPU" if self.device.device == "cpu" else self.device.runtime.split()[0]

    def fields(self) -> dict[str, Any]:
        """Under llama-bench's names where it has them."""
        on_gpu, rates, nanoseconds = (
            self.backend != "CPU",
            self.measured.rates,
            [s * 1e9 for s in self.measured.seconds],
        )
        return {
            "rocforge_version": __version__,
            "backends": self.backend,
            "cpu_info": "" if on_gpu else self.device.name,
            "gpu_info": self.device.name if on_gpu else "",
            "device": self.device.device,
            "model_filename": self.model.path,
            "model_type": f"{self.model.architecture} {self.model.quantization}",
            "model_size": self.model.size,
            "model_n_params": self.model.parameters,
            "n_batch": self.batch,
            "type_k": self.cache_types[0],
            "type_v": self.cache_types[1],
            "n_threads": self.threads,
            "n_gpu_layers": self.layers if on_gpu else 0,
            "n_prompt": self.measured.prompt,
            "n_gen": self.measured.generated,
            "test_time": self.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "avg_ns": round(statistics.fmean(nanoseconds)),
            "stddev_ns": round(_deviation(nanoseconds)),
            "avg_ts": statistics.fmean(rates),
            "stddev_ts": _deviation(rates),
            "median_ts": statistics.median(rates),
            "samples_ns": [round(value) for value in nanoseconds],
            "samples_ts": rates,
        }


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def earlier_results(path: Path) -> list[dict[str, Any]]:
    """What `rocforge bench` or llama-bench wrote with -o json or -o jsonl.

    Raises:
        UsageError: it is something else.
    """
    text = path.read_text()
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        for result in found:
            float(result["avg_ts"]), float(result["stddev_ts"]), result["n_prompt"], result["n_gen"]
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{path} has no results of rocforge bench or llama-bench with -o json or -o jsonl") from None
    return found


def write(results: Iterable[Result], form: Form | None, earlier: list[dict[str, Any]]) -> None:
    """Write results to stdout, beside earlier ones of the same tests; None: a table on a terminal, else Markdown."""
    if form is Form.jsonl:
        for result in results:
            print(json.dumps(_with_earlier(result, earlier), ensure_ascii=False), flush=True)
        return
    found = list(results)
    if form is Form.json:
        write_json([_with_earlier(result, earlier) for result in found])
    elif form is Form.csv:
        _write_csv([_with_earlier(result, earlier) for result in found])
    else:
        _write_table(found, earlier, markdown=form is Form.markdown or not sys.stdout.isatty())


def _match(result: Result, earlier: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The earlier result of the same test; of the same kind of model, where there are several."""
    sizes = (result.measured.prompt, result.measured.generated)
    same = [e for e in earlier if (e["n_prompt"], e["n_gen"]) == sizes and not e.get("n_depth")]
    kind = result.fields()["model_type"]
    return min(same, key=lambda e: e.get("model_type") != kind, default=None)


def _with_earlier(result: Result, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    fields, match = result.fields(), _match(result, earlier)
    if match:
        fields["compared_filename"] = match.get("model_filename", "")
        fields["compared_ts"], fields["ratio"] = match["avg_ts"], fields["avg_ts"] / match["avg_ts"]
    return fields


def _write_csv(rows: list[dict[str, Any]]) -> None:
    """Without the single repetitions, as llama-bench does."""
    columns = {name: None for row in rows for name in row if not name.startswith("samples")}
    writer = csv.DictWriter(sys.stdout, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _write_table(results: list[Result], earlier: list[dict[str, Any]], markdown: bool) -> None:
    """llama-bench's columns; with earlier results, those and the ratio to them."""
    on_gpu = any(result.backend != "CPU" for result in results)
    columns = ["model", ">size", ">params", "backend", ">ngl" if on_gpu else ">threads", ">test", ">t/s"]
    columns += [">compared", ">ratio"] if earlier else []
    rows = [[*_cells(result, on_gpu), *(_compared(result, earlier) if earlier else ())] for result in results]
    print(aligned(rows, columns, markdown))


def aligned(rows: list[list[str]], columns: list[str], markdown: bool) -> str:
    """Rows below their columns' names, which do not fold; ">" before a name sets its column to the right."""
    right, names = [name.startswith(">") for name in columns], [name.removeprefix(">") for name in columns]
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    head, *lines = [
        [cell.rjust(width) if r else cell.ljust(width) for cell, r, width in zip(row, right, widths, strict=True)]
        for row in (names, *rows)
    ]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in (head, ["─" * width for width in widths], *lines))
    rule = ["-" * (width - 1) + (":" if r else "-") for r, width in zip(right, widths, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _cells(result: Result, on_gpu: bool) -> list[str]:
    fields = result.fields()
    return [
        fields["model_type"],
        binary_size(fields["model_size"]),
        count(fields["model_n_params"]),
        result.backend,
        str(fields["n_gpu_layers"] if on_gpu else result.threads),
        result.measured.name,
        _rate(fields),
    ]


def _compared(result: Result, earlier: list[dict[str, Any]]) -> tuple[str, str]:
    """The earlier rate, and by what factor this one is faster; "≈" where both spreads explain it."""
    match, fields = _match(result, earlier), result.fields()
    if match is None:
        return "", ""
    alike = abs(fields["avg_ts"] - match["avg_ts"]) <= fields["stddev_ts"] + match["stddev_ts"]
    return _rate(match), f"{'≈ ' if alike else ''}{fields['avg_ts'] / match['avg_ts']:.2f}"


def _rate(fields: dict[str, Any]) -> str:
    return f"{fields['avg_ts']:.2f} ± {fields['stddev_ts']:.2f}"
