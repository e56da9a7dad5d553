"""`pytest benches --benchmark-enable` runs on any machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_what_needs_a_gpu_is_skipped(tmp_path):
    """All files are collected; where no GPU is seen, those of kernels are skipped, and one that needs none runs."""
    environment = {**os.environ, "HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "", "OPENBLAS_NUM_THREADS": "1"}
    options = ["--benchmark-enable", "-k", "test_open", "-rs", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "benches", *options, "--rootdir", str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
    assert "needs a GPU" in done.stdout and "3 skipped" in done.stdout
