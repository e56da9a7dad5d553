"""What objects look like in a notebook: HTML without colours of its own, so that light and dark pages show it alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

CORNER = 6
"""Rows and columns of an array that are shown."""
_CELL = "padding: 0 0.8em 0 0; border: none; white-space: nowrap; text-align:"


def text(value: str) -> str:
    """A text with its lines and its spaces."""
    return f'<pre style="white-space: pre-wrap; margin: 0">{_escaped(value)}</pre>'


def code(value: Any) -> str:
    """A line of code."""
    return f'<code style="background: none; color: inherit">{_escaped(value)}</code>'


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] = (), numbers: int = 0) -> str:
    """A table that scrolls where it is long.

    Args:
        rows: cells, as plain text.
        head: names of the columns.
        numbers: how many columns, from the right, are numbers.
    """
    lines = [_row(row, "td", numbers) for row in rows]
    top = f"<thead>{_row(head, 'th', numbers)}</thead>" if head else ""
    body = f'<table style="margin: 0; font-size: inherit">{top}<tbody>{"".join(lines)}</tbody></table>'
    return f'<div style="max-height: 24em; overflow: auto">{body}</div>'


def details(summary: str, *body: str, open: bool = False) -> str:
    """A line that unfolds to what is below it; without that, the line alone.

    Args:
        summary, body: HTML.
        open: whether it is unfolded at first.
    """
    if not body:
        return f'<div style="padding-left: 1.1em">{summary}</div>'
    inner = f'<div style="padding-left: 1.1em">{"".join(body)}</div>'
    return f"<details{' open' if open else ''}><summary>{summary}</summary>{inner}</details>"


def corner(values: Any, shape: Sequence[int]) -> str:
    """The first values of an array.

    Args:
        values: of its first rows and columns, on any device.
        shape: of all of it.
    """
    rows = [[f"{value:.4g}" for value in row] for row in values.tolist()]
    if rows and shape[-1] > len(rows[0]):
        rows = [[*row, "..."] for row in rows]
    if math.prod(shape[:-1]) > len(rows):
        rows.append(["..."] * max(map(len, rows), default=1))
    return table(rows, numbers=max(map(len, rows), default=0))


def _row(cells: Sequence[Any], kind: str, numbers: int) -> str:
    first = len(cells) - numbers
    aligned = (
        f'<{kind} style="{_CELL} {"left" if i < first else "right"}">{_escaped(cell)}</{kind}>'
        for i, cell in enumerate(cells)
    )
    return f"<tr>{''.join(aligned)}</tr>"


def _escaped(value: Any) -> str:
    """Also without lone surrogates, which no notebook can save."""
    return escape(str(value).encode("utf-8", "replace").decode())
