"""`rocforge serve`: the OpenAI-compatible HTTP server."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from rocforge.cli.errors import PortInUseError, UsageError
from rocforge.cli.interrupts import Interrupts
from rocforge.cli.options import (
    CacheTypeK,
    CacheTypeV,
    Context,
    Device,
    Fp16Weights,
    Quiet,
    Sampling,
    Split,
    SplitMode,
    Switch,
    Template,
    TensorParallel,
    TensorSplit,
    adapter_file,
    cache_types,
    several_cards,
    takes_sampling,
)
from rocforge.cli.output import note
from rocforge.engine.capacity import MAX_BATCH_TOKENS, MAX_REQUESTS
from rocforge.engine.pacing import INTER_TOKEN_MS
from rocforge.engine.service import MAX_QUEUE
from rocforge.server.model_pool import MODELS_MAX


def _by_device(default: Mapping[str, float]) -> str:
    return f"{default['gpu']:g} on a GPU, {default['cpu']:g} on a CPU"


@partial(takes_sampling, of_requests=True)
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file, a folder, or hf:owner/repo[:quant] on the Hub; of several, or of a folder with several, "
            "each is loaded when it is asked for.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = 8000,
    uds: Annotated[Path | None, typer.Option(help="Unix socket to listen on, in place of a port.")] = None,
    fd: Annotated[
        int | None, typer.Option(min=0, help="Listening socket to take over, by its file descriptor; systemd's: 3.")
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="/PATH", help="Path under which a proxy serves this server.", show_default=False)
    ] = "",
    models_max: Annotated[
        int, typer.Option(min=0, help="Of several models, maximum loaded at a time; 0: as many as the memory holds.")
    ] = MODELS_MAX,
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
    ray: Annotated[bool, typer.Option("--ray", help="Serve by replicas on a Ray cluster, through Ray Serve.")] = False,
    replicas: Annotated[
        str | None,
        typer.Option(
            metavar="N[-M]",
            help="With --ray, how many replicas, 1 by default; N-M: as many as the tokens in flight need.",
        ),
    ] = None,
    device: Device = None,
    tensor_parallel: TensorParallel = None,
    split: Split = SplitMode.rows,
    tensor_split: TensorSplit = None,
    context: Context = None,
    fp16_weights: Fp16Weights = Switch.auto,
    quiet: Quiet = False,
    *,
    sampling: Sampling,
) -> None:
    """Serve the OpenAI API over HTTP; / is a chat page."""
    from rocforge.server.engine_options import EngineOptions
    from rocforge.server.models import find_models
    from rocforge.server.run import serve as serve_one
    from rocforge.server.run_models import serve_models
    from rocforge.server.settings import Settings
    from rocforge.text.chat.tool_parsers import TOOL_PARSERS

    if uds is not None and fd is not None:
        raise UsageError("--uds and --fd are two places to listen; allowed is one")
    if root_path and not re.fullmatch(r"(/[\w.~-]+)+", root_path):
        raise UsageError(f"--root-path is {root_path!r}; allowed is a path such as /llm")
    if tool_parser is not None and tool_parser not in TOOL_PARSERS:
        raise UsageError(f"--tool-parser is {tool_parser!r}; allowed are {', '.join(sorted(TOOL_PARSERS))}")
    if replicas is not None and not ray:
        raise UsageError("--replicas is for --ray")
    if ray:
        alone = {"--uds": uds, "--fd": fd is not None, "--processes": processes is not None}
        _check_ray(replicas, device, {**alone, "--restart-engine": restart_engine})
    found = find_models(models)
    if len(found) > 1:
        of_one = {"--name": name, "--lora": lora, "--chat-template": chat_template, "--tool-parser": tool_parser}
        _check_several(len(found), {**of_one, "--ray": ray}, processes)
    settings = Settings(
        model_name=name or found[0].name,
        chat_template=chat_template.read() if chat_template else None,
        tool_parser=tool_parser,
        reasoning_budget=None if reasoning_budget < 0 else reasoning_budget,
        sampling={name: sampling.options[name] for name in sampling.given},
        api_key=api_key,
        root_path=root_path,
        cors_origins=cors_origin or (),
        allowed_hosts=[host for hosts in allowed_hosts or () for host in hosts.split(",")],
    )
    adapters = _adapters(lora or ())
    Interrupts.current.release()  # the server lets requests finish at the first signal, and ends at the second
    options = EngineOptions(
        **several_cards(device, tensor_parallel, split, tensor_split),
        context=context,
        fp16_weights=fp16_weights.enabled,
        **cache_types(cache_type_k, cache_type_v),
        cache_tokens=cache_tokens,
        max_batch_tokens=max_batch_tokens,
        max_requests=max_requests,
        inter_token_ms=inter_token_ms,
        progress=False if quiet else None,
    )
    everywhere: dict[str, Any] = {
        "host": host,
        "port": port,
        "max_queue": max_queue,
        "settings": settings,
        "on_ready": lambda url: note(f"ready at {url}"),
    }
    log_level = "warning" if quiet else "info"
    common = {**everywhere, "uds": uds, "fd": fd, "processes": processes, "log_level": log_level}
    try:
        if ray:
            from rocforge.server.run_ray import serve_on_ray

            serve_on_ray(found[0], replicas=_replicas(replicas or "1"), lora=adapters, options=options, **everywhere)
        elif len(found) > 1:
            serve_models(found, options=options, models_max=models_max, **common)
        else:
            engine = {name: value for name, value in vars(options).items() if name not in ("models", "machines")}
            serve_one(found[0].path, lora=adapters, restart_engine=restart_engine, **engine, **common)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or uds is not None:
            raise
        raise PortInUseError(f"port {port} of {host} is in use: another program listens there") from None


def _check_several(count: int, of_one: Mapping[str, Any], processes: int | None) -> None:
    """Raises UsageError where options are given that are for one model, or do not do for several."""
    for option, given in of_one.items():
        if given:
            raise UsageError(f"{option} is for one model; {count} are given")
    if processes == 0:
        raise UsageError(f"--processes is 0; {count} models need 1 or more")


def _check_ray(replicas: str | None, device: str | None, alone: Mapping[str, Any]) -> None:
    """Raises UsageError where Ray is not installed, or options are given that are not for it."""
    if find_spec("ray") is None:
        raise UsageError("--ray needs Ray, which is not installed: pip install 'rocforge[ray]'")
    for option, given in alone.items():
        if given:
            raise UsageError(f"{option} is not for --ray, whose processes and sockets are Ray Serve's")
    if device is not None and device.startswith("gpu:"):
        raise UsageError(f"--device is {device!r}; with --ray allowed are cpu and gpu: Ray chooses the cards")
    _replicas(replicas or "1")


def _replicas(text: str) -> tuple[int, int]:
    """The fewest and the most, from N and N-M."""
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    fewest, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= fewest <= most:
        raise UsageError(f"--replicas is {text!r}; allowed are N, from 1, and N-M, such as 1-4")
    return fewest, most


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
