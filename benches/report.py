"""Turns the JSON of benches into tables and plots.

    pytest benches/bench_models.py --benchmark-enable --benchmark-json=models.json
    pytest benches/bench_ops.py --benchmark-enable --benchmark-json=ops.json
    pytest benches/bench_kernels.py --benchmark-enable --benchmark-json=kernels.json
    python benches/bench_serving.py model.gguf --preset curve --inter-token-ms 20 50 100 --json curve.json
    python benches/report.py models.json ops.json kernels.json curve.json

writes docs/models.md and docs/models.svg, docs/ops.md of the next two, and docs/scheduling.svg, each of what it is
given. Plots need matplotlib; without it the tables are written alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from serving.plot import plot as plot_serving

DOCS = Path(__file__).parents[1] / "docs"
EXPLAINED = """\
fp16 weights: float16 copies kept beside the packed blocks, for prefill and large batches. Shares are of the read
bandwidth and of the rate of an 8192³ float16 GEMM in the same run, counting weights alone. Peaks are of device memory
beside weights and KV cache, libraries and graphs included."""

OPS_EXPLAINED = """\
One NVIDIA H200, by `benches/bench_ops.py`, `bench_kernels.py` and `report.py`: medians of a launch in a replayed graph,
over data larger than the L2 cache. Shares are of the card's rates in the same run. Cases are format, rows, columns and
tokens."""


def kept(record: dict[str, Any]) -> str:
    return "kept" if record["fp16_weights"] else "not kept"


def peak(record: dict[str, Any]) -> str:
    return f"{record['peak_bytes_beside_weights_and_cache'] / 1e6:,.0f}"


def rows_of(records: list[dict[str, Any]], *names: str) -> dict[str, list[dict[str, Any]]]:
    """extra_info and parameters of the records of these tests, by model."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["name"].removeprefix("test_").split("[")[0] in names:
            model = "-".join(record["params"]["path"])
            rows.setdefault(model, []).append({**record["extra_info"], **record["params"]})
    return rows


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def tables(records: list[dict[str, Any]]) -> str:
    """Loading, prefill and decode as Markdown."""
    loads = [
        [
            model,
            f"{r['file_bytes'] / 1e9:.2f}",
            kept(r),
            f"{r['weights_bytes'] / 1e9:.2f}",
            f"{r['bytes_a_second'] / 1e9:.1f}",
        ]
        for model, rows in rows_of(records, "load").items()
        for r in rows
    ]
    prefills = [
        [model, r["tokens"], kept(r), f"{r['tokens_a_second']:,.0f}", f"{r['share_of_product']:.0%}", peak(r)]
        for model, rows in rows_of(records, "prefill", "prefill_from_blocks").items()
        for r in rows
    ]
    decodes = [
        [
            model,
            r["batch"],
            r["context"],
            f"{r['tokens_a_second']:,.0f}",
            f"{r['weights_share_of_bandwidth']:.0%}",
            peak(r),
        ]
        for model, rows in rows_of(records, "decode").items()
        for r in rows
    ]
    return "\n\n".join(
        [
            table(["model", "file, GB", "fp16 weights", "on the device, GB", "loaded, GB/s"], loads),
            table(["model", "prompt", "fp16 weights", "tokens/s", "of the GEMM rate", "peak, MB"], prefills),
            table(["model", "batch", "context", "tokens/s", "of the read rate", "peak, MB"], decodes),
            EXPLAINED,
        ]
    )


FIGURES = {
    "microseconds": ("µs", "{:,.1f}", 1),
    "share_of_read": ("of the read rate", "{:.0%}", 1),
    "share_of_product": ("of the GEMM rate", "{:.0%}", 1),
    "terabytes_a_second": ("TB/s", "{:.2f}", 1),
    "operations_a_second": ("TFLOP/s", "{:,.0f}", 1e-12),
}
"""Figure in a record -> its column's title, format, and factor."""


def figures_table(figures: dict[str, dict[str, float]]) -> str:
    """A table of cases by name, with the columns that any of them has."""
    columns = [key for key in FIGURES if any(key in figure for figure in figures.values())]
    rows = [
        [name, *(FIGURES[c][1].format(f[c] * FIGURES[c][2]) if c in f else "" for c in columns)]
        for name, f in figures.items()
    ]
    return table(["", *(FIGURES[c][0] for c in columns)], rows)


def ops_tables(records: list[dict[str, Any]]) -> str:
    """A table for each test of bench_ops.py, and for each suite of bench_kernels.py."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for record in records:
        test, _, case = record["name"].removeprefix("test_").removesuffix("]").partition("[")
        if test == "kernels":
            groups[case] = record["extra_info"]
        else:
            groups.setdefault(test, {})[case or test] = record["extra_info"]
    return "\n\n".join(f"## {name}\n\n{figures_table(figures)}" for name, figures in groups.items())


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Tokens a second by batch, a line a model."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for model, rows in rows_of(records, "decode").items():
        points = sorted((r["batch"], r["tokens_a_second"]) for r in rows if r["context"] == 1)
        axes.plot(*zip(*points, strict=True), "o-", label=model)
    axes.set(xscale="log", yscale="log", xlabel="requests in the batch", ylabel="tokens a second")
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="JSON of benches")
    parser.add_argument("--into", type=Path, default=DOCS, help="the folder for what is written")
    options = parser.parse_args()
    read = [json.loads(file.read_text()) for file in options.files]
    records = [record for content in read if isinstance(content, dict) for record in content["benchmarks"]]
    curve = [result for content in read if isinstance(content, list) for result in content]
    if curve:
        plot_serving(curve, options.into / "scheduling.svg")
    models = [record for record in records if "path" in (record["params"] or {})]
    if models:
        text = f"# Whole models\n\n{tables(models)}\n"
        if importlib.util.find_spec("matplotlib"):
            plot(models, options.into / "models.svg")
            text += "\n![Tokens a second by batch size](models.svg)\n"
        (options.into / "models.md").write_text(text)
    ops = [record for record in records if record not in models]
    if ops:
        (options.into / "ops.md").write_text(f"# Ops\n\n{OPS_EXPLAINED}\n\n{ops_tables(ops)}\n")


if __name__ == "__main__":
    main()
