"""Benches that need a GPU can be collected with one, and those of kernels run, with small sizes."""

import importlib
import math
from pathlib import Path

import bench_kernels
import pytest

from rocforge.device import tuning
from rocforge.device.timing import seconds

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

FILES = (Path(__file__).parents[2] / "benches").glob("bench_*.py")


@pytest.mark.parametrize("name", [path.stem for path in FILES if "\ndef test_" in path.read_text()])
def test_imports(name):
    """What they import of rocforge is there."""
    importlib.import_module(name)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few layers, and a replay of a launch."""
    monkeypatch.setattr(bench_kernels, "CACHES", 1 << 16)
    monkeypatch.setattr(bench_kernels, "seconds", lambda launches: seconds(launches[:1], 1))


@pytest.mark.parametrize(
    "bench, sizes",
    [
        (bench_kernels.decode_attention, (2, 40, 8, 2, 64)),
        (bench_kernels.decode_attention, (2, 40, 16, 2, 64, "f16", 32, True)),
        (bench_kernels.prefill_attention, (40, 8, 2, 64)),
        (bench_kernels.prefill_attention, (40, 2, 2, 192, "f16", 128, 32)),
        (bench_kernels.latent_prefill, (40, 32, 3, 96, 32, 16, 48)),
        (bench_kernels.delta_net, (1, 2, 2, 4, 64)),
        (bench_kernels.delta_net, (40, 1, 2, 4, 64)),
    ],
)
def test_runs(bench, sizes):
    """It gives two figures."""
    with tuning.trying(expanded_queries=1):
        figures = bench(*sizes)
    assert len(figures) == 2 and all(figure > 0 and math.isfinite(figure) for figure in figures)


def test_norms(monkeypatch):
    """All norms behind a part have a figure."""
    monkeypatch.setattr(bench_kernels, "rows_of_floats", lambda rows, columns: [bench_kernels.noise((2, columns))] * 2)
    report = bench_kernels.Report(1e12)
    bench_kernels.norms(report)
    assert len([name for name in report.figures if name.startswith("add_normed")]) == 6
