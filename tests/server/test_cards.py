"""A server whose model is on two cards, here CPUs: it answers as with one, and a card that dies ends the engine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from golden import demo
from server_process import descendants, gone, wait_for

import rocforge as rf

pytestmark = pytest.mark.slow

SERVE = """
import sys
from rocforge.server.run import serve
serve(sys.argv[1], port=0, devices=["cpu"] * 2, log_level="warning", on_ready=lambda url: print(url, flush=True))
"""
ROOT = Path(__file__).parents[2]
BODY = {"prompt": "import numpy as", "max_tokens": 8, "temperature": 0}


def is_card(pid):
    return b"rocforge.card" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_two_cards():
    model = demo.bundled()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(model)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        body = {**BODY, "model": model.stem}
        text = httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=60).json()["choices"][0]["text"]
        assert text == rf.generate(*rf.load(model, device="cpu"), **BODY)
        refused = httpx.post(f"{url}/v1/embeddings", json={"model": model.stem, "input": "a"}, trust_env=False)
        assert refused.status_code == 400 and "on one card" in refused.text
        everyone = descendants(process.pid)
        (card,) = filter(is_card, everyone)
        os.kill(card, signal.SIGKILL)
        assert httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=60).status_code >= 500
        wait_for(lambda: process.poll() is not None)
        assert process.returncode == 1 and "card 1 (cpu) was killed by SIGKILL" in process.stderr.read()
        assert gone(everyone)
    finally:
        process.kill()
        process.wait()
