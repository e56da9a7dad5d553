"""The curve of throughput over latency, as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Output tokens a second over the p99 of the gap between tokens: a line a target, a point a closed loop.

    Needs matplotlib.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "rocforge", "svg.fonttype": "none"})  # small, and the same every time
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for target, points in curves(results).items():
        _, gaps, rates = zip(*points, strict=True)
        axes.plot(gaps, rates, "o-", label=target)
        for concurrency, gap, rate in points:
            axes.annotate(str(concurrency), (gap, rate), textcoords="offset points", xytext=(5, -10), fontsize=8)
    axes.set_title("Throughput over latency, by requests in flight")
    axes.set(xlabel="gap between tokens, p99, ms", ylabel="output tokens a second", xscale="log", ylim=(0, None))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def curves(results: list[dict[str, Any]]) -> dict[str, list[tuple[int, float, float]]]:
    """By target, in order of concurrency: requests in flight, p99 of the gap in ms, output tokens a second."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for result in results:
        concurrency, figures = result["load"]["concurrency"], result["figures"]
        if concurrency and figures["gap_ms"]:
            point = concurrency, figures["gap_ms"]["p99"], figures["output_tokens_per_second"]
            found.setdefault(result["target"], []).append(point)
    return {target: sorted(points) for target, points in found.items()}
