"""`rocforge selftest`: check and measure this card; print a report for an issue."""

from __future__ import annotations

import enum
import secrets
import sys
import time
from typing import Annotated

import typer

from rocforge.cli.errors import FAILED, INTERRUPTED, USAGE
from rocforge.cli.info import versions
from rocforge.cli.options import Json
from rocforge.cli.output import binary_size, note, write_json
from rocforge.device.arrays import DeviceInfo, device_info
from rocforge.selftest.card import driver, rocm_version
from rocforge.selftest.groups import GROUPS
from rocforge.selftest.report import Report
from rocforge.selftest.run import Job, results

Group = enum.Enum("Group", {name: name for name in GROUPS}, type=str)  # type: ignore[misc]  # names as they are there


def selftest(
    only: Annotated[list[Group] | None, typer.Option(help="Run only this group of checks; repeatable.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes and no benchmarks, for a simulated card.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed, as printed in a report.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> int:
    """Check every kernel on this card, measure it, and print a report for an issue.

    Takes some minutes, most of them for the first compilation. Tests gpu:0; HIP_VISIBLE_DEVICES (NVIDIA:
    CUDA_VISIBLE_DEVICES) selects the card.
    """
    about = device_info()
    seed = secrets.randbits(32) if seed is None else seed
    report = Report(_about(about, seed), f"{about.name} ({about.arch})")
    if about.reason is not None:
        report.stopped = f"cannot run on a GPU: {about.reason}"
    else:
        _run(report, [group.value for group in only or Group], quick, seed)
    if as_json:
        write_json(report.as_json())
    else:
        print(report.as_markdown())
    if about.reason is not None:
        print(f"error: this machine {report.stopped}\nhint: rocforge info shows what was found", file=sys.stderr)
        return USAGE
    return INTERRUPTED if report.stopped else FAILED if report.failed else 0


def _about(device: DeviceInfo, seed: int) -> dict[str, str]:
    packages = versions()
    return {
        "card": f"{device.name} ({device.arch}), {binary_size(device.memory_total)}",
        "runtime": device.runtime + rocm_version(),
        "driver": driver(),
        "rocforge": packages.pop("rocforge"),
        "python": packages.pop("python"),
        "system": packages.pop("system"),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "seed": str(seed),
    }


def _run(report: Report, groups: list[str], quick: bool, seed: int) -> None:
    """Into the report; a Ctrl-C leaves it with what has been found so far."""
    from tqdm import tqdm

    try:
        for number, group in enumerate(groups, 1):
            start, before = time.perf_counter(), len(report.results)
            title = f"{number}/{len(groups)} {group}"
            with tqdm(desc=title, unit="check", disable=not sys.stderr.isatty(), leave=False) as bar:

                def counted(count: int, bar: tqdm = bar) -> None:
                    bar.reset(count)

                for result in results(Job(group, quick, seed), counted):
                    report.results.append(result)
                    bar.set_postfix_str(result.name[:40], refresh=False)
                    bar.update()
            report.groups[group] = time.perf_counter() - start
            found = report.results[before:]
            failed = sum(result.failure is not None for result in found)
            note(f"{title}: {len(found) - failed} passed, {failed} failed, {report.groups[group]:.1f} s")
    except KeyboardInterrupt:
        report.stopped = "ended by Ctrl-C"


COMMANDS = [selftest]
