"""Running the groups: each in a process, which a fault of the GPU may end and a hang may hold, and what they tell."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

SILENCE = 180.0
"""Seconds without a word after which a check is taken to hang."""
CRASHES = 3
"""Processes of a group that may end before their time; what is left of the group is then left out."""
LAST_LINES = 12
"""Of what a process that ended wrote to stderr."""


@dataclass(frozen=True)
class Job:
    """What a process is to run: the checks of a group from the first on, with random numbers of a seed."""

    group: str
    quick: bool
    seed: int
    first: int = 0


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Attributes:
        group, name: of the check.
        seconds: that it took.
        failure: what went wrong, a line or the end of a traceback; None where it passed.
        errors, figures: as in Outcome, as dictionaries.
        note: as in Outcome.
    """

    group: str
    name: str
    seconds: float = 0.0
    failure: str | None = None
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""


class Died(Exception):
    """A process ended before it was done; says how."""


class Hung(Died):
    """It was ended, since it was silent."""


def results(job: Job, counted: Callable[[int], Any] = lambda count: None) -> Iterator[Result]:
    """The results of a group's checks, as they come.

    Args:
        job: the whole group.
        counted: called with the number of its checks, once that is known.
    """
    names: list[str] | None = None
    done = crashes = 0
    while names is None or done < len(names):
        running = None
        try:
            for message in messages(dataclasses.replace(job, first=done)):
                if "checks" in message and names is None:
                    names = message["checks"]
                    counted(len(names))
                elif "begin" in message:
                    running = message["begin"]
                elif "result" in message:
                    done, running = done + 1, None
                    yield Result(job.group, **message["result"])
        except Died as death:
            yield Result(job.group, running or ("starting" if names is None else "ending"), failure=str(death))
            done, crashes = done + (running is not None), crashes + 1
            if names is None:
                return
            if done < len(names) and (crashes == CRASHES or isinstance(death, Hung)):
                yield Result(job.group, "the rest", failure=f"{len(names) - done} left out after that")
                return


def messages(job: Job) -> Iterator[dict[str, Any]]:
    """What the process of a job tells; it does not outlive this.

    Raises:
        Died: it did not come to its end.
    """
    command = [sys.executable, "-m", "rocforge.selftest", json.dumps(dataclasses.asdict(job))]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
        assert process.stdout is not None
        try:
            for line in _lines(process.stdout.fileno()):
                yield json.loads(line)
            if process.wait() != 0:
                raise Died(f"its process ended with {_status(process.returncode)}{_tail(log)}")
        except TimeoutError:
            raise Hung(f"no answer within {SILENCE:.0f} seconds{_tail(log)}") from None
        finally:
            process.kill()


def _lines(descriptor: int) -> Iterator[bytes]:
    """Of a pipe, to its end; TimeoutError where it is silent for too long."""
    partial = b""
    while True:
        if not select.select([descriptor], [], [], SILENCE)[0]:
            raise TimeoutError
        read = os.read(descriptor, 1 << 16)
        if not read:
            return
        *lines, partial = (partial + read).split(b"\n")
        yield from lines


def _status(code: int) -> str:
    return f"status {code}" if code > 0 else signal.Signals(-code).name


def _tail(log: Any) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()[-LAST_LINES:]
    return "".join(f"\n{line}" for line in lines)
