"""Float16 values kept beside packed weights: the setting, and that logits stay what they were."""

import pytest
from golden import relative_error

import rocforge as rf
from rocforge.load import load_model
from rocforge.memory import cache_nbytes
from rocforge.ops.operands import MOST_COLUMNS


@pytest.fixture(scope="module")
def file(path):
    with rf.open_gguf(path) as file:
        yield file


def kept(model):
    weights = dict(model.named_parameters())
    return {path for path, weight in weights.items() if getattr(weight, "halves", None) is not None}


def test_logits_stay(file, rng):
    """The same products, of whole matrices instead of tiles."""
    with_halves, without = (load_model(file, "gpu", halves=halves) for halves in (True, False))
    assert not kept(without) and kept(with_halves) == {p for p, w in without.named_parameters() if len(w.shape) == 2}
    tokens = rng.integers(0, without.config.vocabulary, MOST_COLUMNS + 6)
    assert relative_error(rf.asnumpy(with_halves(tokens)), rf.asnumpy(without(tokens))) < 1e-5


def test_by_itself(file, monkeypatch):
    """Kept where they take at most half of what a cache of the model's context leaves."""
    model = load_model(file, "gpu", halves=False)
    size = sum(2 * w.size for _, w in model.named_parameters() if len(w.shape) == 2)
    cache = cache_nbytes(model.config, model.config.context)
    for free, expected in ((2 * size, True), (2 * size - 2, False)):
        monkeypatch.setattr("rocforge.halves.available_memory", lambda device, free=free: cache + free)
        assert bool(kept(load_model(file, "gpu"))) is expected
