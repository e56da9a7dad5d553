"""`rocforge tune` on a device, quick: it measures, keeps what it found, and later runs use it."""

import json
import os
import subprocess
import sys

import cupy as cp
import numpy as np
import pytest

from rocforge.device import tuned, tuning
from rocforge.device.cards import card_of
from rocforge.errors import DeviceError
from rocforge.ops.activation import swiglu
from rocforge.ops.device.operands import quantized
from rocforge.ops.linear import gated_linear, linears
from rocforge.selftest.weights import product_error, random_weight, relative_error, values_of
from rocforge.tune import search
from rocforge.tune.work import QUICK, Work

pytestmark = [
    pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches"),
    pytest.mark.slow,
    pytest.mark.any_wave,
]


def command(*arguments, cache):
    done = subprocess.run(
        [sys.executable, "-m", "rocforge", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "ROCFORGE_CACHE_DIR": str(cache)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command(tmp_path):
    """Each setting has a value that is one of its candidates; what is kept is what `rocforge info` then shows."""
    found = json.loads(command("tune", "--quick", "--json", cache=tmp_path))
    card = card_of(0)
    assert (found["arch"], found["compute_units"]) == (card.family, card.compute_units)
    names = [setting["name"] for setting in found["settings"]]
    assert names == [name for name in tuned.CANDIDATES if name not in search.ON_MATRIX_UNIT or tuning.of(0).tile_tokens]
    for setting in found["settings"]:
        tried = {*tuned.CANDIDATES[setting["name"]], setting["shipped"]}
        assert setting["best"] in tried and {*map(int, setting["seconds"])} == tried and not setting["wrong"]
    changed = {
        setting["name"]: setting["best"] for setting in found["settings"] if setting["best"] != setting["shipped"]
    }
    shown = json.loads(command("info", "--json", cache=tmp_path))["tuning"]
    assert shown == {"shipped": tuning.shipped(card.arch).basis, "file": found["file"], "measured": changed}


def steady(monkeypatch, seconds):
    """One field of two candidates, one case, and times that are given by value."""
    monkeypatch.setattr(search, "CANDIDATES", {"gemv_threads": tuple(seconds)})
    monkeypatch.setattr(search.timing, "seconds", lambda launches, replays: seconds[tuning.current().gemv_threads])


def test_the_fastest_is_chosen(monkeypatch, rng):
    """Where it saves enough to be more than noise."""
    for times, best in (({128: 2.0, 64: 1.0}, 64), ({128: 1.0, 64: 0.99}, 128), ({128: 1.0, 256: 2.0}, 128)):
        steady(monkeypatch, times)
        (setting,) = search.search(tuning.shipped(card_of(0).arch), QUICK, rng)
        assert (setting.shipped, setting.best, setting.seconds) == (128, best, pytest.approx(times))


def test_a_wrong_result_is_not_chosen(monkeypatch, rng):
    """However fast: it is named. With the shipped value it is an error."""
    steady(monkeypatch, {128: 2.0, 64: 1.0})

    def case(value):
        error = lambda y: float(tuning.current().gemv_threads == value)  # noqa: E731
        return [lambda rng: Work([lambda: None], error)]

    monkeypatch.setattr(search, "cases", lambda name, sizes: case(64))
    (setting,) = search.search(tuning.shipped(card_of(0).arch), QUICK, rng)
    assert (setting.best, setting.wrong) == (128, {64: 1.0})
    monkeypatch.setattr(search, "cases", lambda name, sizes: case(128))
    with pytest.raises(DeviceError, match="with gemv_threads at 128, as shipped, a result is off by 1"):
        list(search.search(tuning.shipped(card_of(0).arch), QUICK, rng))


CHANGES = [
    {"gemv_threads": 64},
    {"gemv_small_rows": 0},
    {"gemv_rows_4": 1, "gemv_rows_8": 2},
    {"gated_pairs_8": 1},
    {"gated_threads": 512, "gated_lanes": 16},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_products_are_right_however_cut(rng, changes, tokens):
    """The kernels that are compiled for other numbers, and the launches that go with them, agree."""
    weights = [random_weight(rng, "Q4_K", (70, 512)) for _ in range(2)]
    x = cp.asarray(rng.standard_normal((tokens, 512)).astype(np.float32))
    rounded, there = values_of(quantized(x)), [w.to_device("gpu") for w in weights]
    before = tuning.current()
    with tuning.trying(int8_tokens=8, **changes):
        ys, z = linears(x, there), gated_linear(x, *there)
    assert tuning.current() is before
    assert all(product_error(y, rounded, w.dequantize()) < 1e-5 for y, w in zip(ys, weights, strict=True))
    assert relative_error(z, swiglu(*(y.get() for y in ys))) < 1e-5
