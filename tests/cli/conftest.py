"""The command as a user runs it: a process, with pipes or with a terminal."""

import os
import subprocess
import sys

import numpy as np
import pytest
from adapters import random_lora, write_gguf
from golden import demo

import rocforge as rf

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="session")
def model():
    """The path of the bundled demo model."""
    return str(demo.bundled())


@pytest.fixture(scope="session")
def adapter(model, tmp_path_factory):
    """The path of a random adapter of the demo model."""
    loaded, _ = rf.load(model, device="cpu")
    lora = random_lora(np.random.default_rng(0), loaded, ["attn_q", "ffn_up", "ffn_down"], size=0.5)
    return write_gguf(tmp_path_factory.mktemp("adapter") / "adapter.gguf", lora, "llama", alpha=8.0)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """The path of a chat template: the demo model has none."""
    path = tmp_path_factory.mktemp("template") / "chat.jinja"
    path.write_text(TEMPLATE)
    return str(path)


@pytest.fixture
def rocforge():
    """Runs the command with pipes and returns the finished process; `environment` adds variables."""

    def run(*arguments, input="", environment=None, check=True):
        done = subprocess.run(
            [sys.executable, "-m", "rocforge", *map(str, arguments)],
            input=input,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **(environment or {})},
        )
        assert not check or done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def terminal():
    """Runs the command in a terminal of its own; gives a pexpect process, which does not outlive the test."""
    pexpect = pytest.importorskip("pexpect")
    processes = []

    def spawn(*arguments):
        command = ["-m", "rocforge", *map(str, arguments)]
        environment = {**os.environ, "TERM": "xterm"}
        process = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=60, env=environment)
        processes.append(process)
        return process

    yield spawn
    for process in processes:
        process.close(force=True)
