"""The records of whole models, ops and kernels as Markdown."""

from __future__ import annotations

from typing import Any

EXPLAINED = """\
fp16 weights: float16 copies kept beside the packed blocks, for prefill and large batches. Shares are of the read
bandwidth and of the rate of an 8192³ float16 GEMM in the same run, counting weights alone. Peaks are of device memory
beside weights and KV cache, libraries and graphs included."""

OPS_EXPLAINED = """\
By `benches/bench_ops.py`, `bench_kernels.py` and `report.py`: medians of a launch in a replayed graph, over data larger
than the L2 cache. Shares are of the card's rates in the same run. Cases are format, rows, columns and tokens."""


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


def models(records: list[dict[str, Any]]) -> str:
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
    found = [
        (["model", "file, GB", "fp16 weights", "on the device, GB", "loaded, GB/s"], loads),
        (["model", "prompt", "fp16 weights", "tokens/s", "of the GEMM rate", "peak, MB"], prefills),
        (["model", "batch", "context", "tokens/s", "of the read rate", "peak, MB"], decodes),
    ]
    return "\n\n".join([*(table(head, rows) for head, rows in found if rows), EXPLAINED])


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


def ops(records: list[dict[str, Any]]) -> str:
    """A table for each test of bench_ops.py, and for each suite of bench_kernels.py."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for record in records:
        test, _, case = record["name"].removeprefix("test_").removesuffix("]").partition("[")
        if test == "kernels":
            groups[case] = record["extra_info"]
        else:
            groups.setdefault(test, {})[case or test] = record["extra_info"]
    return "\n\n".join(f"## {name}\n\n{figures_table(figures)}" for name, figures in groups.items())
