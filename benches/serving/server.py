"""A server as processes of its own, and the CPU time and memory that they take."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
TICK = 1 / os.sysconf("SC_CLK_TCK")
READY = "ready at "


@contextmanager
def running(*command: object) -> Iterator[tuple[str, int, list[str]]]:
    """Run a Python module with arguments that is a server, until it has said that it is ready on stderr.

    Gives its URL, its process id, and the lines that it wrote before.
    """
    folders = [str(ROOT), str(ROOT / "benches"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    words = [sys.executable, "-m", *map(str, command)]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        said = []
        for line in process.stderr:
            if READY in line:
                break
            said.append(line)
        else:
            raise RuntimeError(f"the server ended: {''.join(said)}")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # it may write more than a pipe holds
        yield line.split(READY)[1].strip(), process.pid, said
    finally:
        process.terminate()
        process.wait(60)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, its children and theirs, those that have ended included."""
    return sum(_ticks(member) for member in tree(pid)) * TICK


def resident(pid: int) -> float:
    """Memory of a process, its children and theirs, in MiB; what they share counts once."""
    return sum(_kibibytes(member) for member in tree(pid)) / 1024


def tree(pid: int) -> Iterator[int]:
    """The ids of a process, of its children and of theirs."""
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def _ticks(pid: int) -> int:
    """CPU time of a process, and of those of its children that have ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return 0


def _kibibytes(pid: int) -> int:
    """Memory of a process, with its share of what others use too."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0
