"""`serve` as a process: ready, signals with requests in flight, ports, models that do not load."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

SERVE = """
import sys
from rocforge.server.run import serve
from rocforge.server.settings import Settings
settings = Settings(model_name="small", grace=float(sys.argv[2]))
serve(sys.argv[1], port=0, device="cpu", context=4096, settings=settings, log_level="warning",
      on_ready=lambda url: print(url, flush=True))
print("returned", flush=True)
"""
ROOT = Path(__file__).parents[2]
LONG = {"model": "small", "prompt": "abc", "max_tokens": 3500, "n": 2, "ignore_eos": True, "stream": True}


@contextmanager
def serving(model, grace=0.3):
    """A server process, once it is ready, and its URL; killed at the end where it still runs."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(model), str(grace)],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_with_requests_in_flight(model_file, number):
    """What is short finishes; what is long is told that the server stops; the process ends by itself, with status 0."""
    with serving(model_file, grace=1.0) as (process, url):
        long, short = [], []
        threads = [stream(url, LONG, long), stream(url, {**LONG, "max_tokens": 30, "n": 1}, short)]
        wait_for_tokens(url, 2)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        for thread in threads:
            thread.join(20)
        assert process.returncode == 0, err
        assert out == "returned\n" and "Traceback" not in err
        assert short[-1] == "data: [DONE]"
        assert json.loads(long[-1].removeprefix("data: "))["error"]["type"] == "server_error"
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/health", trust_env=False)


def test_a_second_signal_ends_it_at_once(model_file):
    """However long the grace is."""
    with serving(model_file, grace=60.0) as (process, url):
        lines = []
        thread = stream(url, LONG, lines)
        wait_for_tokens(url, 1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT
        assert time.monotonic() - begin < 5
        thread.join(20)


def test_a_signal_while_it_loads(model_file):
    """The process ends without waiting to be ready."""
    code = SERVE.replace(
        "from rocforge.server.run import serve",
        """
import signal, time
import rocforge.server.run as run
def slow(*arguments):
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # in the main thread, this being another one
        time.sleep(0.01)
    print("loading", flush=True)
    time.sleep(60)
run.load = slow
serve = run.serve
""",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(model_file), "0.2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "loading\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_a_model_that_does_not_load(tmp_path):
    """The error is raised, and the process ends."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    with serving(tmp_path / "broken.gguf") as (process, url):
        assert url == ""
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1 and "GGUFError" in err.splitlines()[-1]


def test_a_port_in_use(model_file):
    """Is an OSError, before anything is loaded."""
    import socket

    from rocforge.server.run import serve

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="Address already in use"):
        serve(model_file, port=taken.getsockname()[1])
