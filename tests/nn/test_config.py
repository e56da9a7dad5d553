"""Config: every key is in its range and agrees with the tensors and the other keys, before anything is built."""

import numpy as np
import pytest

from rocforge.errors import GGUFError, UnsupportedModelError
from rocforge.models import ARCHITECTURES
from rocforge.nn.config import Config

SIZES = {
    "context_length": 64,
    "embedding_length": 32,
    "block_count": 2,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
TENSORS = {"token_embd.weight": np.zeros((10, 32)), "blk.0.x": np.zeros(1), "blk.1.x": np.zeros(1)}


class File(dict):
    """Tensors with metadata."""

    def __init__(self, changes, tensors, architecture="llama"):
        super().__init__({name: tensor for name, tensor in {**TENSORS, **tensors}.items() if tensor is not None})
        values = {f"{architecture}.{key}": value for key, value in {**SIZES, **changes}.items() if value is not None}
        self.metadata = {"general.architecture": architecture, **values}


def config(changes, architecture="llama", tensors=(), **options):
    return Config.of(File(changes, dict(tensors), architecture), **options)


def test_defaults_of_sizes():
    """Keys that follow from others."""
    c = config({})
    assert (c.kv_heads, c.head_dim, c.vocabulary, c.rope.dimensions, c.experts, c.expert_ffn) == (4, 8, 10, 8, 0, 48)
    experts = {"expert_count": 3, "expert_used_count": 2, "feed_forward_length": None}
    assert config(experts, tensors={"blk.0.ffn_gate_exps.weight": np.zeros((3, 24, 32))}).expert_ffn == 24


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("gemma2", (4096, 50.0, 30.0)), ("gemma3", (0, 0.0, 0.0)), ("gpt-oss", (128, 0.0, 0.0)), ("llama", (0, 0.0, 0.0))],
)
def test_defaults_of_architectures(architecture, expected):
    """What old files lack is what their models were made with; what a file has is its own."""
    defaults = ARCHITECTURES[architecture].defaults
    c = config({}, architecture, defaults=defaults)
    assert (c.window, c.attention_softcap, c.final_softcap) == expected
    own = config({"attention.sliding_window": 7, "final_logit_softcapping": 5.0}, architecture, defaults=defaults)
    assert (own.window, own.final_softcap) == (7, 5.0)


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}
BAD = [
    ({"block_count": 3}, "block_count is 3; allowed are integers from 1 to 2"),
    ({"block_count": (1 << 32) - 1}, "block_count is 4294967295; allowed are integers from 1 to 2"),
    ({"block_count": 1.5}, "block_count is 1.5"),
    ({"block_count": "x"}, "block_count is 'x'"),
    ({"embedding_length": 0}, "embedding_length is 0"),
    ({"attention.head_count": 33}, "head_count is 33; allowed are integers from 1 to 32"),
    ({"attention.head_count_kv": 3}, "head_count_kv is 3; allowed are divisors of the 4 heads"),
    ({"attention.key_length": -1}, "key_length is -1"),
    ({"attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
    ({"attention.layer_norm_rms_epsilon": None}, "epsilon is missing"),
    ({"feed_forward_length": 0}, "feed_forward_length is 0"),
    ({"context_length": 1 << 31}, "context_length is 2147483648"),
    ({"expert_count": 2}, "expert_used_count is missing"),
    ({"expert_count": 2, "expert_used_count": 3}, "expert_used_count is 3; allowed are integers from 1 to 2"),
    ({"rope.dimension_count": 10}, "dimension_count is 10; allowed are integers from 2 to 8"),
    ({"rope.dimension_count": 5}, "dimension_count is 5; allowed are even numbers to 8"),
    ({"rope.freq_base": 1.0, **YARN}, "freq_base is 1.0"),
    ({"rope.scaling.factor": float("inf")}, "factor is inf"),
    ({"rope.scaling.factor": -1.0}, "factor is -1.0"),
    ({"rope.scaling.type": "dynamic"}, "type is 'dynamic'; allowed are none, linear, yarn, longrope"),
    ({"rope.scaling.yarn_beta_fast": 0.0, **YARN}, "beta_fast is 0.0"),
    ({"rope.scaling.original_context_length": 0, **YARN}, "original_context_length is 0"),
    ({"attention.sliding_window": -1}, "sliding_window is -1"),
    ({"attention.sliding_window_pattern": True}, "sliding_window_pattern is True"),
    ({"final_logit_softcapping": "x"}, "softcapping is 'x'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_values_that_make_no_sense(changes, message):
    """The key, its value and what is allowed are named."""
    with pytest.raises(GGUFError, match=message):
        config(changes)


@pytest.mark.parametrize("architecture", [None, 3, ["llama"], np.array([1])])
def test_architecture(architecture):
    """It is a text."""
    file = File({}, {})
    file.metadata["general.architecture"] = architecture
    with pytest.raises(GGUFError, match=r"general\.architecture is .*; allowed are strings"):
        Config.of(file)


@pytest.mark.parametrize("shape", [(), (10,), (0, 32), (10, 0), (2, 5, 32)])
def test_an_embedding_that_is_no_matrix(shape):
    """Its rows are the vocabulary."""
    with pytest.raises(GGUFError, match=r"tensor token_embd\.weight has shape"):
        config({}, tensors={"token_embd.weight": np.zeros(shape)})


@pytest.mark.parametrize("factors", [np.ones(3), np.zeros(4), np.full(4, np.nan), np.ones((4, 1)), np.ones(0)])
def test_rope_factors(factors):
    """One over 0 for each pair."""
    with pytest.raises(GGUFError, match=r"tensor rope_freqs\.weight is of shape .*; allowed are 4 numbers over 0"):
        config({}, tensors={"rope_freqs.weight": factors})


def test_keys_and_values_of_different_lengths():
    """They are named as what is not supported."""
    with pytest.raises(UnsupportedModelError, match="different lengths"):
        config({"attention.value_length": 4})
