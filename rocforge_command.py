"""The first lines of the `rocforge` command, outside the package: importing that takes long enough to press Ctrl-C."""

import os
import signal


def main() -> int:
    """`rocforge.cli.main`; a SIGINT while it is imported ends the process at once, with the code of an interrupt."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a shell's script sets it for what runs in the background
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    from rocforge import cli

    signal.signal(signal.SIGINT, before)
    return cli.main()
