"""Batch: positions, slots, spans and wanted rows of chunks of several sequences."""

import numpy as np
import pytest

from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.state import PagedKV, Recurrent


def test_chunks_lie_one_after_another():
    """A prompt's middle, a decode step and a whole prompt; blocks in order read as a slice, others by index."""
    cache = KVCache([PagedKV(1, 2, 2)], 8, block_size=4)
    chunks = [Chunk(4, 3, [2, 3], wants_logits=False), Chunk(8, 1, [7, 0, 5]), Chunk(0, 2, [1])]
    batch = Batch.of(cache, chunks)
    assert batch.positions.tolist() == [4, 5, 6, 8, 0, 1]
    layer = batch.state_of(0)
    assert layer.slots.tolist() == [12, 13, 14, 20, 4, 5]
    assert [span.rows for span in layer.spans] == [slice(0, 3), slice(3, 4), slice(4, 6)]
    assert batch.lengths.tolist() == [span.tokens for span in layer.spans] == [7, 9, 2]
    assert layer.spans[0].slots == slice(8, 15)
    assert layer.spans[1].slots.tolist() == [28, 29, 30, 31, 0, 1, 2, 3, 20]
    assert batch.logits_rows.tolist() == [3, 5]
    assert Batch.of(cache, chunks, all_logits=True).logits_rows is None


def test_angles_are_shared_by_layers():
    """The same frequencies are evaluated once a batch."""
    from rocforge.ops.rope import rope_frequencies

    batch = Batch.of(KVCache([PagedKV(1, 2, 2)], 1), [Chunk(3, 2, [0])])
    frequencies = rope_frequencies(8)
    assert batch.rotation(frequencies) is batch.rotation(frequencies)
    np.testing.assert_allclose(batch.rotation(frequencies).sin[0], np.sin(3 * frequencies.frequencies), atol=1e-7)


@pytest.mark.parametrize(
    "chunks, message",
    [
        ([], "chunks are empty"),
        ([Chunk(0, 40, [0])], "a table of 1 blocks of 32 tokens for 40 tokens"),
        ([Chunk(0, 2, [0]), Chunk(31, 2, [1])], "a table of 1 blocks of 32 tokens for 33 tokens"),
        ([Chunk(0, 40, [0, 8])], "names blocks 0 to 8; there are 8"),
        ([Chunk(0, 40, [-1, 0])], "names blocks -1 to 0; there are 8"),
        ([Chunk(0, 0, [0])], "0 tokens from 0"),
        ([Chunk(-1, 2, [0])], "2 tokens from -1"),
    ],
)
def test_tables_hold_their_tokens(chunks, message):
    """What would be read or written outside a sequence's blocks, or the cache, is a ValueError."""
    with pytest.raises(ValueError, match=message):
        Batch.of(KVCache([PagedKV(1, 2, 2)], 8), chunks)


def test_tables_of_each_group():
    """Each paged group has tables of its own; of one with a window only blocks that a token sees are looked at."""
    cache = KVCache([PagedKV(1, 2, 3), PagedKV(1, 2, 2, window=5), PagedKV(1, 2, 3)], [4, 3], block_size=4)
    batch = Batch.of(cache, [Chunk(9, 2, [[3, 1, 0], [-1, 2, 0]])])
    assert batch.state_of(0).slots.tolist() == batch.state_of(2).slots.tolist() == [1, 2]
    assert batch.state_of(0).spans[0].slots.tolist() == [12, 13, 14, 15, 4, 5, 6, 7, 0, 1, 2]
    assert batch.state_of(1).slots.tolist() == [1, 2]
    assert batch.state_of(1).spans[0].slots.tolist() == [9, 10, 11, 0, 1, 2]
    assert batch.state_of(0).values.shape == (16, 1, 3) and batch.state_of(1).values.shape == (12, 1, 2)
    assert np.shares_memory(batch.state_of(2).keys, cache.paged[0].keys[1])
    with pytest.raises(ValueError, match="names blocks -1 to 2"):
        Batch.of(cache, [Chunk(7, 2, [[3, 1, 0], [-1, 2, 0]])])
    with pytest.raises(KeyError, match="layer 3 is none of the 3"):
        batch.state_of(3)


def test_recurrent_state_is_a_sequences_own():
    """Each sequence reads and writes its slot, begins with zeros whatever the slot held, and a slot is one's only."""
    cache = KVCache([Recurrent(((2,), (3, 1))), Recurrent(((2,), (3, 1)))], (), slots=3)
    for value, chunks in ((5, [Chunk(0, 2, (), slot=2)]), (7, [Chunk(2, 1, (), slot=2), Chunk(0, 4, (), slot=0)])):
        layer = Batch.of(cache, chunks).state_of(1)
        before = [layer.read(which) for which in (0, 1)]
        for which, array in enumerate(before):
            layer.write(which, array + value)
    assert [array[:, 0].ravel().tolist() for array in before[:1]] == [[5, 0]] and before[1].shape == (2, 3, 1)
    state = cache.recurrent[0].arrays[0]
    assert state[:, 1].tolist() == [[7, 7], [0, 0], [12, 12]] and not state[:, 0].any()
    cache.copy_slot(2, 1)
    assert state[1].tolist() == state[2].tolist()
    for slots in ([1, 1], [0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="allowed are different ones of 3"):
            Batch.of(cache, [Chunk(0, 1, (), slot=slot) for slot in slots])
