"""`rocforge perplexity` and `rocforge compare`: a model on a text, alone or beside another, in llama.cpp's terms."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rocforge.cli.errors import UsageError
from rocforge.cli.options import CacheTypeK, CacheTypeV, Device, Json, Lora, Model, Quiet, cache_types, load_adapter
from rocforge.cli.output import write_json

Text = Annotated[Path, typer.Argument(metavar="FILE", help="A text in UTF-8; - for stdin.")]
Window = Annotated[int, typer.Option("--ctx-size", "-c", min=4, help="Tokens of a window, whose second half counts.")]
Chunks = Annotated[int | None, typer.Option(min=1, help="Windows; default: all of the text.", show_default=False)]


def perplexity(
    model: Model,
    file: Text,
    ctx_size: Window = 512,
    chunks: Chunks = None,
    device: Device = None,
    cache_type_k: CacheTypeK = None,
    cache_type_v: CacheTypeV = None,
    lora: Lora = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Perplexity of a model on a text, as llama-perplexity measures it."""
    import rocforge as rf

    text, progress = _read(file), not quiet and sys.stderr.isatty()
    loaded, _ = rf.load(model, device, progress=progress, **cache_types(cache_type_k, cache_type_v))
    found = rf.perplexity(loaded, text, ctx_size, chunks, progress, load_adapter(loaded, lora))
    if json:
        write_json({"perplexity": found.value, "error": found.error, **_sizes(found)})
    else:
        print(f"Final estimate: {found}")


def compare(
    model: Model,
    base: Annotated[str, typer.Argument(metavar="BASE", help="What MODEL is compared with: its F16 file, say.")],
    file: Text,
    ctx_size: Window = 512,
    chunks: Chunks = None,
    device: Device = None,
    lora: Lora = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How far a model's predictions are from another's, as llama-perplexity --kl-divergence says it."""
    import rocforge as rf

    text, progress = _read(file), not quiet and sys.stderr.isatty()
    ours, theirs = (rf.load(path, device, progress=progress)[0] for path in (model, base))
    found = rf.compare(ours, theirs, text, ctx_size, chunks, progress, load_adapter(ours, lora))
    if json:
        values = {"kl_mean": found.kl_mean, "same_top": found.top_agreement}
        write_json({**values, "perplexity": found.model.value, "base": found.base.value, **_sizes(found.base)})
    else:
        print(found)


def _read(file: Path) -> str:
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8: {error}") from error


def _sizes(found: Any) -> dict[str, int]:
    windows, n_ctx = found.tokens.shape
    return {"n_ctx": n_ctx, "chunks": windows, "tokens": found.nll.size}


COMMANDS = [perplexity, compare]
