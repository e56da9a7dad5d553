"""Measuring on a device: what is launched and computed while the clock runs. How long it takes says nothing here."""

import cupy as cp
import numpy as np
import pytest

from rocforge.device.timing import noise, seconds, seconds_of
from rocforge.ops.activation import scale
from rocforge.selftest import figures
from rocforge.selftest.sizes import FULL

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]


def test_noise():
    """A million numbers over and over, of a standard deviation of one."""
    x = noise((3, 1_000_003), np.float16).get()
    assert x.dtype == np.float16 and (x == x[0]).all() and abs(x[0].astype(np.float32).std() - 1) < 0.01
    assert noise((5, 7)).shape == (5, 7)


def test_seconds():
    """Launches run once each, then from a graph, as often as is said, and twice more before that."""
    x = cp.ones(4, np.float32)
    cp.cuda.Device().synchronize()  # the streams that measure do not wait for the null stream
    assert seconds([lambda: scale(x, 2.0, out=x)] * 3, replays=2) > 0
    assert (x.get() == 2.0 ** (3 + 3 * 4)).all()
    assert len(seconds_of(lambda: scale(x, 0.5, out=x), 3)) == 3
    assert (x.get() == 2.0 ** (3 + 3 * 4 - 5)).all()


def test_figures(monkeypatch):
    """Of the selftest, with little memory and few tokens: rates, each with the limit that follows from the others."""
    monkeypatch.setattr(figures, "available_memory", lambda device: 32 << 20)
    measured = figures.library_product_rate
    monkeypatch.setattr(figures, "library_product_rate", lambda size: measured(size // 64))
    for name, value in {"PROMPTS": (8, 80), "GENERATED": 3, "ROUNDS": 1}.items():
        monkeypatch.setattr(figures, name, value)
    figures._bandwidth.cache_clear()
    figures._products.cache_clear()
    found = {}
    for check in figures.checks(FULL):
        found |= check.run(np.random.default_rng(0)).figures
    model = [f"tiny Q4_K_M, {test}" for test in ("pp8", "pp80", "tg3")]
    assert list(found) == ["read bandwidth", "float16 products", *model]
    assert all(figure.value > 0 for figure in found.values())
    assert all(found[name].limit > 0 and found[name].unit == "tokens/s" for name in model)
    assert found[model[0]].limit == found[model[1]].limit != found[model[2]].limit
