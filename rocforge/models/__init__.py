"""Models by architecture: a GGUF file's general.architecture picks the class.

A family is a file in this folder with a class, whose `architectures` say which files it reads; nothing else names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rocforge.errors import UnsupportedModelError
from rocforge.gguf.metadata import Metadata
from rocforge.nn.reader import Reader
from rocforge.nn.transformer import Transformer


def _architectures() -> dict[str, type[Transformer]]:
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    families = [c for c in classes if issubclass(c, Transformer)]
    return {name: family for family in families for name in family.architectures}


ARCHITECTURES = _architectures()
"""The architectures that rocforge runs: general.architecture -> class."""

MISSING: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("dream", "llada", "llada-moe", "rnd1"),
            "it writes all tokens of a text at once, by diffusion; models run here that write them one after another",
        ),
        "t5": "its decoder attends to an encoder of its own, which no model here has",
        "t5encoder": "biases of scores that are learnt, by buckets of distances, are missing",
        "clip": "such files see images for a model, and are none themselves; the model's own file runs, without images",
        "wavtokenizer-dec": "it makes sound of tokens, not text",
        "chameleon": "layer norms of queries and keys that have a weight for each head are missing",
        "gptj": "there is no converter to GGUF, and no other program, which would say what a file of it means",
        "grovemoe": "its adjugate experts are missing, of which llama.cpp's are others than those of its authors",
    }
)
"""What architectures have that others run by, and rocforge has not."""


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
    if architecture in MISSING:
        raise UnsupportedModelError(f"architecture {architecture!r} is not supported: {MISSING[architecture]}")
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(f"architecture {architecture!r} is not supported; supported are {known}")
    family = ARCHITECTURES[architecture]
    return family(Reader(file, context, family.defaults))
