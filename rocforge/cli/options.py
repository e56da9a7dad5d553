"""Options that several commands share."""

from __future__ import annotations

import copy
import enum
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypedDict, get_args

import typer

from rocforge.cli.errors import UsageError
from rocforge.ops.sampling import SamplingParams

if TYPE_CHECKING:
    from rocforge.text.tokenizer import Tokenizer


class SplitMode(str, enum.Enum):
    """How several cards share a model."""

    rows = "rows"
    layers = "layers"


class SeveralCards(TypedDict):
    """Arguments of `rf.load`."""

    device: str | None
    devices: int | list[str] | None
    shares: list[float] | None


def several_cards(
    device: str | None, tensor_parallel: int | None, split: SplitMode, tensor_split: str | None
) -> SeveralCards:
    """What the options for several cards say, beside --device.

    Raises:
        UsageError: they do not go together.
    """
    shares = _shares(tensor_split)
    if shares and split is not SplitMode.layers:
        raise UsageError(f"--tensor-split is {tensor_split!r} without --split layers")
    cards = tensor_parallel or (len(shares) if shares else 1)
    if shares and cards != len(shares):
        raise UsageError(f"--tensor-split is {tensor_split!r} for {cards} cards; allowed is a number for each")
    if cards == 1:
        return {"device": device, "devices": None, "shares": None}
    if device not in (None, "gpu", "cpu"):
        raise UsageError(f"--device is {device!r} for {cards} cards; allowed are gpu, from gpu:0 on, and cpu")
    layers = [1.0] * cards if split is SplitMode.layers else None
    return {"device": None, "devices": [device] * cards if device == "cpu" else cards, "shares": shares or layers}


def _shares(text: str | None) -> list[float] | None:
    try:
        shares = [float(part) for part in text.split(",")] if text else None
    except ValueError:
        raise UsageError(f"--tensor-split is {text!r}; allowed are numbers such as 24,16") from None
    if shares and not all(0 < share < float("inf") for share in shares):
        raise UsageError(f"--tensor-split is {text!r}; allowed are numbers over 0")
    return shares


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a folder, or hf:owner/repo[:quant] on the Hub: hf:Qwen/Qwen3-4B-GGUF:Q4_K_M.",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, gpu or gpu:N; default: the GPU if there is one.", show_default=False)
]
TensorParallel = Annotated[
    int | None,
    typer.Option("--tensor-parallel", "-tp", min=1, metavar="CARDS", help="Cards that compute the model together."),
]
Split = Annotated[
    SplitMode, typer.Option(help="What each of several cards has: a part of every layer, or whole layers.")
]
TensorSplit = Annotated[
    str | None,
    typer.Option(
        "--tensor-split",
        "-ts",
        metavar="N,N...",
        help="With --split layers: each card's share of them.",
        show_default=False,
    ),
]
Context = Annotated[
    int | None, typer.Option(min=1, help="Maximum sequence length in tokens; default: the model's.", show_default=False)
]


class Switch(str, enum.Enum):
    """On, off, or auto: on where memory is ample."""

    auto = "auto"
    on = "on"
    off = "off"

    @property
    def enabled(self) -> bool | None:
        """As `rf.load` takes it: None for auto."""
        return None if self is Switch.auto else self is Switch.on


class CacheType(str, enum.Enum):
    """rocforge.formats.kv_cache.CACHE_TYPES."""

    f16 = "f16"
    q8_0 = "q8_0"
    q4_0 = "q4_0"
    fp8_e4m3 = "fp8_e4m3"


class CacheTypes(TypedDict):
    """Arguments of `rf.load`."""

    cache_type_k: str | None
    cache_type_v: str | None


def cache_types(keys: CacheType | None, values: CacheType | None) -> CacheTypes:
    """What two options say."""
    return {"cache_type_k": keys and keys.value, "cache_type_v": values and values.value}


Fp16Weights = Annotated[
    Switch, typer.Option(help="Keep float16 copies of the weights on the GPU: faster prefill, more memory.")
]
CacheTypeK = Annotated[
    CacheType | None,
    typer.Option(
        "--cache-type-k", "-ctk", help="Type of the KV cache's keys; default: f16, on a CPU f32.", show_default=False
    ),
]
CacheTypeV = Annotated[
    CacheType | None,
    typer.Option(
        "--cache-type-v", "-ctv", help="Type of the KV cache's values; default: f16, on a CPU f32.", show_default=False
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no statistics.")]
System = Annotated[str | None, typer.Option(help="System message.", show_default=False)]
Template = Annotated[
    typer.FileText | None,
    typer.Option("--chat-template", encoding="utf-8", help="Jinja file that replaces the model's chat template."),
]
Lora = Annotated[
    str | None,
    typer.Option(
        metavar="PATH[=SCALE]", help="A LoRA adapter: a GGUF file, or a folder of PEFT's.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def adapter_file(text: str) -> tuple[str, float]:
    """Path and scale of an adapter, from PATH or PATH=SCALE."""
    path, equals, scale = text.rpartition("=")
    try:
        return (path, float(scale)) if equals else (text, 1.0)
    except ValueError:
        return text, 1.0


def load_adapter(model: Any, file: str | None) -> str | None:
    """Load what --lora says, if it does; the adapter's name."""
    if file is None:
        return None
    model.adapters.load("lora", *adapter_file(file))
    return "lora"


def sampling_options(
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens to generate; default: up to the context.", show_default=False)
    ] = SamplingParams.max_tokens,
    temperature: Annotated[float, typer.Option(help="0 (greedy) to 2.")] = SamplingParams.temperature,
    top_k: Annotated[
        int, typer.Option(help="Sample from this many of the likeliest tokens; 0: all.")
    ] = SamplingParams.top_k,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens up to this total probability.")
    ] = SamplingParams.top_p,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens below this fraction of the highest probability.")
    ] = SamplingParams.min_p,
    top_n_sigma: Annotated[
        float, typer.Option(help="Keep tokens so many standard deviations below the highest logit; 0: all.")
    ] = SamplingParams.top_n_sigma,
    typical_p: Annotated[
        float, typer.Option("--typical", "--typical-p", help="Locally typical sampling up to this total probability.")
    ] = SamplingParams.typical_p,
    xtc_probability: Annotated[
        float, typer.Option(help="How often XTC leaves out likely tokens.")
    ] = SamplingParams.xtc_probability,
    xtc_threshold: Annotated[
        float, typer.Option(help="The probability from which on a token is likely for XTC.")
    ] = SamplingParams.xtc_threshold,
    mirostat: Annotated[
        int, typer.Option(help="1 or 2: mirostat in place of what leaves tokens out; 0: none.")
    ] = SamplingParams.mirostat,
    mirostat_eta: Annotated[
        float, typer.Option("--mirostat-lr", "--mirostat-eta", help="How fast mirostat adapts.")
    ] = SamplingParams.mirostat_eta,
    mirostat_tau: Annotated[
        float, typer.Option("--mirostat-ent", "--mirostat-tau", help="The surprise that mirostat aims at, in bits.")
    ] = SamplingParams.mirostat_tau,
    dry_multiplier: Annotated[
        float, typer.Option(help="DRY's penalty for repetitions that go on; 0: none.")
    ] = SamplingParams.dry_multiplier,
    dry_base: Annotated[float, typer.Option(help="How much that grows with each token.")] = SamplingParams.dry_base,
    dry_allowed_length: Annotated[
        int, typer.Option(help="How many tokens may be repeated.")
    ] = SamplingParams.dry_allowed_length,
    dry_penalty_last_n: Annotated[
        int, typer.Option(help="How many of the last tokens DRY searches, up to 8192; -1: these.")
    ] = SamplingParams.dry_penalty_last_n,
    dry_sequence_breakers: Annotated[
        list[str] | None,
        typer.Option(
            "--dry-sequence-breaker",
            help='Text that ends repetitions; repeatable; default: \\n, :, " and *; none: no text.',
        ),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: repeated tokens become less likely.")
    ] = SamplingParams.repetition_penalty,
    presence_penalty: Annotated[
        float, typer.Option(help="Subtracted once from tokens that occurred; -2 to 2.")
    ] = SamplingParams.presence_penalty,
    frequency_penalty: Annotated[
        float, typer.Option(help="Subtracted for each occurrence; -2 to 2.")
    ] = SamplingParams.frequency_penalty,
    seed: Annotated[
        int | None, typer.Option(help="Random seed; the same seed gives the same text.", show_default=False)
    ] = SamplingParams.seed,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; repeatable.")] = None,
) -> dict[str, Any]:
    """The sampling options of a command, checked, as arguments of SamplingParams."""
    given = dict(locals(), stop=stop or [])
    breakers = SamplingParams.dry_sequence_breakers if dry_sequence_breakers is None else dry_sequence_breakers
    given["dry_sequence_breakers"] = [] if breakers == ["none"] else list(breakers)
    SamplingParams(**given)
    return given


_OF_ONE_TEXT = ("max_tokens", "seed", "stop")


class Sampling(NamedTuple):
    """The sampling options of a command.

    Attributes:
        options: as arguments of SamplingParams.
        given: the names of those that the command line has.
    """

    options: dict[str, Any]
    given: frozenset[str]

    def of(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The options, with what the model's file recommends where the command line has none."""
        from rocforge.engine.defaults import file_defaults

        said = {name: value for name, value in file_defaults(tokenizer).items() if name not in self.given}
        return {**self.options, **said}


def takes_sampling(command: Callable[..., None], *, of_requests: bool = False) -> Callable[..., None]:
    """Add the options of `sampling_options` to a command, which receives them as its argument `sampling`.

    Args:
        command: the command.
        of_requests: whether they are for requests that leave them out; the defaults of other commands are not theirs.
    """
    own = inspect.signature(command, eval_str=True).parameters
    added = dict(inspect.signature(sampling_options, eval_str=True).parameters)
    if of_requests:
        added = {name: _without_default(option) for name, option in added.items() if name not in _OF_ONE_TEXT}
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for name, p in {**own, **added}.items() if name != "sampling"]
    parameters.append(inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    def wrapped(*, ctx: typer.Context, **arguments: Any) -> None:
        sources = {name: ctx.get_parameter_source(name) for name in added}
        given = frozenset(name for name, source in sources.items() if source and source.name != "DEFAULT")
        sampling = sampling_options(**{name: arguments.pop(name) for name in added})
        command(**arguments, sampling=Sampling(sampling, given))

    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _without_default(option: inspect.Parameter) -> inspect.Parameter:
    """An option whose help does not tell its default."""
    kind, info = get_args(option.annotation)
    hidden = copy.copy(info)
    hidden.show_default = False
    return option.replace(annotation=Annotated[kind, hidden])


def set_sampling(sampling: dict[str, Any], name: str, text: str) -> dict[str, Any]:
    """A copy of the arguments of SamplingParams with one of them read from text; "none" gives its default.

    Raises:
        ValueError: there is no such setting, or the value is not allowed.
    """
    parameters = inspect.signature(sampling_options, eval_str=True).parameters
    if name not in parameters:
        raise ValueError(f"unknown setting {name!r}; allowed are {', '.join(parameters)}")
    kind = parameters[name].annotation.__origin__
    try:
        if text == "none":
            value = parameters[name].default
        elif name in ("stop", "dry_sequence_breakers"):
            value = [text]
        else:
            value = float(text) if kind is float else int(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; allowed are {'numbers' if kind is float else 'integers'}") from None
    return sampling_options(**{**sampling, name: value})
