"""The golden references hold: plain float64 arithmetic gives llama.cpp's logits on every small model.

Two implementations that share no code agree, so either one is fit to judge rocforge's models.
"""

import numpy as np
import pytest
from golden import BOUNDS, CASES, build, demo, load, reference, relative_error
from golden.models import MIXED, VARIANTS, qtype_of, tensors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A function from (variant, recipe) to the path of its GGUF file."""
    folder = tmp_path_factory.mktemp("golden")

    def path(variant, recipe):
        file = folder / f"{variant}-{recipe}.gguf"
        if not file.exists():
            build(file, variant, recipe)
        return file

    return path


@pytest.mark.parametrize(("variant", "recipe"), CASES, ids="-".join)
def test_float64_agrees_with_llama_cpp(model, variant, recipe):
    golden = load(variant, recipe)
    logits = reference.logits(model(variant, recipe), golden["tokens"])
    assert relative_error(golden["logits"], logits[golden["rows"]]) <= BOUNDS[recipe]
    if recipe == "F32":  # every row is close, and every greedy token is the argmax
        assert max(map(relative_error, golden["logits"], logits)) <= BOUNDS[recipe]
        assert np.array_equal(logits[63:-1].argmax(axis=1), golden["tokens"][64:])


@pytest.mark.parametrize(("name", "recipe"), demo.CASES, ids="-".join)
def test_float64_agrees_with_llama_cpp_on_the_demo_model(tmp_path, name, recipe):
    """And in F32 so does each of the 64 tokens that llama.cpp chose."""
    if not demo.bundled():
        pytest.skip("examples/demo_model holds no GGUF file")
    golden = load(name, recipe)
    demo.build(tmp_path / "demo.gguf", recipe)
    logits = reference.logits(tmp_path / "demo.gguf", golden["tokens"])
    assert relative_error(golden["logits"], logits[golden["rows"]]) <= BOUNDS[recipe]
    if recipe == "F32":
        assert np.array_equal(logits[63:-1].argmax(axis=1), golden["tokens"][64:])


@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("llama", {"rope.freq_base": 10100.0}),
        ("llama", {"attention.layer_norm_rms_epsilon": 1e-3}),
        ("llama3", {"rope_freqs.weight": None}),
        ("llama-linear", {"rope.scaling.factor": 4.1}),
        ("llama-yarn", {"rope.scaling.factor": 4.1}),
        ("llama-yarn", {"rope.scaling.original_context_length": 128}),
        ("mixtral", {"expert_used_count": 3}),
        ("qwen2", {"blk.1.attn_k.bias": None}),
        ("qwen2", {"blk.1.attn_v.bias": None}),
        ("qwen3", {"rope.dimension_count": 64}),
        ("qwen3moe", {"expert_used_count": 3}),
        ("gemma2", {"attention.sliding_window": 25}),
        ("gemma2", {"attn_logit_softcapping": 5.1}),
        ("gemma2", {"final_logit_softcapping": 8.1}),
        ("gemma3", {"attention.sliding_window": 19}),
        ("gemma3", {"rope.freq_base": 10000.0}),
        ("gemma3", {"rope.scaling.factor": 1.0}),
        ("phi3", {"rope_factors_short.weight": None}),
        ("phi3", {"rope.scaling.attn_factor": 1.0}),
        ("phi3-long", {"rope.scaling.original_context_length": 128}),
        ("gpt-oss", {"attention.sliding_window": 17}),
        ("gpt-oss", {"blk.2.attn_sinks.weight": None}),
        ("gpt-oss", {"blk.3.ffn_up_exps.bias": None}),
        ("gpt-oss", {"rope.scaling.factor": 1.0}),
    ],
    ids=str,
)
def test_a_small_change_of_the_model_shows(model, variant, changed):
    """Each of these would be a bug in a model's code; the bound of 2e-5 catches it with a factor of 50 to spare."""
    golden = load(variant, "F32")
    logits = reference.logits(model(variant, "F32"), golden["tokens"], overrides=changed)
    assert relative_error(golden["logits"], logits) > 50 * BOUNDS["F32"]


def test_gelu_through_float16_explains_llama_cpp_as_shipped(model):
    """README.md's reason for building llama.cpp with exact GELU: its table alone moves the logits beyond 2e-5."""
    tokens = load("gemma2", "F32")["tokens"]
    exact, rounded = (
        reference.logits(model("gemma2", "F32"), tokens, f) for f in (reference.gelu, reference.gelu_float16)
    )
    assert 1e-4 < relative_error(rounded, exact) < 1e-3


def test_the_mixed_model_has_every_type():
    v = VARIANTS["llama-types"]
    assert {qtype_of(v, "MIXED", name, shape) for name, shape, *_ in tensors(v) if len(shape) > 1} == set(MIXED)
