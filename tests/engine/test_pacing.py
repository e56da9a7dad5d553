"""The pacer: steps with decodes take no longer than the target while prompts come in, or as much longer as prompts need
to use the device well."""

import numpy as np
import pytest

from rocforge.engine.inputs import decode_sizes, prompt_sizes
from rocforge.engine.pacing import FIRST_SHARE, LEAST_SHARE, Pacer, longest_step
from rocforge.engine.request import Request
from rocforge.engine.scheduler import Scheduler, counted
from rocforge.engine.state import StateManager
from rocforge.nn.state import PagedKV
from rocforge.ops.sampling import SamplingParams

TARGET = 0.05


def run(prompt, decodes, seconds, most=2048, target=TARGET):
    """Admit a prompt of that many tokens beside running requests; each step's seconds and prompt tokens."""
    pacer, steps, done = Pacer(most, target), [], 0
    while done < prompt:
        count = min(pacer.share(), prompt - done)
        steps.append((seconds(decodes, count, done), count))
        pacer.observe(steps[-1][0], decodes, count)
        done += count
    return np.array(steps)


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
    """Where the decodes alone take longer than the target."""
    seconds = run(4096, 4, on_a_cpu, target=0.02)[2:-1, 0]
    assert np.median(seconds) == pytest.approx(2 * on_a_cpu(4, 0, 0), rel=0.1)


def test_the_longest_step():
    """The target, or twice what a step takes without prompts."""
    assert [longest_step(1, own) for own in (0, 0.3, 0.5, 1, 2)] == [1, 1, 1, 2, 4]


def test_the_most_tokens_of_a_step():
    """Every step takes them where they fit, but for the look after the first."""
    counts = run(8192, 1, on_a_gpu, most=512)[1:-1, 1].tolist()
    assert counts[0] == 128 and set(counts[1:]) == {512}


def test_the_fewest_tokens_of_a_step():
    """Also where each costs more than the target, prompts come in; a look takes a quarter."""
    counts = run(1024, 1, lambda decodes, tokens, done: 0.2 * tokens, target=0.02)[10:-1, 1]
    assert set(counts) == {LEAST_SHARE, LEAST_SHARE // 4}
    assert run(4, 1, on_a_cpu, most=1)[:, 1].tolist() == [1] * 4


def test_noise_changes_little():
    """With times that vary by a fifth."""
    rng = np.random.default_rng(0)
    seconds, counts = run(262144, 4, lambda *a: on_a_gpu(*a[:2], 0) * rng.lognormal(0, 0.2)).T
    assert np.median(seconds) < 1.2 * TARGET
    assert np.median(counts) > 0.7 * np.median(run(65536, 4, on_a_gpu)[:, 1])


def test_a_hiccup_is_forgotten():
    """One step that takes a second does not stop a prompt for long, and changes no more than a slow step does."""
    times = iter([on_a_gpu(1, FIRST_SHARE, 0), on_a_gpu(1, FIRST_SHARE // 4, 0), 1.0])
    counts = run(32768, 1, lambda *args: next(times, on_a_gpu(*args)))[:, 1]
    assert counts[12] > 1000


@pytest.mark.parametrize("tokens", [400, 1400])
def test_a_step_s_own_time_is_known(tokens):
    """Where a step costs as much for so many tokens as for one, longer than the target, chunks do not become small."""
    least = 0.01 + 2e-4 * tokens
    counts = run(1 << 17, 16, lambda decodes, count, done: max(least, 0.01 + 2e-4 * (decodes + count)))[16:-1, 1]
    assert np.median(counts) > 0.9 * tokens


def test_longer_contexts_are_noticed():
    """When tokens cost three times as much, though steps have half as many as before, they meet the target again."""
    pacer = Pacer(2048, TARGET)
    for cost, prompts in ((2e-5, 2048), (6e-5, 1000)):
        for _ in range(40):
            count = min(pacer.share(), prompts)
            seconds = 0.003 + cost * (8 + count)
            pacer.observe(seconds, 8, count)
    assert seconds == pytest.approx(TARGET, rel=0.05)


def test_looks_are_rare():
    """One step in 32 takes fewer prompt tokens than it might."""
    counts = run(1 << 19, 64, lambda *a: on_a_gpu(*a[:2], 0))[4:-1, 1]
    assert (counts < 1000).sum() == pytest.approx(len(counts) / 32, abs=1)


LOADS = {
    "8B": ([1.47, 1.94, 3.9, 5.7, 8.4], lambda tokens: 2 + max(4, 0.0235 * tokens)),
    "70B, bound by bytes": ([10.5, 13, 26, 45, 85], lambda tokens: 14 + max(30, 0.205 * tokens)),
    "70B, unpacked in each step": ([10.5, 13, 26, 45, 85], lambda tokens: 35 + 0.205 * tokens),
    "few tokens cost as much as many": ([10.5, 13, 26, 45, 85], lambda tokens: max(95, 10 + 0.205 * tokens)),
}
"""Milliseconds of decode steps of 1, 8, 64, 128 and 256 requests, and of steps with prompts by their tokens."""


def serve(pacer, decode_ms, prompt_ms, in_flight, seconds):
    """A closed loop of requests of 512 tokens in and 128 out, in the scheduler's steps and simulated time: tokens a
    second, and each gap between two tokens, of the second half."""
    sizes, rng, numbers = prompt_sizes(2048), np.random.default_rng(0), [1, 8, 64, 128, 256]
    state = StateManager([PagedKV(1, 1, 1)], [in_flight * 32])
    scheduler, now, last, gaps, ready = Scheduler(state, 2048, in_flight, sizes), 0.0, {}, [], []

    def add():
        prompt = rng.integers(0, 1 << 30, 512).tolist()
        scheduler.add(Request(prompt, SamplingParams(), max_length=640))

    def launched():
        chunks = scheduler.schedule(pacer)
        for chunk in chunks:
            scheduler.advance(chunk)
        return chunks

    for _ in range(in_flight):
        add()
    queued = launched()
    while now < seconds:
        chunks, queued = queued, launched()  # one ahead, as on a GPU
        decodes, total = counted(chunks)
        mixed = total > decodes
        size = next(size for size in (sizes if mixed else decode_sizes(256)) if size >= total)
        took = (prompt_ms(size) if mixed else np.interp(size, numbers, decode_ms)) / 1e3
        now += took
        for request in [chunk.request for chunk in chunks if chunk.needs_logits]:
            scheduler.accepted(request, 0)
            if now > seconds / 2:
                ready.append(now)
                gaps += [now - last[request]] if request in last else []
            last[request] = now
            if request.known == request.max_length:
                scheduler.finish(request)
                add()
        pacer.observe(took, decodes, total - decodes)
        queued = queued or launched()
    return 2 * len(ready) / seconds, np.array(gaps)


class Steady:
    """The same share always."""

    def __init__(self, tokens):
        self.tokens = tokens

    def share(self):
        return self.tokens

    def observe(self, *step):
        pass


@pytest.mark.parametrize("in_flight", [8, 64])
@pytest.mark.parametrize("load", LOADS)
def test_closed_loops_are_served_near_the_best_rate(load, in_flight):
    """Within 28 % of the best of fixed shares, however long its gaps; the pacer's are within 20 % of the rule."""
    decode_ms, prompt_ms = LOADS[load]
    args = decode_ms, prompt_ms, in_flight, 300 * prompt_ms(512) / 1e3
    best = max(serve(Steady(share), *args)[0] for share in (128, 256, 512, 1024, 2048))
    rate, gaps = serve(Pacer(2048, TARGET), *args)
    assert rate > 0.72 * best
    assert np.percentile(gaps, 99) < 1.2 * longest_step(TARGET, prompt_ms(in_flight) / 1e3)
