"""Mixes of formats: which tensor of a model gets which type where it is quantized to Q4_K_M, IQ3_XS, MXFP4_MOE, ...

They are those of llama.cpp, by a tensor's role, its layer, and the model's experts and grouped queries. Source:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp; its exceptions for falcon and glm5 are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from rocforge.errors import UnsupportedModelError

_BASES = {
    "Q2_K": "Q2_K",
    "Q2_K_S": "Q2_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "IQ2_S": "IQ2_XS",
    "IQ2_M": "IQ2_S",
    "IQ3_XS": "IQ3_S",
    "IQ3_M": "IQ3_S",
    "MXFP4_MOE": "MXFP4",
}
"""The type of most tensors, where it has another name than the mix."""
_SAME = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "Q1_0"),
)
MIXES: dict[str, str] = {**{name: name for name in _SAME}, **_BASES}
"""Name of a mix -> the type of most tensors."""
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_TYPES = sorted(set(MIXES.values()))
_PLAIN = ("F32", "F16", "BF16")
_LOWEST = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_IQ2_S_M = ("IQ2_S", "IQ2_M")
_FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""Types of blocks of 32 in place of those of 256, for rows that are no whole number of these."""
_NEED_IMPORTANCE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|^position_embd|^token_types|ssm_conv1d|shortconv\.conv|altup|laurel|"
    r"per_layer_model_proj|time_mix_(?:first|lerp_fused|[wvag]\d|decay_w\d)\.weight"
)
"""Matrices that are small, and stay as they are."""
_ROLES = {
    "attn_v": "attn_v",
    "attn_qkv": "attn_v",
    "attn_kv_b": "attn_v",
    "attn_k": "attn_k",
    "attn_q": "attn_q",
    "attn_output": "attn_output",
}


class Tensor(Protocol):
    """What is asked of a tensor: its NumPy shape and its type."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def qtype(self) -> GGMLQuantizationType | int: ...


@dataclass(frozen=True)
class Mix:
    """A mix, and what departs from it.

    Attributes:
        name: as in MIXES; Q3_K, Q4_K and Q5_K mean their _M.
        pure: all tensors have the mix's main type.
        output, embedding: types of these; where they are one tensor, that of the embedding counts if there is one.
        leave_output: the output stays as it is.
        overrides: (regular expression, type) of further tensors; the first that is found in a name counts.
    """

    name: str
    pure: bool = False
    output: str | None = None
    embedding: str | None = None
    leave_output: bool = False
    overrides: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        name = _ALIASES.get(self.name.upper(), self.name.upper())
        if name not in MIXES:
            raise ValueError(f"type {self.name!r} is unknown; allowed are {', '.join(sorted([*MIXES, *_ALIASES]))}")
        object.__setattr__(self, "name", name)
        for qtype in filter(None, (self.output, self.embedding, *(qtype for _, qtype in self.overrides))):
            if qtype not in _TYPES:
                raise ValueError(f"tensor type {qtype!r} is unknown; allowed are {', '.join(_TYPES)}")

    @property
    def base(self) -> str:
        """The type of most tensors."""
        return MIXES[self.name]

    @property
    def file_type(self) -> int:
        """The value of general.file_type."""
        return LlamaFileType[f"{'ALL' if self.name == 'F32' else 'MOSTLY'}_{self.name}"].value

    def types(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], has_importance: bool = False
    ) -> dict[str, GGMLQuantizationType]:
        """The type of each tensor.

        Raises:
            UnsupportedModelError: a tensor has a type that the gguf package does not know.
        """
        choice = _Choice(self, _Model.of(tensors, metadata), has_importance)
        found = {name: choice.type_of(name, tensors[name]) for name in sorted(tensors, key=_order)}
        return {name: found[name] for name in tensors}

    def needs_importance(self, name: str, qtype: GGMLQuantizationType) -> bool:
        """Whether a tensor that gets this type is useless without importance weights."""
        if name in ("token_embd.weight", "output.weight"):
            return False
        return qtype.name in _NEED_IMPORTANCE or (qtype.name == "Q2_K" and self.name == "Q2_K_S")


def _order(name: str) -> tuple[int, str]:
    """llama.cpp's order, in which tensors of a role are counted: by layer, then by name."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


@dataclass
class _Model:
    """Facts that mixes go by: layers, experts, query heads for each key head, and tensors that bring v."""

    layers: int
    experts: int
    group: int
    tied: bool
    attn_v: int
    is_70b: bool

    @staticmethod
    def of(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> _Model:
        architecture = metadata.get("general.architecture")

        def number(key: str, default: int) -> int:
            value = metadata.get(f"{architecture}.{key}", default)
            return int(value if not hasattr(value, "__len__") else value[0] if len(value) else default)

        heads, layers = number("attention.head_count", 1), number("block_count", 1)
        kv_heads = number("attention.head_count_kv", heads)
        return _Model(
            layers=layers,
            experts=number("expert_count", 0),
            group=heads // kv_heads if kv_heads else 0,
            tied="output.weight" not in tensors,
            attn_v=sum(_role(name) == "attn_v" for name in tensors),
            is_70b=layers == 80 and (architecture == "qwen2" or (architecture == "llama" and heads != kv_heads)),
        )


def _role(name: str) -> str:
    """What a tensor is for, of the roles that mixes tell apart; "" for others."""
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    part = next((part for part in _ROLES if f"{part}.weight" in name), None)
    if part:
        return _ROLES[part]
    return next((part for part in ("ffn_up", "ffn_gate", "ffn_down") if part in name), "")


def _more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is of the first or last eighth, or each third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


@dataclass
class _Choice:
    """The types of a model's tensors, asked for one after another in llama.cpp's order."""

    mix: Mix
    model: _Model
    has_importance: bool
    seen: dict[str, int] = field(default_factory=dict)
    """How many tensors of a role there have been."""

    def type_of(self, name: str, tensor: Tensor) -> GGMLQuantizationType:
        qtype = tensor.qtype
        if not isinstance(qtype, GGMLQuantizationType):
            raise UnsupportedModelError(f"tensor {name!r} has type {qtype}, which is not supported")
        if not self._is_quantized(name, tensor.shape):
            return qtype
        mix, role = self.mix, _role(name)
        if mix.embedding and role == "token_embd":
            return GGMLQuantizationType[mix.embedding]
        if mix.output and role == "output":
            return GGMLQuantizationType[mix.output]
        if mix.base in _PLAIN:
            return GGMLQuantizationType[mix.base]
        override = next((qtype for pattern, qtype in mix.overrides if re.search(pattern, name)), None)
        if override is None:
            override = mix.base if mix.pure else self._by_role(name, role, tensor.shape)
        return GGMLQuantizationType[_fitting(override, tensor.shape[-1])]

    def _is_quantized(self, name: str, shape: tuple[int, ...]) -> bool:
        matrix = any(n > 1 for n in shape[:-1])
        kept = _KEPT.search(name) or (self.mix.leave_output and name == "output.weight")
        return matrix and name.endswith("weight") and not kept

    def _by_role(self, name: str, role: str, shape: tuple[int, ...]) -> str:
        mix, model = self.mix.name, self.model
        if role == "output" or (role == "token_embd" and model.tied):
            return self.mix.output or self._output(shape[-1])
        if mix == "MXFP4_MOE":
            return "MXFP4" if len(shape) > 2 and shape[-3] > 1 else "Q8_0"
        if role == "token_embd":
            return _EMBEDDINGS.get(mix, self.mix.base)
        place = self.seen.get(role, 0)
        self.seen[role] = place + 1
        if mix in _LOWEST:
            return self._lowest(role, place)
        if role == "attn_v":
            return self._attn_v(place)
        if role in ("attn_q", "attn_k"):
            eight = role == "attn_k" and model.experts == 8
            return "Q8_0" if eight else {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(mix, self.mix.base)
        if role == "attn_output":
            return self._attn_output()
        layer = _order(name)[0] if model.experts > 1 else place
        if role == "ffn_down":
            return self._ffn_down(layer)
        if role in ("ffn_gate", "ffn_up") and mix == "IQ3_XS":
            return "IQ3_XXS" if model.layers // 8 <= layer < 7 * model.layers // 8 else self.mix.base
        return self.mix.base

    def _output(self, columns: int) -> str:
        mix, base = self.mix.name, self.mix.base
        if mix == "MXFP4_MOE" or columns % GGML_QUANT_SIZES[GGMLQuantizationType[base]][0] or base == "Q8_0":
            return "Q8_0"
        return "Q5_K" if mix in (*_LOWEST, "IQ3_XXS") else "Q6_K"

    def _lowest(self, role: str, place: int) -> str:
        """In mixes of under three bits."""
        mix, model = self.mix.name, self.model
        better = "IQ3_S" if mix in _IQ2_S_M else "Q2_K"
        if role == "attn_v":
            return "Q4_K" if model.group >= 4 or model.experts >= 4 else better
        if role == "attn_k" and model.experts == 8:
            return "Q4_K"
        if role == "ffn_down" and place < model.layers // 8:
            return better
        if role == "attn_output":
            if model.experts == 8:
                return "Q5_K"
            return {**dict.fromkeys(("IQ1_S", "IQ1_M"), "IQ2_XXS"), **dict.fromkeys(_IQ2_S_M, "IQ3_S")}.get(
                mix, self.mix.base
            )
        return self.mix.base

    def _attn_v(self, place: int) -> str:
        if self.model.experts == 8:
            return "Q8_0"
        qtype = self._attn_v_by_mix(place)
        return "Q5_K" if self.model.is_70b and qtype in ("Q3_K", "Q4_K") else qtype

    def _attn_v_by_mix(self, place: int) -> str:
        mix, grouped = self.mix.name, self.model.group >= 4
        if mix in ("Q4_K_M", "Q5_K_M") and _more_bits(place, self.model.attn_v):
            return "Q6_K"
        if mix == "IQ3_XXS" and not grouped:
            return "IQ3_XXS" if self.has_importance else "IQ3_S"
        if mix == "Q2_K" and not grouped:
            return "Q3_K"
        if grouped and mix in ("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"):
            return "Q4_K"
        if grouped and mix in ("IQ4_NL", "IQ4_XS"):
            return "Q5_K"
        if mix in ("Q3_K_M", "Q4_K_S"):
            first = {"Q3_K_M": 2, "Q4_K_S": 4}[mix]
            return "Q5_K" if place < first else "Q4_K"
        return {"IQ3_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, self.mix.base)

    def _attn_output(self) -> str:
        if self.model.experts == 8:
            return "Q5_K" if self.mix.name in _EIGHT_EXPERTS else self.mix.base
        return _ATTN_OUTPUTS.get(self.mix.name, self.mix.base)

    def _ffn_down(self, layer: int) -> str:
        mix, layers = self.mix.name, self.model.layers
        first, more = layer < layers // 8, _more_bits(layer, layers)
        if mix == "Q3_K_M":
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        if mix == "IQ3_XXS" and not self.has_importance:
            return "Q4_K" if first else "Q3_K"
        if mix == "IQ3_M" and (first or (self.model.experts == 8 and more)):
            return "Q4_K"
        if mix in ("Q4_K_M", "Q5_K_M") and more:
            return "Q6_K"
        if first:
            better = {"Q2_K_S": "Q4_K", "Q4_K_S": "Q5_K"}
            better |= {"Q4_0": "Q4_1", "Q5_0": "Q5_1"} if self.has_importance else {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
            if mix in better:
                return better[mix]
        return {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}.get(mix, self.mix.base)


_EMBEDDINGS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_K"),
}
"""Types of an embedding that is not the output too."""
_ATTN_OUTPUTS = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
_EIGHT_EXPERTS = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"),
    *("IQ3_XS", "IQ3_XXS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"),
)
"""Mixes in which the attention output of a model of eight experts gets Q5_K."""


def _fitting(qtype: str, columns: int) -> str:
    """The type, or one of smaller blocks where the rows are no whole number of its blocks."""
    for fitting in (qtype, _FALLBACKS.get(qtype, qtype)):
        if columns % GGML_QUANT_SIZES[GGMLQuantizationType[fitting]][0] == 0:
            return fitting
    return "F16"
