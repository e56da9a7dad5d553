"""`rocforge imatrix`: which columns of a model's weights matter, for quantizing it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from rocforge.cli.errors import UsageError
from rocforge.cli.options import Device, Model, Quiet
from rocforge.cli.output import note
from rocforge.imatrix import collect_imatrix
from rocforge.load import load


def imatrix(
    model: Model,
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="A text file, as the model's use will be.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")] = Path(
        "imatrix.gguf"
    ),
    chunk: Annotated[int, typer.Option(min=1, help="Tokens of a chunk, each read by itself.")] = 512,
    chunks: Annotated[
        int | None, typer.Option(min=1, help="How many chunks to read; default: all.", show_default=False)
    ] = None,
    process_output: Annotated[bool, typer.Option("--process-output", help="Collect for output.weight too.")] = False,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Collect the importance matrix of a model for `rocforge quantize --imatrix`."""
    from tqdm import tqdm

    try:
        words = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{text} is no UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from None
    loaded, tokenizer = load(model, device, context=chunk, progress=False if quiet else None)
    start = time.perf_counter()
    with tqdm(desc="reading", unit="token", disable=quiet or None, leave=False) as bar:

        def advance(tokens: int, total: int) -> None:
            bar.total = total
            bar.update(tokens)

        matrix = collect_imatrix(loaded, tokenizer, words, chunk, chunks, process_output, str(text), advance)
    seconds = time.perf_counter() - start
    matrix.save(output)
    if not quiet:
        note(f"{len(matrix.inputs)} tensors, {matrix.chunks} chunks of {chunk} tokens, {seconds:.1f} s; in {output}")
        unseen = [name for name, inputs in matrix.inputs.items() if not inputs.counts.all()]
        if unseen:
            note(f"experts that saw no token, in {len(unseen)} tensors, count as even: {unseen[0]}, ...")


COMMANDS = [imatrix]
