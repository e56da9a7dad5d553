"""A server as a process of its own, and the CPU time that it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    except FileNotFoundError:  # it has just ended
        return 0.0
    return sum(map(int, fields[11:15])) * TICK + sum(map(cpu_seconds, children))


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except FileNotFoundError:
        return []
