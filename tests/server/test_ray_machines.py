"""Replicas whose cards are on two machines: here Ray's nodes at several addresses of this one, a processor each.

    pip install -e '.[test,ray]' && pytest tests/server/test_ray_machines.py -s

Every wait has an end.
"""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray_server import CLUSTER, KEY, MODEL, NAME, both_are_ready, openai_client, processes_of, serving, states
from server_process import gone, wait_for

import rocforge as rf

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
openai = pytest.importorskip("openai")
cluster_utils = pytest.importorskip("ray.cluster_utils")

MISSING = """
import sys
from dataclasses import replace
from rocforge.server.engine_options import EngineOptions
from rocforge.server.models import find_models
from rocforge.server.run_ray import serve_on_ray
from rocforge.server.settings import Settings

class Missing(EngineOptions):
    def load(self, path, lora):
        machines = self.machines()
        start = machines.start
        machines.start = lambda job: start(replace(job, path="/nowhere.gguf"))
        return EngineOptions(machines=lambda: machines).load(path, lora)

serve_on_ray(find_models(sys.argv[1:2])[0], port=0, options=Missing(devices=["cpu"] * 2),
             settings=Settings(model_name="demo", root_path="/other"))
"""
"""The second card's machine does not have the model."""
OPTIONS = {"max_tokens": 40, "temperature": 0}
PROMPT = "import numpy as"
REPLICA, CARD = "ServeReplica:rocforge:Replica", "CardActor"


@pytest.fixture(scope="module")
def cluster():
    """A head without processors, and four nodes with one each."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CLUSTER.items():
            patch.setenv(name, value)
        cluster = cluster_utils.Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for number in range(2, 6):
                add_node(cluster, number)
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster, number):
    return cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{number}")


@pytest.fixture(scope="module")
def server(cluster):
    """Two replicas of two cards each, of which nothing is left on the cluster in the end."""
    options = ["--ray", "--replicas", "2", "--device", "cpu", "--tensor-parallel", "2", "--port", "0", "--api-key", KEY]
    with serving("-m", "rocforge", "serve", str(MODEL), *options, RAY_ADDRESS=cluster.address) as server:
        yield server
    wait_for(lambda: not found(CARD) and not found(REPLICA))


@pytest.fixture
def client(server):
    with openai_client(server) as client:
        yield client


def found(name):
    """Process id -> that of its node."""
    parents = {}
    for pid in processes_of(name, os.getpid()):
        with open(f"/proc/{pid}/stat") as stat:
            parents[pid] = int(stat.read().rpartition(")")[2].split()[1])
    return parents


def written(client, prompt=PROMPT, **more):
    answer = client.completions.create(model=NAME, prompt=prompt, **{**OPTIONS, **more})
    return answer.choices[0].text


def streamed(client, prompt, tokens):
    """How many tokens came as a stream, or the error that ended it."""
    options = {"max_tokens": tokens, "extra_body": {"ignore_eos": True}, "stream_options": {"include_usage": True}}
    try:
        chunks = list(client.completions.create(model=NAME, prompt=prompt, stream=True, **options))
    except openai.APIError as error:
        return error.message
    return chunks[-1].usage.completion_tokens


@pytest.fixture(scope="module")
def expected():
    return rf.generate(*rf.load(MODEL, device="cpu"), PROMPT, **OPTIONS)


def test_cards_on_two_machines_write_what_one_writes(server, client, expected):
    replicas, cards = found(REPLICA), found(CARD)
    assert len(replicas) == len(cards) == 2 and len({*replicas.values(), *cards.values()}) == 4
    assert both_are_ready(server) and written(client) == expected


def test_a_card_that_is_killed_ends_its_replica_alone(server, client, expected):
    """Also where it has nothing to do; requests and streams go on at the other one, and another one comes."""
    before, cards, replicas = states(server), found(CARD), found(REPLICA)
    with ThreadPoolExecutor(12) as pool:
        streams = [pool.submit(streamed, client, f"import {number}", 400) for number in range(8)]
        time.sleep(1)
        texts = [pool.submit(written, client) for _ in range(12)]
        killed = time.monotonic()
        os.kill(next(iter(cards)), signal.SIGKILL)
        assert {text.result(120) for text in texts} == {expected}
        ends = [stream.result(120) for stream in streams]
        assert {*ends} == {400, "the replica that had the request has ended"}, ends
    wait_for(lambda: len({*before} - {*states(server)}) == 1 and both_are_ready(server), 120)
    print(f"\na card killed under 12 requests: its replica is back after {time.monotonic() - killed:.1f} s")
    assert re.search(r"CardFailedError: card 1 \(cpu on 127\.0\.0\.\d\) has ended", "".join(server.lines))
    assert len(found(CARD)) == len(found(REPLICA)) == 2
    assert len({*replicas} & {*found(REPLICA)}) == 1 and written(client) == expected
    idle = next(iter(found(CARD)))
    before, killed = states(server), time.monotonic()
    os.kill(idle, signal.SIGKILL)
    wait_for(lambda: len({*before} - {*states(server)}) == 1, 120)
    print(f"an idle card killed: its replica ends after {time.monotonic() - killed:.1f} s")
    wait_for(lambda: both_are_ready(server), 120)


def test_a_machine_that_ends_is_replaced(cluster, server, client, expected):
    """What was there comes back on another one, and nothing of it stays."""
    before, processes = states(server), {*found(CARD), *found(REPLICA)}
    (node,) = [node for node in cluster.worker_nodes if node.node_ip_address == "127.0.0.3"]
    cluster.remove_node(node)
    removed = time.monotonic()
    add_node(cluster, 6)
    wait_for(lambda: len({*before} - {*states(server)}) == 1 and both_are_ready(server), 120)
    print(f"\na node removed: its replica is back after {time.monotonic() - removed:.1f} s")
    left = {*found(CARD), *found(REPLICA)}
    assert len(left) == 4 and len(processes - left) == 2 and gone(processes - left)
    assert written(client) == expected


def test_a_rolling_restart_loses_nothing(server, client, expected):
    """Nor does it need more machines."""
    before, cards = states(server), found(CARD)
    with ThreadPoolExecutor(2) as pool:
        texts = [pool.submit(written, client) for _ in range(20)]
        server.process.send_signal(signal.SIGUSR1)
        assert {text.result(120) for text in texts} == {expected}
    wait_for(lambda: both_are_ready(server) and not {*before} & {*states(server)}, 120)
    assert gone(cards) and len(found(CARD)) == 2 and written(client) == expected


def test_a_machine_without_the_model_is_named(cluster):
    for number in (7, 8):
        add_node(cluster, number)
    command = [sys.executable, "-c", MISSING, str(MODEL)]
    variables = {**os.environ, "RAY_ADDRESS": cluster.address}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    reason = r"RocforgeError: the replicas do not start: .*card 1 \(cpu on 127\.0\.0\.[78]\) failed: .*/nowhere\.gguf"
    assert re.fullmatch(reason, ended.stderr.splitlines()[-1].removeprefix("rocforge.errors.")), ended.stderr


def test_cards_of_a_machine_see_each_other():
    from rocforge.server.ray_cards import seen_by_each

    places = [("10.0.0.1", "2"), ("10.0.0.1", "0"), ("10.0.0.2", "7")]
    assert seen_by_each(places) == [("gpu:0", "2,0"), ("gpu:1", "2,0"), ("gpu:0", "7")]
    assert seen_by_each([("10.0.0.1", None), ("10.0.0.2", None)]) == [("cpu", ""), ("cpu", "")]
