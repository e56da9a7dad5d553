"""Fixtures and options for all tests."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: threads of many processes spin on each other's cores

import secrets
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings


def pytest_addoption(parser):
    parser.addoption("--seed", default="0", help="of random inputs: a number, or 'random' for a new one")


def pytest_configure(config):
    """One seed for the `rng` fixture and for Hypothesis, whose own settings would fix it in CI alone."""
    option = config.option
    option.seed = secrets.randbits(32) if option.seed == "random" else int(option.seed)
    option.hypothesis_seed = str(option.seed)
    settings.register_profile("seeded", derandomize=False, deadline=None)
    settings.load_profile("seeded")


def pytest_report_header(config):
    return f"seed: {config.option.seed} (--seed={config.option.seed} makes the same inputs, --seed=random new ones)"


@pytest.fixture
def rng(request):
    """Random numbers, the same for a test at each run with one seed."""
    return np.random.default_rng([request.config.option.seed, zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for compiled kernels and tuning, which does not exist yet."""
    from rocforge.device import kernel_cache

    monkeypatch.setenv("ROCFORGE_CACHE_DIR", str(tmp_path / "a" / "kernels"))
    kernel_cache.folder.cache_clear()
    yield tmp_path / "a" / "kernels"
    kernel_cache.folder.cache_clear()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The path of a wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        folder,
        Path(__file__).parents[1],
    ]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path
