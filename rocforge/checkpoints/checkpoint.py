"""Checkpoint: a folder of Hugging Face's, which stands for an open GGUF file. Tensors are converted when asked for."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_VERSION, GGMLQuantizationType, LlamaFileType

from rocforge.checkpoints.config import hyperparameters, number, pooling, rope_tensors, text_config
from rocforge.checkpoints.families import EXPERTS, LAYER, TOP, family_of
from rocforge.checkpoints.mxfp4 import mxfp4_blocks
from rocforge.checkpoints.safetensors import Safetensors, float32
from rocforge.checkpoints.vocabulary import read_json, tokenizer_metadata
from rocforge.errors import CheckpointError, UnsupportedModelError
from rocforge.gguf.quantized import Form
from rocforge.gguf.values import KeyValues
from rocforge.quant import QuantizedArray

_OTHER_MODALITIES = re.compile(r"vision_|visual\.|audio_|projector\.|patch_embed")
_UNUSED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")
_LAYER = re.compile(r"(?:model\.layers|encoder\.layer)\.(\d+)\.(.+)")
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
_FUSED = re.compile(r"mlp\.experts\.(gate_up|down)_proj(?:_(blocks|scales|bias))?")
_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "MXFP4": "MOSTLY_MXFP4_MOE"}
F32, MXFP4 = GGMLQuantizationType.F32, GGMLQuantizationType.MXFP4


@dataclass(frozen=True)
class Converted(Form):
    """A tensor as GGUF has it: shape, type, and what gives it."""

    make: Callable[[], Any]


class Checkpoint(Mapping[str, Any]):
    """A folder of safetensors, a config and a tokenizer, as an open GGUF file has them: tensor name -> array.

    Matrices keep their type, BF16, F16 or F32; vectors, norms and routers are F32. What has to be changed (rows of q
    and k in another order, norms with an offset, experts stacked) is a new array each time it is asked for; the rest
    are views of the mapped files.

    Args:
        folder: with config.json, model.safetensors or its parts and their index, tokenizer.json or tokenizer.model.

    Attributes:
        metadata: as of a GGUF file.
        paths: the files of the tensors.

    Raises:
        FileNotFoundError: the folder has no safetensors.
        CheckpointError: something is missing or malformed.
        UnsupportedModelError: the architecture, the pre-tokenizer or a tensor is not supported.
    """

    def __init__(self, folder: Path):
        settings = read_json(folder / "config.json")
        if not settings:
            files = ", ".join(sorted(path.name for path in folder.glob("*.gguf")))
            instead = f"; of its GGUF files name one: {files}" if files else ""
            raise CheckpointError(f"{folder} has no config.json, so it is no checkpoint{instead}")
        self._source = Safetensors(folder)
        self.paths = self._source.paths
        try:
            self._family = family_of(settings)
            self._config = text_config(settings, self._family.defaults)
            self._tensors = {**self._plan(), **_constants(rope_tensors(self._config))}
            self._check_quantization()
            self.metadata = self._metadata(folder)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise CheckpointError(f"{folder}: config.json and the tensors make no sense: {error!r}") from error

    def __getitem__(self, name: str) -> Any:
        return self.tensor_info(name).make()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def tensor_info(self, name: str) -> Converted:
        """Shape and type of a tensor, without reading it."""
        return self._tensors[name]

    def close(self) -> None:
        """Nothing is left open: the arrays hold what they need."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self.metadata["general.name"]
        return f"Checkpoint of {self._family.architecture} {name!r}: {len(self)} tensors in {len(self.paths)} files"

    @property
    def float_type(self) -> str:
        """The type of the first matrix that is not packed, which is that of most: "BF16", "F16" or "F32"."""
        matrices = (tensor for tensor in self._tensors.values() if len(tensor.shape) > 1 and tensor.qtype != MXFP4)
        return next((tensor.qtype.name for tensor in matrices if tensor.qtype != F32), "F32")

    def _check_quantization(self) -> None:
        method = (self._config.get("quantization_config") or {}).get("quant_method")
        if method is not None and not any(tensor.qtype == MXFP4 for tensor in self._tensors.values()):
            raise UnsupportedModelError(
                f"weights quantized by {method} are not supported; supported are BF16, F16, F32 and gpt-oss's MXFP4"
            )

    def _metadata(self, folder: Path) -> KeyValues:
        """All key-value pairs: of the model, its architecture and its tokenizer."""
        architecture, rows = self._family.architecture, self._tensors["token_embd.weight"].shape[0]
        pooled = pooling(read_json(folder / "1_Pooling" / "config.json"))
        keys = {**hyperparameters(self._config), **pooled, **self._family.extra(self._config)}
        packed = any(tensor.qtype == MXFP4 for tensor in self._tensors.values())
        file_type = "MXFP4" if packed else self.float_type
        return KeyValues(
            {
                **_about(folder, architecture, self._tensors),
                **{f"{architecture}.{key}": value for key, value in keys.items()},
                "general.file_type": LlamaFileType[_FILE_TYPES[file_type]].value,
                "general.quantization_version": GGML_QUANT_VERSION,
                **tokenizer_metadata(folder, architecture, rows),
                **self._token_types(),
            }
        )

    def _token_types(self) -> dict[str, int]:
        types = self._tensors.get("token_types.weight")
        return {} if types is None else {"tokenizer.ggml.token_type_count": types.shape[0]}

    def _plan(self) -> dict[str, Converted]:
        """What becomes of each tensor of the checkpoint."""
        plan, unknown = dict[str, Converted](), list[str]()
        experts: dict[str, dict[int, str]] = defaultdict(dict)
        for source in self._source:
            name = source.replace("language_model.", "", 1).removeprefix("bert.")
            if name.endswith(_UNUSED) or name.startswith(self._family.unused) or _OTHER_MODALITIES.search(name):
                continue
            layer = _LAYER.fullmatch(name)
            if layer and (fused := _FUSED.fullmatch(layer[2])):
                plan |= self._fused(source, f"blk.{layer[1]}.ffn", fused[1], fused[2] or "")
            elif layer and (expert := _EXPERT.fullmatch(layer[2])) and expert[2] in EXPERTS:
                experts[f"blk.{layer[1]}.ffn_{EXPERTS[expert[2]]}_exps.weight"][int(expert[1])] = source
            elif target := self._name(name, layer):
                if not (self._family.tied and target == "output.weight"):
                    plan[target] = self._plain(source, target)
            else:
                unknown.append(source)
        if unknown:
            more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
            raise UnsupportedModelError(f"tensors of no known name: {', '.join(unknown[:8])}{more}")
        if "token_embd.weight" not in plan:
            raise CheckpointError("tensor model.embed_tokens.weight is missing")
        return plan | {target: self._stacked(sources, target) for target, sources in experts.items()}

    def _name(self, name: str, layer: re.Match[str] | None) -> str | None:
        """GGUF's name of a tensor; None for one that is not known."""
        names = {**LAYER, **self._family.layer} if layer else {**TOP, **self._family.top}
        name, prefix = (layer[2], f"blk.{layer[1]}.") if layer else (name, "")
        if name in names:
            return prefix + names[name]
        module, _, kind = name.rpartition(".")
        return f"{prefix}{names[module]}.{kind}" if module in names and kind in ("weight", "bias") else None

    def _plain(self, source: str, target: str) -> Converted:
        part = target.split(".")[-2]
        if self._family.rotated_pairs and part in ("attn_q", "attn_k"):
            heads = number(self._config, "num_attention_heads", int)
            heads = int(self._config.get("num_key_value_heads", heads)) if part == "attn_k" else heads
            if (rows := self._source.entry(source).shape[0]) % (2 * heads):
                raise CheckpointError(f"tensor {source} has {rows} rows, which are no {heads} heads of pairs")
            return self._converted(source, target, lambda rows: rotated_pairs(rows, heads))
        if self._family.norm_offset and target.endswith("norm.weight"):
            offset = np.float32(self._family.norm_offset)
            entry = self._source.entry(source)
            return Converted(entry.shape, F32, lambda: float32(self._source[source], entry.dtype) + offset)
        return self._converted(source, target)

    def _converted(
        self,
        source: str,
        target: str,
        change: Callable[[np.ndarray], np.ndarray] = lambda array: array,
        shape: tuple[int, ...] | None = None,
    ) -> Converted:
        """A tensor whose values, or bits, `change` puts in another order; `shape` is what they then have."""
        entry = self._source.entry(source)
        shape = entry.shape if shape is None else shape
        qtype = _qtype(target, shape, entry.dtype)
        return Converted(shape, qtype, lambda: _array(change(self._source[source]), entry.dtype, qtype))

    def _stacked(self, sources: Mapping[int, str], target: str) -> Converted:
        """The matrices of all experts."""
        entries = [self._source.entry(name) for name in sources.values()]
        first, kinds = entries[0], {(entry.shape, entry.dtype) for entry in entries}
        if sorted(sources) != list(range(len(sources))) or len(kinds) > 1:
            raise CheckpointError(f"{target}: experts {sorted(sources)} of shapes and types {sorted(map(str, kinds))}")
        names = [sources[i] for i in range(len(sources))]
        shape, qtype = (len(names), *first.shape), _qtype(target, (0, *first.shape), first.dtype)
        return Converted(shape, qtype, lambda: _array(np.stack([self._source[n] for n in names]), first.dtype, qtype))

    def _fused(self, source: str, prefix: str, part: str, kind: str) -> dict[str, Converted]:
        """gpt-oss's experts: gate and up in turns, in MXFP4 or as floats whose rows are the inputs; and biases."""
        names = {"gate": slice(0, None, 2), "up": slice(1, None, 2)} if part == "gate_up" else {"down": slice(None)}
        return {
            f"{prefix}_{name}_exps.{'bias' if kind == 'bias' else 'weight'}": self._part(source, kind, rows)
            for name, rows in names.items()
            if kind != "scales"
        }

    def _part(self, source: str, kind: str, rows: slice) -> Converted:
        entry = self._source.entry(source)
        if kind == "blocks":
            scales = source.removesuffix("blocks") + "scales"
            if scales not in self._source or len(entry.shape) != 4:
                raise CheckpointError(f"tensor {source} of shape {entry.shape} has no {scales}, or is not of 4 axes")
            experts, count, blocks, _ = entry.shape
            packed_shape = (experts, len(range(count)[rows]), 32 * blocks)

            def packed() -> QuantizedArray:
                data = mxfp4_blocks(self._source[source][:, rows], self._source[scales][:, rows])
                return QuantizedArray(data, packed_shape, MXFP4)

            return Converted(packed_shape, MXFP4, packed)
        if kind == "bias":
            bias_shape = (entry.shape[0], len(range(entry.shape[1])[rows]))
            return self._converted(source, "bias", lambda array: array[:, rows], bias_shape)
        shape = (entry.shape[0], len(range(entry.shape[2])[rows]), entry.shape[1])
        return self._converted(source, "weight", lambda array: array.swapaxes(1, 2)[:, rows], shape)


def _constants(arrays: Mapping[str, np.ndarray]) -> dict[str, Converted]:
    return {name: Converted(array.shape, F32, lambda array=array: array) for name, array in arrays.items()}  # type: ignore[misc]


def _qtype(target: str, shape: tuple[int, ...], dtype: str) -> GGMLQuantizationType:
    """Matrices of weights keep their type, but for the router and embeddings of positions; all else is F32."""
    plain = target.endswith(("norm.weight", "gate_inp.weight")) or target.startswith(("position_embd", "token_types"))
    matrix = len(shape) > 1 and target.endswith("weight") and not plain
    return GGMLQuantizationType[dtype] if matrix and dtype in ("BF16", "F16") else F32


def _array(array: np.ndarray, dtype: str, qtype: GGMLQuantizationType) -> Any:
    if dtype == "BF16" and qtype.name == "BF16":
        return QuantizedArray(np.ascontiguousarray(array).view(np.uint8), array.shape, qtype)
    return array if dtype == qtype.name else float32(array, dtype)


def rotated_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head, of which the first half is rotated with the second, with the two of a pair side by side."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _about(folder: Path, architecture: str, tensors: Mapping[str, Converted]) -> dict[str, Any]:
    """`general.*` keys: the architecture, a label of the size, and what the folder's name and its files say."""
    sizes = {name: math.prod(tensor.shape) for name, tensor in tensors.items()}
    stacked = [name for name, tensor in tensors.items() if "_exps." in name and len(tensor.shape) > 2]
    experts = tensors[stacked[0]].shape[0] if stacked else 0
    total, of_experts = sum(sizes.values()), sum(sizes[name] for name in stacked)
    about = gguf.Metadata.load(None, folder, None, total)
    about.name = about.name or folder.resolve().name
    about.size_label = about.size_label or gguf.size_label(
        total, total - of_experts, of_experts // max(experts, 1), experts
    )
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    about.set_gguf_meta_model(writer)
    return {key: value.value for key, value in writer.kv_data[0].items()}
