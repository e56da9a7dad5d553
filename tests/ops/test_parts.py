"""What cards compute of tables and experts adds up to the whole."""

import numpy as np
import pytest

import rocforge as rf
from rocforge.ops.moe import Matrices, experts, route
from rocforge.ops.parts import embedding_part, experts_part, joined
from rocforge.ops.types import Part


@pytest.mark.parametrize("rows, cards", [(8, 2), (10, 4), (7, 3)])
def test_embedding(rng, rows, cards):
    """Where cards do not divide the rows, the last one has some that others own."""
    table, ids, each = rng.standard_normal((rows, 32), np.float32), rng.integers(0, rows, 20), -(-rows // cards)
    parts = [Part(min(c * each, rows - each), c * each, min(rows, (c + 1) * each)) for c in range(cards)]
    sums = sum(embedding_part(ids, table[part.base : part.base + each], part) for part in parts)
    assert (sums == table[ids]).all()


@pytest.mark.parametrize("columns, cards", [(8, 2), (10, 4), (7, 3)])
def test_joined(rng, columns, cards):
    whole, part = rng.standard_normal((5, columns), np.float32), -(-columns // cards)
    begins = [min(card * part, columns - part) for card in range(cards)]
    assert (joined(np.stack([whole[:, begin : begin + part] for begin in begins]), columns) == whole).all()


def test_experts(rng):
    count, used, ffn, dim = 6, 3, 32, 64
    gate, up = (Matrices(rng.standard_normal((count, ffn, dim), np.float32)) for _ in range(2))
    down = Matrices(rf.quantize(rng.standard_normal((count, dim, ffn), np.float32), "Q8_0"))
    x, logits = rng.standard_normal((9, dim), np.float32), rng.standard_normal((9, count), np.float32)
    ids, weights = route(logits, used)
    sums = np.zeros_like(x)
    for part in (Part(0, 0, 2), Part(2, 2, 6)):
        own = [Matrices(matrices.weight[part.first : part.end]) for matrices in (gate, up, down)]
        mine, mine_weights = experts_part(ids, weights, part)
        assert mine.min() >= 0 and mine.max() < part.end - part.first
        sums += experts(x, mine, mine_weights, *own)
    np.testing.assert_allclose(sums, experts(x, ids, weights, gate, up, down), rtol=1e-4, atol=1e-3)
