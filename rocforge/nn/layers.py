"""The layers that hold one weight each."""

from __future__ import annotations

from typing import Any

from rocforge.nn.low_rank import add_updates
from rocforge.nn.module import Module
from rocforge.nn.parameter import Parameter
from rocforge.ops.activation import gelu, scale, scale_columns, softcap, softmax
from rocforge.ops.embedding import embedding
from rocforge.ops.linear import linear
from rocforge.ops.norm import layer_norm, rms_norm


class Linear(Module):
    """`x @ weight.T + bias`: weight (rows, columns), bias (rows,) or none; x (..., columns) gives (..., rows).

    `bias` may be "optional": the layer has one where the weights do. `optional` says so of the weight. A bias may be
    assigned to a layer without one.
    """

    def __init__(self, columns: int, rows: int, bias: bool | str = False, optional: bool = False):
        self.weight = Parameter(rows, columns, optional=optional)
        self.bias: Any = Parameter(rows, optional=bias is not True)
        if not bias:
            self.bias = None

    def forward(self, x: Any) -> Any:
        y = linear(x, self.weight, self.bias)
        add_updates([self], [y], x)
        return y


class Embedding(Module):
    """Rows of `weight` (vocabulary, dim) by token id."""

    def __init__(self, vocabulary: int, dim: int):
        self.weight = Parameter(vocabulary, dim)

    def forward(self, ids: Any) -> Any:
        y = embedding(ids, self.weight)
        add_updates([self], [y], ids)
        return y


class Classifier(Module):
    """Of hidden states (rows, dim) the probabilities of labels (rows, labels); of one label its score.

    Where the file has a `weight` (dim, dim), x goes through `norm(activation(x @ weight.T + bias))` first.

    Args:
        dim: width of the hidden states.
        labels: how many there are.
        activation: "tanh" or "gelu".
        eps: of the norm.

    Source: llama.cpp's pooling RANK.
    """

    def __init__(self, dim: int, labels: int, activation: str, eps: float):
        self.labels, self.activation = labels, activation
        self.weight: Any = Parameter(dim, dim, optional=True)
        self.bias: Any = Parameter(dim, optional=True)
        self.norm = LayerNorm(dim, eps, "optional")
        self.output = Linear(dim, labels, bias="optional", optional=True)

    @property
    def loaded(self) -> bool:
        """Whether the file has a classifier."""
        return self.output.weight is not None

    def forward(self, x: Any) -> Any:
        if self.weight is not None:
            x = linear(x, self.weight, self.bias)
            x = gelu(x) if self.activation == "gelu" else softcap(x, 1.0)
            x = x if self.norm.weight is None else self.norm(x)
        scores = self.output(x)
        return softmax(scores) if scores.shape[-1] > 1 else scores


class RMSNorm(Module):
    """Root-mean-square normalization over the last axis, with a weight (dim,); without `affine` it has none."""

    def __init__(self, dim: int, eps: float, affine: bool = True):
        self.weight: Any = Parameter(dim) if affine else None
        self.eps = eps

    def forward(self, x: Any) -> Any:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(Module):
    """Layer normalization over the last axis, with a weight (dim,) and, where the file has one, a bias (dim,).

    Without `affine` it has neither; "optional": where the file has.
    """

    def __init__(self, dim: int, eps: float, affine: bool | str = True):
        self.weight: Any = Parameter(dim, optional=affine == "optional") if affine else None
        self.bias: Any = Parameter(dim, optional=True) if affine else None
        self.eps = eps

    def forward(self, x: Any) -> Any:
        return layer_norm(x, self.weight, self.bias, self.eps)


class Scale(Module):
    """x times a constant."""

    def __init__(self, factor: float):
        self.factor = factor

    def forward(self, x: Any) -> Any:
        return scale(x, self.factor)


class Factors(Module):
    """x (..., columns) times weight: (columns,), or (1,) for all; with `optional`, where the file has one."""

    def __init__(self, size: int, *, optional: bool = False):
        self.weight: Any = Parameter(size, optional=optional)

    def forward(self, x: Any) -> Any:
        return x if self.weight is None else scale_columns(x, self.weight)


class Vector(Module):
    """Numbers, one a head or an element: a weight of that shape, which a call gives."""

    def __init__(self, *shape: int):
        self.weight: Any = Parameter(*shape, matrix=False)

    def forward(self) -> Any:
        return self.weight


class HookPoint(Module):
    """A value that has a path: what a call is given, it gives."""

    def forward(self, value: Any) -> Any:
        return value
