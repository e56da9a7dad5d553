"""The `rocforge` command: `main` runs it, and turns errors into a line, a hint and an exit code."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence

import typer

from rocforge.cli.errors import INTERRUPTED, OUTPUT_CLOSED, report
from rocforge.cli.interrupts import Interrupts
from rocforge.cli.output import note


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None for those of the process.

    Returns:
        The exit code; docs/cli.md lists them.
    """
    _prepare_standard_streams()
    with Interrupts(), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: note(f"warning: {message}")
        try:
            return _run(argv)
        except (KeyboardInterrupt, typer.Abort):
            print(file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            return _output_closed()
        except SystemExit as end:  # how typer answers a broken pipe, and a shell that asks for completions
            if isinstance(end.__context__, BrokenPipeError):
                return _output_closed()
            raise
        except Exception as error:
            if os.environ.get("ROCFORGE_TRACEBACK"):
                raise
            arguments = sys.argv[1:] if argv is None else argv
            return report(error, arguments, _options_of(arguments))


def _prepare_standard_streams() -> None:
    """Those that are closed, as some supervisors leave them, become the null device: else the next file or socket that
    is opened would have their numbers. What the output's encoding cannot say is "?" there, and no error; bytes that
    were no text come out as they came in.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # opening takes the lowest free number, which is that stream's
            stream = os.fdopen(os.open(os.devnull, os.O_RDWR), mode)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "replace")


def _output_closed() -> int:
    """Throw away what is still to be written, so that Python's flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OUTPUT_CLOSED


def _options_of(arguments: Sequence[str]) -> set[str]:
    """The options that a command has."""
    from rocforge.cli.app import app

    command = typer.main.get_command(app).commands.get(next(iter(arguments), ""))  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts} if command else set()


def _run(argv: Sequence[str] | None) -> int:
    from rocforge.cli.app import app

    code = app((sys.argv[1:] if argv is None else argv) or ["--help"], prog_name="rocforge", standalone_mode=False)
    sys.stdout.flush()
    return code or 0
