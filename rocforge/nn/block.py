"""Block: one layer of a model, attention and feed-forward around the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rocforge.nn.batch import Batch
from rocforge.nn.layers import Scale
from rocforge.nn.module import Module
from rocforge.ops.activation import add

POST_NORMS = ("post_attention_norm", "post_ffw_norm")
"""GGUF's names of the norms behind attention and feed-forward."""


class MixerBlock(Module):
    """A layer with one mixer: `x + mixer(norm(x))`; x (tokens, dim).

    Args:
        mixer: called with x; or, if stateful, with (x, batch).
        norm: makes the norm.
        stateful: whether the mixer has a state.
        name: GGUF's of the norm.
    """

    def __init__(self, mixer: Module, norm: Callable[[], Module], *, stateful: bool, name: str = "attn_norm"):
        setattr(self, name, norm())
        self.mixer, self.stateful, self.norm_name = mixer, stateful, name

    @property
    def norm(self) -> Module:
        """Before the mixer."""
        return getattr(self, self.norm_name)

    def forward(self, x: Any, batch: Batch) -> Any:
        y = self.norm(x)
        return add(x, self.mixer(y, batch) if self.stateful else self.mixer(y))


class SideBySide(Module):
    """Two mixers of the same x, whose results are added."""

    inline = True

    def __init__(self, attn: Module, other: Module):
        self.attn, self.other = attn, other

    def forward(self, x: Any, batch: Batch) -> Any:
        return add(self.attn(x, batch), self.other(x, batch))


class Block(Module):
    """`x += post(attn(pre(x)))`, then the like with ffn, and then `x = after(x)`; x (tokens, dim).

    Args:
        attn: called with (x, batch).
        ffn: called with x.
        norm: makes a norm.
        pre, post: GGUF's names of the norms before and after attention and feed-forward; None where there is none.
        parallel: both see x, `x + attn(pre(x)) + ffn(pre(x))`; where ffn has no norm of its own, through attn's.
        residual_scale: factor on what attention and feed-forward add to the stream, or None.
        after: called with (x, batch) at the end, gives the stream; or None.
    """

    def __init__(
        self,
        attn: Module,
        ffn: Module,
        norm: Callable[[], Module],
        *,
        pre: tuple[str | None, str | None] = ("attn_norm", "ffn_norm"),
        post: tuple[str | None, str | None] = (None, None),
        parallel: bool = False,
        residual_scale: float | None = None,
        after: Module | None = None,
    ):
        self.pre, self.post, self.parallel = pre, post, parallel
        for mixer, which in ((attn, 0), (ffn, 1)):
            self._add_norm(pre[which], norm)
            setattr(self, ("attn", "ffn")[which], mixer)
            self._add_norm(post[which], norm)
        self.residual = None if residual_scale is None else Scale(residual_scale)
        self.after = after

    def _add_norm(self, name: str | None, norm: Callable[[], Module]) -> None:
        if name is not None:
            setattr(self, name, norm())

    def norms(self, which: int) -> tuple[Module | None, Module | None]:
        """What attention (0) or feed-forward (1) takes x through, and what it gives goes through."""
        pre, post = self.pre[which], self.post[which]
        return (getattr(self, pre) if pre else None), (getattr(self, post) if post else self.residual)

    def forward(self, x: Any, batch: Batch) -> Any:
        (pre_attn, post_attn), (pre_ffn, post_ffn) = self.norms(0), self.norms(1)
        y = pre_attn(x) if pre_attn else x
        attended = self.attn(y, batch)
        attended = add(x, post_attn(attended) if post_attn else attended)
        stream = x if self.parallel else attended
        if pre_ffn or not self.parallel:
            y = pre_ffn(stream) if pre_ffn else stream
        fed = self.ffn(y)
        y = add(attended, post_ffn(fed) if post_ffn else fed)
        return y if self.after is None else self.after(y, batch)
