"""Scores of tokens against the logits of whole sequences, in passes and tiles of any size."""

import numpy as np
import pytest
from golden import build

import rocforge as rf
from rocforge.nn import scoring


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    build(path, "llama-linear", "F32")
    return rf.load(path, device="cpu")[0]


def test_scores(model, rng, monkeypatch):
    """Sequences that share a pass, that take several, and one of a token, which has none."""
    monkeypatch.setattr(scoring, "ROWS", 3)
    sequences = [rng.integers(5, 280, length).tolist() for length in (4, 40, 1, 7, 17)]
    for top, pass_tokens in ((2, 16), (0, None)):
        scores = scoring.scores_of(sequences, top)
        assert scores.shape == (64, 1 + 2 * top)
        assert sum(1 for _ in scoring.score_into(scores, model, sequences, top, None, pass_tokens)) > 20
        at = 0
        for ids in sequences:
            logits = model(np.array(ids)).astype(np.float64)
            expected = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[:-1]
            found = scores[at : at + len(ids) - 1]
            np.testing.assert_allclose(found[:, 0], expected[np.arange(len(ids) - 1), ids[1:]], atol=2e-4)
            likeliest, values = found[:, 1 : 1 + top].astype(int), found[:, 1 + top :]
            np.testing.assert_allclose(values, np.take_along_axis(expected, likeliest, axis=1), atol=2e-4)
            np.testing.assert_allclose(values, -np.sort(-expected)[:, :top], atol=2e-4)
            at += len(ids) - 1
