"""Fusion: the one place that decides what of a model runs in fewer launches than it has modules.

Models are written as plain modules. `fuse` turns their blocks into steps, each of which carries the residual stream
past attention or feed-forward. A step takes modules together that are plain, which is to say of the very class that
rocforge defines, not edited, and not observed where fusing would leave no output to see. All others are called.
What a kernel can begin of the next step, its norms, comes along with the stream. What adapters update is multiplied
with the rest, and added to; for that its x is there as an array too.

Steps are in `rocforge.nn.fuse_steps`, those of experts in `rocforge.nn.fuse_experts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rocforge.nn.attention import Attention
from rocforge.nn.batch import Batch
from rocforge.nn.block import Block, MixerBlock
from rocforge.nn.delta_net import GatedDeltaNet, TimeStep
from rocforge.nn.fuse_experts import MoEStep, ParallelExpertsStep, has_plain_experts
from rocforge.nn.fuse_steps import (
    AttentionStep,
    CalledStep,
    CalledWhole,
    MixerStep,
    MLPStep,
    Step,
    Stream,
    fused_norm,
)
from rocforge.nn.kimi_delta import KimiDeltaNet
from rocforge.nn.latent_attention import LatentAttention
from rocforge.nn.layers import Factors, RMSNorm
from rocforge.nn.low_rank import Tables, wanted_rows_alone
from rocforge.nn.mlp import MLP, MergedMLP
from rocforge.nn.module import Module, is_hidden, is_plain
from rocforge.nn.moe import MoE
from rocforge.nn.parallel_experts import ParallelExperts
from rocforge.nn.per_layer import LayerEnd, PerLayerInput
from rocforge.nn.shard import Summed
from rocforge.nn.shared_experts import SharedMoE
from rocforge.ops.embedding import embedding


def _step(mixer: Module, pre: Module | None, post: Module | None, stateful: bool, tables: Tables) -> Step:
    if is_hidden(mixer, Summed):
        step = _step(mixer.mixer, pre, post, stateful, tables)
        step.group = mixer.group
        return step
    if is_plain(mixer, Attention):
        return AttentionStep(mixer, pre, post, tables)
    if is_plain(mixer, GatedDeltaNet) and _is_plain_inside(mixer):
        return MixerStep(mixer, pre, post, mixer.ssm_out, tables)
    if is_plain(mixer, LatentAttention) or is_plain(mixer, KimiDeltaNet):
        return MixerStep(mixer, pre, post, mixer.attn_output, tables)
    if is_plain(mixer, MLP) or is_plain(mixer, MergedMLP):
        return MLPStep(mixer, pre, post, tables)
    if isinstance(mixer, MoE | SharedMoE) and has_plain_experts(mixer):
        return MoEStep(mixer, pre, post, tables)
    if is_plain(mixer, ParallelExperts) and pre is None and has_plain_experts(mixer.routed):
        return ParallelExpertsStep(mixer, post, tables)
    return CalledStep(mixer, pre, post, stateful)


def _is_plain_inside(mixer: GatedDeltaNet) -> bool:
    """Whether a DeltaNet's ssm_dt and ssm_norm need not be called."""
    return is_hidden(mixer.ssm_norm, RMSNorm) and is_hidden(mixer.ssm_dt, TimeStep)


def _end(end: Module, last: Step, tables: Tables) -> list[Any]:
    """What carries the stream past the end of a block, whose last step may take the factor on it."""
    if not is_hidden(end, LayerEnd) or not is_hidden(end.layer_output_scale, Factors):
        return [CalledWhole(end)]
    steps, of_layer = [], end.per_layer
    if of_layer is not None:
        if not is_hidden(of_layer, PerLayerInput):
            return [CalledWhole(end)]
        last = MixerStep(of_layer, None, of_layer.post_norm, of_layer.proj, tables)
        steps = [last]
    if not last.normalizes:
        return [CalledWhole(end)]
    last.factor = end.layer_output_scale.weight
    return steps


def _rows_of(stream: Stream, rows: Any) -> Stream:
    """Those rows alone, of which logits are wanted."""
    wanted_rows_alone()
    return Stream(embedding(rows, stream.x))


class Fused:
    """The blocks of a model as steps, and how the residual stream leaves them.

    Args:
        blocks: the model's.
        norm, output: of the model.
        tables: of what adapters update.

    Attributes:
        tables: as given.
        frequencies: the rotary embeddings of the attention layers, each once.
        shows_patterns: whether somebody looks at attention patterns, or changes one.
        joined: the shared experts that are multiplied as the last of the others.
    """

    def __init__(self, blocks: Sequence[Module], norm: Module, output: Module, tables: Tables):
        self.norm, self.tables, self.norm_in = norm, tables, fused_norm(norm, [output], tables)
        self._steps: list[Any] = []
        self._seen: dict[int, Module] = {}  # steps after which an observed block's output is there
        for block in blocks:
            if is_plain(block, Block) and not block.parallel:
                self._steps += [_step((block.attn, block.ffn)[i], *block.norms(i), i == 0, tables) for i in (0, 1)]
                self._steps += [] if block.after is None else _end(block.after, self._steps[-1], tables)
                self._seen[len(self._steps) - 1] = block
            elif is_plain(block, MixerBlock):
                self._steps.append(_step(block.mixer, block.norm, None, block.stateful, tables))
                self._seen[len(self._steps) - 1] = block
            else:
                self._steps.append(CalledWhole(block))
        below = [module for block in blocks for _, module in block.named_modules()]
        ropes = [getattr(module, "rope", None) for module in below]
        self.frequencies = list({id(rope): rope for rope in ropes if rope is not None}.values())
        self.shows_patterns = any(isinstance(module, Attention) and module.shows_pattern for module in below)
        moes = [step for step in self._steps if isinstance(step, MoEStep)]
        self.joined = [step.shared for step in moes if step.shared is not None and step.joined is not None]
        norms = [step.norm_in for step in self._steps[1:]]
        self._following = [*norms, self.norm_in]

    def __call__(self, x: Any, batch: Batch, rows: Any = None) -> Stream:
        """The stream x (tokens, dim) past all blocks.

        Args:
            rows: those wanted of it; None: all. The last feed-forward computes no others.
        """
        stream, last = Stream(x), len(self._steps) - 1
        early = rows is not None and not self._steps[last].stateful
        for i, (step, following) in enumerate(zip(self._steps, self._following, strict=True)):
            if early and i == last:
                stream = _rows_of(stream, rows)
            stream = step(stream, batch, None if early and i == last - 1 else following)
            if (block := self._seen.get(i)) is not None and block.observers:
                block.observed(stream.x)
                stream = stream._replace(owned=False)
        return stream if rows is None or early else _rows_of(stream, rows)

    def leave(self, stream: Stream, plain: bool = False) -> Any:
        """The stream normalized: as the output takes it, or as an array (rows, dim)."""
        return self.norm(stream.x) if plain or self.norm_in is None else self.norm_in(stream)[0]
