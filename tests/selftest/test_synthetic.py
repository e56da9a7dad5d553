"""Random models of published shapes: their tensors are those that a model of the family has, of the recipe's types."""

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as T

from rocforge.load import load_model
from rocforge.selftest.synthetic import SHAPES, RandomModel

SMALL = {"layers": 2, "dim": 256, "ffn": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocabulary": 300}


@pytest.mark.parametrize(
    ("name", "recipe", "expert"),
    [("qwen3-8b", "Q4_K_M", None), ("qwen3-30b-a3b", "Q4_K_M", T.Q4_K), ("gpt-oss-20b", "MXFP4_MOE", T.MXFP4)],
)
def test_models_load(name, recipe, expert):
    """Every tensor is one of the model's, and none is missing; logits are finite, and of tokens that differ, differ."""
    shape = SHAPES[name]
    few = {"experts": 8, "used": 2} if shape.experts else {}
    file = RandomModel(shape._replace(**SMALL, **few), recipe, 64)
    logits = load_model(file, "cpu")([1, 2, 3])
    assert logits.shape == (3, 300) and np.isfinite(logits).all() and np.ptp(logits, axis=0).max() > 0.01
    if expert is not None:
        gate, router = (file[f"blk.0.{part}.weight"] for part in ("ffn_gate_exps", "ffn_gate_inp"))
        assert gate.shape == (8, 256, 256) and gate.qtype is expert and router.dtype == np.float32
