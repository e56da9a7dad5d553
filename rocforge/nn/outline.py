"""The outline of a tree of modules: what `repr` and notebooks show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rocforge import html


@dataclass
class Line:
    """A module in an outline, or equal neighbours in a list.

    Attributes:
        name: its path below the one above it: "blk.0", or "blk.0-3" for several.
        text: what it is.
        below: its children.
    """

    name: str
    text: str
    below: list[Line]

    def joined(self, other: Line) -> Line | None:
        """Both in one line, where the other is the next in a list and equal."""
        (head, _, index), (other_head, _, other_index) = (line.name.rpartition(".") for line in (self, other))
        first, _, last = index.partition("-")
        follows = other_index.isdigit() and (last or first) == str(int(other_index) - 1)
        if not (follows and head == other_head and (self.text, self.below) == (other.text, other.below)):
            return None
        return Line(f"{self.name.removesuffix(f'-{last}')}-{other_index}", self.text, self.below)


def outline(children: Iterable[tuple[str, Any]]) -> list[Line]:
    """A line for each named child, with those below it; a child that is inline has those below it alone."""
    lines: list[Line] = []
    for name, child in children:
        below = outline(child.named_children())
        for line in below if child.inline else [Line(name, child.describe(), below)]:
            joined = lines[-1].joined(line) if lines else None
            lines[len(lines) - (joined is not None) :] = [joined or line]
    return lines


def as_text(title: str, lines: Iterable[Line]) -> str:
    """The outline, each level two spaces further in."""
    parts = (as_text(f"{line.name}: {line.text}", line.below).splitlines() for line in lines)
    return "\n".join([title, *(f"  {text}" for part in parts for text in part)])


def as_html(title: str, lines: Iterable[Line], open: bool = True) -> str:
    """The outline as a tree that unfolds."""
    return html.details(
        html.code(title), *(as_html(f"{line.name}: {line.text}", line.below, False) for line in lines), open=open
    )
