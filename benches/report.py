"""Compares runs of the benches, keeps them, and makes tables and plots of them.

    pytest benches --benchmark-enable --benchmark-json=run.json
    python benches/report.py run.json                   # beside the newest figures that are kept of this machine
    python benches/report.py run.json --against 2cc05c4 # or one of a commit
    python benches/report.py run.json --save            # keep it, in benches/history/
    python benches/report.py run.json --pages docs      # the tables and plots of models.md and ops.md
    python benches/report.py --history docs/history.svg # draw what is kept
    python benches/bench_serving.py model.gguf --preset curve --inter-token-ms 20 50 100 --json curve.json
    python benches/report.py curve.json --pages docs    # scheduling.svg

A change is marked where it is beyond the noise: 3 %, or twice the spreads of both runs where that is more. The exit
status is 1 where something is slower. Pages name the machine that the records are of. Plots need matplotlib.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import history
import plots
import tables
from serving.plot import plot as plot_serving


def changes_table(changes: list[history.Change]) -> str:
    """Aligned lines: what, before, now, and by how much it is faster."""
    lines = [("", "commit", "before", "now", "unit", "faster by", "noise", "")]
    lines += [
        (
            f"{c.group} {c.name}".strip(),
            c.commit,
            f"{c.old['value']:,}",
            f"{c.new['value']:,}",
            c.new["unit"],
            f"{c.gain:+.1%}",
            f"{c.noise:.1%}",
            c.verdict,
        )
        for c in changes
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligns = "<<>><>><"
    return "\n".join(
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(line, aligns, widths, strict=True)).rstrip() for line in lines
    )


def compared(run: history.Run, against: str | None) -> bool:
    """Print a run beside the newest kept figures, or those of a commit; whether nothing is slower."""
    kept = [old for old in history.runs(run.machine) if against in (None, old.commit) and old.path != run.path]
    changes = history.compare(kept, run)
    if not changes:
        print(f"nothing of {against or run.machine} is kept to compare with; --save keeps this run")
        return True
    print(f"{run.machine}, {run.date}, commit {run.commit}\n{changes_table(changes)}")
    return all(change.verdict != "SLOWER" for change in changes)


def write_pages(report: dict[str, Any], run: history.Run, folder: Path) -> None:
    """models.md of the records of whole models, ops.md of those of ops and kernels, as far as there are any."""
    of_file = {
        name: [r for r in report["benchmarks"] if r["fullname"].split("::")[0].endswith(f"{name}.py")]
        for name in ("bench_models", "bench_ops", "bench_kernels")
    }
    later = "[Performance](performance.md) has what later sources reach."
    heading = f"{run.machine}, {run.date[:10]}, commit {run.commit}. {later}"
    if of_file["bench_models"]:
        text = f"# Whole models\n\n{heading}\n\n{tables.models(of_file['bench_models'])}\n"
        if "decode, 1 request" in run.figures and importlib.util.find_spec("matplotlib"):
            plots.by_batch(run, folder / "models.svg")
            text += "\n![Tokens a second by batch size](models.svg)\n"
        (folder / "models.md").write_text(text)
    if ops := of_file["bench_ops"] + of_file["bench_kernels"]:
        (folder / "ops.md").write_text(f"# Ops\n\n{heading}\n\n{tables.OPS_EXPLAINED}\n\n{tables.ops(ops)}\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", help="JSON of pytest-benchmark, or of bench_serving.py")
    parser.add_argument("--against", metavar="COMMIT", help="compare with the kept run of this commit")
    parser.add_argument("--save", action="store_true", help="keep the run in benches/history/")
    parser.add_argument("--pages", type=Path, metavar="FOLDER", help="write tables and plots there")
    parser.add_argument("--history", type=Path, metavar="SVG", help="draw the kept runs")
    options = parser.parse_args(argv)
    if not options.files and not options.history:
        parser.error("nothing to do: give the JSON of a run, or --history")
    steady = True
    for content in (json.loads(file.read_text()) for file in options.files):
        if isinstance(content, list):
            plot_serving(content, (options.pages or Path()) / "scheduling.svg")
            continue
        run = history.run_of(content)
        steady &= compared(run, options.against)
        if options.save:
            print(f"kept as {run.save()}")
        if options.pages:
            write_pages(content, run, options.pages)
    if options.history:
        plots.over_time(history.runs(), options.history)
    return 0 if steady else 1


if __name__ == "__main__":
    sys.exit(main())
