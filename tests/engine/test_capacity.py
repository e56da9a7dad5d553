"""What a cache takes, how it is divided among groups of layers, and what a device has room for; none is allocated."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rocforge as rf
from rocforge.engine import capacity
from rocforge.engine.capacity import SNAPSHOTS, CacheSizes, margin
from rocforge.formats.kv_cache import PACKED
from rocforge.nn.cache import KVCache
from rocforge.nn.module import Module
from rocforge.nn.state import PagedKV, Recurrent, SharedKV

GEMMA3_27B = [PagedKV(16, 128, 128, window=None if (i + 1) % 6 == 0 else 1024) for i in range(62)]
GPT_OSS_20B = [PagedKV(8, 64, 64, window=None if (i + 1) % 2 == 0 else 128) for i in range(24)]
LLAMA_8B = [PagedKV(8, 128, 128)] * 32  # 128 KiB a token
DEEPSEEK_V3 = [PagedKV(1, 512 + 64, 0)] * 61  # as many bytes as latents and shared keys have, of 128 heads


@pytest.fixture
def free(monkeypatch):
    """Sets how much is free."""
    return lambda nbytes: monkeypatch.setattr(capacity, "available_memory", lambda device: nbytes)


@pytest.mark.parametrize(
    "states, dense, most",
    [
        (GEMMA3_27B, 66.6e9, 12e9),
        (GPT_OSS_20B, 6.44e9, 3.3e9),
        (LLAMA_8B, 17.2e9, 17.2e9),
        (DEEPSEEK_V3, 9.21e9, 9.22e9),
    ],
)
def test_a_long_context_takes_what_its_windows_need(states, dense, most):
    """One sequence of 131,072 tokens in float16; without windows, every layer would hold all of them."""
    whole = [PagedKV(s.heads, s.key_dim, s.value_dim) for s in states]
    assert CacheSizes(whole, "gpu:0", 512).nbytes(131072) == pytest.approx(dense, rel=0.01)
    assert CacheSizes(states, "gpu:0", 512).nbytes(131072) <= most


def test_bytes_are_those_of_the_arrays():
    """As KVCache allocates them: groups of several layers, of different heads, lengths, types and windows."""
    states = [
        PagedKV(2, 8, 16),
        PagedKV(1, 4, 4, window=40),
        Recurrent(((3, 5), (7,))),
        PagedKV(2, 8, 16),
        PagedKV(1, 4, 4, "f16"),
        PagedKV(2, 96, 64, "q8_0", "q4_0"),
        PagedKV(2, 96, 64, "fp8_e4m3", None),
        PagedKV(1, 96, 0),
        PagedKV(1, 96, 0, "q8_0", "q8_0"),
    ]
    sizes = CacheSizes(states, "cpu", max_batch_tokens=64)
    for tokens, sequences in ((1, 1), (100, 2), (4000, 3)):
        cache = KVCache(states, sizes.blocks(tokens, sequences), slots=sizes.slots(sequences))
        assert cache.nbytes == sizes.nbytes(tokens, sequences)
    assert sizes.blocks(4000, 3) == [125, 3 * (2 + 2) + 2, *[125] * 5] and sizes.slots(3) == 3 + SNAPSHOTS
    assert sizes.blocks(100, 3) == [4] * 7
    packed = [CacheSizes([PagedKV(8, 128, 128, kind, kind)], "gpu:0").nbytes(1 << 20) for kind in ("f16", *PACKED)]
    assert [16 * nbytes / packed[0] for nbytes in packed] == [16, 8.5, 4.5, 8]  # bits an element


def test_shared_keys_take_nothing():
    """A layer that shares another's keys and values has its arrays and its blocks; one that is gone is told."""
    own, windowed, sharing = Module(), Module(), Module()
    states = {own: PagedKV(2, 8, 8), windowed: PagedKV(2, 8, 8, window=40)}
    shared = {**states, sharing: SharedKV(windowed)}
    assert CacheSizes(shared.values(), "cpu").nbytes(4000, 3) == CacheSizes(states.values(), "cpu").nbytes(4000, 3)
    cache = KVCache(shared, 4)
    assert cache.nbytes == KVCache(states, 4).nbytes and cache.group_of(sharing) == cache.group_of(windowed)
    with pytest.raises(KeyError, match="this Module is none of the 1 that the cache was made for"):
        KVCache({own: PagedKV(2, 8, 8), sharing: SharedKV(windowed)}, 4)


@settings(deadline=None)
@given(
    st.sampled_from([LLAMA_8B, GEMMA3_27B, [Recurrent(((1 << 16,),)), *GPT_OSS_20B]]),
    st.integers(0, 1 << 36),
    st.integers(1, 1 << 20),
    st.integers(1, 300),
    st.sampled_from([1, 4]),
)
def test_what_fits(states, free_bytes, context, sequences, cards):
    """A cache takes no more than is free but a margin; of fewer sequences, if else not one context would fit; and one
    block more, or a sequence more, would not fit."""
    sizes = CacheSizes(states, "gpu:0", cards=cards)
    room = free_bytes - margin(free_bytes, cards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "available_memory", lambda device: free_bytes)
        try:
            tokens = sizes.tokens_that_fit(context, sequences)
        except rf.DeviceError:
            assert sizes.nbytes(min(32, context)) > room
            return
        running = sizes.sequences_that_fit(tokens, sequences)
    assert sizes.nbytes(tokens, running) <= room
    assert running == sequences or sizes.nbytes(tokens, running + 1) > room
    if tokens < context:
        assert sizes.nbytes(tokens + 1) > room
    elif running == sequences and tokens < sequences * context:
        assert sizes.nbytes(tokens + 32, sequences) > room


def test_error(free):
    """It names what a block takes and what is free."""
    free(1000)
    with pytest.raises(rf.DeviceError, match=r"a KV cache of 32 tokens takes 4\.00 MiB .* \(1,000 bytes\) free"):
        CacheSizes(LLAMA_8B, "gpu:0").tokens_that_fit(131072, 1)
