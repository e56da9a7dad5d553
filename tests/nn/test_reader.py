"""Reader: every key is in its range and agrees with the tensors and the other keys, where a family reads it."""

import numpy as np
import pytest

from rocforge.errors import GGUFError
from rocforge.models import ARCHITECTURES, build_model
from rocforge.nn.reader import Reader

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


def reader(changes, architecture="llama", tensors=(), **options):
    return Reader(File(changes, dict(tensors), architecture), **options)


def build(changes, architecture="llama", tensors=()):
    """A model of the file, without weights: what its family reads is read."""
    return build_model(File(changes, dict(tensors), architecture))


def test_defaults_of_sizes():
    """Keys that follow from others."""
    read = reader({})
    attention = read.attention(1)
    assert (attention["kv_heads"], attention["head_dim"], read.config.vocabulary, read.experts) == (4, 8, 10, 0)
    assert len(read.rope(False).frequencies) == 4 and read.mlp(0)["ffn"] == 48
    experts = {"expert_count": 3, "expert_used_count": 2, "feed_forward_length": None}
    read = reader(experts, tensors={"blk.1.ffn_gate_exps.weight": np.zeros((3, 24, 32))})
    assert read.moe(1) == {
        "dim": 32,
        "ffn": 24,
        "experts": 3,
        "used": 2,
        "scale": 1.0,
        "groups": (1, 1),
        "merged": False,
    }


def test_sizes_that_differ_between_layers():
    """Heads, lengths and windows of each layer are its own; the rest is said once for all."""
    model = build(
        {
            "attention.head_count": [4, 2],
            "attention.head_count_kv": np.array([2, 1], np.int32),
            "feed_forward_length": [48, 64],
            "attention.key_length": 8,
            "attention.value_length": 8,
        }
    )
    shapes = dict(model.named_parameters())
    assert shapes["blk.0.attn_q.weight"].shape == (32, 32) and shapes["blk.1.attn_q.weight"].shape == (16, 32)
    assert shapes["blk.0.attn_k.weight"].shape == (16, 32) and shapes["blk.1.attn_k.weight"].shape == (8, 32)
    assert shapes["blk.0.ffn_up.weight"].shape == (48, 32) and shapes["blk.1.ffn_up.weight"].shape == (64, 32)
    with pytest.raises(GGUFError, match=r"feed_forward_length is \[1, 2, 3\]; allowed are .* arrays of 2"):
        build({"feed_forward_length": [1, 2, 3]})


@pytest.mark.parametrize(
    ("pattern", "every", "expected"),
    [
        (None, None, [7, 7]),
        (None, 2, [7, None]),
        (2, None, [7, None]),
        (1, 2, [None, None]),
        (0, 2, [7, 7]),
        ([False, True], 2, [None, 7]),
    ],
)
def test_windows(pattern, every, expected):
    """Which layers have the window: as the file says, by a number or by layer, else as the family says, or all."""
    read = reader({"attention.sliding_window": 7, "attention.sliding_window_pattern": pattern})
    assert [read.window(layer, every) for layer in (0, 1)] == expected
    assert reader({"attention.sliding_window": 0}).window(0) is None


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("gemma2", (4096, 50.0, 30.0)),
        ("gemma3", (None, None, None)),
        ("gpt-oss", (128, None, None)),
        ("llama", (None, None, None)),
    ],
)
def test_defaults_of_architectures(architecture, expected):
    """What old files lack is what their models were made with; what a file has is its own."""
    defaults = ARCHITECTURES[architecture].defaults
    read = reader({}, architecture, defaults=defaults)
    caps = read.factor("attn_logit_softcapping"), read.factor("final_logit_softcapping")
    assert (read.window(0), *caps) == expected
    own = reader({"attention.sliding_window": 7, "final_logit_softcapping": 5.0}, architecture, defaults=defaults)
    assert (own.window(0), own.factor("final_logit_softcapping")) == (7, 5.0)


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
    ({"attention.sliding_window": 7, "attention.sliding_window_pattern": True}, "sliding_window_pattern is True"),
    ({"final_logit_softcapping": "x"}, "softcapping is 'x'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_values_that_make_no_sense(changes, message):
    """The key, its value and what is allowed are named."""
    with pytest.raises(GGUFError, match=message):
        build(changes, "gemma3" if any("sliding" in key or "softcap" in key for key in changes) else "llama")


@pytest.mark.parametrize("architecture", [None, 3, ["llama"], np.array([1])])
def test_architecture(architecture):
    """It is a text."""
    file = File({}, {})
    file.metadata["general.architecture"] = architecture
    with pytest.raises(GGUFError, match=r"general\.architecture is .*; allowed are strings"):
        Reader(file)


@pytest.mark.parametrize("shape", [(), (10,), (0, 32), (10, 0), (2, 5, 32)])
def test_an_embedding_that_is_no_matrix(shape):
    """Its rows are the vocabulary."""
    with pytest.raises(GGUFError, match=r"tensor token_embd\.weight has shape"):
        build({}, tensors={"token_embd.weight": np.zeros(shape)})


@pytest.mark.parametrize("factors", [np.ones(3), np.zeros(4), np.full(4, np.nan), np.ones((4, 1)), np.ones(0)])
def test_rope_factors(factors):
    """One over 0 for each pair."""
    with pytest.raises(GGUFError, match=r"tensor rope_freqs\.weight is of shape .*; allowed are 4 numbers over 0"):
        build({}, tensors={"rope_freqs.weight": factors})


def test_keys_and_values_of_different_lengths():
    """Each is read; what a value's length defaults to is the share of the width that a head has, as a key's."""
    sizes = reader({"attention.key_length": 6, "attention.value_length": 4}).attention(0)
    assert (sizes["head_dim"], sizes["value_dim"]) == (6, 4)
    sizes = reader({"attention.key_length": 6}).attention(0)
    assert (sizes["head_dim"], sizes["value_dim"]) == (6, 8)
