"""The load test of benches/, for four seconds: its own checks must hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_load():
    """16 clients, some leaving, some sending garbage: replies as computed alone, no leak, clean shutdown."""
    command = [sys.executable, ROOT / "benches" / "load_test.py", "--clients", "16", "--seconds", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
