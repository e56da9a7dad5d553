"""Jinja templates from files that nobody has vouched for, rendered within bounds.

Jinja's sandbox keeps a template away from Python's internals; it does not keep it from looping for ever or from filling
the memory. Here every iteration and call looks at the thread's CPU clock, and all that a template makes (texts, lists,
numbers) is paid from a budget, beforehand where a small expression can make much. Neither needs a signal or a process,
so both hold in any thread. Filters, and attributes of Python's own types, are let through by name; what multiplies its
input at will is not among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from types import BuiltinMethodType
from typing import Any

from jinja2 import Template, filters, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from rocforge.budget import Budget, check_bits

MAX_TEMPLATE_CHARACTERS = 1 << 16

_STRING_METHODS = (
    "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip",
    "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
    "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
)  # fmt: skip
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STRING_METHODS),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    **dict.fromkeys((int, float, complex, bytes, set, frozenset, range), frozenset()),
}
_FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "forceescape", "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "reverse", "safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper",
    "wordcount",
)  # fmt: skip


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
        budget.pay_for_entries(len(args) + len(kwargs))
        method = getattr(function, "__wrapped__", function)  # str.format comes wrapped by the sandbox
        if isinstance(method, BuiltinMethodType) and isinstance(method.__self__, str):
            args = budget.pay_for_method(method.__self__, method.__name__, args, kwargs)
        return budget.pay_for(super().call(context, function, *args, **kwargs))

    def call_binop(self, context, operator: str, left: Any, right: Any):
        budget = _budget.get()
        if operator == "*":
            budget.pay_for_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() * right)
        elif operator == "%" and isinstance(left, str):
            budget.pay_for_percent(left, right)
        return budget.pay_for(super().call_binop(context, operator, left, right))


class _Instrument(NodeTransformer):
    """Sends what the hooks of the environment do not see through filters that do: loops, literals, `~`, slices."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_through("_step", nodes.Const(None)), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_through("_step", nodes.Const(True)), node.test, lineno=node.lineno)
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
def _step(context, value: Any) -> Any:
    _budget.get().tick()
    return value


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
    _budget.get().pay_for_join(str(d), items)
    return filters.do_join(context.eval_ctx, items, d, attribute)


@pass_context
def _replace(context, s: str, old: str, new: str, count: int | None = None) -> str:
    _budget.get().pay_for_replace(str(s), str(old), str(new))
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
    "_step": _step,
    "_paid": _paid,
    "_concat": _concat,
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "round": _round,
    "sum": _sum,
}


def spend(characters: int) -> None:
    """For functions and filters that a template calls: pays for text that they are about to make."""
    _budget.get().spend(characters)
