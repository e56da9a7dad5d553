"""Turns the JSON of benches into tables and plots.

    pytest benches/bench_models.py --benchmark-enable --benchmark-json=models.json
    python benches/report.py models.json            # writes docs/models.md and docs/models.svg

The plot needs matplotlib; without it the tables are written alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
EXPLAINED = """\
Float16 values are kept beside the packed blocks, for prompts and large batches, or not. Shares are of what the card's
memory and the library's product of 8192 cubed gave in the same run, for the weights alone. Peaks are the most device
memory that was taken beside weights and cache, libraries and graphs included."""


def kept(record: dict[str, Any]) -> str:
    return "kept" if record["halves"] else "not kept"


def peak(record: dict[str, Any]) -> str:
    return f"{record['peak_bytes_beside_weights_and_cache'] / 1e6:,.0f}"


def rows_of(records: list[dict[str, Any]], *names: str) -> dict[str, list[dict[str, Any]]]:
    """extra_info and parameters of the records of some tests, by model."""
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
            table(["model", "file, GB", "float16 values", "on the device, GB", "loaded, GB/s"], loads),
            table(["model", "prompt", "float16 values", "tokens/s", "of the product rate", "peak, MB"], prefills),
            table(["model", "batch", "context", "tokens/s", "of the read rate", "peak, MB"], decodes),
            EXPLAINED,
        ]
    )


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
    parser.add_argument("file", type=Path)
    parser.add_argument("--into", type=Path, default=DOCS, help="the folder for models.md and models.svg")
    options = parser.parse_args()
    result = json.loads(options.file.read_text())
    text = f"# Whole models\n\n{tables(result['benchmarks'])}\n"
    if importlib.util.find_spec("matplotlib"):
        plot(result["benchmarks"], options.into / "models.svg")
        text += "\n![Tokens a second by batch size](models.svg)\n"
    (options.into / "models.md").write_text(text)


if __name__ == "__main__":
    main()
