"""Which layers of a model stand for all of them when its kernels are asked for."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from rocforge.loading.warmup import distinct


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
def test_every_succession_is_there(kinds):
    """Each kind before each that follows it, the last at the end, and no more layers than two for each succession."""
    kept, successions = distinct(kinds), set(itertools.pairwise(kinds))
    assert successions <= set(itertools.pairwise(kept))
    assert kept[-1] == kinds[-1] and len(kept) <= 2 * len(successions) + 1


def test_equal_layers():
    assert len(distinct(["a"] * 32)) == 3
