"""Constrained requests among others, on the CPU: they obey, the others write what they write without them."""

import pytest
from constraints import Alternating, alternates, obeys, prompts_of, run
from golden import build

import rocforge as rf
from rocforge.load import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random llama."""
    path = tmp_path_factory.mktemp("constraints") / "llama.gguf"
    build(path, "llama", "F32")
    return load_model(rf.open_gguf(path), device="cpu", context=256)


@pytest.fixture
def prompts(model):
    return prompts_of(model, 5, 9, 13, 30)


@pytest.mark.parametrize("constrained", [[2], [0, 1, 3]])
def test_mixed_batches(model, prompts, constrained):
    """Constrained texts obey, as long as they have to, and their constraints have seen each token till then; the other
    texts are the same as ever."""
    free, _ = run(model, prompts, [None] * 4)
    until = {3: 4}
    constraints = [
        Alternating(model.config.vocabulary, None, until.get(i)) if i in constrained else None for i in range(4)
    ]
    outputs, errors = run(model, prompts, constraints)
    assert not errors and not all(map(alternates, free))
    for i, (constraint, output) in enumerate(zip(constraints, outputs, strict=True)):
        assert output == free[i] if constraint is None else obeys(constraint, output)


def test_company_and_preemption_change_nothing(model, prompts):
    """A constrained text is the same alone, and in a cache in which requests give way to each other."""
    vocabulary = model.config.vocabulary
    alone = [run(model, prompts, [Alternating(vocabulary) if j == i else None for j in range(4)])[0] for i in range(4)]
    together, _ = run(model, prompts, [Alternating(vocabulary) for _ in range(4)], cache_tokens=64)
    assert together == [outputs[i] for i, outputs in enumerate(alone)]


@pytest.mark.parametrize(
    ("fail", "message"), [("bits", "no bits"), ("accept", "not accepted"), ("dead end", "leaves no token")]
)
def test_failures(model, prompts, fail, message):
    """What fails ends its own request, after the tokens before; the others write on."""
    free, _ = run(model, prompts, [None] * 4)
    outputs, errors = run(model, prompts, [None, Alternating(model.config.vocabulary, fail), None, None])
    assert list(errors) == [1] and message in str(errors[1]) and len(outputs[1]) == 3
    assert [outputs[i] for i in (0, 2, 3)] == [free[i] for i in (0, 2, 3)]
