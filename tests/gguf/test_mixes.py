"""rocforge.gguf.mixes: each tensor gets the type that llama.cpp's quantizer gives it."""

import pytest
from gguf import GGMLQuantizationType as T
from golden.mixes import CASES, in_runs, recorded

from rocforge.errors import UnsupportedModelError
from rocforge.gguf.mixes import MIXES, Mix
from rocforge.gguf.quantized import Form

RECORDED = recorded()


@pytest.mark.parametrize("case", CASES)
def test_as_llama_cpp_has_them(case):
    """In every mix, with an importance matrix and without: by role, layer, grouped queries, experts, and rows that are
    no whole number of blocks."""
    tensors, metadata = CASES[case].tensors(), CASES[case].metadata()
    for mix in MIXES:
        for key, importance in ((f"{case} {mix}", False), (f"{case} {mix} imatrix", True)):
            types = in_runs(qtype.name for qtype in Mix(mix).types(tensors, metadata, importance).values())
            assert types == RECORDED.get(key, RECORDED.get(f"{case} {mix}", types)), key


def test_what_is_recorded():
    """All mixes of all cases, but for those of which llama.cpp knows no fallback."""
    missing = {f"{case} {mix}" for case in CASES for mix in MIXES} - set(RECORDED)
    assert missing == {"gpt-oss Q1_0", "odd Q1_0"}


def types(mix, *, tied=False):
    """What a Mix makes of four tensors of a model in F16, whose norm is F16 too."""
    shapes = {"token_embd": (9, 256), "output": (9, 256), "blk.0.attn_v": (9, 256), "blk.0.attn_norm": (256,)}
    tensors = {
        f"{name}.weight": Form(shape, T.F16) for name, shape in shapes.items() if not (tied and name == "output")
    }
    found = mix.types(tensors, {"general.architecture": "llama"})
    return [qtype.name for qtype in found.values()]


def test_options():
    """What departs from a mix, in llama.cpp's order of precedence."""
    assert types(Mix("q4_k_m")) == ["Q4_K", "Q6_K", "Q6_K", "F16"]
    assert types(Mix("Q4_K", pure=True)) == ["Q4_K", "Q4_K", "Q4_K", "F16"]
    assert types(Mix("Q4_K_M", output="Q8_0", embedding="Q5_0")) == ["Q5_0", "Q8_0", "Q6_K", "F16"]
    assert types(Mix("Q4_K_M", output="Q8_0"), tied=True) == ["Q8_0", "Q6_K", "F16"]
    assert types(Mix("Q4_K_M", leave_output=True, output="Q8_0")) == ["Q4_K", "F16", "Q6_K", "F16"]
    assert types(Mix("Q4_K_M", overrides=(("attn_.", "Q2_K"), ("v", "Q8_0")))) == ["Q4_K", "Q6_K", "Q2_K", "F16"]
    assert types(Mix("BF16", overrides=(("attn", "Q8_0"),))) == ["BF16", "BF16", "BF16", "F16"]


def test_importance_is_needed_for_the_least_bits():
    """As in llama.cpp: not for the embedding and the output, and for Q2_K in its small mix alone."""
    needs = Mix("Q2_K_S").needs_importance
    assert needs("blk.0.attn_q.weight", T.Q2_K) and not Mix("Q2_K").needs_importance("blk.0.attn_q.weight", T.Q2_K)
    assert needs("blk.0.attn_q.weight", T.IQ2_XXS) and not needs("blk.0.attn_q.weight", T.IQ4_XS)
    assert not needs("output.weight", T.IQ2_XXS)


def test_errors():
    """Unknown names list the known ones; a tensor of an unknown type is named."""
    with pytest.raises(ValueError, match=r"type 'Q9' is unknown; allowed are .*Q4_K_M"):
        Mix("Q9")
    for options in ({"output": "Q9"}, {"embedding": "Q9"}, {"overrides": (("x", "Q9"),)}):
        with pytest.raises(ValueError, match=r"tensor type 'Q9' is unknown; allowed are .*Q4_K"):
            Mix("Q4_K_M", **options)
    with pytest.raises(UnsupportedModelError, match=r"tensor 'a\.weight' has type 99"):
        Mix("Q8_0").types({"a.weight": Form((2, 32), 99)}, {})
