"""The pacer: steps with decodes take no longer than the target while prompts come in, and prompts get at least half."""

import numpy as np
import pytest

from rocforge.engine.pacing import FIRST_SHARE, Pacer

TARGET = 0.05


def run(prompt, decodes, seconds, most=2048, target=TARGET):
    """Admit a prompt of that many tokens beside running requests; each step's seconds and prompt tokens."""
    pacer, steps, done = Pacer(most, target), [], 0
    for _ in range(5):
        pacer.observe(seconds(decodes, 0, 0), decodes, 0)
    while done < prompt:
        count = min(pacer.share(decodes), prompt - done)
        steps.append((seconds(decodes, count, done), count))
        pacer.observe(steps[-1][0], decodes, count)
        done += count
    return np.array([(time, count) for time, count in steps if count])


def on_a_gpu(decodes, prompt_tokens, done):
    """Seconds of an 8B that decodes in 3 ms and takes 35,000 prompt tokens a second, fewer at long contexts."""
    return 0.003 + 2e-5 * decodes + prompt_tokens * (1 / 35_000 + 5e-10 * done)


def on_a_cpu(decodes, prompt_tokens, done):
    """Seconds where the decodes alone take longer than the target."""
    return 0.06 + 0.002 * decodes + 0.003 * prompt_tokens


@pytest.mark.parametrize("decodes", [1, 64, 256])
def test_steps_meet_the_target(decodes):
    """Soon after the first, and as far as prompt tokens of the context before tell what the next ones cost."""
    steps = run(65536, decodes, on_a_gpu)
    assert steps[:, 0].max() < 1.1 * TARGET
    assert np.median(steps[3:-1, 0]) > 0.9 * TARGET
    assert steps[0, 1] == FIRST_SHARE


def test_prompts_get_half_of_the_time():
    """Where the target leaves less than that."""
    seconds = run(4096, 4, on_a_cpu)[2:-1, 0]
    assert np.median(seconds) == pytest.approx(2 * on_a_cpu(4, 0, 0), rel=0.1)


def test_the_most_tokens_of_a_step():
    assert run(8192, 1, on_a_gpu, most=512)[1:-1, 1].tolist() == [512.0] * 15


def test_noise_changes_little():
    """With times that vary by a fifth."""
    rng = np.random.default_rng(0)
    seconds, counts = run(65536, 4, lambda *a: on_a_gpu(*a) * rng.lognormal(0, 0.2)).T
    assert np.median(seconds) < 1.2 * TARGET
    assert np.median(counts) > 0.7 * np.median(run(65536, 4, on_a_gpu)[:, 1])


def test_a_hiccup_is_forgotten():
    """One step that takes a second does not stop a prompt for long."""
    times = iter([0.003] * 5 + [on_a_gpu(1, FIRST_SHARE, 0), 1.0])
    counts = run(32768, 1, lambda *args: next(times, on_a_gpu(*args)))[:, 1]
    assert counts[12] > 1000


def test_prompts_without_end():
    """Where prompts always wait, what decodes take is still known, also when their number has changed: prompts get half
    of the time where decodes take more than the target, and no less than the target leaves them."""
    pacer, spent, prompts = Pacer(512, 0.02), 0.0, 0.0
    for step in range(600):
        decodes = min(1 + step // 4, 40)
        count = pacer.share(decodes)
        pacer.observe(on_a_cpu(decodes, count, 0), decodes, count)
        if step >= 300:
            spent, prompts = spent + on_a_cpu(decodes, count, 0), prompts + 0.003 * count
    assert prompts / spent == pytest.approx(0.5, abs=0.05)


def test_looks_are_rare():
    """One step in 33 has no prompt while the number of decodes is steady, and one at each doubling of it."""
    pacer = Pacer(2048, TARGET)

    def looks(numbers):
        found = 0
        for decodes in numbers:
            count = pacer.share(decodes)
            found += not count
            pacer.observe(on_a_gpu(decodes, count, 0), decodes, count)
        return found

    assert looks(range(1, 65)) <= 8
    assert looks([64] * 330) == 10
