"""What a program of somebody else's may use: CPU time, and memory for the values it makes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any

from jinja2.exceptions import SecurityError

MAX_SECONDS = 2.0
BASE_BUDGET = 1 << 23
BUDGET_PER_INPUT = 32
_ENTRY_COST = 16  # characters
_MAX_BITS = 4096
_TICKS_PER_LOOK = 8  # the clock costs as much as some ten steps
_CONTAINERS = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))


class Budget:
    """What one rendering may still use: CPU time of this thread, and characters' worth of values."""

    def __init__(self, inputs: Any):
        self._deadline = time.thread_time() + MAX_SECONDS
        self._left = BASE_BUDGET + BUDGET_PER_INPUT * size_of(inputs, limit=1 << 62)
        self._ticks = 0

    def tick(self) -> None:
        """One step was taken."""
        self._ticks += 1
        if self._ticks % _TICKS_PER_LOOK == 0 and time.thread_time() > self._deadline:
            raise SecurityError(f"it runs for more than {MAX_SECONDS} seconds")

    def spend(self, characters: int) -> None:
        """One step was taken that makes, or is about to make, so many characters."""
        self._left -= characters
        if self._left < 0:
            raise SecurityError("it makes too much text, or too many values")
        self.tick()

    def pay_for(self, value: Any) -> Any:
        """Spends what `value` is worth and returns it; of an iterator, each element as it is drawn."""
        if isinstance(value, Iterator):
            return map(self.pay_for, value)
        self.spend(self.price_of(value))
        return value

    def pay_for_entries(self, count: int) -> None:
        """Spends what a list of `count` values is worth without the values."""
        self.spend(count * _ENTRY_COST)

    def price_of(self, value: Any) -> int:
        """`size_of(value)`, or any number that cannot be paid."""
        return size_of(value, self._left)

    def pay_for_method(self, text: str, name: str, args: tuple, kwargs: Mapping[str, Any]) -> tuple:
        """Pays for what `text.name(*args)` makes beyond a text of the same length; returns the arguments, for use."""
        if name == "join" and args:
            items = list(args[0])
            self.pay_for_join(text, items)
            return (items,)
        if name == "replace" and len(args) > 1:
            self.pay_for_replace(text, *map(str, args[:2]))
        elif name in ("format", "format_map"):
            specs = [spec for _, field, spec, _ in Formatter().parse(text) if field is not None]
            if any("{" in spec for spec in specs):
                raise SecurityError("it formats with a computed width")
            self.spend(_numbers_in("".join(specs)) + len(specs) * self.price_of([args, kwargs]))
        return args

    def pay_for_join(self, separator: str, items: list) -> None:
        self.pay_for(items)
        self.spend(len(separator) * len(items))

    def pay_for_replace(self, text: str, old: str, new: str) -> None:
        self.spend(len(text) + text.count(old) * len(new))

    def pay_for_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() + right.bit_length())
        elif isinstance(left, int):
            self.spend(self.price_of(right) * max(left, 0))
        elif isinstance(right, int):
            self.spend(self.price_of(left) * max(right, 0))

    def pay_for_percent(self, text: str, arguments: Any) -> None:
        if re.search(r"%[^a-zA-Z%]*\*", text):
            raise SecurityError("it formats with a computed width")
        self.spend(_numbers_in(text) + text.count("%") * self.price_of(arguments))


def size_of(value: Any, limit: int) -> int:
    """About how many characters `value` has when written out (so parts that occur twice count twice); counting stops
    past `limit`. Raises SecurityError for an int of absurd length."""
    size, stack = 0, [value]
    while stack and size <= limit:
        part = stack.pop()
        size += _ENTRY_COST
        if isinstance(part, str):
            size += len(part)
        elif isinstance(part, int):
            check_bits(part.bit_length())
        elif isinstance(part, Mapping):
            stack.extend(part.keys())
            stack.extend(part.values())
        elif isinstance(part, _CONTAINERS):
            stack.extend(part)
    return size


def check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise SecurityError(f"it makes a number of more than {_MAX_BITS} bits")


def _numbers_in(text: str) -> int:
    return sum(int(digits) for digits in re.findall(r"[0-9]{1,18}", text))
