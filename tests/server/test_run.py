"""`serve`: ready, signals with requests in flight, ports, models that do not load; in one process and in several."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from server_process import LONG, ROOT, SERVE, descendants, gone, post, serving, stream, wait_for_tokens

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_with_requests_in_flight(model_file, number, processes):
    """What comes is refused, what is short finishes, what is long is told; the process ends by itself, status 0."""
    with serving(model_file, grace=1.0, processes=processes) as (process, url):
        long, short = [], []
        threads = [stream(url, LONG, long), stream(url, {**LONG, "max_tokens": 30, "n": 1}, short)]
        wait_for_tokens(url, 2)
        process.send_signal(number)
        begin = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            while time.monotonic() < begin + 0.9:
                with contextlib.suppress(ConnectionResetError):  # one that was not accepted yet
                    socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))).close()
        out, err = process.communicate(timeout=30)
        for thread in threads:
            thread.join(20)
        assert process.returncode == 0, err
        assert out == "returned\n" and "Traceback" not in err
        assert short[-1] == "data: [DONE]"
        assert json.loads(long[-1].removeprefix("data: "))["error"]["type"] == "server_error"


@pytest.mark.parametrize("processes", [0, 1])
def test_a_signal_with_connections_of_all_kinds(model_file, processes):
    """Idle ones are closed at once, answers come, streams and requests that wait are told, and a client that sends no
    more or does not read holds nothing up; the process ends with status 0 and logs no fault.
    """
    chat = {"model": "small", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3500, "ignore_eos": True}
    long = json.dumps({**LONG, "stream": False})
    unread = json.dumps({**LONG, "n": 64, "logprobs": 20})
    sent = {
        "nothing": b"",
        "half a head": b"GET /health HTTP/1.1\r\nHos",
        "kept": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "rest of a refused body": b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
        "half a body": post("/v1/completions", long)[:-1],
        "expects": post("/v1/completions", long)[:-1].replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
        "waits": post("/v1/completions", long),
        "pipelined": 2 * post("/v1/completions", long),
        "stream": post("/v1/completions", json.dumps(LONG)),
        "chat": post("/v1/chat/completions", json.dumps({**chat, "stream": True})),
        "does not read": post("/v1/completions", unread),
    }
    with serving(model_file, 1.0, processes=processes) as (process, url), contextlib.ExitStack() as stack:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        connections = {name: stack.enter_context(socket.socket()) for name in sent}
        connections["does not read"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        for name, connection in connections.items():
            connection.settimeout(30)
            connection.connect(address)
            connection.sendall(sent[name])
        for name in ("stream", "chat"):
            assert b"200 OK" in connections[name].recv(1000)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        answers = {}
        for name, connection in connections.items():
            answers[name] = b""
            with contextlib.suppress(ConnectionError):
                while name != "does not read" and (part := connection.recv(1 << 16)):
                    answers[name] += part
            if name == "rest of a refused body":
                assert time.monotonic() - begin < 0.9, "idle connections are closed before the grace is over"
        _, err = process.communicate(timeout=30)
        assert time.monotonic() - begin < 10
    assert process.returncode == 0 and "Traceback" not in err, err
    assert answers["nothing"] == answers["half a head"] == answers["half a body"] == b""
    assert b" 200 " in answers["kept"] and b" 405 " in answers["rest of a refused body"]
    assert answers["expects"] == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert b" 503 " in answers["waits"] and answers["pipelined"].count(b" 503 ") == 1
    for name in ("stream", "chat"):
        assert b'"type":"server_error"' in answers[name] and answers[name].endswith(b"0\r\n\r\n")


def test_connections_stay_below_the_limit_of_descriptors(model_file, descriptors=64):
    """However many come: the probes answer, whether the others are idle or have requests in progress."""
    slow = post("/v1/completions", json.dumps(LONG))[:-1]
    with serving(model_file, descriptors=descriptors) as (process, url):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        for data in (b"", slow):
            with contextlib.ExitStack() as stack, httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
                for _ in range(2 * descriptors):
                    connection = stack.enter_context(socket.create_connection(address, 30))
                    with contextlib.suppress(ConnectionError):
                        connection.sendall(data)
                assert client.get("/health").status_code == client.get("/ready").status_code == 200
                assert client.get("/v1/models").status_code == (503 if data else 200)
                for pid in descendants(process.pid):
                    assert len(os.listdir(f"/proc/{pid}/fd")) < 0.9 * descriptors
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in err and "out of system resource" not in err


@pytest.mark.parametrize("processes", [0, 1])
def test_a_second_signal_ends_it_at_once(model_file, processes):
    """However long the grace is; with it end all its processes."""
    with serving(model_file, grace=60.0, processes=processes) as (process, url):
        lines, all_processes = [], descendants(process.pid)
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
        assert gone(all_processes)


@pytest.mark.parametrize("processes", [0, 1])
def test_a_signal_while_it_loads(model_file, processes):
    """The process ends without waiting to be ready."""
    code = SERVE.replace(
        "from rocforge.server.run import serve",
        """
import signal, time
import rocforge.server.engine_options as options
from rocforge.server.run import serve
def slow(*arguments, **options):
    while sys.argv[3] == "0" and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # this being another thread
        time.sleep(0.01)
    print("loading", flush=True)
    time.sleep(60)
options.load = slow
""",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(model_file), "0.2", str(processes)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "loading\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


@pytest.mark.parametrize("processes", [0, 1])
def test_a_model_that_does_not_load(tmp_path, processes):
    """The error is raised, and the process ends."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    with serving(tmp_path / "broken.gguf", processes=processes) as (process, url):
        assert url == ""
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1 and "GGUFError" in err.splitlines()[-1]


@pytest.mark.parametrize("processes", [1, 3])
def test_a_port_in_use(model_file, processes):
    """Is an OSError, before anything is loaded."""
    from rocforge.server.run import serve

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="Address already in use"):
        serve(model_file, port=taken.getsockname()[1], processes=processes)
