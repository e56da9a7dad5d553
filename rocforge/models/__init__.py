"""Models by architecture: a GGUF file's general.architecture picks the class.

A family is a file in this folder with a class, whose `architectures` say which files it reads; nothing else names it.
"""

from __future__ import annotations

import importlib
import pkgutil
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
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(f"architecture {architecture!r} is not supported; supported are {known}")
    family = ARCHITECTURES[architecture]
    return family(Reader(file, context, family.defaults))
