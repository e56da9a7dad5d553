"""Encoders on a device: vectors of texts that share a batch, against the CPU's."""

import os

import pytest
from golden import encoders, relative_error
from golden.encoders import ENCODERS

import rocforge as rf
from rocforge.load import load_model

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

BOUND = 8e-3
"""Products round to float16."""
SHOWN = ("bert-ranks", "nomic-bert-moe", "modern-bert")
"""What others lack: learned positions and a classifier, experts without gates, windows around a token."""


@pytest.mark.parametrize("name", SHOWN if "HIPSIM_ARCH" in os.environ else ENCODERS)
def test_vectors(tmp_path, name):
    """Texts of several lengths, one of a single token, by rf.embed and by an engine, which keeps nothing."""
    path = tmp_path / "model.gguf"
    encoders.build(path, name)
    cpu, gpu = (load_model(rf.open_gguf(path), device) for device in ("cpu", "gpu"))
    texts = encoders.texts(name)
    expected = rf.embed(cpu, texts, normalize=False)
    assert relative_error(rf.embed(gpu, texts, normalize=False), expected) < BOUND
    with rf.Engine(gpu) as engine:
        engine.prepare()
        vectors, passes = engine.embed([text.tolist() for text in texts])
        assert list(passes) and (engine.cache.nbytes == 0 or gpu.generates)
    assert relative_error(vectors, rf.embed(cpu, texts)) < BOUND
    if not gpu.generates:
        with pytest.raises(ValueError, match="is an encoder"):
            gpu(texts[0])
