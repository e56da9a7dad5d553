"""Errors as the command shows them: one line, a hint, an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from rocforge.cli.output import printable
from rocforge.errors import (
    ChatTemplateError,
    CheckpointError,
    DeviceError,
    GGUFError,
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
    (DeviceError, FAILED, "rocforge info shows what was found; --device cpu runs without a GPU"),
    (ChatTemplateError, FAILED, "rocforge generate continues plain text; --chat-template FILE gives a template"),
    (RocforgeError, FAILED, "{command} --help shows the options"),
    (FileNotFoundError, FAILED, "rocforge models [FOLDER...] lists local models"),
    (PortInUseError, FAILED, "--port takes another port; 0 is any that is free"),
    (OSError, FAILED, "check the path, its permissions and the connection"),
    (ModuleNotFoundError, FAILED, "rocforge serve needs the extra: pip install 'rocforge[server]'"),
    (MemoryError, FAILED, "use a smaller model or a smaller --context"),
    (ValueError, USAGE, "{command} --help lists the options"),
]


def report(error: Exception, arguments: Sequence[str]) -> int:
    """Write an error and a hint to stderr, and return its exit code; `arguments` are those of the command."""
    message = getattr(error, "format_message", error.__str__)() or type(error).__name__
    known = next(((code, hint) for kind, code, hint in _KINDS if isinstance(error, kind)), None)
    code, hint = known or (FAILED, "this is a bug in rocforge: ROCFORGE_TRACEBACK=1 shows the traceback")
    if known is None:
        message = f"{type(error).__name__}: {message}"
    if isinstance(error, _USAGE_ERROR):
        message = _usual_option(error) or message[:1].lower() + message[1:].rstrip(".")
    print(
        f"error: {printable(' '.join(message.split()))}\nhint: {hint.format(command=_command(error, arguments))}",
        file=sys.stderr,
    )
    return code


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
