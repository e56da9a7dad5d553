"""Fixtures for all tests."""

import numpy as np
import pytest


@pytest.fixture
def rng(request):
    """A generator of fresh numbers; its seed is in the report of a failing test."""
    seed = np.random.SeedSequence().entropy
    request.node.user_properties.append(("seed", seed))
    print(f"rng seed {seed}")
    return np.random.default_rng(seed)
