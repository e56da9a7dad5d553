"""Plots of kept runs, as SVG: tokens a second by batch, and over time. They need matplotlib."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import history

HEADLINES = {
    "decode, 1 request": "Decode, one request",
    "decode, 8 requests": "Decode, eight requests",
    "decode, 64 requests": "Decode, 64 requests",
    "prompt of 512 tokens": "Prefill, 512 tokens",
    "prompt of 2,048 tokens": "Prefill, 2,048 tokens",
    "serving over HTTP, 64 in flight, 512 in, 128 out": "Serving, 64 in flight",
}
"""Group of figures -> title of its panel."""
COLUMNS = 3
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TICKS = [factor * 10**power for power in range(1, 6) for factor in (1, 2, 5)]


def _pyplot() -> Any:
    """matplotlib, writing SVG that is small and the same every time."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "rocforge", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    return plt


def _plain_logarithmic(axis: Any, ticks: Any) -> None:
    """A logarithmic axis with plain numbers at these ticks."""
    axis.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    axis.set_ticks([], minor=True)


def by_batch(run: history.Run, path: Path) -> None:
    """Decode rates by the number of requests: a line a model, dashed for other engines on the same kind of machine."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7.5, 5))
    colors: dict[str, str] = {}
    for model, rates in _rates_by_batch(run.figures).items():
        (line,) = axes.plot(*zip(*rates, strict=True), "o-", label=model)
        colors[model] = line.get_color()
    for engine, groups in history.peers(run.machine).items():
        for model, rates in _rates_by_batch(groups).items():
            if model in colors:
                axes.plot(*zip(*rates, strict=True), "s--", color=colors[model], label=f"{model}, {engine}")
    axes.set(xscale="log", yscale="log", xlabel="requests in the batch", ylabel="tokens a second")
    axes.set_title(f"Decode on {run.machine}, {run.date[:10]}")
    low, high = axes.get_ylim()
    _plain_logarithmic(axes.xaxis, BATCHES)
    _plain_logarithmic(axes.yaxis, [tick for tick in TICKS if low <= tick <= high])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _rates_by_batch(groups: dict[str, dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """By model: batch and tokens a second."""
    found: dict[str, list[tuple[int, float]]] = {}
    for batch in BATCHES:
        for model, rate in groups.get(f"decode, {batch} request{'s' * (batch > 1)}", {}).items():
            found.setdefault(model, []).append((batch, rate["value"]))
    return found


def over_time(runs: list[history.Run], path: Path) -> None:
    """A panel a machine and headline, a line a model; other engines' figures are dashed."""
    plt = _pyplot()
    runs = [run for run in runs if run.figures.keys() & HEADLINES.keys()]
    machines = {run.machine: [r for r in runs if r.machine == run.machine] for run in runs}
    panels = [(name, h) for name, kept in machines.items() for h in HEADLINES if any(h in run.figures for run in kept)]
    rows = -(-len(panels) // COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(3.5 * COLUMNS, 3.2 * rows), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, headline) in zip(grid.flat, panels, strict=False):
        _panel(axes, name, headline, machines[name])
    figure.suptitle("Runs that are kept (dashed: other engines on the same kind of machine)", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _panel(axes: Any, machine: str, headline: str, runs: list[history.Run]) -> None:
    """A headline's figures by run, in their order in time."""
    models = sorted({name for run in runs for group in HEADLINES for name in run.figures.get(group, {})})
    for number, model in enumerate(models):
        values = [(x, run.figures.get(headline, {}).get(model)) for x, run in enumerate(runs)]
        points = [(x, figure["value"]) for x, figure in values if figure]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), "o-", ms=3, color=f"C{number}", label=model)
        for engine, groups in history.peers(machine).items():
            if peer := groups.get(headline, {}).get(model):
                axes.axhline(peer["value"], ls="--", lw=1, color=f"C{number}")
                axes.annotate(engine, (0, peer["value"]), fontsize=6, va="bottom", color=f"C{number}")
    axes.set_title(f"{machine}\n{HEADLINES[headline]}", fontsize=8)
    days = [f"{datetime.fromisoformat(run.date):%b %d}\n{run.commit}" for run in runs]
    axes.set_xticks(range(len(runs)), days, fontsize=6)
    axes.set_xlim(-0.3, len(runs) - 0.7)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
    axes.set_ylabel("tokens a second", fontsize=7)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6)
