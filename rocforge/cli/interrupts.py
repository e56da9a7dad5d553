"""Ctrl-C: the first one interrupts, the second one ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any, ClassVar

from rocforge.cli.errors import INTERRUPTED

_STDIN = 0
"""Its file descriptor."""


class Interrupts:
    """While the context lasts, a SIGINT raises KeyboardInterrupt in the main thread, and a second one ends the process.

    Python runs signal handlers in the main thread, between two of its own instructions, so a handler cannot end a
    program that is inside a library. The interpreter also writes each signal's number to a pipe as it arrives; a
    thread reads that pipe, and ends the process itself.

    Attributes:
        deferred: while it is True, the first SIGINT raises nothing: it only sets `requested`.
    """

    current: ClassVar[Interrupts]
    """The one in force, while a command runs."""

    def __init__(self) -> None:
        self._count, self.deferred, self._in_force = 0, False, False
        self._terminal = _terminal_settings()

    def __enter__(self) -> Interrupts:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(self._write)
        if self._before[0] is not signal.SIG_IGN:  # as a shell's script sets it for what runs in the background
            signal.signal(signal.SIGINT, self._handle)
        self._watcher = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._watcher.start()
        Interrupts.current, self._in_force = self, True
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._in_force:
            self.release()

    def release(self) -> None:
        """Leave the signals to others from now on."""
        self._in_force = False
        handler, descriptor = self._before
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGINT, handler)
        os.close(self._write)
        self._watcher.join()
        os.close(self._read)

    @property
    def requested(self) -> bool:
        """Whether a SIGINT is pending."""
        return self._count > 0

    def answered(self) -> None:
        """The program has handled the SIGINT: the next one counts as a first one."""
        self._count = 0

    def _handle(self, number: int, frame: Any) -> None:
        if not self.deferred:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        while numbers := os.read(self._read, 64):
            self._count += numbers.count(signal.SIGINT)
            if self._count > 1:
                _restore_terminal(self._terminal)
                os._exit(INTERRUPTED)


def _terminal_settings() -> Any:
    import termios

    with contextlib.suppress(termios.error, OSError, ValueError):
        return termios.tcgetattr(_STDIN)
    return None


def _restore_terminal(settings: Any) -> None:
    """Line editing turns echo off; a process that ends inside it must turn it on again."""
    import termios

    if settings is not None:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(_STDIN, termios.TCSANOW, settings)
