"""What the command writes: plain text when piped, tables and colour on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 10_000  # so that nothing is folded or cut where another program reads


def console(stderr: bool = False) -> Console:
    """The console of stdout, or of stderr."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, markup=False, width=None if stream.isatty() else _PIPE_WIDTH)


def table(rows: Iterable[Sequence[Any]], columns: Sequence[str]) -> None:
    """Write rows below their columns' names, if they have any; ">" before a name sets its column to the right.

    On a terminal the values of two columns are folded in theirs; of more, whole lines break, so that names and figures
    can be copied.
    """
    terminal = sys.stdout.isatty()
    grid = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, show_header=any(columns))
    for name in columns:
        justify: JustifyMethod = "right" if name.startswith(">") else "left"
        grid.add_column(name.removeprefix(">"), justify=justify, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    if terminal:
        screen = console()
        if len(columns) > 2:
            width, screen.width = screen.width, _PIPE_WIDTH
            if screen.measure(grid).maximum > width:
                grid.box = None  # its rule would be broken too
        screen.print(grid)
        return
    with (plain := console()).capture() as captured:
        plain.print(grid)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def write_json(value: Any) -> None:
    """Write a JSON document."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    print()


def write_text(text: str, bold: bool = False) -> None:
    """Write a piece of a prompt or of a model's text as it is, at once; `bold` on a terminal that can. A terminal gets
    no control characters: they could be commands to it."""
    if sys.stdout.isatty():
        text = "".join(c for c in text if c in "\n\t" or ord(c) >= 0xA0 or " " <= c <= "~")
    if bold and console().color_system is not None:  # rich would fold lines, expand tabs and draw :names: of emoji
        text = f"\x1b[1m{text}\x1b[0m"
    print(text, end="", flush=True)


def note(text: str) -> None:
    """Write a remark to stderr, dim on a terminal."""
    console(stderr=True).print(text, style="dim")


def printable(value: Any) -> str:
    """One line of text without control characters or lone surrogates."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def binary_size(nbytes: int) -> str:
    """Bytes in a unit that reads well: "3.4 GiB"."""
    size, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, _ = size / 1024, units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def count(number: int) -> str:
    """A count in a unit that reads well: "8.03 B"."""
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= factor:
            return f"{number / factor:.2f} {unit}"
    return str(number)
