"""The typer application: its commands, and what they share."""

from __future__ import annotations

from typing import Annotated

import typer

from rocforge import __version__
from rocforge.cli import (
    bench,
    chat,
    convert,
    generate,
    imatrix,
    info,
    models,
    perplexity,
    quantize,
    remote,
    selftest,
    serve,
    tune,
)

app = typer.Typer(
    name="rocforge",
    help="Transformers on AMD GPUs: GGUF models, from the terminal.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"rocforge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Transformers on AMD GPUs: GGUF models, from the terminal."""


_MODULES = (generate, chat, serve, remote, models, convert, quantize, imatrix, perplexity, info, bench, selftest, tune)
for _module in _MODULES:
    for _command in _module.COMMANDS:
        app.command()(_command)
