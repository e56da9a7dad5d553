"""Inputs of steps: what begin_step makes of the host's upload, step after step, with tables that stay on the device."""

import cupy as cp
import numpy as np
import pytest

from rocforge.engine.inputs import StepInputs, StepShape
from rocforge.engine.request import Request
from rocforge.engine.scheduler import ScheduledChunk
from rocforge.engine.state import NONE, SequenceState
from rocforge.nn.cache import KVCache
from rocforge.nn.low_rank import PlacedLoRA
from rocforge.nn.state import PagedKV
from rocforge.ops.sampling import SamplingParams

pytestmark = pytest.mark.any_wave

WIDTH, ROWS, SIZE = 5, 40, 32
STATES = [PagedKV(1, 32, 32), PagedKV(1, 32, 32, window=40), PagedKV(2, 32, 32)]
SHAPES = [StepShape(300, 40, True), StepShape(40, 40, False)]


@pytest.fixture
def inputs():
    return StepInputs(KVCache(STATES, 1, device="gpu"), SHAPES, ROWS, WIDTH, cp.zeros(ROWS, np.int32))


def new_request(rng, row, tokens):
    """A request whose tables have room for so many tokens, in blocks of any number."""
    blocks = -(-tokens // SIZE)
    state = SequenceState([rng.integers(0, 1000, blocks).tolist() for _ in STATES], row=row, uploaded=[0] * len(STATES))
    state.slot = row + 7
    lora = PlacedLoRA(None, {}, row + 3) if row % 3 else None
    return Request(rng.integers(0, 99, tokens).tolist(), SamplingParams(seed=0), state=state, lora=lora)


def expected(shape, chunks, last_tokens):
    """Ids, positions, query_starts, lengths, state_slots, rows, adapters, row_adapters and slots."""
    sequences = shape.sequences
    ids, positions = np.zeros((2, shape.tokens), int)
    slots, adapters = np.full((len(STATES), shape.tokens), NONE), np.full(shape.tokens, NONE)
    counts = [chunk.tokens for chunk in chunks]
    starts = np.arange(sequences + 1)
    if shape.mixed:
        starts = np.cumsum([0, *counts, *[0] * (shape.rows - len(chunks)), shape.tokens - sum(counts)])
    for chunk, start in zip(chunks, starts, strict=False):
        request = chunk.request
        for i, position in enumerate(range(chunk.start, chunk.stop), start):
            known = position < request.known
            ids[i] = request.tokens(position, position + 1)[0] if known else last_tokens[request.state.row]
            positions[i] = position
            adapters[i] = NONE if request.lora is None else request.lora.id
            for group, table in enumerate(request.state.tables):
                slots[group, i] = table[position // SIZE] * SIZE + position % SIZE
    lengths = [chunk.stop for chunk in chunks] + [0] * (sequences - len(chunks))
    state_slots = [chunk.request.state.slot for chunk in chunks] + [NONE] * (sequences - len(chunks))
    rows = [start + chunk.tokens - 1 for chunk, start in zip(chunks, starts, strict=False) if chunk.needs_logits]
    rows += [0] * (shape.rows - len(rows))
    return [ids, positions, starts, lengths, state_slots, rows, adapters, adapters[rows], slots.reshape(-1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_steps(inputs, shape):
    """Chunks of any length, or one token each; tables that grow, and rows that others take over; idle tokens."""
    rng = np.random.default_rng(1)
    last_tokens = rng.integers(0, 99, ROWS).astype(np.int32)
    requests = [new_request(rng, row, 40 + row) for row in rng.permutation(ROWS)[:20]]
    for step in range(3):
        chunks = []
        for request in requests:
            if step == 1:
                request.pending = 1
            start = request.known if step == 1 else int(rng.integers(0, request.known))
            most = request.length - start if shape.mixed and step != 1 else 1
            stop = start + int(rng.integers(1, most + 1))
            for table in request.state.tables:
                table += rng.integers(0, 1000, max(0, -(-stop // SIZE) - len(table))).tolist()
            chunks.append(ScheduledChunk(request, start, stop, bool(rng.integers(2)) or not shape.mixed))
        while sum(chunk.tokens for chunk in chunks) > shape.tokens:
            chunks.pop()
        inputs.last_tokens.set(last_tokens)
        inputs.begin(shape, chunks, cp.asarray(inputs.stage(shape, chunks)))
        views = [view.get() for view in inputs.views(shape)]
        for ours, wanted in zip(views, expected(shape, chunks, last_tokens), strict=False):
            np.testing.assert_array_equal(ours, wanted)
        tables = views[-1].reshape(len(STATES), shape.sequences, WIDTH)
        for i, chunk in enumerate(chunks):
            for group, table in enumerate(chunk.request.state.tables):
                assert tables[group, i, : len(table)].tolist() == table
        row = requests.pop(0).state.row  # another request comes into its row
        requests.append(new_request(rng, row, 33))


def test_steps_that_follow(inputs):
    """Nothing is brought while the same requests decode in the blocks that they have. All is right when a table grows,
    a request moves to another row or slot, one leaves, the order changes, and after a step with a prompt."""
    rng, shape = np.random.default_rng(2), SHAPES[1]
    requests, brought = [new_request(rng, row, 64) for row in rng.permutation(ROWS)[:7]], []
    starts = {request: int(rng.integers(3, 17)) for request in requests}
    for step in range(24):
        last_tokens = rng.integers(0, 99, ROWS).astype(np.int32)
        change = {5: "grow", 9: "row", 12: "leave", 15: "order", 18: "prompt", 21: "slot"}.get(step)
        if change == "grow":
            requests[2].state.tables[1].append(77)
        if change == "row":
            requests[1].state.row = next(i for i in range(ROWS) if i not in [r.state.row for r in requests])
            requests[1].state.uploaded = [0] * len(STATES)
        if change == "slot":
            requests[3].state.slot += 1
        if change == "leave":
            requests.pop(4)
        if change == "order":
            requests.reverse()
        if change == "prompt":
            chunk = ScheduledChunk(requests[0], 0, 3, False)
            inputs.begin(SHAPES[0], [chunk], cp.asarray(inputs.stage(SHAPES[0], [chunk])))
        for request in requests:
            start = starts[request]
            request.prompt, request.output, request.pending = request.prompt[:start] or [1], [], 1
        chunks = [ScheduledChunk(request, starts[request], starts[request] + 1, True) for request in requests]
        staged = inputs.stage(shape, chunks)
        brought.append(staged is not None)
        assert brought[-1] == (step == 0 or change is not None)
        inputs.last_tokens.set(last_tokens)
        inputs.begin(shape, chunks, None if staged is None else cp.asarray(staged))
        for ours, wanted in zip(inputs.views(shape), expected(shape, chunks, last_tokens), strict=False):
            np.testing.assert_array_equal(ours.get(), wanted)
        for request in requests:
            starts[request] += 1


def test_blocks_are_uploaded_once(inputs):
    """What a step brings grows with the blocks that were added, not with the tables; what has left a window is any."""
    rng, shape = np.random.default_rng(0), StepShape(40, 40, False)
    request = new_request(rng, 3, 100)
    request.state.tables[1][:2] = [NONE, NONE]
    sizes = []
    for start in (0, 2, 4):
        chunk = ScheduledChunk(request, start, start + 1, True)
        staged = inputs.stage(shape, [chunk])
        sizes.append(len(staged))
        assert staged[-12:].min() >= 0
        inputs.begin(shape, [chunk], cp.asarray(staged))
        if start == 2:
            request.state.tables[0].append(5)
    assert sizes == [sizes[1] + 12, sizes[1], sizes[1] + 1]
