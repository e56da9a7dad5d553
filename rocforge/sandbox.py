"""Jinja templates from files that nobody has vouched for, rendered within bounds.

Jinja's sandbox keeps a template away from Python's internals; it does not keep it from looping for ever or from filling
the memory. Here every iteration and call looks at the thread's CPU clock, and all that a template makes (texts, lists,
numbers) is paid from a budget, beforehand where a small expression can make much. Neither needs a signal or a process,
so both hold in any thread. Filters, and attributes of Python's own types, are let through by name; what multiplies its
input at will is not among them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from string import Formatter
from types import BuiltinMethodType
from typing import Any

from jinja2 import Template, filters, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SECONDS = 2.0
MAX_TEMPLATE_CHARACTERS = 1 << 18
BASE_BUDGET = 1 << 23
BUDGET_PER_INPUT = 32
_ENTRY_COST = 16  # characters
_MAX_BITS = 4096
_TICKS_PER_LOOK = 32

_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
        "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex "
        "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper".split()
    ),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    **dict.fromkeys((int, float, complex, bytes, set, frozenset, range), frozenset()),
}
_FILTERS = (
    "abs attr capitalize count d default dictsort e escape first float forceescape groupby int items last length list "
    "lower map max min reject rejectattr reverse safe select selectattr sort string title trim unique upper wordcount"
).split()
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

    def price_of(self, value: Any) -> int:
        """`size_of(value)`, or any number that cannot be paid."""
        return size_of(value, self._left)


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
            _check_bits(part.bit_length())
        elif isinstance(part, Mapping):
            stack.extend(part.keys())
            stack.extend(part.values())
        elif isinstance(part, _CONTAINERS):
            stack.extend(part)
    return size


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise SecurityError(f"it makes a number of more than {_MAX_BITS} bits")


_budget: ContextVar[Budget] = ContextVar("budget")


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """The text of a `compile_template`d template, whatever happens in bounded time and memory.

    `variables` hold plain data (str, int, float, bool, None, list, dict). Raises SecurityError where the template goes
    past a bound or reaches for what it may not have, and anything else that a template can raise.
    """
    token = _budget.set(Budget(variables))
    try:
        return template.render(variables)
    finally:
        _budget.reset(token)


def compile_template(source: str, functions: Mapping[str, Any], extra_filters: Mapping[str, Any]) -> Template:
    """`source`, with the `functions` and `extra_filters` that it may call besides the usual ones."""
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise SecurityError(f"it has {len(source)} characters; at most {MAX_TEMPLATE_CHARACTERS} are allowed")
    environment = _Environment()
    environment.globals.update(functions)
    environment.filters.update(extra_filters)
    tree = _Instrument().visit(environment.parse(source))
    tree.set_environment(environment)
    return Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


class _GenerationTag(Extension):
    """`{% generation %}`, with which training code finds what the assistant said; the text inside is kept."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    def __repr__(self) -> str:  # Its values may have changed since they were paid for.
        return "<Namespace>"


class _Environment(ImmutableSandboxedEnvironment):
    """Hugging Face's settings for chat templates, and hooks that count what is done."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self):
        # optimized=False: the optimizer would evaluate constant expressions before there is a budget.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationTag],
            finalize=_finalize,
            optimized=False,
        )
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace
        self.filters = {name: self.filters[name] for name in _FILTERS} | _BOUNDED_FILTERS
        self.concat = _concat_all

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str):
        raise SecurityError(f"it may not use attribute {attribute!r} of {type(obj).__name__!r}")

    def call(self, context, function, /, *args, **kwargs):
        budget = _budget.get()
        method = getattr(function, "__wrapped__", function)  # str.format comes wrapped by the sandbox
        if isinstance(method, BuiltinMethodType) and isinstance(method.__self__, str):
            args = _pay_for_method(budget, method.__self__, method.__name__, args, kwargs)
        return budget.pay_for(super().call(context, function, *args, **kwargs))

    def call_binop(self, context, operator: str, left: Any, right: Any):
        budget = _budget.get()
        if operator == "*":
            _pay_for_product(budget, left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * right)
        elif operator == "%" and isinstance(left, str):
            _pay_for_percent(budget, left, right)
        return budget.pay_for(super().call_binop(context, operator, left, right))


class _Instrument(NodeTransformer):
    """Sends what the hooks of the environment do not see through filters that do: loops, literals, `~`, slices."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _through("_ticked", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _through("_concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _through("_paid", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _through("_paid", node) if node.ctx == "load" else node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Filter:
        self.generic_visit(node)
        return _through("_paid", node)

    visit_List = visit_Dict = visit_Filter


def _through(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@pass_context
def _finalize(context, value: Any) -> str:
    text = str(value)
    _budget.get().spend(len(text))
    return text


@pass_context
def _ticked(context, iterable: Iterable) -> Iterator:
    tick = _budget.get().tick
    for item in iterable:
        tick()
        yield item


@pass_context
def _paid(context, value: Any) -> Any:
    return _budget.get().pay_for(value)


@pass_context
def _concat(context, values: list) -> str:
    return _concat_all(map(str, values))


def _concat_all(texts: Iterable[str]) -> str:
    spend, kept = _budget.get().spend, []
    for text in texts:
        spend(len(text))
        kept.append(text)
    return "".join(kept)


@pass_context
def _join(context, value: Iterable, d: str = "", attribute: str | int | None = None) -> str:
    items = list(value)
    _pay_for_join(_budget.get(), str(d), items)
    return filters.do_join(context.eval_ctx, items, d, attribute)


@pass_context
def _replace(context, s: str, old: str, new: str, count: int | None = None) -> str:
    _pay_for_replace(_budget.get(), str(s), str(old), str(new))
    return filters.do_replace(context.eval_ctx, s, old, new, count)


@pass_context
def _indent(context, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _budget.get().spend(len(str(s).splitlines()) * (len(width) if isinstance(width, str) else width))
    return filters.do_indent(str(s), width, first, blank)


@pass_context
def _round(context, value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > 300:
        raise SecurityError(f"it rounds to {precision} digits")
    return filters.do_round(value, precision, method)


@pass_context
def _sum(context, iterable: Iterable, attribute: str | int | None = None, start: float = 0) -> float:
    if not isinstance(start, (int, float)):
        raise SecurityError("it sums what are not numbers")
    return filters.do_sum(context.environment, iterable, attribute, start)


_BOUNDED_FILTERS = {
    "_ticked": _ticked,
    "_paid": _paid,
    "_concat": _concat,
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "round": _round,
    "sum": _sum,
}


def _pay_for_method(budget: Budget, text: str, name: str, args: tuple, kwargs: Mapping[str, Any]) -> tuple:
    """Pays for what `text.name(*args)` makes beyond a text of the same length; returns the arguments, for use."""
    if name == "join" and args:
        items = list(args[0])
        _pay_for_join(budget, text, items)
        return (items,)
    if name == "replace" and len(args) > 1:
        _pay_for_replace(budget, text, *map(str, args[:2]))
    elif name == "format":
        specs = [spec for _, field, spec, _ in Formatter().parse(text) if field is not None]
        if any("{" in spec for spec in specs):
            raise SecurityError("it formats with a computed width")
        budget.spend(_numbers_in("".join(specs)) + len(specs) * budget.price_of([args, kwargs]))
    return args


def _pay_for_join(budget: Budget, separator: str, items: list) -> None:
    budget.pay_for(items)
    budget.spend(len(separator) * len(items))


def _pay_for_replace(budget: Budget, text: str, old: str, new: str) -> None:
    budget.spend(len(text) + text.count(old) * len(new))


def _pay_for_product(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, int):
        budget.spend(budget.price_of(right) * max(left, 0))
    elif isinstance(right, int):
        budget.spend(budget.price_of(left) * max(right, 0))


def _pay_for_percent(budget: Budget, text: str, arguments: Any) -> None:
    if re.search(r"%[^a-zA-Z%]*\*", text):
        raise SecurityError("it formats with a computed width")
    budget.spend(_numbers_in(text) + text.count("%") * budget.price_of(arguments))


def _numbers_in(text: str) -> int:
    return sum(int(digits) for digits in re.findall(r"[0-9]{1,18}", text))


def spend(characters: int) -> None:
    """For functions and filters that a template calls: pays for text that they are about to make."""
    _budget.get().spend(characters)
