"""`rocforge generate`: continue a prompt, or answer it."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from rocforge.cli.errors import UsageError
from rocforge.cli.options import (
    CacheTypeK,
    CacheTypeV,
    Context,
    Device,
    Fp16Weights,
    Lora,
    Model,
    Quiet,
    Sampling,
    Split,
    SplitMode,
    Switch,
    System,
    Template,
    TensorParallel,
    TensorSplit,
    cache_types,
    load_adapter,
    several_cards,
    takes_sampling,
)
from rocforge.cli.output import note, write_text
from rocforge.engine.response import GenerationResponse


@takes_sampling
def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; - or none: read stdin.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Apply the model's chat template to the prompt.")] = False,
    system: System = None,
    chat_template: Template = None,
    echo: Annotated[
        bool | None,
        typer.Option("--echo/--no-echo", help="Print the prompt too; default: on a terminal.", show_default=False),
    ] = None,
    device: Device = None,
    tensor_parallel: TensorParallel = None,
    split: Split = SplitMode.rows,
    tensor_split: TensorSplit = None,
    context: Context = None,
    fp16_weights: Fp16Weights = Switch.auto,
    cache_type_k: CacheTypeK = None,
    cache_type_v: CacheTypeV = None,
    lora: Lora = None,
    quiet: Quiet = False,
    *,
    sampling: Sampling,
) -> None:
    """Continue a prompt; stream the text."""
    import rocforge as rf

    if (system or chat_template) and not chat:
        raise UsageError("--system and --chat-template need --chat")
    text = _prompt(prompt)
    progress = False if quiet else None
    types = cache_types(cache_type_k, cache_type_v)
    cards = several_cards(device, tensor_parallel, split, tensor_split)
    fp16 = fp16_weights.enabled
    loaded, tokenizer = rf.load(model, **cards, context=context, progress=progress, fp16_weights=fp16, **types)
    options = {**sampling.of(tokenizer), "lora": load_adapter(loaded, lora)}
    if chat:
        messages = [{"role": "system", "content": system}] if system else []
        template = chat_template.read() if chat_template else None
        ids = tokenizer.apply_chat_template([*messages, {"role": "user", "content": text}], chat_template=template)
    else:
        ids = tokenizer.encode(text)
        if echo or (echo is None and sys.stdout.isatty()):
            write_text(text, bold=True)
    last = None
    with contextlib.closing(rf.stream_generate(loaded, tokenizer, ids, **options)) as stream:
        for response in stream:
            write_text(response.text)
            last = response
    print(flush=True)
    if last and not quiet:
        note(f"{last.stats}; {_ending(last, options['max_tokens'])}")
        if device is None and (reason := rf.device_info().reason):
            note(f"no GPU: {reason}")


def _ending(last: GenerationResponse, max_tokens: int | None) -> str:
    """Why the text ended."""
    if last.finish_reason == "stop":
        return "the model ended the text, or it came to --stop"
    return "stopped by --max-tokens" if last.stats.generated_tokens == max_tokens else "stopped where the context ends"


def _prompt(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin.isatty():
        note("reading the prompt from stdin; Ctrl-D ends it")
    return sys.stdin.buffer.read().decode(errors="surrogateescape")  # a text stream would change line ends


COMMANDS = [generate]
