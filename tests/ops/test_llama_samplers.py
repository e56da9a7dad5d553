"""The samplers against llama.cpp's own: which tokens they keep, with which probabilities."""

import numpy as np
import pytest
from golden import build, samplers

import rocforge as rf
from rocforge.engine.breakers import breakers_of, with_breakers
from rocforge.ops import sampling
from rocforge.ops.dry import dry_penalties
from rocforge.ops.mirostat import Mirostat
from rocforge.ops.sampling import SamplingParams, sample

GOLDEN = samplers.load()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("samplers") / "llama.gguf"
    build(path, "llama", "F32")
    return rf.Tokenizer(rf.open_gguf(path))


@pytest.mark.parametrize("index", range(len(samplers.CHAINS)))
def test_chains(index, monkeypatch):
    """Each token that llama.cpp keeps is drawn in the middle of its share, in the order of ids: all shares are its."""
    params = SamplingParams(seed=0, **samplers.CHAINS[index])
    for seed, shares in enumerate(GOLDEN["chains"][index]):
        before = 0.0
        for token, share in shares.items():
            monkeypatch.setattr(sampling, "uniform", lambda *_, u=before + share / 2: u)
            if share > 1e-5:
                assert sample(samplers.logits(seed), params, [0], []) == int(token)
            before += share


@pytest.mark.parametrize("index", range(len(samplers.MIROSTATS)))
def test_mirostat(index):
    """As many tokens are kept at each step where the same ones are drawn, with the same probabilities."""
    version, tau, eta = samplers.MIROSTATS[index]
    mirostat = Mirostat(version, tau, eta)
    for step, (count, token, share) in enumerate(GOLDEN["mirostats"][index]):
        logits = samplers.logits(step)
        gaps = logits.max() - logits
        mirostat.kept(gaps, step)
        kept = mirostat.kept(gaps, step)  # a step that is repeated
        shares = np.exp(-gaps[kept]) / np.exp(-gaps[kept]).sum()
        assert len(kept) == count and abs(shares[list(kept).index(token)] - share) < 1e-5
        mirostat.observe(share)


def test_mirostat_of_a_text():
    """Its state follows what is drawn; one token alone, or all alike, leave a choice."""
    params = SamplingParams(seed=3, mirostat=2, mirostat_tau=1.0, mirostat_eta=1.0, temperature=1)
    mirostat, drawn = Mirostat(2, 1.0, 1.0), []
    for step in range(60):
        drawn.append(sample(samplers.logits(step), params, [0], drawn[:step], mirostat=mirostat))
    assert len(set(drawn)) > 30 and mirostat.mu != 2.0
    for version in (1, 2):
        assert len(Mirostat(version, 0.0, 0.1).kept(np.array([0, np.inf, np.inf], np.float32), 0)) == 1
        assert len(Mirostat(version, 9.0, 0.1).kept(np.zeros(4, np.float32), 0)) == 4


@pytest.mark.parametrize("index", range(len(samplers.DRY)))
def test_dry(index, tokenizer):
    """The same tokens have the same penalties, with breakers of one token, of several, and without."""
    params = with_breakers(SamplingParams(**samplers.DRY[index]), tokenizer)
    for seed, penalties in enumerate(GOLDEN["dry"][index]):
        found = dry_penalties(samplers.text(seed), params, breakers_of(params))
        assert found == pytest.approx({int(token): penalty for token, penalty in penalties.items()}, rel=1e-5)
    assert any(GOLDEN["dry"][index])


def test_dry_of_long_repetitions():
    """A token repeated for ever has the largest penalty that a float32 holds, and no more."""
    penalties = dry_penalties([7] * 20000, SamplingParams(dry_multiplier=1, dry_penalty_last_n=-1), {})
    assert list(penalties) == [7] and 1e37 < penalties[7] < 3.5e38
    assert dry_penalties([7] * 9, SamplingParams(dry_multiplier=1e6, dry_base=1e6), {})[7] <= np.finfo(np.float32).max
    assert dry_penalties([7], SamplingParams(dry_multiplier=1), {}) == {}


def test_breakers_of_an_engine(tokenizer):
    """It takes token ids, as it knows no text."""
    params = SamplingParams(dry_multiplier=1, dry_sequence_breakers=["\n", [5, 6]])
    with pytest.raises(ValueError, match=r"has the text '\\n'; an engine takes token ids"):
        breakers_of(params)
    for text, ids in (("🦙", [240, 159, 166, 153]), ("\ud800", [239, 191, 189])):  # characters of several tokens
        assert breakers_of(
            with_breakers(SamplingParams(dry_multiplier=1, dry_sequence_breakers=[text]), tokenizer)
        ) == {ids[0]: [tuple(ids[1:])]}
    assert breakers_of(SamplingParams()) is None and breakers_of(with_breakers(params, tokenizer))[5] == [(6,)]
