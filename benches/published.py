"""Published shapes of families that are no plain Llamas, for measuring: random weights, of the tensors that rocforge's
own model of such metadata has.

Sizes are of the makers' configurations, as far as they decide how much is read and computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType as T

from rocforge.models import build_model
from rocforge.nn import Transformer
from rocforge.selftest.synthetic import Shape, random_matrix, type_of

NEEDED = "ssm_dt.bias"
"""Is there where no other bias is."""


class Published(NamedTuple):
    """A model by its metadata.

    Attributes:
        arch: GGUF's name of the architecture.
        keys: of the metadata, below the architecture's prefix.
        vocabulary: tokens.
        without: tensors that the file has not, by the ends of their names.
        present: tensors that a reader asks for before it builds a module for them: of each layer, or by whole names.
        constants: tensors of these values.
    """

    arch: str
    keys: dict[str, Any]
    vocabulary: int
    without: tuple[str, ...] = (".bias",)
    present: tuple[str, ...] = ()
    constants: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def experts(self) -> int:
        """Of a layer; 0 where there are none."""
        return self.keys.get("expert_count", 0)

    @property
    def used(self) -> int:
        """Experts that a token takes."""
        return self.keys.get("expert_used_count", 0)

    def metadata(self, context: int) -> dict[str, Any]:
        """What a file says of the model, under GGUF's keys."""
        keys = {**self.keys, "context_length": context, "vocab_size": self.vocabulary}
        own = {f"{self.arch}.{key}": value for key, value in keys.items()}
        return {"general.architecture": self.arch, **own}

    def model(self) -> Transformer:
        """The model of that metadata, its weights not loaded."""
        return build_model(_Skeleton(self))

    def random_tensors(self, recipe: str) -> Iterator[tuple[str, Any]]:
        """Name and values of each tensor; matrices alike share their bytes here."""
        rng, shared = np.random.default_rng(0), dict[Any, Any]()
        layers = self.keys["block_count"]
        named = dict(self.model().named_parameters())
        shape = Shape(self.arch, layers, 0, 0, 0, 0, 0, 0, 0.0, "output.weight" not in named)
        yield from self.constants.items()
        for name, parameter in named.items():
            size, part = parameter.shape, name.removesuffix(".weight").rpartition(".")[2]
            if name in self.constants or (f".{name}".endswith(self.without) and not name.endswith(NEEDED)):
                continue
            if part == "ssm_a":
                yield name, rng.uniform(-0.6, -0.1, size).astype(np.float32)
                continue
            if len(size) == 1 or part in ("ssm_conv1d", "ffn_gate_inp", "ffn_gate_inp_shexp"):
                yield name, rng.normal("norm" in name, 0.02, size).astype(np.float32)
                continue
            layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
            qtype = type_of(recipe, name, layer, shape) if size[-1] % 256 == 0 else T.Q8_0
            if (qtype, size) not in shared:
                shared[qtype, size] = random_matrix(qtype, size, rng)
            yield name, shared[qtype, size]


class _Skeleton(dict[str, Any]):
    """Stands for the file while its model is built."""

    def __init__(self, model: Published):
        keys = model.keys
        super().__init__({"token_embd.weight": np.empty((model.vocabulary, keys["embedding_length"]), np.float32)})
        for name in ("attn_output.weight", *model.present):
            layers = [""] if name.startswith("blk.") else [f"blk.{layer}." for layer in range(keys["block_count"])]
            self.update({layer + name: np.empty(0, np.float32) for layer in layers})
        self.update(model.constants)
        self.metadata = model.metadata(8192)


_QWEN = {
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.key_length": 256,
    "attention.value_length": 256,
    "rope.dimension_count": 64,
    "rope.dimension_sections": [11, 11, 10, 0],
    "rope.freq_base": 1e7,
    "full_attention_interval": 4,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 128,
    "ssm.group_count": 16,
}
_GEMMA_WINDOWS = [layer % 6 != 5 for layer in range(30)]

PUBLISHED = {
    "qwen3.6-35b-a3b": Published(
        "qwen35moe",
        {
            **_QWEN,
            "block_count": 40,
            "embedding_length": 2048,
            "feed_forward_length": 512,
            "attention.head_count": 16,
            "attention.head_count_kv": 2,
            "ssm.time_step_rank": 32,
            "ssm.inner_size": 4096,
            "expert_count": 256,
            "expert_used_count": 8,
            "expert_feed_forward_length": 512,
            "expert_shared_feed_forward_length": 512,
        },
        248320,
    ),
    "qwen3.6-27b": Published(
        "qwen35",
        {
            **_QWEN,
            "block_count": 64,
            "embedding_length": 5120,
            "feed_forward_length": 17408,
            "attention.head_count": 24,
            "attention.head_count_kv": 4,
            "ssm.time_step_rank": 48,
            "ssm.inner_size": 6144,
        },
        248320,
    ),
    "gemma-4-26b-a4b": Published(
        "gemma4",
        {
            "attention.layer_norm_rms_epsilon": 1e-6,
            "block_count": 30,
            "embedding_length": 2816,
            "embedding_length_per_layer_input": 0,
            "feed_forward_length": 2112,
            "attention.head_count": 16,
            "attention.head_count_kv": [8 if window else 2 for window in _GEMMA_WINDOWS],
            "attention.key_length": 512,
            "attention.value_length": 512,
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "attention.sliding_window": 1024,
            "attention.sliding_window_pattern": _GEMMA_WINDOWS,
            "rope.dimension_count": 512,
            "rope.dimension_count_swa": 256,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 1e4,
            "final_logit_softcapping": 30.0,
            "expert_count": 128,
            "expert_used_count": 8,
            "expert_feed_forward_length": 704,
        },
        262144,
        without=(".bias", ".output.weight"),
        present=(
            "ffn_gate_inp.weight",
            "ffn_gate_up_exps.weight",
            # other layers' values are their keys
            *(f"blk.{layer}.attn_v.weight" for layer, window in enumerate(_GEMMA_WINDOWS) if window),
        ),
        constants={"rope_freqs.weight": np.repeat(np.array([1, 1e30], np.float32), [64, 192])},
    ),
    "deepseek-v2-lite": Published(
        "deepseek2",
        {
            "attention.layer_norm_rms_epsilon": 1e-6,
            "block_count": 27,
            "embedding_length": 2048,
            "feed_forward_length": 10944,
            "attention.head_count": 16,
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": 0,
            "attention.kv_lora_rank": 512,
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "rope.dimension_count": 64,
            "rope.freq_base": 1e4,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 40.0,
            "rope.scaling.original_context_length": 4096,
            "expert_count": 64,
            "expert_used_count": 6,
            "expert_shared_count": 2,
            "expert_feed_forward_length": 1408,
            "leading_dense_block_count": 1,
        },
        102400,
    ),
}
