"""Replicas on a Ray cluster of this machine: load, a killed replica, scaling, rolling restarts.

    pip install -e '.[test,ray]' && pytest tests/server/test_ray.py -s

Every wait has an end. `-s` shows the figures.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from ray_server import CLUSTER, KEY, MODEL, NAME, both_are_ready, openai_client, processes_of, serving, states
from server_process import gone, wait_for

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="the extra ray is not installed")
openai = pytest.importorskip("openai")

TOKENS = 40
"""Of a reply under load."""
SCALED = """
import sys
from pathlib import Path
from rocforge.server.engine_options import EngineOptions
from rocforge.server.models import find_models
from rocforge.server.run_ray import serve_on_ray
from rocforge.server.settings import Settings

broken = Path(sys.argv[2])

class Breaking(EngineOptions):
    def load(self, path, lora):
        engine, tokenizer = super().load(path, lora)
        step = engine.step
        def checked_step():
            if broken.exists():
                raise RuntimeError("the engine is broken")
            return step()
        engine.step = checked_step
        return engine, tokenizer

fast = {"upscale_delay_s": 0.5, "downscale_delay_s": 0.5, "look_back_period_s": 2, "metrics_interval_s": 0.5}
serve_on_ray(find_models(sys.argv[1:2])[0], port=0, replicas=(1, 2), autoscaling=fast,
             options=Breaking(device="cpu", cache_tokens=2048), settings=Settings(model_name="demo-11M-Q8_0"),
             on_ready=lambda url: print("ready at", url, file=sys.stderr))
"""
"""Replicas follow the load within a second, and their engines break while there is a file."""
ENDLESS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def server():
    """Two replicas behind the command."""
    options = ["--ray", "--replicas", "2", "--device", "cpu", "--port", "0", "--api-key", KEY]
    with serving("-m", "rocforge", "serve", str(MODEL), *options) as server:
        yield server


@pytest.fixture
def client(server):
    with openai_client(server) as client:
        yield client


def actors(server):
    """Process ids of the replicas."""
    return processes_of("ServeReplica:rocforge:Replica", server.process.pid)


def metric(server, name):
    """Replica -> value."""
    answer = server.get("/metrics")
    assert answer.status_code == 200
    pattern = rf'^rocforge_{name}{{.*?replica="(\w+)".*}} (\S+)$'
    return {label: float(value) for label, value in re.findall(pattern, answer.text, re.MULTILINE)}


PROMPTS = [
    f"def {name}({argument}):" for name in ("find", "load", "sort", "merge") for argument in ("a", "items", "path")
]


class Load:
    """Threads of completions, until `stop`: what each brought.

    Attributes:
        right, wrong: replies by whether they are those of an idle server.
        lost: (replica, whether it is a stream that had begun, error)
        rate: right tokens a second.
    """

    def __init__(self, client, expected, threads):
        self.client, self.expected = client, expected
        self.right, self.wrong, self.lost = 0, [], []
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(threads)]
        self.started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def _run(self, index):
        for number in range(index, 100_000):
            if self._stopped.is_set():
                return
            self._one(PROMPTS[number * 7 % len(PROMPTS)], streams=number % 2 == 0)

    def _one(self, prompt, streams):
        replica, text = None, ""
        options = {"model": NAME, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "extra_body": ENDLESS}
        try:
            with self.client.completions.with_streaming_response.create(**options, stream=streams) as answer:
                replica = answer.headers["x-replica"]
                if streams:
                    for chunk in answer.parse():
                        text += chunk.choices[0].text
                else:
                    text = answer.parse().choices[0].text
        except (openai.OpenAIError, httpx.HTTPError) as error:
            with self._lock:
                self.lost.append((replica, streams, repr(error)))
            return
        with self._lock:
            if text == self.expected[prompt]:
                self.right += 1
            else:
                self.wrong.append((prompt, text))

    def stop(self):
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)
        self.seconds = time.monotonic() - self.started
        self.rate = self.right * TOKENS / self.seconds


@pytest.fixture(scope="module")
def expected():
    """Prompt -> what the model writes without a server."""
    import rocforge as rf

    model, tokenizer = rf.load(MODEL, device="cpu", context=1024)
    params = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    return dict(zip(PROMPTS, rf.generate(model, tokenizer, PROMPTS, **params), strict=True))


def test_routes_and_the_key(server):
    """Those of a server alone, each by a replica; what needs the key does not answer without it."""
    assert both_are_ready(server) and server.get("/ready").json() == {"state": "ready"}
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == [NAME]
    assert server.post("/tokenize", json={"content": "a b"}).json()["count"] == 2
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        assert http.head("/ready").status_code == 200
    assert "/v1/chat/completions" in server.get("/openapi.json").json()["paths"]
    answer = server.post("/v1/completions", json={"model": NAME, "prompt": "a", "max_tokens": 2})
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert len(answer.headers.get_list("x-request-id")) == 1 and answer.headers["x-replica"] in states(server)
    id = answer.json()["id"]
    digits = {"model": NAME, "prompt": "a = ", "regex": "[0-9]{3}", "max_tokens": 8}
    assert server.post("/v1/completions", json=digits).json()["choices"][0]["text"].isdecimal()
    assert server.get(f"/v1/requests/{id}").json()["status"] == "finished"
    assert id in [request["id"] for request in server.get("/v1/requests").json()["data"]]
    with httpx.Client(base_url=server.url, trust_env=False) as stranger:
        assert stranger.get("/").status_code == stranger.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/v1/requests", "/openapi.json"):
            assert stranger.get(path).status_code == 401
        body = {"model": NAME, "prompt": "a"}
        for key in ("wrong", KEY[:-1], KEY + "s"):
            headers = {"Authorization": f"Bearer {key}"}
            assert stranger.post("/v1/completions", json=body, headers=headers).status_code == 401


def test_limits_hold(server):
    """Of bodies, heads, hosts, and what a request may say."""
    path = "/v1/completions"
    for body, status in ((b"{", 400), (b'{"a":' * 100, 400), (b'"' + b"a" * (5 << 20) + b'"', 413)):
        headers = {"Content-Type": "application/json"}
        assert server.post(path, content=body, headers=headers).status_code == status
    assert server.post(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert server.get("/v1/models", headers={"x-long": "a" * (40 << 10)}).status_code in (400, 431)
    assert server.get("/v1/models", headers={"Host": "attacker.example"}).status_code == 421
    assert server.post(path, json={"model": NAME, "prompt": "a", "nonsense": 1}).status_code == 400
    assert server.post(path, json={"model": "other", "prompt": "a"}).status_code == 404
    assert server.get("/v1/nothing").status_code == 404 and server.get(path).status_code == 405


def test_a_conversation_stays_with_the_replica_that_has_its_prefix(server, client):
    """Its later turns find the earlier ones in the prefix cache; several conversations use both replicas."""
    homes = []
    for number in range(12):
        messages, seen, cached = [{"role": "user", "content": f"number {number} is in a list of integers " * 8}], [], []
        for _ in range(3):
            options = {"model": NAME, "messages": messages, "max_tokens": 16, "temperature": 0}
            answer = client.chat.completions.with_raw_response.create(**options)
            seen.append(answer.headers["x-replica"])
            cached.append(answer.parse().usage.prompt_tokens_details.cached_tokens)
            text = answer.parse().choices[0].message.content
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "go on " * 20}]
        assert len({*seen}) == 1 and 0 < cached[1] < cached[2], (seen, cached)
        homes.append(seen[0])
    assert len({*homes}) == 2
    hits = metric(server, "cached_prompt_tokens_total")
    assert all(hits[home] > 0 for home in homes)


def test_a_stream_that_a_client_leaves_ends_on_its_replica(server, client):
    stream = client.completions.create(model=NAME, prompt="def f(", max_tokens=900, stream=True, extra_body=ENDLESS)
    id = next(iter(stream)).id
    assert server.get(f"/v1/requests/{id}").json()["status"] == "running"
    stream.close()
    wait_for(lambda: server.get(f"/v1/requests/{id}").json()["status"] == "cancelled")


def test_a_request_may_be_cancelled_wherever_it_runs(server, client):
    stream = client.completions.create(model=NAME, prompt="def f(", max_tokens=900, stream=True, extra_body=ENDLESS)
    server_side = next(iter(stream)).id
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as http:
        assert http.delete(f"{server.url}/v1/requests/{server_side}").status_code == 200
    with pytest.raises(openai.APIError):
        for _ in stream:
            pass


def test_a_response_that_is_kept_is_found_from_every_replica(server, client):
    ids = [client.responses.create(model=NAME, input=f"a = {n}", max_output_tokens=8).id for n in range(4)]
    for id in ids:
        assert client.responses.retrieve(id).id == id
        following = client.responses.create(model=NAME, input="b = 1", previous_response_id=id, max_output_tokens=4)
        assert following.previous_response_id == id
    client.responses.delete(ids[0])
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(ids[0])


def test_a_second_server_does_not_replace_the_first(server):
    """It finds the cluster of this machine, and the application there."""
    command = [sys.executable, "-m", "rocforge", "serve", str(MODEL), "--ray", "--port", "0"]
    ended = subprocess.run(
        command, env={**os.environ, **CLUSTER, "RAY_ADDRESS": ""}, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1 and "has an application 'rocforge' already" in ended.stderr, ended.stderr
    assert both_are_ready(server)


def test_two_replicas_serve_load(server, client, expected):
    load = Load(client, expected, threads=8)
    time.sleep(15)
    load.stop()
    made = metric(server, "generated_tokens_total")
    print(f"\n2 replicas, 8 threads: {load.right} replies, {load.rate:.0f} tokens/s")
    assert load.right > 20 and not load.wrong and not load.lost, (load.wrong, load.lost)
    assert len(made) == 2 and min(made.values()) > 0.1 * max(made.values())


def test_a_killed_replica_loses_its_streams_and_no_other_request(server, client, expected):
    """Those that had sent something end with an error; the rest is answered by the other one, and right."""
    wait_for(lambda: both_are_ready(server), 60)
    before = states(server)
    retried = sum(metric(server, "requests_retried_total").values())
    load = Load(client, expected, threads=6)
    with ThreadPoolExecutor(8) as pool:
        long = [pool.submit(long_text, client, number, 150) for number in range(8)]
        time.sleep(3)
        os.kill(actors(server)[0], signal.SIGKILL)
        made = [one.result(60) for one in long]
    wait_for(lambda: both_are_ready(server), 60)
    load.stop()
    retried = sum(metric(server, "requests_retried_total").values()) - retried
    print(f"\na replica killed: {load.right} replies, {len(load.lost)} lost, {retried:.0f} retried")
    dead = {*before} - {*states(server)}
    assert len(dead) == 1 and not load.wrong, load.wrong
    assert made == [150] * 8 and retried > 0 and load.right > 20
    assert len(load.lost) <= 6
    for replica, streams, error in load.lost:
        assert replica in dead and streams and "the replica that had the request has ended" in error


def test_a_rolling_restart_loses_nothing(server, client, expected):
    wait_for(lambda: both_are_ready(server), 60)
    before = {*states(server)}
    load = Load(client, expected, threads=4)
    time.sleep(2)
    server.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: both_are_ready(server) and not before & {*states(server)}, 120)
    time.sleep(2)
    load.stop()
    print(f"\na rolling restart in {load.seconds:.0f} s: {load.right} replies, {len(load.lost)} lost")
    assert load.right > 20 and not load.wrong and not load.lost, (load.wrong, load.lost)


def test_replicas_follow_the_tokens_in_flight(expected, tmp_path):
    """One alone, two under load, one afterwards; no reply is lost or wrong on the way. An engine that breaks is
    replaced. At the end a stream in progress ends in good order."""
    broken = tmp_path / "broken"
    with serving("-c", SCALED, str(MODEL), str(broken)) as server, openai_client(server) as client:
        assert len(states(server)) == 1
        load = Load(client, expected, threads=4)
        time.sleep(10)
        load.stop()
        print(f"\n1 replica, 4 threads: {load.right} replies, {load.rate:.0f} tokens/s")
        assert load.right and not load.wrong and not load.lost, (load.wrong, load.lost)
        load = Load(client, expected, threads=4)
        with ThreadPoolExecutor(8) as pool:
            long = [pool.submit(long_text, client, number, 400) for number in range(8)]
            wait_for(lambda: both_are_ready(server), 60)
            assert [one.result(120) for one in long] == [400] * 8
        load.stop()
        assert load.right and not load.wrong and not load.lost, (load.wrong, load.lost)
        wait_for(lambda: len(states(server)) == 1, 60)
        a_broken_engine_is_replaced(server, client, broken)
        stream = client.completions.create(model=NAME, prompt="def f(", max_tokens=20, stream=True, extra_body=ENDLESS)
        next(iter(stream))
        server.process.send_signal(signal.SIGTERM)
        assert len(list(stream)) == 19 and server.process.wait(60) == 0


def a_broken_engine_is_replaced(server, client, broken):
    (before,) = states(server)
    broken.touch()
    for _ in range(3):  # so many failed steps in a row end an engine
        with pytest.raises(openai.APIStatusError):
            client.completions.create(model=NAME, prompt="a", max_tokens=2)
    wait_for(lambda: before not in states(server), 60)
    broken.unlink()
    wait_for(lambda: [*states(server).values()] == ["ready"], 60)
    assert client.completions.create(model=NAME, prompt="a", max_tokens=2).usage.completion_tokens == 2


def long_text(client, number, tokens):
    """How many tokens a reply has that is no stream."""
    prompt = f"import {number}"
    answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=tokens, extra_body=ENDLESS)
    return answer.usage.completion_tokens


def test_replicas_of_two_cards(expected):
    """They write what one card does; one that is killed ends both its processes, and another one comes."""
    options = ["--ray", "--device", "cpu", "--tensor-parallel", "2", "--port", "0"]
    with serving("-m", "rocforge", "serve", str(MODEL), *options) as server, openai_client(server) as client:
        (replica,), (card,) = actors(server), processes_of("CardActor", server.process.pid)
        assert written(client) == expected[PROMPTS[0]]
        os.kill(replica, signal.SIGKILL)
        assert gone([replica, card], 20) and written(client) == expected[PROMPTS[0]]


def written(client):
    """The text of the first prompt."""
    options = {"model": NAME, "prompt": PROMPTS[0], "max_tokens": TOKENS, "temperature": 0, "extra_body": ENDLESS}
    return client.completions.create(**options).choices[0].text


def test_a_model_that_does_not_load_is_an_error(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(MODEL.read_bytes()[: 1 << 20])
    command = [sys.executable, "-m", "rocforge", "serve", str(bad), "--ray", "--device", "cpu", "--port", "0"]
    ended = subprocess.run(command, env={**os.environ, **CLUSTER}, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and ended.stderr.startswith("error: "), ended.stderr
    assert "Traceback" not in ended.stderr
