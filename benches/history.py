"""Runs that are kept: a small JSON in benches/history/ for each machine, date and commit.

A run has figures by group ("decode, 8 requests") and name ("llama-3.1-8b-Q4_K_M"), each a median with its unit and,
where it is known, its spread: half the interquartile range over the median. A unit that ends in "/s" is better higher,
any other lower. `ratios` are those of benches/ratios.py.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "history"
PEERS = Path(__file__).parent / "peers.json"
NOISE = 0.03
"""What two runs of the same sources may differ by, as a fraction, however steady each was in itself."""

Figure = dict[str, Any]
Figures = dict[str, dict[str, Figure]]


@dataclass
class Run:
    """What was measured once on one machine.

    Attributes:
        machine: the GPU's name, or the CPU's model with its cores.
        date: when, as YYYY-MM-DD HH:MM.
        commit: of the sources, abbreviated.
        versions: of the packages that decide speed, by name.
        figures: medians by group and name.
        ratios: seconds over those of a reference computation, by work.
        source: the command, or the page that the figures were taken from.
    """

    machine: str
    date: str
    commit: str
    source: str
    versions: dict[str, str] = field(default_factory=dict)
    figures: Figures = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        name = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\([RCTMrctm]+\)", "", self.machine).lower()).strip("-")
        return FOLDER / f"{name}-{self.date[:10]}-{self.commit}.json"

    def save(self) -> Path:
        """Write it, beside what the file of this machine, date and commit has already."""
        kept = Run(**json.loads(self.path.read_text())) if self.path.exists() else self
        figures, ratios = {**kept.figures, **self.figures}, {**kept.ratios, **self.ratios}
        content = {**asdict(self), "figures": figures, "ratios": ratios}
        if not ratios:
            del content["ratios"]
        self.path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return self.path


def machine() -> str:
    """The kind of this machine: "NVIDIA H200", or "AMD EPYC 7B13, 2 cores"."""
    from rocforge.device.arrays import device_info

    device = device_info()
    if device.device != "cpu":
        return device.name
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores"


def processor() -> str:
    """The CPU's name; with its model's number where the name has none, as virtual machines call many of them alike."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.exists() else []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = about.get("model name") or platform.processor() or platform.machine()
    return name if re.search(r"\d", name) or "model" not in about else f"{name} model {about['model']}"


def versions() -> dict[str, str]:
    """Of Python, and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in ("rocforge", "numpy", "cupy-rocm-7-0", "cupy-cuda13x"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def runs(machine: str | None = None) -> list[Run]:
    """Those that are kept, of one machine or of all, oldest first."""
    found = [Run(**json.loads(path.read_text())) for path in FOLDER.glob("*.json")]
    return sorted((run for run in found if machine in (None, run.machine)), key=lambda run: (run.machine, run.date))


def run_of(report: dict[str, Any]) -> Run:
    """The run that pytest-benchmark wrote as JSON."""
    info, commit, date = report["machine_info"], report["commit_info"]["id"][:7], report["datetime"][:16]
    run = Run(info["kind"], date.replace("T", " "), commit, "pytest benches --benchmark-enable", info["versions"])
    for record in report["benchmarks"]:
        for group, name, figure in figures_of(record):
            run.figures.setdefault(group, {})[name] = figure
    return run


def figures_of(record: dict[str, Any]) -> Iterator[tuple[str, str, Figure]]:
    """Group, name and figure of a benchmark's record."""
    extra, stats = record["extra_info"], record["stats"]
    spread = round(stats["iqr"] / 2 / stats["median"], 4)
    test, _, case = record["name"].removeprefix("test_").removesuffix("]").partition("[")
    if "rate" in extra:
        yield *extra["rate"][:2], figure(*extra["rate"][2:], spread)
    elif test == "kernels":  # a suite: its time is that of many kernels
        for name, values in extra.items():
            yield case, name, figure(values["microseconds"], "µs", None)
    elif "microseconds" in extra:
        yield test, case or test, figure(extra["microseconds"], "µs", spread)
    else:
        yield test.replace("_", " "), case, figure(stats["median"] * 1e3, "ms", spread)


def note_rate(benchmark: Any, group: str, name: str, rate: float, unit: str = "tokens/s") -> None:
    """Have a benchmark's record say what it is kept as, in place of its time."""
    benchmark.extra_info["rate"] = group, name, rate, unit


def figure(value: float, unit: str, spread: float | None) -> Figure:
    """A median to four digits, and its spread where it is known."""
    known = {} if spread is None else {"spread": spread}
    return {"value": float(f"{value:.4g}"), "unit": unit, **known}


@dataclass(frozen=True)
class Change:
    """A figure in two runs, the older of this commit.

    `gain` is by how much it is better: 0.1 is 10 % faster, or that much less time.
    """

    group: str
    name: str
    commit: str
    old: Figure
    new: Figure

    @property
    def gain(self) -> float:
        ratio = self.new["value"] / self.old["value"]
        return (ratio if self.new["unit"].endswith("/s") else 1 / ratio) - 1

    @property
    def noise(self) -> float:
        """What is not to be told from chance: twice both spreads, and NOISE at least."""
        return max(NOISE, 2 * (self.old.get("spread", 0.0) + self.new.get("spread", 0.0)))

    @property
    def verdict(self) -> str:
        if abs(self.gain) <= self.noise:
            return ""
        return "faster" if self.gain > 0 else "SLOWER"


def compare(kept: list[Run], new: Run) -> list[Change]:
    """Each figure of a run beside the newest one of the kept runs, which are in order of time.

    Raises:
        ValueError: they are of different machines.
    """
    if other := [run.machine for run in kept if run.machine != new.machine]:
        raise ValueError(f"a run of {new.machine!r} says nothing about one of {other[0]!r}")
    newest = {(group, name): run for run in kept for group, figures in run.figures.items() for name in figures}
    return [
        Change(group, name, old.commit, old.figures[group][name], figure)
        for group, figures in new.figures.items()
        for name, figure in figures.items()
        if (old := newest.get((group, name)))
    ]


def peers(machine: str) -> dict[str, dict[str, dict[str, float]]]:
    """Tokens a second of other engines on such a machine, by engine, group and model."""
    return json.loads(PEERS.read_text()).get(machine, {})
