"""rf.LoRA: an adapter as arrays, checked."""

import numpy as np
import pytest

import rocforge as rf

A, B = np.arange(6.0).reshape(2, 3), np.arange(8.0).reshape(4, 2)


def test_updates_by_path():
    """With GGUF's suffix or without, with a scale of its own or of all."""
    lora = rf.LoRA({"blk.0.attn_q.weight": (A, B), "blk.1.attn_q": (A, B, 3)}, scale=0.5)
    assert list(lora) == ["blk.0.attn_q", "blk.1.attn_q"] and len(lora) == lora.rank == 2
    assert lora["blk.0.attn_q"].scale == 0.5 and lora["blk.1.attn_q.weight"].scale == 1.5
    assert repr(lora) == "LoRA(2 matrices, rank 2)" and repr(rf.LoRA({"output": (A, B)})) == "LoRA(1 matrix, rank 2)"


def test_scaled():
    """Twice an adapter is one of twice the scale, of the same arrays."""
    twice = 2 * rf.LoRA({"output": (A, B)}, scale=0.25)
    assert twice["output"].scale == 0.5 and twice["output"].a is A


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ({}, ValueError, "no updates"),
        ({"x": (A, A)}, ValueError, r"\(2, 3\) and \(2, 3\); allowed are \(rank, columns\) and \(rows, rank\)"),
        ({"x": (A[0], B)}, ValueError, r"\(3,\)"),
        ({"x": (np.zeros((300, 4)), np.zeros((4, 300)))}, ValueError, "x has rank 300; allowed is 1 to 256"),
        ({"x": (A * np.nan, B)}, ValueError, "a of x has values that are not finite"),
        ({"x": (A, B.astype(str))}, TypeError, "b of x is of <U"),
        ({"x": A}, TypeError, "x is ndarray; allowed are pairs"),
        ({"x": (A, B, np.inf)}, ValueError, "scale is inf"),
        ({"x": (A, B, "2")}, TypeError, "scale is '2'"),
    ],
)
def test_what_is_no_adapter(updates, error, message):
    with pytest.raises(error, match=message):
        rf.LoRA(updates)
