"""Errors as the command shows them: one line, a hint, an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence

import typer

from rocforge.cli.output import printable
from rocforge.errors import (
    ChatTemplateError,
    CheckpointError,
    DeviceError,
    GGUFError,
    OutOfMemoryError,
    RocforgeError,
    UnsupportedCardError,
    UnsupportedModelError,
)
from rocforge.names import LOADING, SAMPLING

FAILED, USAGE, UNREACHABLE, INTERRUPTED, OUTPUT_CLOSED = 1, 2, 3, 130, 141
"""Exit codes; 0 is success."""


class UsageError(ValueError):
    """Options that do not go together, or a value that is out of range for this model."""


class PortInUseError(OSError):
    """Another program listens where a server was to."""


class UnreachableError(ConnectionError):
    """No rocforge server answers at a URL."""


_USAGE_ERROR = typer.BadParameter.__mro__[1]  # click's UsageError, which typer keeps in a place of its own

_KINDS: list[tuple[type[Exception], int, str]] = [
    (_USAGE_ERROR, USAGE, "{command} --help shows what there is"),
    (UnreachableError, UNREACHABLE, "rocforge serve MODEL starts a server; --url gives its address"),
    (UnsupportedCardError, FAILED, "rocforge info shows what was found; --device cpu runs without a GPU"),
    (UnsupportedModelError, FAILED, "rocforge inspect FILE shows a file's metadata and tensors"),
    (GGUFError, FAILED, "MODEL is a GGUF file; one that is cut off or damaged has to be downloaded again"),
    (CheckpointError, FAILED, "a checkpoint is a whole folder: config.json, safetensors and tokenizer.json or .model"),
    (OutOfMemoryError, FAILED, "a shorter --context, --fp16-weights off or --cache-type-k q8_0 takes less"),
    (DeviceError, FAILED, "rocforge info shows what was found; --device cpu runs without a GPU"),
    (ChatTemplateError, FAILED, "rocforge generate continues plain text; --chat-template FILE gives a template"),
    (RocforgeError, FAILED, "{command} --help shows the options"),
    (FileNotFoundError, FAILED, "check the path; rocforge models [FOLDER...] lists local models"),
    (PortInUseError, FAILED, "--port takes another port; 0 is any that is free"),
    (OSError, FAILED, "check the path, its permissions and the connection"),
    (ModuleNotFoundError, FAILED, "rocforge serve needs the extra: pip install 'rocforge[server]'"),
    (MemoryError, FAILED, "use a smaller model or a smaller --context"),
    (ValueError, USAGE, "{command} --help lists the options"),
]


def report(error: Exception, arguments: Sequence[str], options: Collection[str] = ()) -> int:
    """Write an error and a hint to stderr, and return its exit code.

    Args:
        error: what a command raised.
        arguments: the command's.
        options: those that the command has.
    """
    message = _message(error, options) or type(error).__name__
    known = next(((code, hint) for kind, code, hint in _KINDS if isinstance(error, kind)), None)
    code, hint = known or (FAILED, "this is a bug in rocforge: ROCFORGE_TRACEBACK=1 shows the traceback")
    if known is None:
        message = f"{type(error).__name__}: {message}"
    print(
        f"error: {printable(' '.join(message.split()))}\nhint: {hint.format(command=_command(error, arguments))}",
        file=sys.stderr,
    )
    return code


def _message(error: Exception, options: Collection[str]) -> str:
    """What an error says, in words of the command line."""
    if isinstance(error, _USAGE_ERROR):
        message = str(error.format_message())  # type: ignore[attr-defined]
        return _usual_option(error) or _wrong_value(error) or message[:1].lower() + message[1:].rstrip(".")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    message = str(error)
    if isinstance(error, ValueError):
        argument = re.match(r"\w+(?= (?:is|of|has|must) )", message)
        if argument and (option := f"--{argument[0].replace('_', '-')}") in options:
            message = option + message[argument.end() :].replace("allowed are None, ", "allowed are ")
    return message


def _wrong_value(error: Exception) -> str | None:
    """What to say of an option's value that pydantic refuses, by which newer versions of typer check them."""
    found, parameter = getattr(error.__cause__, "errors", None), getattr(error, "param", None)
    if not callable(found) or parameter is None:
        return None
    first = found()[0]
    value, limits = first["input"], first.get("ctx", {})
    allowed = {
        "int_parsing": "allowed are whole numbers",
        "float_parsing": "allowed are numbers",
        "greater_than_equal": f"allowed is {limits.get('ge')} or more",
        "less_than_equal": f"allowed is {limits.get('le')} or less",
    }.get(first["type"])
    name = max(parameter.opts, key=len) if parameter.opts[0].startswith("-") else parameter.human_readable_name
    return (
        f"{name} is {value}; {allowed}" if allowed else f"{name}: {str(limits.get('error', first['msg'])).rstrip('.')}"
    )


def _command(error: Exception, arguments: Sequence[str]) -> str:
    """What --help is to be asked of: "rocforge generate", or "rocforge" where no such command was found."""
    context = getattr(error, "ctx", None)
    if isinstance(error, _USAGE_ERROR):
        return str(context.command_path) if context else "rocforge"
    return " ".join(["rocforge", *arguments[:1]])


def _usual_option(error: Exception) -> str | None:
    """What to say of an option that is another library's, or llama.cpp's, and has another name here."""
    option, context = getattr(error, "option_name", ""), getattr(error, "ctx", None)
    name = option.lstrip("-").replace("-", "_")
    known = [f"--{names[name].replace('_', '-')}" for names in (SAMPLING, LOADING) if name in names]
    allowed = [text for parameter in context.command.params for text in parameter.opts] if context else []
    right = next((text for text in known if text in allowed), None)
    return f"no such option: {option}; did you mean {right}?" if right else None
