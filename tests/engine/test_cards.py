"""Models over several cards, here CPUs: a process each, one engine, and what becomes of a card that fails."""

import gc
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden import demo, relative_error

import rocforge as rf
from rocforge.engine.cards import ThisMachine
from rocforge.errors import CardFailedError, DeviceError
from rocforge.load import load_on_cards
from rocforge.loading.files import fingerprint

PROMPT = "import numpy as"
OPTIONS = {"max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def one():
    return rf.load(demo.bundled(), device="cpu")


@pytest.fixture(scope="module")
def two():
    return rf.load(demo.bundled(), devices=["cpu"] * 2)


@pytest.fixture
def mortal():
    """Two cards for a test that ends them."""
    return rf.load(demo.bundled(), devices=["cpu"] * 2)


def processes_of(model):
    return [other.process.popen for other in model.cards._others]


def assert_nothing_is_left(processes):
    deadline = time.monotonic() + 5
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline, "a card's process is still there"
        time.sleep(0.01)


def test_text_and_logits(one, two):
    tokens = one[1].encode(PROMPT)
    assert relative_error(two[0](tokens), one[0](tokens)) < 1e-5
    assert relative_error(two[0].hidden(tokens), one[0].hidden(tokens)) < 1e-5
    prompts = [PROMPT, "def f(", "class A"]
    assert rf.generate(*two, prompts, **OPTIONS) == rf.generate(*one, prompts, **OPTIONS)
    sampled = {"max_tokens": 8, "temperature": 0.8, "seed": 3}
    assert rf.generate(*two, PROMPT, **sampled) == rf.generate(*one, PROMPT, **sampled)


def test_four_cards_and_layers_dealt_out(one):
    for more in ({"devices": ["cpu"] * 4}, {"devices": ["cpu"] * 2, "shares": [24, 16]}):
        model, tokenizer = rf.load(demo.bundled(), **more)
        processes = processes_of(model)
        assert rf.generate(model, tokenizer, PROMPT, **OPTIONS) == rf.generate(*one, PROMPT, **OPTIONS)
        model.cards.close()
        assert_nothing_is_left(processes)


def test_one_device_needs_no_other_process():
    model, _ = rf.load(demo.bundled(), devices=["cpu"])
    assert model.cards is None and model.group.size == 1


def test_processes_end_with_the_model():
    model, _ = rf.load(demo.bundled(), devices=["cpu"] * 2)
    processes = processes_of(model)
    del model
    gc.collect()
    assert_nothing_is_left(processes)


def test_processes_end_with_their_parent_however_that_ends():
    program = f"import rocforge as rf, time; m, _ = rf.load({str(demo.bundled())!r}, devices=['cpu'] * 2)\n"
    program += "print(*[other.process.popen.pid for other in m.cards._others], flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(Path(rf.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert pids
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a card's process has outlived its parent"
        time.sleep(0.01)


def test_a_card_that_is_killed_is_named(mortal):
    model, tokenizer = mortal
    processes = processes_of(model)
    with rf.Engine(model, tokenizer.eog_token_ids) as engine:
        engine.add(tokenizer.encode(PROMPT), rf.SamplingParams(max_tokens=8))
        engine.step()
        processes[0].kill()
        with pytest.raises(CardFailedError, match=r"card 1 \(cpu\) was killed by SIGKILL"):
            for _ in range(4):
                engine.step()
    assert_nothing_is_left(processes)
    with pytest.raises(CardFailedError, match="card 1"):
        model([1, 2, 3])


def test_the_error_of_a_card_is_named(mortal):
    model, _ = mortal
    with pytest.raises(CardFailedError, match=r"card 1 \(cpu\) failed: AttributeError: .*no_such_method"):
        model.cards.ask("no_such_method")
    assert_nothing_is_left(processes_of(model))


def test_an_error_of_the_first_card_ends_the_others(mortal):
    model, _ = mortal
    with pytest.raises(KeyboardInterrupt), model.cards.together():
        raise KeyboardInterrupt
    assert_nothing_is_left(processes_of(model))
    with pytest.raises(CardFailedError, match="card 0"):
        rf.Engine(model)


def test_a_model_that_does_not_fit_its_cards_leaves_nothing():
    with pytest.raises(ValueError, match="3 cards do not divide 8 heads"):
        rf.load(demo.bundled(), devices=["cpu"] * 3)


@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        (["cpu", "gpu:7"], DeviceError, "gpu|GPU"),
        ([], ValueError, "devices are none"),
        ("cpu", TypeError, "names"),
        (True, TypeError, "a number of cards"),
    ],
)
def test_bad_devices(devices, error, message):
    with pytest.raises(error, match=message):
        rf.load(demo.bundled(), devices=devices)


def test_bad_shares():
    with pytest.raises(ValueError, match="one number over 0 for each"):
        rf.load(demo.bundled(), devices=["cpu"] * 2, shares=[1, 2, 3])


def test_what_is_for_one_card(two, tmp_path):
    model, _ = two
    with pytest.raises(ValueError, match="adapters are for a model on one card"):
        model.adapters.load("a", "a.gguf")
    with pytest.raises(ValueError, match="load it on one"):
        model.save(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="a model on one card"):
        model.logits(np.zeros((1, 512), np.float32))
    with rf.Engine(model) as engine:
        with pytest.raises(ValueError, match="of a model on one card"):
            engine.embed([[1, 2]])
        with pytest.raises(ValueError, match="one engine at a time"):
            rf.Engine(model)
    with pytest.raises(ValueError, match="cannot be edited"), model.edit({"blk.0.ffn_down": 0.5}):
        model([1, 2])
    with pytest.raises(IndexError, match="allowed are 0 to 4095"):
        model([4096])
    with pytest.raises(ValueError, match="of one's own"):
        model([1, 2], model.trivial_batch(2))
    assert model([1, 2]).shape == (2, 4096)  # nothing of that has ended the cards


class TwoMachines(ThisMachine):
    """Cards of this machine, at two of its addresses.

    Args:
        more: what is other in the jobs of the second.
    """

    hosts = ("127.0.0.1", "127.0.0.2")

    def __init__(self, **more):
        super().__init__(["cpu", "cpu"])
        self.more = more

    def start(self, job):
        return super().start(replace(job, **self.more))


LOADING = {"context": None, "shares": None}


def test_cards_of_several_machines_are_named_with_them(one):
    model, tokenizer = load_on_cards(str(demo.bundled()), TwoMachines(), False, LOADING)
    processes = processes_of(model)
    assert rf.generate(model, tokenizer, PROMPT, **OPTIONS) == rf.generate(*one, PROMPT, **OPTIONS)
    processes[0].kill()
    with pytest.raises(CardFailedError, match=r"card 1 \(cpu on 127\.0\.0\.2\) was killed by SIGKILL"):
        rf.generate(model, tokenizer, PROMPT, **OPTIONS)
    assert_nothing_is_left(processes)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"path": "/nowhere.gguf"}, "FileNotFoundError: no such file: /nowhere.gguf"),
        ({"fingerprint": "another"}, r"ValueError: .*demo-11M-Q8_0\.gguf is another file there than card 0 has"),
        ({"key": b"another"}, r"does not reach card 1 \(cpu on 127\.0\.0\.2\): no connection"),
    ],
)
def test_what_another_machine_has_wrong_is_named(there, message):
    with pytest.raises(DeviceError, match=message) as found:
        load_on_cards(str(demo.bundled()), TwoMachines(**there), False, LOADING)
    assert "card 1 (cpu on 127.0.0.2)" in str(found.value)


def test_fingerprints(tmp_path):
    """They differ where sizes do, and where much of the bytes does."""
    first, same, longer, other = (tmp_path / name for name in ("a", "b", "c", "d"))
    data = np.random.default_rng(1).bytes(1 << 20)
    first.write_bytes(data)
    same.write_bytes(data)
    longer.write_bytes(data + b"\0")
    other.write_bytes(data[: 1 << 19] + bytes(1 << 19))
    assert fingerprint([first]) == fingerprint([same])
    assert len({fingerprint([path]) for path in (first, longer, other)}) == 3
    assert fingerprint([first, same]) != fingerprint([first])
