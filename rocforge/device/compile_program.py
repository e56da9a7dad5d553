"""Compiles one program with hiprtc or NVRTC, through CuPy's bindings; run as a script, for a parent process.

The script imports this file alone, without rocforge or the rest of CuPy, and starts within a tenth of a second. It
reads jobs from stdin and writes (compiled, code or log) for each to stdout, as pickles, since both sides are one
program.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any


class CompileError(Exception):
    """A program does not compile; the message is the compiler's log."""


def compile_program(text: str, options: tuple[str, ...], kind: str) -> bytes:
    """The code of a program.

    Args:
        text: the program; it includes no file.
        options: the compiler's, the target among them.
        kind: "hip" for an ELF file of AMD code; "cubin" or "ptx" of NVRTC.

    Raises:
        CompileError: it does not compile.
    """
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(text, "rocforge.hip", (), ())
    try:
        nvrtc.compileProgram(program, options)
        if kind == "cubin":
            return nvrtc.getCUBIN(program)
        # CuPy drops the last byte, which ends the text of PTX; an ELF file ends inside its table of sections without it
        return nvrtc.getPTX(program) + (b"\0" if kind == "hip" else b"")
    except nvrtc.NVRTCError as error:
        raise CompileError(nvrtc.getProgramLog(program) or str(error)) from None
    finally:
        nvrtc.destroyProgram(program)


def main() -> None:
    """Compile jobs from stdin until it ends."""
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            job: Any = pickle.load(jobs)
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            answer = True, compile_program(*job)
        except Exception as error:
            answer = False, str(error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
