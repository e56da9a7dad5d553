"""A server of several processes: what one knows all know, and what is left of requests when one of them dies."""

import contextlib
import json
import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_process import LONG, descendants, gone, post, serving, stream, wait_for, wait_for_tokens

import rocforge as rf

pytestmark = pytest.mark.slow

BODY = {"model": "small", "prompt": "abc", "max_tokens": 20, "ignore_eos": True, "seed": 1}


@pytest.fixture(scope="module")
def served(model_file):
    """A server with three processes for HTTP, for tests that kill none of them, and its URL."""
    with serving(model_file, processes=3) as (process, url):
        yield process, url
        process.terminate()
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in err, err


@pytest.fixture
def shared(served):
    """Its URL."""
    return served[1]


def asked(url, method, path, **options):
    """An answer, by a new connection."""
    return httpx.request(method, f"{url}{path}", trust_env=False, timeout=60, **options)


def values(url):
    """The samples of /metrics, by name and labels."""
    families = text_string_to_metric_families(asked(url, "GET", "/metrics").text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


class Connection:
    """One on which a request has been sent, and what has come."""

    def __init__(self, url, body):
        host, port = url.removeprefix("http://").split(":")
        self.socket, self.received = socket.create_connection((host, int(port)), 30), b""
        self.socket.sendall(post("/v1/completions", json.dumps(body)))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.socket.close()

    def rest(self):
        """All that comes until the connection is closed, or the stream has ended."""
        with contextlib.suppress(ConnectionError):
            while not self.received.endswith(b"\r\n0\r\n\r\n") and (part := self.socket.recv(1 << 16)):
                self.received += part
        return self.received.decode()

    def owner(self, pids):
        """Which of these processes has the other end."""
        ends = [f"0100007F:{name[1]:04X}" for name in (self.socket.getpeername(), self.socket.getsockname())]
        entries = map(str.split, Path("/proc/net/tcp").read_text().splitlines())
        (inode,) = [entry[9] for entry in entries if entry[1:3] == ends]
        for pid in pids:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(link) == f"socket:[{inode}]":
                        return pid
        raise AssertionError(f"none of {pids}")


def streaming(url, **more):
    """The connection of a long stream, once that has begun."""
    connection = Connection(url, {**LONG, "n": 1, **more})
    while b"data: {" not in connection.received:
        part = connection.socket.recv(1 << 16)
        assert part, connection.received
        connection.received += part
    return connection


def children(process):
    """The engine's process, and those for HTTP."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    engine, *others = map(int, found)
    return engine, others


def test_requests_are_known_everywhere(shared):
    """Whichever process a connection comes to: it lists a request of another, gives its status, and cancels it."""
    lines = []
    thread = stream(shared, LONG, lines)
    wait_for_tokens(shared, 1)
    for _ in range(12):
        (job,) = [job for job in asked(shared, "GET", "/v1/requests").json()["data"] if job["status"] == "running"]
        status = asked(shared, "GET", f"/v1/requests/{job['id']}").json()
        assert status["status"] == "running" and status["completion_tokens"] > 0
    assert asked(shared, "DELETE", f"/v1/requests/{job['id']}").json()["status"] == "cancelled"
    thread.join(20)
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "request_cancelled"
    for _ in range(6):
        assert asked(shared, "GET", f"/v1/requests/{job['id']}").json()["status"] == "cancelled"
        assert asked(shared, "GET", "/v1/requests/cmpl-nothing").status_code == 404
    wait_for(lambda: values(shared)["rocforge_cache_blocks_used",] == 0)


def test_responses_are_known_everywhere(shared):
    """Whichever process a connection comes to: it continues a response of another, reads and deletes it."""
    body = {"model": "small", "input": "hi", "max_output_tokens": 2}
    first = asked(shared, "POST", "/v1/responses", json=body).json()
    for _ in range(4):
        after = asked(shared, "POST", "/v1/responses", json={**body, "previous_response_id": first["id"]}).json()
        assert after["previous_response_id"] == first["id"], after
        assert asked(shared, "GET", f"/v1/responses/{first['id']}").json() == first
        reference = [{"type": "item_reference", "id": first["output"][0]["id"]}]
        assert asked(shared, "POST", "/v1/responses", json={**body, "input": reference}).status_code == 200
    assert asked(shared, "DELETE", f"/v1/responses/{first['id']}").json()["deleted"]
    assert all(asked(shared, "GET", f"/v1/responses/{first['id']}").status_code == 404 for _ in range(6))


def test_metrics_are_sums(shared):
    """Requests to all processes are counted once each, whichever is asked."""
    before = values(shared)
    replies = [asked(shared, "POST", "/v1/completions", json=BODY).json() for _ in range(12)]
    assert len({reply["choices"][0]["text"] for reply in replies}) == 1

    def grown(name, *labels):
        key = (f"rocforge_{name}", *labels)
        return values(shared)[key] - before[key]

    wait_for(lambda: grown("requests_total", "finished") == 12)
    for _ in range(6):
        assert grown("generated_tokens_total") == sum(reply["usage"]["completion_tokens"] for reply in replies) == 240
        assert grown("time_to_first_token_seconds_count") == 12
        assert grown("time_between_tokens_seconds_count") == 12 * 19
    after = values(shared)
    assert after["rocforge_requests_waiting",] == after["rocforge_requests_running",] == 0
    assert after["rocforge_cache_blocks",] > 0


def test_stop_strings(shared):
    """A text ends before its stop string; tokens after it do not count, and the engine does not go on with it."""
    whole = asked(shared, "POST", "/v1/completions", json={**BODY, "logprobs": 0}).json()["choices"][0]
    names, text = whole["logprobs"]["tokens"], whole["text"]
    stop = text[len(text) // 2 :][:3]
    body = {**BODY, "max_tokens": 3000, "stop": stop}
    reply = asked(shared, "POST", "/v1/completions", json=body).json()
    assert reply["choices"][0]["text"] == text[: text.index(stop)] and reply["choices"][0]["finish_reason"] == "stop"
    seen = [sum(map(len, names[: count + 1])) for count in range(len(names))]
    expected = next(count + 1 for count, length in enumerate(seen) if length >= text.index(stop) + len(stop))
    if not any(name.startswith("bytes:") for name in names):
        assert reply["usage"]["completion_tokens"] == expected
    wait_for(lambda: values(shared)["rocforge_requests_running",] == 0)
    assert values(shared)["rocforge_cache_blocks_used",] == 0


def test_constrained_texts(shared):
    """The engine's process compiles; a wrong grammar is the client's error before a stream begins."""
    body = {"model": "small", "prompt": "a", "max_tokens": 5, "regex": "[a-z]{3}", "n": 3, "temperature": 2}
    for stream_it in (False, True):
        answer = asked(shared, "POST", "/v1/completions", json={**body, "stream": stream_it})
        assert answer.status_code == 200
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] or [answer.text]
        texts = dict.fromkeys(range(3), "")
        for choice in (choice for line in lines for choice in json.loads(line)["choices"]):
            texts[choice["index"]] += choice["text"]
        assert all(re.fullmatch("[a-z]{3}", text) for text in texts.values())
        wrong = asked(shared, "POST", "/v1/completions", json={**body, "regex": "[", "stream": stream_it})
        assert wrong.status_code == 400 and wrong.json()["error"]["code"] == "invalid_grammar"
    schema = {"type": "json_schema", "json_schema": {"schema": {"const": 10**40, "title": "\ud800"}}}
    content = json.dumps({**body, "regex": None, "response_format": schema, "max_tokens": 60})
    answer = asked(shared, "POST", "/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400), answer.text


def test_embeddings(shared, model_file):
    """The engine's process computes them, for whichever process is asked, beside texts."""
    expected = rf.embed(rf.load(model_file, device="cpu", context=2048)[0], ["hello", "goodbye"])
    body = {"model": "small", "prompt": "hello", "max_tokens": 200, "ignore_eos": True}
    with ThreadPoolExecutor() as pool:
        text = pool.submit(asked, shared, "POST", "/v1/completions", json=body)
        for _ in range(4):
            answer = asked(shared, "POST", "/v1/embeddings", json={"model": "small", "input": ["hello", "goodbye"]})
            vectors = [one["embedding"] for one in answer.json()["data"]]
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert text.result().json()["usage"]["completion_tokens"] == 200
    echo = {"model": "small", "prompt": "hello", "max_tokens": 0, "echo": True, "logprobs": 1}
    report = asked(shared, "POST", "/v1/completions", json=echo).json()["choices"][0]["logprobs"]
    assert "".join(report["tokens"]) == "hello" and report["token_logprobs"][0] is None
    assert all(
        -30 < value <= max(top.values())
        for value, top in zip(report["token_logprobs"][1:], report["top_logprobs"][1:], strict=True)
    )
    wrong = asked(shared, "POST", "/v1/embeddings", json={"model": "small", "input": [1 << 30]})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "input"


def test_refusals(shared):
    """What the engine refuses is refused before anything is written; a deadline is kept by it too."""
    wrong = {**BODY, "logit_bias": {"999999999": 1}}
    for more in ({}, {"stream": True}):
        refused = asked(shared, "POST", "/v1/completions", json={**wrong, **more})
        assert refused.status_code == 400 and "logit_bias" in refused.json()["error"]["message"]
    late = asked(shared, "POST", "/v1/completions", json={**LONG, "stream": False, "timeout": 0.1})
    assert late.status_code == 504 and "timed out after 0.1 seconds" in late.json()["error"]["message"]
    wait_for(lambda: values(shared)["rocforge_cache_blocks_used",] == 0)


def test_the_connections_are_shared(served):
    """The kernel divides them among the processes for HTTP; the engine's has none."""
    process, url = served
    with contextlib.ExitStack() as stack:
        engine, others = children(process)
        connections = [stack.enter_context(streaming(url, max_tokens=20)) for _ in range(40)]
        owners = {connection.owner([engine, *others]) for connection in connections}
        assert owners == set(others)


def test_a_process_for_http_that_dies(model_file):
    """Its connections are lost and their requests cancelled; others go on, and another process takes its place."""
    with serving(model_file, processes=2) as (process, url), contextlib.ExitStack() as stack:
        engine, others = children(process)
        streams = {}
        while len(streams) < 2:
            connection = stack.enter_context(streaming(url, max_tokens=500))
            if (pid := connection.owner(others)) in streams:
                connection.socket.close()
            else:
                streams[pid] = connection
        counted = values(url)["rocforge_generated_tokens_total",]
        victim, survivor = others
        os.kill(victim, signal.SIGKILL)
        assert "[DONE]" not in streams[victim].rest()
        assert streams[survivor].rest().endswith("data: [DONE]\n\n\r\n0\r\n\r\n")
        wait_for(lambda: len(children(process)[1]) == 2)
        assert children(process)[0] == engine
        wait_for(lambda: values(url)["rocforge_cache_blocks_used",] == 0)
        assert values(url)["rocforge_generated_tokens_total",] > counted, "what the dead one wrote still counts"
        for _ in range(12):
            answer = asked(url, "POST", "/v1/completions", json=BODY)
            assert answer.status_code in (200, 503), answer.text  # the new one has to hear of the model first
        wait_for(lambda: all(asked(url, "GET", "/ready").status_code == 200 for _ in range(12)))


def test_an_engine_that_dies(model_file):
    """Requests in flight are told, and the server ends with an error; none of its processes is left."""
    whole = {**LONG, "stream": False}
    with serving(model_file, processes=2) as (process, url), streaming(url) as written, Connection(url, whole) as waits:
        everyone = descendants(process.pid)
        wait_for_tokens(url, 2)
        os.kill(children(process)[0], signal.SIGKILL)
        error = json.loads(written.rest().split("data: ")[-1].splitlines()[0])["error"]
        assert error["code"] == "engine_dead" and error["type"] == "server_error"
        answer = waits.rest()
        assert answer.startswith("HTTP/1.1 500 ") and "engine_dead" in answer
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1 and err.splitlines()[-1].endswith("has ended: killed by SIGKILL"), err
        assert "EngineDeadError" in err and gone(everyone)


def test_an_engine_that_is_started_again(model_file):
    """Requests in flight are told, /ready says that the model loads, and the same connections are served after it."""
    with serving(model_file, processes=2, more=["restart"]) as (process, url), streaming(url) as connection:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            text = client.post("/v1/completions", json=BODY).json()["choices"][0]["text"]
            os.kill(children(process)[0], signal.SIGKILL)
            assert "engine_dead" in connection.rest()
            wait_for(lambda: client.get("/ready").status_code == 503)
            assert client.get("/health").json() == {"status": "ok", "state": "starting"}
            assert client.post("/v1/completions", json=BODY).status_code == 503
            wait_for(lambda: client.get("/ready").status_code == 200)
            assert client.post("/v1/completions", json=BODY).json()["choices"][0]["text"] == text
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_a_server_that_is_killed(model_file):
    """No process outlives the one that was started."""
    with serving(model_file, processes=2) as (process, url), streaming(url, regex="[a-z]{3000}", ignore_eos=False):
        everyone = descendants(process.pid)
        assert len(everyone) >= 5, "itself, the engine, two for HTTP, and those of the grammar"
        process.kill()
        assert gone(everyone)


def test_strangers_are_not_the_engines_peers(model_file):
    """Another process, of the same user too, may find the engine's socket, and is told nothing."""
    with serving(model_file) as (process, url):
        inodes = {os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()}
        lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        (address,) = {line[7] for line in lines if f"socket:[{line[6]}]" in inodes and line[7:] and line[7][0] == "@"}
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(20)
            stranger.connect("\0" + address[1:])
            assert stranger.recv(1) == b""
        assert asked(url, "POST", "/v1/completions", json=BODY).status_code == 200
