"""Collecting an importance matrix: what each weight of a model multiplies while it reads a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rocforge.device.arrays import asnumpy, on_device, to_device
from rocforge.errors import NonFiniteError
from rocforge.gguf.imatrix import ImportanceMatrix, Inputs
from rocforge.nn.layers import Linear
from rocforge.nn.moe import Experts
from rocforge.nn.transformer import Transformer
from rocforge.ops.importance import add_squares
from rocforge.text.tokenizer import Tokenizer


def collect_imatrix(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str,
    chunk: int = 512,
    chunks: int | None = None,
    output: bool = False,
    dataset: str = "",
    progress: Callable[[int, int], Any] = lambda tokens, total: None,
) -> ImportanceMatrix:
    """The importance matrix of a model for a text, as llama.cpp's llama-imatrix gives it.

    The text is read in chunks, each a sequence of its own; what is left behind the last whole chunk is not read. Sums
    stay on the model's device until the end.

    Args:
        chunk: tokens of a chunk; where the tokenizer begins a text by a token, it stands for a chunk's first.
        chunks: how many to read at most; None: all.
        output: whether the output is among the weights, where it is not the embedding.
        dataset: the text's name.
        progress: called with the number of tokens of each chunk, and of all, once it has been read.

    Raises:
        ValueError: the text is shorter than a chunk, or chunk is not positive or longer than the model's context.
        NonFiniteError: inputs are not finite.
    """
    if not 1 <= chunk <= model.config.context:
        raise ValueError(f"chunk is {chunk}; allowed are 1 to the model's context of {model.config.context}")
    tokens = np.array(tokenizer.encode(text), np.int32)
    count = min(len(tokens) // chunk, len(tokens) if chunks is None else chunks)
    if not count:
        raise ValueError(
            f"the text has {len(tokens)} tokens, fewer than a chunk of {chunk}; give a longer text, or shorter chunks"
        )
    collectors = {
        path: _Collector(module, model.device)
        for path, module in model.named_modules()
        if isinstance(module, (Linear, Experts)) and _is_wanted(model, path, output)
    }
    begin = tokenizer.encode("")[:1]
    begin = begin if begin == [tokenizer.bos_token_id] else []
    with model.edit({path: collector.edit for path, collector in collectors.items()}), on_device(model.device):
        for i in range(count):
            part = tokens[i * chunk : (i + 1) * chunk].copy()
            part[: len(begin)] = begin
            (model if model.generates else model.hidden)(part)
            progress(chunk, count * chunk)
    inputs = {f"{path}.weight": collector.inputs() for path, collector in collectors.items()}
    for name, found in inputs.items():
        if not np.isfinite(found.sums).all():
            raise NonFiniteError(f"what {name} multiplies is not finite")
    return ImportanceMatrix(inputs, [dataset], count, chunk)


def _is_wanted(model: Transformer, path: str, output: bool) -> bool:
    if path == "output":
        return output and model.output.weight is not model.token_embd.weight
    return path.startswith("blk.")


class _Collector:
    """Sums the squares of what one layer is given, on the device."""

    def __init__(self, layer: Linear | Experts, device: str):
        shape = layer.weight.shape
        matrices = shape[0] if len(shape) > 2 else 1
        self.sums = to_device(np.zeros((matrices, shape[-1]), np.float32), device)
        self.counts = to_device(np.zeros(matrices, np.float32), device)
        self.edit = self._of_experts if isinstance(layer, Experts) else self._of_tokens

    def _of_tokens(self, y: Any, x: Any) -> Any:
        add_squares(self.sums, self.counts, x)
        return y

    def _of_experts(self, y: Any, x: Any, ids: Any) -> Any:
        add_squares(self.sums, self.counts, x, ids)
        return y

    def inputs(self) -> Inputs:
        return Inputs(asnumpy(self.sums), asnumpy(self.counts))
