"""Tests here run on the GPU if CuPy sees one, else on the simulator, once with wave 64 and once with wave 32."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _of_hipsim(name: str) -> ModuleType:
    """A module of tests/hipsim/, which is no package."""
    path = Path(__file__).resolve().parents[1] / "hipsim" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"hipsim_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bridge = _of_hipsim("pytest_bridge")

pytest_collection_modifyitems = bridge.pytest_collection_modifyitems
pytest_collection_finish = bridge.pytest_collection_finish
pytest_runtest_protocol = bridge.pytest_runtest_protocol
pytest_sessionfinish = bridge.pytest_sessionfinish


@functools.cache
def cupy_sees_a_device() -> bool:
    """Asked in another process, since a failed import of CuPy leaves parts of it behind."""
    if "HIPSIM_ARCH" in os.environ:  # already under the simulator
        return True
    if importlib.util.find_spec("cupy") is None:
        return False
    question = "import cupy; assert cupy.cuda.runtime.getDeviceCount() > 0"
    return subprocess.run([sys.executable, "-c", question], capture_output=True).returncode == 0


def _wheel_for_rocm() -> bool:
    try:
        importlib.metadata.distribution("cupy-rocm-7-0")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class WithoutDevice(pytest.File):
    def collect(self) -> list:
        pytest.skip("no GPU, and no cupy-rocm-7-0 to run on the simulator", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if cupy_sees_a_device():
        return None
    kind = bridge.SimulatedModule if _wheel_for_rocm() else WithoutDevice
    return kind.from_parent(parent, path=module_path)


def pytest_configure(config: pytest.Config) -> None:
    if "HIPSIM_ARCH" in os.environ and "HIPSIM_MACHINE_CODE" in os.environ:
        _of_hipsim("machine_code").install()
    if path := os.environ.get("HIPSIM_REPORT"):
        config.pluginmanager.register(bridge.Reporter(path, config))


@pytest.fixture(autouse=True)
def _errors_in_their_own_test():
    """Work that a test leaves queued runs, and fails, in that test."""
    yield
    import cupy

    cupy.cuda.Device().synchronize()


@pytest.fixture(scope="session")
def path(tmp_path_factory) -> Path:
    """A small random llama in Q8_0, as a file."""
    from golden import build

    path = tmp_path_factory.mktemp("llama") / "model.gguf"
    build(path, "llama-linear", "Q8_0")
    return path
