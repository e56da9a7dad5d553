"""Config: what an engine has to know of a model beside its modules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Sizes of a model.

    Attributes:
        architecture: general.architecture of its file.
        layers: how many blocks it has.
        dim: width of the residual stream, in elements.
        vocabulary: how many token ids it knows.
        context: the longest sequence to serve, in tokens.
    """

    architecture: str
    layers: int
    dim: int
    vocabulary: int
    context: int
