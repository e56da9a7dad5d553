"""`rocforge serve`, a real process with real signals, and `status` and `cancel` against it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from rocforge.cli import main

pytestmark = pytest.mark.slow

pytest.importorskip("fastapi", reason="the extra server is not installed")


@contextlib.contextmanager
def serving(model, *options):
    """A server process on a free port: (process, URL, lines of its stderr)."""
    command = [sys.executable, "-m", "rocforge", "serve", model, "--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    lines, ready = [], threading.Event()

    def read():
        for line in process.stderr:
            lines.append(line)
            if "ready at " in line:
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert ready.wait(60) and process.poll() is None, lines
        yield process, re.search(r"ready at (\S+)", "".join(lines))[1], lines
    finally:
        process.kill()
        process.wait()


def stream(url, tokens, key=None, **options):
    """The response of a streamed completion, and its id."""
    body = {"model": "demo-11M-Q8_0", "prompt": "def f(", "max_tokens": tokens, "stream": True, "ignore_eos": True}
    body |= options
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    response = urllib.request.urlopen(
        urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers), timeout=60
    )
    return response, json.loads(response.readline().removeprefix(b"data: "))["id"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_it_in_good_order(model, number):
    """With a request in flight: it finishes, the process ends with 0 and no traceback, and nothing of it is left."""
    with serving(model) as (process, url, lines):
        response, _ = stream(url, 6)
        process.send_signal(number)
        rest = response.read().decode()
        assert rest.rstrip().endswith("data: [DONE]")
        assert process.wait(20) == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    assert not any("Traceback" in line for line in lines)
    assert process.stdout.read() == ""


def test_the_second_signal_ends_it_at_once(model):
    """While a long request is in flight."""
    with serving(model) as (process, url, _):
        response, _ = stream(url, 900)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(3) == 130
        response.close()


def test_stopped_while_it_loads(model):
    """A signal as soon as the server listens, while the model loads: it ends in good order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        command = [sys.executable, "-m", "rocforge", "serve", model, "--port", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        process.stderr.readline()
        process.send_signal(number)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


def test_status_and_cancel(model, rocforge):
    """The server's state, a request's state, and its end by cancel; the key is asked for."""
    with serving(model, "--api-key", "secret", "--quiet") as (_, url, _lines):
        response, request = stream(url, 900, "secret", n=8)  # longer than the commands take to start
        server = {"ROCFORGE_URL": url, "ROCFORGE_API_KEY": "secret"}
        found = json.loads(rocforge("status", "--json", environment=server).stdout)
        assert found["state"] == "ready" and 0 < found["requests_running"] <= 8 and found["cache_blocks_used"] > 0
        about = json.loads(rocforge("status", request, "--json", environment=server).stdout)
        assert about["id"] == request and about["status"] == "running"
        assert "cancelled" in rocforge("cancel", request, environment=server).stderr
        response.read()
        about = json.loads(rocforge("status", request, "--json", environment=server).stdout)
        assert about["status"] == "cancelled"
        found = json.loads(rocforge("status", "--json", environment=server).stdout)
        assert found["requests_running"] == 0 and found["cache_blocks_used"] == 0
        refused = rocforge("status", request, "--url", url, check=False)
        assert refused.returncode == 1 and "401" in refused.stderr


def test_a_port_that_is_taken(model, rocforge):
    """One line, with the port; the exit code is 1."""
    with serving(model, "--quiet") as (_, url, _lines):
        done = rocforge("serve", model, "--port", url.rpartition(":")[2], check=False)
        assert done.returncode == 1 and "error: " in done.stderr


def test_a_model_that_is_not_there(rocforge):
    """The server ends with the error that loading gave."""
    done = rocforge("serve", "nowhere.gguf", "--port", 0, "--quiet", check=False)
    assert done.returncode == 1 and "error: no such file: nowhere.gguf" in done.stderr


def test_allowed_hosts(model):
    """Names are served that are allowed, in one option or in more; others are not."""
    options = ("--allowed-hosts", "a.example,b.example", "--allowed-hosts", "*.c.example")
    with serving(model, "--quiet", *options) as (_, url, _lines):

        def status(host):
            request = urllib.request.Request(f"{url}/v1/models", headers={"Host": host})
            try:
                return urllib.request.urlopen(request, timeout=60).status
            except urllib.error.HTTPError as error:
                return error.code

        for host in ("a.example", "b.example:80", "x.c.example", "localhost", "127.0.0.1"):
            assert status(host) == 200, host
        for host in ("evil.example", "c.example", "x.a.example"):
            assert status(host) == 421, host


@pytest.mark.parametrize("closed", [(0,), (1,), (2,)])
def test_closed_standard_streams_are_opened(closed):
    """As the null device, so that no file or socket gets their numbers."""
    code = "import os; from rocforge.cli import main; main(['--version']); [os.fstat(number) for number in range(3)]"
    process = subprocess.Popen([sys.executable, "-c", code], preexec_fn=lambda: [os.close(n) for n in closed])
    assert process.wait(60) == 0


def test_closed_standard_streams(model):
    """As some supervisors start it, without any: it serves, and ends in good order."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "rocforge", "serve", model, "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, preexec_fn=lambda: [os.close(number) for number in range(3)])
    try:
        deadline, ready = time.monotonic() + 60, False
        while not ready and process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                ready = urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).status == 200
        assert ready
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_lora(model, adapter, capsys):
    """Named adapters are served as models of their own; one that has no name is refused."""
    with serving(model, "--lora", f"x={adapter}=-1", "--lora", f"y={adapter}") as (_, url, _):
        listed = json.load(urllib.request.urlopen(f"{url}/v1/models", timeout=60))["data"]
        name = "demo-11M-Q8_0"
        assert [entry["id"] for entry in listed] == [name, f"{name}:x", f"{name}:y"]
        texts = [stream(url, 12, model=entry["id"], temperature=0)[0].read() for entry in listed]
        parts = [b"".join(re.findall(rb'"text":"([^"]*)"', text)) for text in texts]
        assert all(parts) and len(set(parts)) == 3
    for options, message in (("x", "allowed are NAME=PATH and NAME=PATH=SCALE"), ("x=a x=b", "two adapters named 'x'")):
        assert main(["serve", model, *(f"--lora={option}" for option in options.split())]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ("--ray --replicas 0", "--replicas is '0'; allowed are N, from 1, and N-M"),
        ("--ray --replicas 4-2", "--replicas is '4-2'"),
        ("--ray --replicas many", "--replicas is 'many'"),
        ("--ray --processes 0", "--processes is not for --ray"),
        ("--ray --fd 0", "--fd is not for --ray"),
        ("--ray --device gpu:1", "--device is 'gpu:1'; with --ray allowed are cpu and gpu"),
        ("--replicas 2", "--replicas is for --ray"),
    ],
)
def test_what_ray_is_not_told(model, options, message, monkeypatch, capsys):
    monkeypatch.setattr("rocforge.cli.serve.find_spec", lambda name: name)
    assert main(["serve", model, *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_without_ray(model, monkeypatch, capsys):
    monkeypatch.setattr("rocforge.cli.serve.find_spec", lambda name: None)
    assert main(["serve", model, "--ray"]) == 2
    assert "pip install 'rocforge[ray]'" in capsys.readouterr().err
