"""`rocforge serve --ray` as a process of its own, and what tests look at from outside."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx
from server_process import ROOT, descendants, gone

MODEL = ROOT / "examples" / "demo_model" / "demo-11M-Q8_0.gguf"
NAME = "demo-11M-Q8_0"
KEY = "secret"
CLUSTER = {
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "RAY_ADDRESS": "local",
    "RAY_raylet_start_wait_time_s": "120",
}
"""A cluster of its own, be there another one."""


@contextlib.contextmanager
def serving(*command, **variables):
    """A server: its process, URL, `client` of httpx with the key, and lines of stderr; with a cluster of its own, but
    for other variables."""
    process = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, **CLUSTER, **variables}, stderr=subprocess.PIPE, text=True
    )
    lines, ready = [], threading.Event()

    def read():
        for line in process.stderr:
            lines.append(line)
            if line.startswith("ready at "):
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert ready.wait(120) and process.poll() is None, "".join(lines)
        url = re.search(r"^ready at (\S+)", "".join(lines), re.MULTILINE)[1]
        with httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False
        ) as http:
            yield SimpleNamespace(process=process, url=url, get=http.get, post=http.post, lines=lines)
        everything = descendants(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, "".join(lines)
        assert gone(everything, 20)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def openai_client(server):
    """OpenAI's, which tries once."""
    from openai import OpenAI

    with httpx.Client(trust_env=False) as http:
        yield OpenAI(base_url=f"{server.url}/v1", api_key=KEY, http_client=http, max_retries=0, timeout=120)


def states(server):
    """Replica -> state."""
    return server.get("/health").json()["replicas"]


def both_are_ready(server):
    return list(states(server).values()) == ["ready", "ready"]


def processes_of(name, parent):
    """Those of Ray whose title begins so, below a process."""
    found = []
    for pid in descendants(parent):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::" + name.encode()):
                found.append(pid)
    return found
