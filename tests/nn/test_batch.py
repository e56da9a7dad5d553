"""Batch: positions, slots, spans and wanted rows of chunks of several sequences."""

import numpy as np
import pytest

from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache


def test_chunks_lie_one_after_another():
    """A prompt's middle, a decode step and a whole prompt; blocks in order read as a slice, others by index."""
    cache = KVCache(1, 1, 2, blocks=8, block_size=4)
    chunks = [Chunk(4, 3, [2, 3], wants_logits=False), Chunk(8, 1, [7, 0, 5]), Chunk(0, 2, [1])]
    batch = Batch.of(cache, chunks)
    assert batch.positions.tolist() == [4, 5, 6, 8, 0, 1]
    assert batch.slots.tolist() == [12, 13, 14, 20, 4, 5]
    assert [span.rows for span in batch.spans] == [slice(0, 3), slice(3, 4), slice(4, 6)]
    assert [span.length for span in batch.spans] == [7, 9, 2]
    assert batch.spans[0].slots == slice(8, 15)
    assert batch.spans[1].slots.tolist() == [28, 29, 30, 31, 0, 1, 2, 3, 20]
    assert batch.logits_rows.tolist() == [3, 5]
    assert Batch.of(cache, chunks, all_logits=True).logits_rows is None


def test_angles_are_shared_by_layers():
    """The same frequencies are evaluated once a batch."""
    from rocforge.ops.rope import rope_frequencies

    batch = Batch.of(KVCache(1, 1, 2, blocks=1), [Chunk(3, 2, [0])])
    frequencies = rope_frequencies(8)
    assert batch.cos_sin(frequencies)[0] is batch.cos_sin(frequencies)[0]
    np.testing.assert_allclose(batch.cos_sin(frequencies)[1][0], np.sin(3 * frequencies.frequencies), atol=1e-7)


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
        Batch.of(KVCache(1, 1, 2, blocks=8), chunks)
