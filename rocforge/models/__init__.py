"""Models by architecture: a GGUF file's general.architecture picks the class."""

from __future__ import annotations

from typing import Any

from rocforge.errors import UnsupportedModelError
from rocforge.gguf.metadata import Metadata
from rocforge.models.gemma import Gemma2, Gemma3
from rocforge.models.gpt_oss import GptOss
from rocforge.models.llama import Llama
from rocforge.models.phi3 import Phi3
from rocforge.models.qwen2 import Qwen2
from rocforge.models.qwen3 import Qwen3
from rocforge.nn.config import Config
from rocforge.nn.transformer import Transformer

ARCHITECTURES: dict[str, type[Transformer]] = {
    "llama": Llama,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen3moe": Qwen3,
    "gemma2": Gemma2,
    "gemma3": Gemma3,
    "phi3": Phi3,
    "gpt-oss": GptOss,
}
"""The architectures that rocforge runs: general.architecture -> class."""


def build_model(file: Any, context: int | None = None) -> Transformer:
    """The model of an open GGUF file, its weights not loaded.

    Args:
        file: a mapping of tensors with a `metadata` dict, as rf.open_gguf gives.
        context: the longest sequence to serve, in tokens; None for what the model was made for.

    Raises:
        UnsupportedModelError: rocforge does not know the architecture.
        GGUFError: metadata is missing or makes no sense.
    """
    architecture = Metadata(file.metadata).string("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(f"architecture {architecture!r} is not supported; supported are {known}")
    model = ARCHITECTURES[architecture]
    return model(Config.of(file, context, model.defaults))
