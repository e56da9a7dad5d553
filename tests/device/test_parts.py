"""A card's part of tables and experts on a device, against the NumPy code."""

from __future__ import annotations

import cupy as cp
import numpy as np
import pytest
from golden import relative_error

import rocforge as rf
from rocforge.ops.moe import Matrices, experts, route
from rocforge.ops.parts import embedding_part, experts_part, joined
from rocforge.ops.types import Part


@pytest.mark.parametrize("part", [Part(0, 0, 40), Part(40, 40, 80), Part(56, 60, 96)])
def test_embedding(rng, part):
    table = rf.quantize(rng.standard_normal((40, 256), np.float32), "Q8_0")
    ids = rng.integers(0, 96, 33)
    expected = embedding_part(ids, table, part)
    assert (embedding_part(cp.asarray(ids, np.int32), rf.to_device(table, "gpu"), part).get() == expected).all()
    assert (embedding_part(ids, rf.to_device(table, "gpu"), part).get() == expected).all()


@pytest.mark.parametrize("rows, columns, cards", [(1, 64, 2), (5, 290, 4), (3, 7, 3)])
def test_joined(rng, rows, columns, cards):
    parts = rng.standard_normal((cards, rows, -(-columns // cards)), np.float32)
    assert (joined(cp.asarray(parts), columns).get() == joined(parts, columns)).all()


@pytest.mark.parametrize("tokens", [1, 9, 40])
def test_experts(rng, tokens):
    count, used, ffn, dim = 6, 3, 128, 256
    gate, up, down = (
        rf.quantize(rng.standard_normal(shape, np.float32) / 16, "Q8_0")
        for shape in ((count, ffn, dim), (count, ffn, dim), (count, dim, ffn))
    )
    x, logits = rng.standard_normal((tokens, dim), np.float32), rng.standard_normal((tokens, count), np.float32)
    ids, weights = route(logits, used)
    sums = np.zeros_like(x)
    for part in (Part(0, 0, 2), Part(2, 2, 6)):
        own = [Matrices(rf.to_device(matrix[part.first : part.end], "gpu")) for matrix in (gate, up, down)]
        mine, theirs = (
            experts_part(ids, weights, part),
            experts_part(*map(cp.asarray, (ids.astype("i4"), weights)), part),
        )
        assert all((on.get() == of).all() for on, of in zip(theirs, mine, strict=True))
        sums += experts(cp.asarray(x), *theirs, *own).get()
    whole = experts(x, ids, weights, *map(Matrices, (gate, up, down)))
    assert relative_error(sums, whole) < 0.02
