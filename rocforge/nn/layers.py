"""The layers that hold one weight each, and products of one input with several of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from rocforge.nn.module import Module, Parameter
from rocforge.ops.embedding import embedding
from rocforge.ops.linear import linear, linear_then_norm, linears
from rocforge.ops.norm import rms_norm, rms_norm_for


class Linear(Module):
    """`x @ weight.T + bias`: weight (rows, columns), bias (rows,) or none; x (..., columns) gives (..., rows).

    `bias` may be "optional": the layer has one where the weights do. `optional` says so of the weight.
    """

    def __init__(self, columns: int, rows: int, bias: bool | str = False, optional: bool = False):
        self.weight = Parameter(rows, columns, optional=optional)
        self.bias = Parameter(rows, optional=bias == "optional") if bias else None

    def forward(self, x: Any, residual: Any = None) -> Any:
        return linear(x, self.weight, self.bias, residual)

    def add_to(self, residual: Any, x: Any, then: Entry | None = None) -> Any:
        """`residual + self(x)`; Ahead, where `then` comes next and its norm takes no launch of its own."""
        residual = plain(residual)
        if then is None or Module.captures:
            return self(x, residual=residual)
        norm, weights = then.norm, [layer.weight for layer in then.layers]
        y, normed = linear_then_norm(x, self.weight, self.bias, residual, norm.weight, norm.eps, weights)
        return y if normed is None else Ahead(y, normed)


def apply_together(x: Any, *layers: Linear) -> list[Any]:
    """What each Linear gives for x: on a device in one launch where it can be."""
    ys = linears(x, [layer.weight for layer in layers], [layer.bias for layer in layers])
    return [layer.observed(y) for layer, y in zip(layers, ys, strict=True)]


class Embedding(Module):
    """Rows of `weight` (vocabulary, dim) by token id."""

    def __init__(self, vocabulary: int, dim: int):
        self.weight = Parameter(vocabulary, dim)

    def forward(self, ids: Any) -> Any:
        return embedding(ids, self.weight)


class RMSNorm(Module):
    """Root-mean-square normalization with a weight (dim,)."""

    def __init__(self, dim: int, eps: float):
        self.weight, self.eps = Parameter(dim), eps

    def forward(self, x: Any, residual: Any = None) -> Any:
        return rms_norm(x, self.weight, self.eps, residual)

    def before(self, x: Any, *layers: Linear) -> Any:
        """x normalized, in the form that products with these layers' weights take: rounded already, on a device."""
        if self.observers:
            return self(x)
        return rms_norm_for([layer.weight for layer in layers], x, self.weight, self.eps)


class Entry(NamedTuple):
    """Where the residual stream enters a module: its norm, and the layers that multiply what that gives."""

    norm: RMSNorm
    layers: tuple[Linear, ...]

    def __call__(self, x: Any) -> Any:
        """x, plain or Ahead, as `norm.before` gives it."""
        return x.normed if isinstance(x, Ahead) else self.norm.before(x, *self.layers)


class Ahead(NamedTuple):
    """The residual stream x (tokens, dim) with what the next module's Entry makes of it."""

    x: Any
    normed: Any


def plain(x: Any) -> Any:
    """The residual stream as an array."""
    return x.x if isinstance(x, Ahead) else x
