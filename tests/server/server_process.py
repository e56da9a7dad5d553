"""A server as a process of its own, and what tests look at from outside."""

import contextlib
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

SERVE = """
import sys
from rocforge.server.run import serve
from rocforge.server.settings import Settings
settings = Settings(model_name="small", grace=float(sys.argv[2]), chat_template="{{ messages[0].content }}")
serve(sys.argv[1], port=0, device="cpu", context=4096, settings=settings, log_level="warning",
      processes=int(sys.argv[3]), restart_engine=len(sys.argv) > 4,
      on_ready=lambda url: print(url, flush=True))
print("returned", flush=True)
"""
ROOT = Path(__file__).parents[2]
LONG = {"model": "small", "prompt": "abc", "max_tokens": 3500, "n": 2, "ignore_eos": True, "stream": True}


@contextlib.contextmanager
def serving(model, grace=0.3, descriptors=None, processes=1, more=()):
    """A server process, once it is ready, and its URL; killed at the end where it still runs."""

    def limit():
        if descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(model), str(grace), str(processes), *more],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def descendants(pid):
    """A process and all that it has started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = stat.read_text()
            parents[int(text.split()[0])] = int(text.rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def gone(pids, seconds=5.0):
    """Whether all these processes end in that time."""
    until = time.monotonic() + seconds
    while any(is_running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(is_running(pid) for pid in pids)


def wait_for(holds, seconds=20.0):
    """Until that holds, which it has to in that time."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def is_running(pid):
    """Whether there is such a process, other than one that is only to be waited for."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def stream(url, body, lines):
    """Read a stream into `lines`, in a thread."""

    def read():
        with httpx.Client(trust_env=False, timeout=60) as client:
            try:
                with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
                    lines.extend(line for line in answer.iter_lines() if line)
            except httpx.HTTPError as error:
                lines.append(f"broken: {error!r}")

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def wait_for_tokens(url, count):
    """Until that many requests have begun to write."""
    with httpx.Client(base_url=url, trust_env=False) as client:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            jobs = client.get("/v1/requests").json()["data"]
            if len(jobs) == count and all(job["completion_tokens"] for job in jobs):
                return
    raise AssertionError(f"not {count} requests that write: {jobs}")


def post(path, body):
    """A request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()
