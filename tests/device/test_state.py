"""State on a device: windows free blocks, recurrent state has slots."""

import numpy as np
import pytest
from golden import build

import rocforge as rf
from rocforge.engine.state import NONE
from rocforge.load import load_model
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV, Recurrent

pytestmark = pytest.mark.any_wave


def test_recurrent_slots():
    """A batch has the slots of its sequences on the device, and a snapshot is a copy of all layers' state."""
    cache = KVCache([Recurrent(((2, 3), (4,)))] * 2 + [PagedKV(1, 32, 32)], 2, slots=3, device="gpu")
    for i, array in enumerate(cache.recurrent[0].arrays):
        array[1] = i + 5
    cache.copy_slot(1, 2)
    layer = Batch.of(cache, [Chunk(3, 1, [0], slot=2), Chunk(0, 2, [1], slot=0)]).state_of(1)
    assert layer.slots.get().tolist() == [2, 0] and layer.positions.get().tolist() == [3, 0, 1]
    assert layer.query_starts.get().tolist() == [0, 1, 3]
    assert [array[:, 0].ravel()[-1].item() for array in (a[2:] for a in layer.arrays)] == [5.0, 6.0]
    assert [array.get()[:2].sum(axis=tuple(range(1, array.ndim))).tolist() for array in layer.arrays] == [
        [0, 30],
        [0, 24],
    ]


def test_what_a_window_frees_is_not_read(tmp_path, rng):
    """Requests that write past their windows, step by step with NaN in all free blocks of the windowed layers: tokens
    are as without, and a request holds no more of these blocks than its window and one more."""
    build(tmp_path / "model.gguf", "gemma3", "Q8_0")
    model = load_model(rf.open_gguf(tmp_path / "model.gguf"), "gpu")
    prompts = [rng.integers(0, model.config.vocabulary, n).tolist() for n in (78, 3)]
    params = rf.SamplingParams(max_tokens=12, temperature=0, logprobs=1)
    outputs = []
    for poison in (False, True):
        with rf.Engine(model, cache_tokens=512, max_batch_tokens=32) as engine:
            requests, held, poisoned = [engine.add(prompt, params) for prompt in prompts], 0, set()
            (group,) = (g for g in engine.scheduler.state.groups if g.state.window)
            (cached,) = (g for g in engine.cache.paged if g.state.window)
            index = engine.scheduler.state.groups.index(group)
            while engine.busy:
                assert all(token.error is None for token in engine.step())
                if not poison:
                    continue
                with engine._stream:
                    for block in set(group.pool._free) - poisoned:
                        cached.keys[:, block] = cached.values[:, block] = np.nan
                poisoned = set(group.pool._free)
                for request in requests:
                    if request.state.tables and request.remaining == 1:
                        table = request.state.tables[index]
                        held = max(held, sum(block != NONE for block in table))
                        assert request.length < 60 or table[0] == NONE
            assert engine.scheduler.state.idle
        outputs.append([request.output for request in requests])
    assert outputs[0] == outputs[1] and held <= -(-group.state.window // 32) + 2
