"""Constrained requests among others, on a device: masks are made on the host, and applied where the logits are."""

import pytest
from constraints import Alternating, alternates, obeys, prompts_of, run

import rocforge as rf
from rocforge.engine.scheduler import Scheduler
from rocforge.load import load_model

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]
SMALL = {"max_tokens": 6, "max_batch_tokens": 32}


@pytest.fixture(scope="module")
def model(path):
    return load_model(rf.open_gguf(path), "gpu")


@pytest.fixture
def prompts(model):
    return prompts_of(model, 3, 5, 7, 9)


@pytest.fixture(scope="module")
def free(model):
    """What four requests write without constraints."""
    return run(model, prompts_of(model, 3, 5, 7, 9), [None] * 4, **SMALL)[0]


def test_mixed_batches(model, prompts, free, monkeypatch):
    """Constrained texts obey, one of them three tokens long, and their constraints have seen each token till then; the
    other texts are the same, bit for bit. So it is with graphs and without."""
    texts = []
    for graphs in ("1", "0"):
        monkeypatch.setenv("ROCFORGE_GRAPHS", graphs)
        constraints = [Alternating(model.config.vocabulary, None, u) if u else None for u in (9, None, 3, None)]
        outputs, errors = run(model, prompts, constraints, **SMALL)
        assert not errors and not all(map(alternates, free))
        for i, (constraint, output) in enumerate(zip(constraints, outputs, strict=True)):
            assert output == free[i] if constraint is None else obeys(constraint, output)
        texts.append(outputs)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("fail", "message"), [("bits", "no bits"), ("accept", "not accepted"), ("dead end", "leaves no token")]
)
def test_failures(model, prompts, fail, message):
    """What fails ends its own request, after the tokens before; the others write to their ends."""
    outputs, errors = run(model, prompts, [None, Alternating(model.config.vocabulary, fail), None, None], **SMALL)
    assert list(errors) == [1] and message in str(errors[1])
    assert [len(output) for output in outputs] == [6, 3, 6, 6]


def test_preemption(model, monkeypatch):
    """In a cache in which requests give way to each other, texts obey, and no constraint misses or repeats a token."""
    preempted, preempt = [], Scheduler.preempt
    monkeypatch.setattr(Scheduler, "preempt", lambda self, request: preempted.append(request) or preempt(self, request))
    constraints = [Alternating(model.config.vocabulary) for _ in range(2)]
    outputs, errors = run(model, prompts_of(model, 30, 29), constraints, cache_tokens=64, max_batch_tokens=64)
    assert preempted and not errors and all(map(alternates, outputs))
    assert [constraint.accepted for constraint in constraints] == outputs
