"""`rocforge serve`: the OpenAI-compatible HTTP server."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rocforge.cli.interrupts import Interrupts
from rocforge.cli.options import Context, Device, Fp16Weights, Keep, Model, Quiet, Template
from rocforge.cli.output import note


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What clients call the model; its file's name.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="ROCFORGE_API_KEY", help="Clients must send it as bearer token.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="An origin whose pages may call; can be given again; * for all.")
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[,HOST...]", help="Names that requests may be for; can be given again; *.name, * for all."
        ),
    ] = None,
    chat_template: Template = None,
    cache_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens that the cache holds.")] = None,
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens a step.")] = 512,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 256,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait for their first step.")] = 256,
    device: Device = None,
    context: Context = None,
    fp16_weights: Fp16Weights = Keep.auto,
    quiet: Quiet = False,
) -> None:
    """Answer HTTP as the OpenAI API does; / is a chat page."""
    from rocforge.server.run import model_name
    from rocforge.server.run import serve as run
    from rocforge.server.settings import Settings

    settings = Settings(
        model_name=name or model_name(model),
        chat_template=chat_template.read() if chat_template else None,
        api_key=api_key,
        cors_origins=cors_origin or (),
        allowed_hosts=[host for hosts in allowed_hosts or () for host in hosts.split(",")],
    )
    Interrupts.current.release()  # the server lets requests finish at the first signal, and ends at the second
    run(
        model,
        host,
        port,
        device=device,
        context=context,
        fp16_weights=fp16_weights.wanted,
        cache_tokens=cache_tokens,
        max_batch_tokens=max_batch_tokens,
        max_requests=max_requests,
        max_queue=max_queue,
        settings=settings,
        log_level="warning" if quiet else "info",
        progress=not quiet and sys.stderr.isatty(),
        on_ready=lambda url: note(f"ready at {url}"),
    )


COMMANDS = [serve]
