"""Compiler processes: hiprtc compiles one program at a time in a process, so several at a time take several."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

from rocforge.device import compile_program as program
from rocforge.device.compile_program import CompileError, compile_program
from rocforge.device.compiler import Compile
from rocforge.device.libraries import cupy_module


class CompileProcess:
    """Compiles as `compile_program` does, in a process started at the first call.

    If the process cannot start, or dies (out of memory, say), the calling process compiles instead.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, text: str, options: tuple[str, ...], kind: str) -> bytes:
        try:
            compiled, answer = self._ask(text, options, kind)
        except (OSError, EOFError, pickle.UnpicklingError):
            return compile_program(text, options, kind)
        if not compiled:
            raise CompileError(answer)
        return answer

    def _ask(self, *job: Any) -> tuple[bool, Any]:
        if self._process is None:
            command = [sys.executable or "python3", "-s", program.__file__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        jobs, answers = _pipes(self._process)
        pickle.dump(job, jobs)
        jobs.flush()
        return pickle.load(answers)

    def close(self) -> None:
        """End the process, after the program it compiles."""
        if self._process is not None:
            jobs, answers = _pipes(self._process)
            with contextlib.suppress(OSError):
                jobs.close()
            answers.close()
            self._process.wait()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Its input and output."""
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


@contextlib.contextmanager
def compiler_of_a_thread() -> Iterator[Compile]:
    """The compiler of one of several threads: NVRTC in this process, or hiprtc in a process of its own."""
    if not cupy_module().cuda.runtime.is_hip:
        yield compile_program
        return
    with contextlib.closing(CompileProcess()) as process:
        yield process
