"""State of every kind: a window's blocks are freed, prefixes are taken over where all kinds allow, and a model with
full attention, windows and recurrent layers writes the same whatever runs beside it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.engine.block_pool import block_digests
from rocforge.engine.engine import Engine
from rocforge.engine.pacing import Pacer
from rocforge.engine.scheduler import Scheduler
from rocforge.engine.state import NONE, SNAPSHOT_BLOCKS, SequenceState, StateManager
from rocforge.errors import OutOfMemoryError
from rocforge.nn.cache import KVCache
from rocforge.nn.module import Module
from rocforge.nn.state import PagedKV, Recurrent, states_of
from rocforge.ops.attention import attend
from rocforge.ops.sampling import SamplingParams

SIZE = 4
FULL, WINDOW = PagedKV(1, 1, 1), PagedKV(1, 1, 1, window=6)


def new_sequence(manager, tokens, chunk=None):
    """Computes a sequence, a chunk at a time; returns its state, its shared length, and the most blocks it held."""
    sequence = SequenceState(digests=block_digests(tokens, SIZE))
    start = shared = manager.share_prefix(sequence, (len(tokens) - 1) // SIZE)
    stop = manager.chunk_end(start, min(len(tokens), start + (chunk or len(tokens))), len(tokens))
    assert manager.admit(sequence, start, stop, len(tokens))
    held = []
    while True:
        manager.computed(sequence, start, stop, len(tokens), snapshot=True)
        held.append([sum(block != NONE for block in table) for table in sequence.tables])
        start, stop = stop, min(len(tokens), stop + (chunk or len(tokens)))
        if start == stop:
            return sequence, shared, np.max(held, axis=0).tolist() if held[0] else []
        stop = manager.chunk_end(start, stop, len(tokens))
        assert manager.grow(sequence, start, stop)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_a_window_frees_its_blocks(chunk):
    """However long the sequence, its window holds no more blocks than the window and a chunk need."""
    manager = StateManager([FULL, WINDOW], [100, 100], block_size=SIZE)
    sequence, _, held = new_sequence(manager, list(range(200)), chunk)
    assert held[0] == 50 and held[1] <= -(-(6 + chunk) // SIZE) + 1
    left = (200 - (199 % chunk + 1) - 5) // SIZE  # behind what the first token of the last chunk sees
    assert sequence.tables[1][:left] == [NONE] * left and NONE not in sequence.tables[1][left:]
    manager.release(sequence)
    assert manager.idle


def test_a_chunk_frees_the_blocks_of_the_one_before():
    """Its tokens see from its first one on, and what is before it is not kept."""
    state = PagedKV(1, 1, 1, window=6, chunked=True)
    assert [state.first_visible(position) for position in (0, 5, 6, 13)] == [0, 0, 6, 12]
    manager = StateManager([FULL, state], [100, 100], block_size=SIZE)
    sequence, _, held = new_sequence(manager, list(range(50)), 1)
    assert held[1] <= 3 and [block == NONE for block in sequence.tables[1]] == [True] * 12 + [False]
    manager.release(sequence)
    assert manager.idle


def test_a_prefix_is_shared_where_the_window_is_there():
    """Blocks before the window need not be known; a block of the window that was given away ends what is shared."""
    manager = StateManager([FULL, WINDOW], [20, 8], block_size=SIZE)
    tokens = list(range(40))
    manager.release(new_sequence(manager, tokens, 4)[0])
    known = [digest in manager.groups[1].pool for digest in block_digests(tokens, SIZE)]
    assert known == [False] * 2 + [True] * 8
    for blocks, expected in ((1, 0), (3, 0), (4, 16), (9, 36)):
        sequence = SequenceState(digests=block_digests(tokens, SIZE))
        assert manager.share_prefix(sequence, blocks) == expected, "4 blocks in, tokens from 11 on are seen"
        assert len(sequence.tables[0]) == len(sequence.tables[1]) == expected // SIZE
        assert sum(block != NONE for block in sequence.tables[1]) == (2 if expected else 0)
        manager.release(sequence)
    assert manager.idle


def test_recurrent_state_is_shared_at_snapshots():
    """At the last full block of an earlier prompt, and at each 32nd block; the state of the snapshot is copied."""
    copies = []
    manager = StateManager([FULL], [200], 6, lambda *slots: copies.append(slots), SIZE)
    every = SNAPSHOT_BLOCKS * SIZE
    tokens = list(range(every + 31))
    first, shared, _ = new_sequence(manager, tokens, 50)
    assert shared == 0 and [source for source, _ in copies] == [first.slot] * 2
    kept = [target for _, target in copies]
    for other, expected, snapshot in (
        ([*tokens, 1, 2], every + 28, kept[1]),
        ([*tokens[: every + 20], 1, 2, 3], every, kept[0]),
        ([*tokens[: every - 1], 1, 2], 0, None),
    ):
        copies.clear()
        sequence, shared, _ = new_sequence(manager, other)
        assert shared == expected
        assert copies[:1] == ([(snapshot, sequence.slot)] if snapshot is not None else copies[:1])
        manager.release(sequence)
    manager.release(first)
    assert manager.idle


def test_no_snapshot_of_a_state_that_has_moved_on():
    """Where a later step is queued already, the slot no longer holds the state at the tokens that are computed."""
    manager = StateManager([], [], 4, block_size=SIZE)
    tokens = list(range(9))
    for snapshot, expected in ((False, 0), (True, 8)):
        sequence = SequenceState(digests=block_digests(tokens, SIZE))
        assert manager.share_prefix(sequence, 2) == 0 and manager.admit(sequence, 0, 8, 9)
        manager.computed(sequence, 0, 8, 9, snapshot)
        manager.release(sequence)
        assert manager.share_prefix(sequence, 2) == expected
        manager.release(sequence)
    assert manager.idle


def test_running_sequences_displace_snapshots():
    """Slots are for those that run first of all; without one free, none is admitted, and nothing is shared wrongly."""
    manager = StateManager([], [], 3, block_size=SIZE)
    prompts = [[i] * 9 for i in range(3)]
    sequences = [new_sequence(manager, prompt)[0] for prompt in prompts[:2]]
    third = SequenceState(digests=block_digests(prompts[0], SIZE))
    assert manager.share_prefix(third, 2) in (0, 8)
    manager.release(third)
    third, shared, _ = new_sequence(manager, prompts[2])
    assert shared == 0 and len({s.slot for s in (*sequences, third)}) == 3
    assert not manager.admit(SequenceState(), 0, 1, 1)
    manager.release(third)
    assert new_sequence(manager, prompts[0])[1] == 0, "its snapshot has gone"


# ---- a model of all kinds


DIM, VOCABULARY, CONTEXT = 8, 50, 256


class Attention(Module):
    """Attention without norms, over all tokens, a window, or a chunk of the text."""

    def __init__(self, rng, window, chunked=False):
        self.state = PagedKV(1, DIM, DIM, window=window, chunked=chunked)
        self.projections = [rng.standard_normal((DIM, DIM)).astype(np.float32) for _ in range(3)]

    def forward(self, x, batch):
        q, k, v = (np.einsum("td,ed->te", x, w)[:, None] for w in self.projections)
        return x + attend(q, k, v, batch.state_of(self), None)[:, 0]


class Recurrence(Module):
    """A gated linear recurrence: h = a h + (1 - a) x, with a gate a by x; and the last x, as a convolution keeps it."""

    def __init__(self, rng):
        self.state = Recurrent(((DIM,), (1, DIM)))
        self.weight = rng.standard_normal(DIM).astype(np.float32)

    def forward(self, x, batch):
        layer = batch.state_of(self)
        hidden, last = layer.read(0), layer.read(1)
        y = np.empty_like(x)
        for sequence, (start, stop) in enumerate(zip(layer.query_starts[:-1], layer.query_starts[1:], strict=True)):
            for row in range(start, stop):
                gate = 1 / (1 + np.exp(-self.weight * x[row]))
                hidden[sequence] = gate * hidden[sequence] + (1 - gate) * (x[row] + last[sequence, 0])
                last[sequence, 0], y[row] = x[row], x[row] + hidden[sequence]
        layer.write(0, hidden), layer.write(1, last)
        return y / np.maximum(1, np.abs(y).max(axis=1, keepdims=True))


class Model(Module):
    """Some layers between an embedding and its transpose."""

    device, generates = "cpu", True

    def __init__(self, *kinds):
        rng = np.random.default_rng(0)
        self.config = type("Config", (), {"context": CONTEXT, "vocabulary": VOCABULARY})
        self.embedding = rng.standard_normal((VOCABULARY, DIM)).astype(np.float32)
        made = (kind if isinstance(kind, tuple) else (kind,) for kind in kinds)
        self.blk = [Recurrence(rng) if kind == ("recurrent",) else Attention(rng, *kind) for kind in made]

    def new_cache(self, blocks, slots):
        return KVCache(states_of(self), blocks, slots=slots)

    def forward(self, tokens, batch):
        x = self.embedding[tokens]
        for layer in self.blk:
            x = layer(x, batch)
        return np.einsum("td,vd->tv", x[batch.logits_rows], self.embedding)


KINDS = {
    "all": (None, "recurrent", 20, None, "recurrent", 70),
    "windows": (40, 3),
    "chunks": (None, (40, True), (64, True)),
    "recurrent": ("recurrent", "recurrent"),
    "hybrid": ("recurrent", None),
}
MODELS = {name: Model(*kinds) for name, kinds in KINDS.items()}


def written(model, prompts, between=lambda engine, step: None, **options):
    """What each prompt is continued with; all is free at the end."""
    with Engine(model, **options) as engine:
        requests = [engine.add(p, SamplingParams(max_tokens=12, temperature=0.8, seed=len(p))) for p in prompts]
        step = 0
        while engine.busy:
            engine.step()
            between(engine, step)
            step += 1
        assert engine.scheduler.state.idle
    return [request.output for request in requests]


def small_pools(monkeypatch):
    """Caches have what a window, and two sequences, just need."""
    monkeypatch.setattr("rocforge.engine.capacity.SNAPSHOTS", 1)
    sequences_alike = "rocforge.engine.capacity.CacheSizes.blocks"
    from rocforge.engine.capacity import CacheSizes

    blocks = CacheSizes.blocks
    monkeypatch.setattr(sequences_alike, lambda self, tokens, sequences: blocks(self, tokens, 1))
    slots = CacheSizes.slots
    monkeypatch.setattr("rocforge.engine.capacity.CacheSizes.slots", lambda self, n: slots(self, min(n, 2)))


@pytest.mark.parametrize("name", KINDS)
def test_company_preemption_and_prefixes_change_nothing(name, monkeypatch):
    """Many requests with common beginnings, by chunks of some sizes, in pools that hold two or three of them; whatever
    steps take, so that the same are preempted each time."""
    model, rng = MODELS[name], np.random.default_rng(1)
    common = rng.integers(0, VOCABULARY, 90).tolist()
    prompts = [common[:n] + rng.integers(0, VOCABULARY, m).tolist() for n, m in ((0, 5), (64, 9), (90, 1), (90, 40))]
    prompts += [common[:70], common[:70], rng.integers(0, VOCABULARY, 160).tolist()]
    alone = [written(model, [prompt])[0] for prompt in prompts]
    small_pools(monkeypatch)
    preempted, preempt = [], Scheduler.preempt
    monkeypatch.setattr(Scheduler, "preempt", lambda self, r: (preempted.append(r), preempt(self, r)))
    monkeypatch.setattr(Pacer, "share", lambda self: 24)
    for chunk in (512, 37, 5):
        assert written(model, prompts, cache_tokens=192, max_batch_tokens=chunk, max_requests=5) == alone
    assert preempted or None not in KINDS[name]


@pytest.mark.parametrize("name", ["all", "recurrent"])
def test_a_prefix_is_taken_over(name):
    """A second request computes only what follows the snapshot, and writes what it would alone."""
    model, prompt = MODELS[name], np.random.default_rng(2).integers(0, VOCABULARY, 100).tolist()
    params = SamplingParams(max_tokens=8, temperature=0)
    with Engine(model) as engine:
        outputs, cached = [], []
        for tokens in (prompt, prompt, [*prompt, 1, 2], prompt[:70]):
            request = engine.add(tokens, params)
            while engine.busy:
                engine.step()
            outputs.append(request.output), cached.append(request.num_cached_tokens)
    assert cached == [0, 96, 96, 0]
    for tokens, output in zip((prompt, prompt, [*prompt, 1, 2], prompt[:70]), outputs, strict=True):
        with Engine(model) as engine:
            request = engine.add(tokens, params)
            while engine.busy:
                engine.step()
        assert request.output == output


def test_a_changed_model_shares_no_prefix():
    """What was computed before an edit, a replaced layer or under functions with effects is computed again after it;
    of a request that runs meanwhile nothing is shared, and other requests write what they write in a new engine."""
    model, prompt = Model(None, 20), np.random.default_rng(3).integers(0, VOCABULARY, 70).tolist()
    params, calls = SamplingParams(max_tokens=8, temperature=0), []
    effect = lambda y: calls.append(1) or 0.5 * y  # noqa: E731
    with Engine(model) as engine:

        def run(changes, prompt=prompt):
            with model.edit(changes):
                request = engine.add(prompt, params)
                while engine.busy:
                    engine.step()
                return request.num_cached_tokens, request.output

        plain = run({})
        assert run({}) == (64, plain[1])
        edited = run({"blk.0": 0.5})
        assert edited[0] == 0 and run({"blk.0": lambda y: y * 0.5}) == (0, edited[1])
        assert run({}) == (0, plain[1])
        assert run({"blk.0": effect}) == (0, edited[1]) and run({"blk.0": effect}) == (0, edited[1]) and calls
        assert run({}) == (0, plain[1])
        with model.edit({"blk.0": 0.5}):
            engine.add([7] * 70, SamplingParams(max_tokens=40, temperature=0, ignore_eos=True))
            engine.step()
        while engine.busy:
            engine.step()
        assert run({}, [7] * 70)[0] == 0


@pytest.mark.parametrize("name", ["all", "recurrent"])
def test_a_step_that_is_run_again(name, monkeypatch):
    """Where memory was short half way through a step, states have moved on already: they are computed again."""
    model, prompts = MODELS[name], [[1] * 40, [2] * 50, [3, 4]]
    alone = [written(model, [prompt])[0] for prompt in prompts]
    forward, calls = Model.forward, []

    def short_of_memory(self, tokens, batch):
        logits = forward(self, tokens, batch)
        calls.append(len(tokens))
        if len(calls) in (1, 6, 9):
            raise OutOfMemoryError("a step")
        return logits

    monkeypatch.setattr(Model, "forward", short_of_memory)
    assert written(model, prompts) == alone
    assert len(calls) > 14


@settings(max_examples=25, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(KINDS)))
def test_random_walks(data, name):
    """Requests come and are cancelled at any step, with pools of any size: each one's output is a beginning of what it
    writes alone, all of it where it was not cancelled, and in the end every block and slot is free."""
    model, rng = MODELS[name], np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    common = rng.integers(0, VOCABULARY, 100).tolist()
    arrivals = []
    for _ in range(data.draw(st.integers(2, 6))):
        n, m, step = (data.draw(st.integers(*bounds)) for bounds in ((0, 100), (1, 40), (0, 20)))
        arrivals.append((step, common[:n] + rng.integers(0, VOCABULARY, m).tolist()))
    cancelled = data.draw(st.sets(st.integers(0, 40), max_size=3))
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        small_pools(patch)
        options = {name: data.draw(st.integers(*bounds)) for name, bounds in SIZES.items()}
        with Engine(model, **options) as engine:
            requests, step, gone = [], 0, set()
            while arrivals or engine.busy:
                for arrival in [a for a in arrivals if a[0] <= step]:
                    arrivals.remove(arrival)
                    requests.append(engine.add(arrival[1], params))
                if step in cancelled and engine.scheduler.running:
                    gone.add(engine.scheduler.running[-1])
                    engine.cancel(engine.scheduler.running[-1])
                engine.step()
                step += 1
                assert step < 2000
            assert engine.scheduler.state.idle
    for request in requests:
        with Engine(model) as engine:
            alone = engine.add(request.prompt, params)
            while engine.busy:
                engine.step()
        assert request.output == alone.output[: len(request.output)]
        assert request in gone or len(request.output) == 12


SIZES = {"cache_tokens": (160, 300), "max_batch_tokens": (1, 80), "max_requests": (1, 6)}
