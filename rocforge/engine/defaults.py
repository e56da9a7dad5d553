"""What a model's file says about sampling where nobody else does."""

from __future__ import annotations

import warnings
from typing import Any

from rocforge.ops.sampling import SamplingParams
from rocforge.text.tokenizer import Tokenizer


def file_defaults(tokenizer: Tokenizer) -> dict[str, Any]:
    """The sampling that the file recommends, as arguments of SamplingParams; what these refuse is left out."""
    found: dict[str, Any] = {}
    value: Any
    for name, value in tokenizer.recommended_sampling.items():
        value = max(value, 0) if name in ("temperature", "top_k") else value  # llama.cpp's for the likeliest, and all
        try:
            SamplingParams(**{name: value})
        except (ValueError, TypeError) as error:
            warnings.warn(f"the file's general.sampling is not taken: {error}", stacklevel=2)
        else:
            found[name] = value
    return found
