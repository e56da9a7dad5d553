"""The sampling that a file recommends for its model: `general.sampling.*` of llama.cpp's converters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_PREFIX = "general.sampling."
_NAMES = {
    "temp": "temperature",
    "penalty_repeat": "repetition_penalty",
    **{name: name for name in ("top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold")},
    **{name: name for name in ("mirostat", "mirostat_tau", "mirostat_eta")},
}
"""Ours for llama.cpp's. A range of tokens for the penalty, and an order of samplers, have none."""


def recommended_sampling(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The numbers, by the names of rf.SamplingParams.

    >>> recommended_sampling({"general.sampling.temp": 0.6, "general.sampling.top_k": 20})
    {'temperature': 0.6, 'top_k': 20}
    """
    found = ((name, metadata.get(_PREFIX + key)) for key, name in _NAMES.items())
    return {
        name: value
        for name, value in found
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
