"""The pacer: running requests keep their pace while prompts come in, and prompts get what is left."""

import numpy as np
import pytest

from rocforge.engine.pacing import LOOK_EVERY, SLOWDOWN, Pacer


def run(prompt, decodes, seconds, most=512):
    """Admit a prompt of that many tokens beside running requests; each step's seconds and prompt tokens."""
    pacer, steps, done = Pacer(most), [], 0
    for _ in range(5):
        pacer.observe(seconds(decodes, 0, 0), decodes, 0)
    while done < prompt:
        count = min(pacer.share(decodes), prompt - done)
        steps.append((seconds(decodes, count, done), count))
        pacer.observe(steps[-1][0], decodes, count)
        done += count
    return np.array(steps)


def linear(decodes, prompt_tokens, done):
    """Seconds as measured with the demo model on one core: products, and attention over what has been read."""
    first = 0.0025 if prompt_tokens else 0
    return 0.0055 + 0.0003 * decodes + first + prompt_tokens * (0.0003 + 1e-8 * done)


@pytest.mark.parametrize("decodes", [1, 8, 32])
def test_gaps_stay_below_twice(decodes):
    """While an 8k prompt is admitted, no step takes twice as long as one without, and the prompt gets a fair part."""
    seconds = run(8192, decodes, linear)[:, 0]
    plain = linear(decodes, 0, 0)
    assert seconds.max() < 2 * plain
    assert np.median(seconds) < 1.05 * SLOWDOWN * plain
    assert (seconds - plain).sum() > 0.8 * (SLOWDOWN - 1) * plain * len(seconds) * (1 - 1 / LOOK_EVERY)


def test_noise_starves_nobody():
    """With times that vary by a fifth, the median step keeps the pace and prompts get at least half of their part."""
    rng = np.random.default_rng(0)
    seconds, counts = run(8192, 4, lambda *a: linear(*a) * rng.lognormal(0, 0.2)).T
    quiet = run(8192, 4, linear).T[1]
    assert np.median(seconds) < 2 * linear(4, 0, 0)
    assert counts.mean() > 0.5 * quiet.mean()


def test_a_hiccup_is_forgotten():
    """One step that takes a second does not stop a prompt for long."""
    times = iter([0.01] * 5 + [0.01 + 0.0003 * 8, 1.0])
    counts = run(2048, 1, lambda d, p, n: next(times, 0.01 + 0.0003 * p))[:, 1]
    assert counts[25] >= 10


def test_the_share_follows_the_number_of_writers():
    """When twice as many write, or half as many, the time without prompts is measured again first."""
    pacer = Pacer(512)
    assert pacer.share(4) == 0, "nothing is known yet"
    pacer.observe(0.01, 4, 0)
    assert pacer.share(4) > 0 and pacer.share(8) > 0 and pacer.share(2) > 0
    assert pacer.share(9) == 0 and pacer.share(1) == 0
