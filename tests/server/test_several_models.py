"""A server of several models: loaded when they are asked for, unloaded to make room; none harms another."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_process import ROOT, descendants, gone, wait_for

pytestmark = pytest.mark.slow

pytest.importorskip("fastapi", reason="the extra server is not installed")

CHOICE = {"prompt": "abc", "max_tokens": 8, "ignore_eos": True, "temperature": 0}


@contextlib.contextmanager
def serving(folder, *options):
    """(client, process) of a server of a folder's models, once it is ready."""
    command = [sys.executable, "-m", "rocforge", "serve", folder, "--port", "0", "--device", "cpu", "--quiet", *options]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stderr.readline, "")
        url = next(match[1] for line in lines if (match := re.search(r"ready at (\S+)", line)))
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            yield client, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def folder(model_file, tmp_path):
    """Four models, three of which are good."""
    for name in "abc":
        (tmp_path / f"{name}.gguf").symlink_to(model_file)
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    return tmp_path


def states(client):
    return {model["id"]: model["status"]["value"] for model in client.get("/v1/models").json()["data"]}


def complete(client, model, **more):
    return client.post("/v1/completions", json={"model": model, **CHOICE, **more})


def test_loaded_on_demand(folder):
    """Nothing is loaded at first; a request loads its model, two at a time load it once, and all have their states; the
    least recently used one makes room for a third. What is wrong with a model is told, and costs no other its place.
    A request without a model, or for one that is not there, is refused; HTTP's rules hold as for one model.
    """
    options = ("--models-max", "2", "--processes", "2", "--api-key", "secret", "--root-path", "/llm")
    with serving(folder, *options) as (client, process):
        assert client.get("/v1/models").status_code == 401 and client.get("/").status_code == 200
        client.headers["Authorization"] = "Bearer secret"
        assert states(client) == dict.fromkeys(["a", "b", "broken", "c"], "unloaded")
        assert client.get("/ready").status_code == 200
        with ThreadPoolExecutor() as pool:
            answers = [pool.submit(complete, client, name) for name in "aab"]
            wait_for(lambda: "loading" in states(client).values())
            (text,) = {answer.result().json()["choices"][0]["text"] for answer in answers}
        assert states(client) == {"a": "loaded", "b": "loaded", "broken": "unloaded", "c": "unloaded"}
        assert client.get("/v1/models/a").json()["context_length"] > 0
        assert client.get("/props", params={"model": "b"}).json()["model_alias"] == "b"
        assert client.post("/tokenize", json={"model": "b", "content": "abc"}).json()["count"] > 0
        broken = complete(client, "broken")
        assert broken.status_code == 503 and "magic at byte 0" in broken.json()["error"]["message"]
        status = client.get("/v1/models/broken").json()["status"]
        assert status["value"] == "unloaded" and status["failed"] and "not a GGUF file" in status["error"]
        assert client.get("/health").json()["models"] == states(client) | {"a": "loaded", "b": "loaded"}
        complete(client, "a")  # so that b is the least recently used
        assert complete(client, "c").json()["choices"][0]["text"] == text
        assert states(client) == {"a": "loaded", "b": "unloaded", "broken": "unloaded", "c": "loaded"}
        families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
        wait_for(lambda: len(client.get("/v1/requests").json()["data"]) == 5)
        tokens = {s.labels["model"]: s.value for s in families["rocforge_generated_tokens"].samples}
        assert tokens == {"a": 24, "b": 8, "c": 8}
        for answer, status, code in (
            (client.post("/v1/completions", json=CHOICE), 400, "missing_required_parameter"),
            (client.get("/props"), 400, "missing_required_parameter"),
            (complete(client, "d"), 404, "model_not_found"),
            (client.get("/v1/models/d"), 404, "model_not_found"),
            (client.get("/v1/responses/resp_x"), 404, None),
            (client.get("/nothing"), 404, "unknown_url"),
            (client.post("/v1/completions", content=b"{", headers={"Content-Type": "application/json"}), 400, None),
            (client.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}), 415, None),
            (client.get("/v1/completions"), 405, None),
            (client.get("/health", headers={"Host": "evil.example"}), 421, "unknown_host"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        assert client.get("/v1/completions").headers["allow"] == "POST"
        assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]
        everyone = descendants(process.pid)
        process.terminate()
        assert process.wait(20) == 0 and gone(everyone)


def test_requests_finish_before_their_model_goes(folder):
    """A stream goes on to its end while another model is wanted, and one after it waits for its model's return; a
    client that leaves while it waits holds nothing up, and one that waits when the server ends is told.
    """
    with serving(folder, "--models-max", "1", "--processes", "1") as (client, process), ThreadPoolExecutor() as pool:
        body = {"model": "a", **CHOICE, "max_tokens": 120, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            other = pool.submit(complete, client, "b")
            wait_for(lambda: states(client)["a"] == "unloading")
            with pytest.raises(httpx.TimeoutException):
                complete(httpx.Client(base_url=client.base_url, trust_env=False, timeout=0.2), "c")
            back = pool.submit(complete, client, "a")
            late = complete(client, "c", timeout=0.1)
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
            assert list(lines)[-2] == "data: [DONE]"
        assert other.result().status_code == back.result().status_code == 200
        assert states(client)["b"] == "unloaded"
        waits = pool.submit(complete, client, "b")
        wait_for(lambda: states(client)["b"] != "unloaded" or states(client)["a"] == "unloading")
        process.terminate()
        assert (waits.result().status_code, waits.result().json()["error"]["message"]) == (
            503,
            "the service is stopped",
        )
        assert process.wait(20) == 0, process.stderr.read()


def test_an_engine_that_dies(folder):
    """Its requests are told, those of other models go on, and the next request loads it again."""
    with serving(folder, "--processes", "1") as (client, process), ThreadPoolExecutor() as pool:
        before = descendants(process.pid)
        complete(client, "a")
        engine = min(descendants(process.pid) - before)
        complete(client, "b")
        long = {"max_tokens": 100, "n": 2}
        fails, goes_on = pool.submit(complete, client, "a", **long), pool.submit(complete, client, "b", **long)
        wait_for(lambda: any(job["completion_tokens"] for job in client.get("/v1/requests").json()["data"][:2]))
        os.kill(engine, signal.SIGKILL)
        assert fails.result().json()["error"]["code"] == "engine_dead"
        assert goes_on.result().status_code == 200
        assert client.get("/v1/models/a").json()["status"]["error"] == "its process has ended: killed by SIGKILL"
        running = re.search(r'requests_running{model="a"} (\S+)', client.get("/metrics").text)[1]
        assert float(running) == 0, "a dead engine runs nothing"
        assert complete(client, "a").status_code == 200
        assert states(client) == {"a": "loaded", "b": "loaded", "broken": "unloaded", "c": "unloaded"}
