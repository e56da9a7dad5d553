"""/props: what clients of llama.cpp's server ask about the model and the defaults."""

from __future__ import annotations

from typing import Any

from rocforge import __version__
from rocforge.ops.sampling import SamplingParams
from rocforge.server.generation import Generator

_SAMPLING = (
    *("top_k", "top_p", "min_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "presence_penalty"),
    *("frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "dry_multiplier", "dry_base"),
    *("dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "temperature"),
)
_RENAMED = {"repetition_penalty": "repeat_penalty", "typical_p": "typ_p"}


def props(generator: Generator) -> dict[str, Any]:
    """The body of /props, in llama.cpp's shape.

    Raises:
        APIError: the model is not loaded.
    """
    tokenizer, settings = generator.tokenizer, generator.settings
    defaults = SamplingParams(**generator.sampling)
    params: dict[str, Any] = {name: getattr(defaults, name) for name in _SAMPLING}
    params |= {name: getattr(defaults, own) for own, name in _RENAMED.items()} | {"n_predict": -1}
    return {
        "default_generation_settings": {"n_ctx": generator.backend.limit, "params": params},
        "model_alias": settings.model_name,
        "chat_template": settings.chat_template or tokenizer.chat_template or "",
        "bos_token": tokenizer.bos_token or "",
        "eos_token": tokenizer.eos_token or "",
        "modalities": {"vision": False, "audio": False},
        "build_info": f"rocforge {__version__}",
    }
