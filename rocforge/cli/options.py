"""Options that several commands share."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from rocforge.ops.sampling import SamplingParams

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, or hf:owner/repo[:quant] on the Hub.")]
Device = Annotated[str | None, typer.Option(help="cpu, gpu or gpu:N; the GPU if there is one.", show_default=False)]
Context = Annotated[
    int | None, typer.Option(min=1, help="The longest sequence, in tokens; the model's own.", show_default=False)
]


class Keep(str, enum.Enum):
    """Whether to keep something that takes memory; auto: where there is plenty."""

    auto = "auto"
    on = "on"
    off = "off"

    @property
    def wanted(self) -> bool | None:
        """As `rf.load` takes it."""
        return None if self is Keep.auto else self is Keep.on


Fp16Weights = Annotated[Keep, typer.Option(help="On a GPU, keep float16 copies of the weights: faster prompts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no statistics.")]
System = Annotated[str | None, typer.Option(help="The system message.", show_default=False)]
Template = Annotated[
    typer.FileText | None, typer.Option("--chat-template", help="A file with a Jinja chat template for the model's.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def sampling_options(
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens at most; up to the context.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; at most 2.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Keep that many of the likeliest tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens that reach this probability.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Keep tokens this likely against the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Over 1 makes tokens so far less likely.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Taken from tokens that occurred; -2 to 2.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="Taken for each time; -2 to 2.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same one gives the same text.", show_default=False)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; can be given again.")] = None,
) -> dict[str, Any]:
    """The sampling options of a command, as arguments of SamplingParams; their values are checked."""
    given = dict(locals(), stop=stop or [])
    SamplingParams(**given)
    return given


def takes_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `sampling_options` to a command, which gets them in its argument `sampling`."""
    own = inspect.signature(command, eval_str=True).parameters
    added = inspect.signature(sampling_options, eval_str=True).parameters
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for name, p in {**own, **added}.items() if name != "sampling"]

    def wrapped(**arguments: Any) -> None:
        sampling = sampling_options(**{name: arguments.pop(name) for name in added})
        command(**arguments, sampling=sampling)

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def set_sampling(sampling: dict[str, Any], name: str, text: str) -> dict[str, Any]:
    """A copy of the arguments of SamplingParams with one of them read from text; "none" gives its default.

    Raises:
        ValueError: there is no such setting, or the value is not allowed.
    """
    parameters = inspect.signature(sampling_options, eval_str=True).parameters
    if name not in parameters:
        raise ValueError(f"there is no setting {name!r}; there are {', '.join(parameters)}")
    kind = parameters[name].annotation.__origin__
    try:
        if text == "none":
            value = parameters[name].default
        elif name == "stop":
            value = [text]
        else:
            value = float(text) if kind is float else int(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; allowed are {'numbers' if kind is float else 'whole numbers'}") from None
    return sampling_options(**{**sampling, name: value})
