"""`rocforge models` and `rocforge inspect`: read GGUF headers without loading models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from rocforge.checkpoints.checkpoint import Checkpoint
from rocforge.cli.errors import UsageError
from rocforge.cli.options import Json, Model
from rocforge.cli.output import binary_size, count, note, table, write_json
from rocforge.errors import RocforgeError
from rocforge.gguf.file import GGUFFile, open_gguf
from rocforge.gguf.header import TensorInfo
from rocforge.gguf.hub import select_file
from rocforge.gguf.quantized import Form
from rocforge.loading.files import open_model
from rocforge.models import ARCHITECTURES

_LATER_MEMBER = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_SHOWN = 60  # characters of a metadata value


@dataclass(frozen=True)
class ModelFile:
    """Facts from a GGUF file's header; sizes in bytes, context in tokens."""

    name: str
    architecture: str
    parameters: int
    size: int
    quantization: str
    context: int | None
    path: str


def models(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="FOLDER", help="More folders to search.")] = None,
    supported: Annotated[bool, typer.Option("--supported", help="List the architectures that rocforge runs.")] = False,
    as_json: Json = False,
) -> None:
    """List models in the Hub's cache and in folders."""
    if supported:
        list_architectures(as_json)
        return
    found = []
    for name, path in [*_in_hub_cache(), *_in_folders(folders or [])]:
        try:
            with open_gguf(path) as file:
                found.append(describe(file, name))
        except (RocforgeError, OSError) as error:
            note(str(error) if name in str(error) else f"{name}: {error}")
    if as_json:
        write_json([asdict(model) for model in found])
        return
    columns = ["model", "architecture", ">parameters", ">size", "quantization", ">context"]
    rows = [
        (m.name, m.architecture, count(m.parameters), binary_size(m.size), m.quantization, m.context or "?")
        for m in found
    ]
    if rows:
        table(rows, columns)
    else:
        note("no models found; MODEL as hf:owner/repo[:quant] downloads one, rocforge models FOLDER searches a folder")


def list_architectures(as_json: bool) -> None:
    """What a file's general.architecture may be, and which models those are."""
    rows = [(name, family.models) for name, family in sorted(ARCHITECTURES.items())]
    if as_json:
        write_json([dict(zip(("architecture", "models"), row, strict=True)) for row in rows])
    else:
        table(rows, ["architecture", "models"])


def inspect(
    file: Model,
    as_json: Json = False,
) -> None:
    """Show the metadata and the tensors of a GGUF file, or those that a checkpoint becomes."""
    with open_model(file) as opened:
        model = describe(opened, file)
        infos: dict[str, TensorInfo | Form] = {name: opened.tensor_info(name) for name in opened}
    tensors = [(n, list(t.shape), getattr(t.qtype, "name", str(t.qtype)), t.nbytes) for n, t in infos.items()]
    version = opened.version if isinstance(opened, GGUFFile) else None
    if as_json:
        keys = ("name", "shape", "type", "nbytes")
        metadata = {key: _plain(value) for key, value in opened.metadata.items()}
        listed = [dict(zip(keys, tensor, strict=True)) for tensor in tensors]
        write_json({**asdict(model), "version": version, "metadata": metadata, "tensors": listed})
        return
    parts = f"{len(opened.paths)} files, " if len(opened.paths) > 1 else ""
    form = f"GGUF version {version}, {opened.byteorder}-endian" if isinstance(opened, GGUFFile) else "checkpoint"
    print(
        f"{form}, {parts}{len(tensors)} tensors, "
        f"{count(model.parameters)} parameters, {binary_size(model.size)}, {model.quantization}\n"
    )
    table([(key, _shortened(value)) for key, value in opened.metadata.items()], ["metadata", "value"])
    print()
    rows = [
        (name, " x ".join(map(str, shape)), kind, "?" if size is None else f"{size:,}")
        for name, shape, kind, size in tensors
    ]
    table(rows, ["tensor", "shape", "type", ">bytes"])


def describe(file: GGUFFile | Checkpoint, name: str) -> ModelFile:
    """The line of an open file in the list of models."""
    architecture = str(file.metadata.get("general.architecture", "?"))
    infos = [file.tensor_info(tensor) for tensor in file]
    context = file.metadata.get(f"{architecture}.context_length")
    return ModelFile(
        name=name,
        architecture=architecture,
        parameters=sum(int(np.prod(info.shape, dtype=np.int64)) for info in infos),
        size=sum(path.stat().st_size for path in file.paths),
        quantization=_quantization(file),
        context=context if isinstance(context, int) else None,
        path=str(file.paths[0]),
    )


def _quantization(file: GGUFFile | Checkpoint) -> str:
    """general.file_type by name (Q4_K_M, ...), else the type that most bytes have."""
    from gguf import LlamaFileType

    kind = file.metadata.get("general.file_type")
    if isinstance(kind, int) and kind in list(LlamaFileType):
        return LlamaFileType(kind).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    sizes: Counter[str] = Counter()
    for name in file:
        info: TensorInfo | Form = file.tensor_info(name)
        sizes[getattr(info.qtype, "name", str(info.qtype))] += info.nbytes or 0
    return sizes.most_common(1)[0][0] if sizes else "?"


def _in_hub_cache() -> Iterator[tuple[str, Path]]:
    """Name and path of each model in the Hub's cache; the name is what `rf.load` takes, where there is one."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return
    for repository in sorted(cache.repos, key=lambda r: r.repo_id):
        names = {f.file_name: f.file_path for r in repository.revisions for f in r.files}
        files = {name: path for name, path in names.items() if name.endswith(".gguf")}
        for name, path in sorted(files.items()):
            if not _LATER_MEMBER.search(name):
                yield _hub_name(repository.repo_id, name, list(files)) or str(path), path


def _hub_name(repository: str, file: str, files: list[str]) -> str | None:
    """The name that means this file among those of its repository."""
    for quant in re.split(r"[-./]", file):
        if re.fullmatch(r"(?i)(i?q\d\w*|bf16|f16|f32|mxfp4\w*|tq\d\w*)", quant) and select_file(files, quant) == file:
            return f"hf:{repository}:{quant}"
    return None


def _in_folders(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"no such folder: {folder}")
        for path in sorted(folder.rglob("*.gguf")):
            if path.is_file() and not _LATER_MEMBER.search(path.name):
                yield str(path), path


def _plain(value: Any) -> Any:
    """A metadata value as JSON has it."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _shortened(value: Any) -> str:
    """A metadata value in a line: the start of a long text, the size and first items of an array."""
    if isinstance(value, (list, np.ndarray)):
        items = ", ".join(repr(item) if isinstance(item, str) else str(item) for item in value[:4])
        return f"[{_cut(items)}{', ...' if len(value) > 4 else ''}] ({len(value)} items)"
    return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"


COMMANDS = [models, inspect]
