"""`rocforge convert`: a GGUF file of a checkpoint of Hugging Face's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rocforge.checkpoints.checkpoint import Checkpoint
from rocforge.cli.errors import UsageError
from rocforge.cli.options import Device, Quiet
from rocforge.cli.quantize import DryRun, Out, write
from rocforge.gguf.mixes import Mix
from rocforge.gguf.quantized import Quantized
from rocforge.loading.files import packer


def convert(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="With config.json, safetensors, and tokenizer.json or .model.")
    ],
    output: Out = None,
    mix: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="BF16, F16, F32, Q8_0, Q4_K_M, ...; default: the checkpoint's."),
    ] = None,
    dry_run: DryRun = False,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Write a GGUF file of a checkpoint of Hugging Face's."""
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}; rocforge quantize takes GGUF files")
    checkpoint = Checkpoint(folder)
    chosen = Mix(checkpoint.float_type if mix is None else mix)
    write(Quantized(checkpoint, chosen, packer(device), keep_packed=True), output, dry_run, quiet)


COMMANDS = [convert]
