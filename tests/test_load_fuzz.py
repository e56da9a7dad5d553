"""Damaged models: each is a RocforgeError or works, in bounded time and memory; fuzz_gguf.py runs any number."""

import pytest
from fuzz_gguf import architectures, case, problem_of, runs

pytestmark = pytest.mark.slow

CASES, PARTS = 2400, 8


@pytest.fixture(scope="module")
def models():
    return architectures()


def test_the_models_themselves_run(models, tmp_path):
    """Without damage each architecture loads and runs, so that what follows starts from good files."""
    for name, model in models.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(model.bytes())
        assert runs(path), name


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_models(models, tmp_path, part):
    """Fixed seeds: what fails is named by its seed, which makes the file again."""
    found = {}
    for seed in range(part, CASES, PARTS):
        path = tmp_path / f"{seed}.gguf"
        path.write_bytes(case(seed, models))
        if problem := problem_of(path):
            found[seed] = problem
        path.unlink()
    assert not found
