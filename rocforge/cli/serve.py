"""`rocforge serve`: the OpenAI-compatible HTTP server."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rocforge.cli.errors import PortInUseError, UsageError
from rocforge.cli.interrupts import Interrupts
from rocforge.cli.options import (
    CacheTypeK,
    CacheTypeV,
    Context,
    Device,
    Fp16Weights,
    Model,
    Quiet,
    Sampling,
    Switch,
    Template,
    adapter_file,
    cache_types,
    takes_sampling,
)
from rocforge.cli.output import note
from rocforge.engine.capacity import MAX_BATCH_TOKENS, MAX_REQUESTS
from rocforge.engine.pacing import INTER_TOKEN_MS
from rocforge.engine.service import MAX_QUEUE


def _by_device(default: Mapping[str, float]) -> str:
    return f"{default['gpu']:g} on a GPU, {default['cpu']:g} on a CPU"


@partial(takes_sampling, of_requests=True)
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = 8000,
    uds: Annotated[Path | None, typer.Option(help="Unix socket to listen on, in place of a port.")] = None,
    fd: Annotated[
        int | None, typer.Option(min=0, help="Listening socket to take over, by its file descriptor; systemd's: 3.")
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="/PATH", help="Path under which a proxy serves this server.", show_default=False)
    ] = "",
    name: Annotated[str | None, typer.Option(help="Model name for clients; default: the file's name.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="ROCFORGE_API_KEY", help="Bearer token that clients must send.")
    ] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="Origin allowed by CORS; repeatable; *: all.")] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[,HOST...]", help="Host names to answer for; repeatable; *.name: subdomains, *: all."
        ),
    ] = None,
    chat_template: Template = None,
    tool_parser: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Format of the model's tool calls, by vLLM's name; default: by its template."
        ),
    ] = None,
    reasoning_budget: Annotated[
        int, typer.Option(min=-1, metavar="N", help="Maximum tokens of a reply's thought; -1: any number.")
    ] = -1,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH[=SCALE]",
            help="A LoRA adapter, a GGUF file or a folder of PEFT's, for requests that name it; repeatable.",
        ),
    ] = None,
    cache_tokens: Annotated[int | None, typer.Option(min=1, help="Size of the KV cache in tokens.")] = None,
    cache_type_k: CacheTypeK = None,
    cache_type_v: CacheTypeV = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Maximum tokens a step; default: {_by_device(MAX_BATCH_TOKENS)}.")
    ] = None,
    inter_token_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Target for the time between two tokens while prompts come in; "
            f"default: {_by_device(INTER_TOKEN_MS)}.",
        ),
    ] = None,
    max_requests: Annotated[int, typer.Option(min=1, help="Maximum running requests.")] = MAX_REQUESTS,
    max_queue: Annotated[int, typer.Option(min=1, help="Maximum waiting requests.")] = MAX_QUEUE,
    processes: Annotated[
        int | None,
        typer.Option(min=0, help="Processes for HTTP; default: by the number of processors. 0: none beside this one."),
    ] = None,
    restart_engine: Annotated[
        bool, typer.Option("--restart-engine", help="Start the engine again when its process dies, and do not end.")
    ] = False,
    device: Device = None,
    context: Context = None,
    fp16_weights: Fp16Weights = Switch.auto,
    quiet: Quiet = False,
    *,
    sampling: Sampling,
) -> None:
    """Serve the OpenAI API over HTTP; / is a chat page."""
    from rocforge.server.run import model_name
    from rocforge.server.run import serve as run
    from rocforge.server.settings import Settings
    from rocforge.text.chat.tool_parsers import TOOL_PARSERS

    if uds is not None and fd is not None:
        raise UsageError("--uds and --fd are two places to listen; allowed is one")
    if root_path and not re.fullmatch(r"(/[\w.~-]+)+", root_path):
        raise UsageError(f"--root-path is {root_path!r}; allowed is a path such as /llm")
    if tool_parser is not None and tool_parser not in TOOL_PARSERS:
        raise UsageError(f"--tool-parser is {tool_parser!r}; allowed are {', '.join(sorted(TOOL_PARSERS))}")
    settings = Settings(
        model_name=name or model_name(model),
        chat_template=chat_template.read() if chat_template else None,
        tool_parser=tool_parser,
        reasoning_budget=None if reasoning_budget < 0 else reasoning_budget,
        sampling={name: sampling.options[name] for name in sampling.given},
        api_key=api_key,
        root_path=root_path,
        cors_origins=cors_origin or (),
        allowed_hosts=[host for hosts in allowed_hosts or () for host in hosts.split(",")],
    )
    Interrupts.current.release()  # the server lets requests finish at the first signal, and ends at the second
    try:
        run(
            model,
            host,
            port,
            uds=uds,
            fd=fd,
            device=device,
            context=context,
            fp16_weights=fp16_weights.enabled,
            lora=_adapters(lora or ()),
            cache_tokens=cache_tokens,
            **cache_types(cache_type_k, cache_type_v),
            max_batch_tokens=max_batch_tokens,
            max_requests=max_requests,
            inter_token_ms=inter_token_ms,
            max_queue=max_queue,
            processes=processes,
            restart_engine=restart_engine,
            settings=settings,
            log_level="warning" if quiet else "info",
            progress=False if quiet else None,
            on_ready=lambda url: note(f"ready at {url}"),
        )
    except OSError as error:
        if error.errno != errno.EADDRINUSE or uds is not None:
            raise
        raise PortInUseError(f"port {port} of {host} is in use: another program listens there") from None


def _adapters(options: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Name -> path and scale, from NAME=PATH and NAME=PATH=SCALE."""
    found: dict[str, tuple[str, float]] = {}
    for text in options:
        name, _, file = text.partition("=")
        if not name or not file:
            raise UsageError(f"--lora is {text!r}; allowed are NAME=PATH and NAME=PATH=SCALE")
        if name in found:
            raise UsageError(f"--lora has two adapters named {name!r}; allowed is one of a name")
        found[name] = adapter_file(file)
    return found


COMMANDS = [serve]
