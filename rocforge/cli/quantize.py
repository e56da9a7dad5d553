"""`rocforge quantize`: another GGUF file of a model, in fewer bits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from rocforge.cli.errors import UsageError
from rocforge.cli.options import Device, Model, Quiet
from rocforge.cli.output import note, table
from rocforge.gguf.imatrix import read_imatrix
from rocforge.gguf.mixes import Mix
from rocforge.gguf.quantized import Form, Quantized
from rocforge.gguf.writer import write_gguf
from rocforge.loading.files import open_model, packer

Out = Annotated[Path | None, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show types and sizes, and write nothing.")]


def quantize(
    model: Model,
    output: Out = None,
    *,
    mix: Annotated[str, typer.Option("--type", metavar="TYPE", help="Q4_K_M, Q8_0, IQ3_XS, ...: llama.cpp's names.")],
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix, .gguf or .dat.", show_default=False)
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all tensors, not a mix.")] = False,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of output.weight.", show_default=False)
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of token_embd.weight.", show_default=False)
    ] = None,
    tensor_type: Annotated[
        list[str] | None, typer.Option(metavar="REGEX=TYPE", help="Type of tensors by name; repeatable.")
    ] = None,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Keep output.weight as it is.")
    ] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize tensors that already are: worse than from 16 bits.")
    ] = False,
    dry_run: DryRun = False,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Write a GGUF file of a model in fewer bits."""
    special = _upper(output_tensor_type), _upper(token_embedding_type)
    chosen = Mix(mix, pure, *special, leave_output_tensor, _overrides(tensor_type))
    importance = None if imatrix is None else read_imatrix(imatrix)
    with open_model(model) as file:
        quantized = Quantized(file, chosen, packer(device), importance)
        try:
            quantized.check(allow_requantize)
        except ValueError as error:
            if not dry_run:
                raise
            note(f"but without --dry-run: {error}")
        write(quantized, output, dry_run, quiet)


def write(quantized: Quantized, output: Path | None, dry_run: bool, quiet: bool) -> None:
    """Write the file, with a bar of what has been read, or show what it would hold; and the sizes."""
    from tqdm import tqdm

    if dry_run:
        _show(quantized)
    elif output is None:
        raise UsageError("OUT is missing: the file to write; --dry-run needs none")
    else:
        total = sum(form.nbytes for form in quantized.before.values())
        units = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
        with tqdm(total=total, desc="writing", disable=quiet or None, **units, leave=False) as bar:
            write_gguf(output, quantized.metadata, quantized.planned(bar.update), quantized.paths)
    if not quiet:
        _sums(quantized)


def _upper(qtype: str | None) -> str | None:
    return None if qtype is None else qtype.upper()


def _overrides(given: list[str] | None) -> tuple[tuple[str, str], ...]:
    """`REGEX=TYPE` options as pairs."""
    pairs = [text.rpartition("=") for text in given or ()]
    for pattern, equals, _ in pairs:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--tensor-type: {pattern!r} is no regular expression: {error}") from None
        if not equals:
            raise UsageError(f"--tensor-type is {pattern!r}; allowed is REGEX=TYPE, such as attn_v=Q6_K")
    return tuple((pattern, qtype.upper()) for pattern, _, qtype in pairs)


def _show(quantized: Quantized) -> None:
    """A line a tensor: its type and size, before and after."""
    rows = []
    for name, after in quantized.after.items():
        before = quantized.before[name]
        shape = " x ".join(map(str, after.shape))
        rows.append((name, shape, before.qtype.name, after.qtype.name, _mib(before.nbytes), _mib(after.nbytes)))
    table(rows, ["tensor", "shape", "type", "becomes", ">MiB", ">MiB"])


def _sums(quantized: Quantized) -> None:
    """The sizes before and after, as llama-quantize gives them."""
    for title, forms in (("model size", quantized.before), ("quant size", quantized.after)):
        print(f"{title} = {_total(list(forms.values()))}")


def _total(forms: list[Form]) -> str:
    nbytes, elements = sum(form.nbytes for form in forms), sum(form.size for form in forms)
    return f"{_mib(nbytes)} MiB ({8 * nbytes / elements:.2f} bits a weight)"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.2f}"


COMMANDS = [quantize]
