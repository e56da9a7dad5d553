"""`rocforge bench`: the tests run as they are named, and the numbers are what was measured."""

import json
import re
import statistics

import numpy as np
import pytest
from golden import demo

import rocforge as rf
from rocforge.cli import bench
from rocforge.cli.bench import Measurement

pytestmark = pytest.mark.slow


def test_json(rocforge, model):
    """Every repetition, the median and the spread of its rates, under llama-bench's names."""
    options = ("-p", 24, "-p", 40, "-n", 3, "-r", 3, "-o", "json", "--device", "cpu")
    results = json.loads(rocforge("bench", model, *options).stdout)
    assert [(r["n_prompt"], r["n_gen"]) for r in results] == [(24, 0), (40, 0), (0, 3)]
    for result in results:
        tokens = result["n_prompt"] + result["n_gen"]
        assert len(result["samples_ts"]) == 3
        rates = [tokens / ns * 1e9 for ns in result["samples_ns"]]
        assert np.allclose(rates, result["samples_ts"], rtol=1e-6)
        assert result["median_ts"] == statistics.median(result["samples_ts"])
        assert np.isclose(result["avg_ts"], np.mean(rates)) and np.isclose(result["stddev_ts"], np.std(rates, ddof=1))
        assert result["device"] == "cpu" and result["model_n_params"] > 1e6


def test_markdown(rocforge, model):
    """A table with a line a test; 0 leaves a kind of test out."""
    lines = rocforge("bench", model, "-p", 16, "-n", 0, "-r", 1, "--device", "cpu").stdout.splitlines()
    assert len(lines) == 3 and lines[1].startswith("| ---")
    assert re.fullmatch(r"\| llama Q8_0 \| [\d.]+ MiB \| [\d.]+ M \| cpu \| pp16 \| \d+\.\d\d ± 0\.00 \|", lines[2])


def test_what_is_measured_is_computed(monkeypatch):
    """pp computes all of its prompt each time, in batches of the given size; tg one token a step."""
    model, tokenizer = rf.load(demo.bundled(), device="cpu")
    counts, forward = [], type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda m, t, b=None: (counts.append(len(t)), forward(m, t, b))[1])
    with rf.Engine(model, tokenizer.eog_token_ids, cache_tokens=128, max_batch_tokens=64) as engine:
        list(bench._measured(engine, [(100, 0)], 2))
        assert sum(counts) == 3 * 100 and max(counts) == 64
        counts.clear()
        list(bench._measured(engine, [(0, 7)], 2))
        assert counts == [1] * (3 * 7)
        assert engine.scheduler.state.idle


@pytest.mark.parametrize(
    ("seconds", "median", "spread"),
    [((1.0,), 100.0, 0.0), ((1.0, 2.0), 75.0, 12.5), ((1.0, 0.5, 0.25), 200.0, 75.0)],
)
def test_median_and_spread(seconds, median, spread):
    """The median rate, and half the distance between the quartiles, linearly interpolated as NumPy's."""
    result = Measurement(100, 0, seconds)
    assert (result.median, result.spread) == (median, spread)
    low, high = np.percentile(result.rates, [25, 75])
    assert result.spread == (high - low) / 2
