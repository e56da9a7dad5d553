"""The report of a selftest: as JSON, and as Markdown to be pasted into an issue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rocforge.selftest.run import Result

SHOWN, LINES = 5, 24
"""Failures of a group that the Markdown has in full, and lines of each: an issue holds 65,536 characters."""


@dataclass
class Report:
    """What a selftest found so far.

    Attributes:
        about: of the machine, names and what is to be said of each.
        device: name and architecture of the card.
        results: of all checks.
        groups: seconds of each group that has run to its end.
        stopped: why it did not come to its end, or None.
    """

    about: dict[str, str]
    device: str
    results: list[Result] = field(default_factory=list)
    groups: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.failure is not None]

    @property
    def verdict(self) -> str:
        """One line."""
        checks, failed = len(self.results), len(self.failed)
        if self.stopped and not checks:
            return f"NOT RUN: {self.stopped}"
        if failed:
            groups = dict.fromkeys(result.group for result in self.failed)
            line = f"FAILED: {failed} of {checks} checks failed on {self.device}: {', '.join(groups)}"
        elif self.stopped:
            line = f"NOT DONE: {checks} checks passed on {self.device}"
        else:
            line = f"PASSED: all {checks} checks passed on {self.device}"
        return f"{line}; {self.stopped}" if self.stopped else line

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "passed": not self.failed and not self.stopped,
            "about": self.about,
            "groups": self.groups,
            "results": [_as_json(result) for result in self.results],
        }

    def as_markdown(self) -> str:
        about = [f"- {name}: {value}" for name, value in self.about.items()]
        parts = ["### rocforge selftest", "\n".join(about), self._checks()]
        figures = [row for result in self.results for row in result.figures.items()]
        if figures:
            parts.append(_table(["measured", "", "of the limit"], [_figure(*row) for row in figures]))
        for group in dict.fromkeys(result.group for result in self.failed):
            failed = [result for result in self.failed if result.group == group]
            parts += [_failure(result) for result in failed[:SHOWN]]
            if failed[SHOWN:]:
                parts.append(f"Also failed in {group}: {', '.join(result.name for result in failed[SHOWN:])}.")
        return "\n\n".join([*parts, f"**{self.verdict}**"])

    def _checks(self) -> str:
        rows = []
        for group in dict.fromkeys(result.group for result in self.results):
            results = [result for result in self.results if result.group == group]
            passed = sum(result.failure is None for result in results)
            took = f"{self.groups[group]:.0f} s" if group in self.groups else ""
            rows.append([group, f"{passed} of {len(results)}", _closest(results), took])
        return _table(["checks", "passed", "closest to its bound", ""], rows) if rows else "No check has run."


def _as_json(result: Result) -> dict[str, Any]:
    """JSON has no NaN and no infinity: an error that is one is null."""
    fields = asdict(result)
    for error in fields["errors"].values():
        error["value"] = error["value"] if math.isfinite(error["value"]) else None
    return fields


def _closest(results: Sequence[Result]) -> str:
    """The error that comes closest to its bound, or lies furthest beyond it; of those that are not exact."""
    errors = [
        (error["value"] / error["bound"], f"{error['value']:.1e} of {error['bound']:.0e} ({result.name}, {name})")
        for result in results
        for name, error in result.errors.items()
        if error["bound"] and not math.isnan(error["value"])
    ]
    notes = [result.note for result in results if result.note]
    return "; ".join([*([max(errors)[1]] if errors else []), *notes])


def _figure(name: str, figure: dict[str, Any]) -> list[str]:
    share = f"{figure['value'] / figure['limit']:.0%} of {figure['of']}" if figure["limit"] else ""
    return [name, f"{figure['value']:,.{0 if figure['value'] >= 100 else 1}f} {figure['unit']}", share]


def _failure(result: Result) -> str:
    """A failed check, with what was off and why, folded."""
    errors = [f"{name}: {error['value']:.3g}, allowed {error['bound']:.3g}" for name, error in result.errors.items()]
    lines = [*(result.failure or "").splitlines(), *errors]
    if len(lines) > LINES:
        lines = [*lines[: LINES // 2], "...", *lines[-LINES // 2 :]]
    text = "\n".join(line[:200] for line in lines)
    return f"<details><summary>{result.group}: {result.name}</summary>\n\n```\n{text}\n```\n\n</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
