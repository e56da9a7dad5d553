"""ArgumentTypes: arguments that a reply writes as plain text, as the values that a function's schema declares."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rocforge.text.chat.json_scanner import refuse_constant
from rocforge.text.marks import without_surrogates
from rocforge.text.schemas import listed_values, parameters

_ROOT = "#/$defs/parameters"
_VALUES = ("const", "enum", "default", "examples")
"""Members of a schema that are no schemas."""
_NESTED = 8
"""References in a row that are followed."""


class ArgumentTypes:
    """The arguments of a function.

    Args:
        function: in OpenAI's shape.

    Attributes:
        declared: the schema that declares them.
        names: of the declared ones, in order.
        required: those that a call must have.
        strict: whether a grammar refuses keywords that it cannot enforce.
    """

    def __init__(self, function: Mapping[str, Any]):
        schema = parameters(function.get("parameters"))
        self.strict = bool(function.get("strict"))
        self._document = {"$defs": {"parameters": _moved(schema)}}
        self._pointer, self.declared = self._followed(_ROOT)
        properties = self.declared.get("properties")
        self._properties: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
        self.names: Sequence[str] = list(self._properties)
        self.required = frozenset(self.declared.get("required") or ())

    def schema(self, name: str) -> Mapping[str, Any]:
        """The schema of an argument as a document of its own, in which references mean what they meant."""
        escaped = name.replace("~", "~0").replace("/", "~1")
        return {"$ref": f"{self._pointer}/properties/{escaped}", **self._document}

    def resolved(self, schema: Any) -> Mapping[str, Any]:
        """A schema within that of the arguments, or what it refers to."""
        if isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
            schema = self._followed(schema["$ref"])[1]
        return schema if isinstance(schema, Mapping) else {}

    def types(self, name: str) -> frozenset[str]:
        """The JSON types that an argument may have; none where anything may come."""
        return self.kinds(self._properties.get(name))

    def kinds(self, schema: Any) -> frozenset[str]:
        """The same of any schema within that of the arguments."""
        return frozenset(self._types(schema, _NESTED))

    def is_text(self, name: str) -> bool:
        """Whether an argument is a string whatever is written."""
        return self.types(name) == {"string"}

    def texts(self, name: str) -> Sequence[str] | None:
        """The strings that an argument may be; none where it may be any, None where it may be something else."""
        if not self.is_text(name):
            return None
        return listed_values(self.resolved(self._properties.get(name))) or []

    def value(self, name: str, text: str) -> str:
        """The JSON of what is written for an argument.

        >>> function = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}}
        >>> types = ArgumentTypes(function)
        >>> types.value("a", "1"), types.value("b", "1"), types.value("b", "one"), types.value("c", "[1]")
        ('"1"', '1', '"one"', '[1]')
        """
        types = self.types(name)
        found = None if types == {"string"} else literal(text)
        if found is None or (types and found[0] not in types and not (found[0] == "integer" and "number" in types)):
            return json.dumps(text, ensure_ascii=False)
        if "string" in types and found[0] not in ("null", "object", "array"):
            return json.dumps(text, ensure_ascii=False)
        return found[1]

    def _types(self, schema: Any, left: int) -> set[str]:
        if not isinstance(schema, Mapping) or not left:
            return set()
        if isinstance(schema.get("$ref"), str):
            return self._types(self.resolved(schema), left - 1)
        if (values := listed_values(schema)) is not None:
            return {_type(value) for value in values}
        declared = schema.get("type")
        if isinstance(declared, (str, list)):
            return {declared} if isinstance(declared, str) else {kind for kind in declared if isinstance(kind, str)}
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                found = [self._types(entry, left - 1) for entry in schema[key]]
                return set().union(*found) if all(found) else set()
        entries = schema.get("allOf") or ()
        return next(filter(None, (self._types(entry, left - 1) for entry in entries)), set())

    def _followed(self, pointer: str) -> tuple[str, Mapping[str, Any]]:
        """What a reference within the document leads to, and its own pointer."""
        for _ in range(_NESTED):
            found: Any = self._document
            for part in pointer.split("/")[1:]:
                key = part.replace("~1", "/").replace("~0", "~")
                found = found.get(key) if isinstance(found, Mapping) else None
            if not isinstance(found, Mapping):
                return pointer, {}
            if not isinstance(found.get("$ref"), str) or "properties" in found:
                return pointer, found
            pointer = found["$ref"]
        return pointer, {}


def separated(members: Sequence[str], required: int, separator: str) -> str:
    """A rule's body for members in order, of which the first ones are required, with a text between them.

    >>> separated(["a", "b"], 1, ",")
    '(a ("," b)?)'
    >>> separated(["a", "b"], 0, ",")
    '(a ("," b)? | b)?'
    """
    if not members:
        return ""
    mark = json.dumps(separator)

    def listed(first: int) -> str:
        more = [f"{mark} {m}" if j < required else f"({mark} {m})?" for j, m in enumerate(members)]
        return " ".join([members[first], *more[first + 1 :]])

    lists = [listed(first) for first in range(1 if required else len(members))]
    return f"({' | '.join(lists)})" + ("" if required else "?")


def _moved(schema: Any) -> Any:
    """A schema of which the references to its root lead to where that is now."""
    if isinstance(schema, list):
        return [_moved(entry) for entry in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: value if key in _VALUES else _moved(value) for key, value in schema.items()}
    target = moved.get("$ref")
    if isinstance(target, str) and (target == "#" or target.startswith("#/")):
        moved["$ref"] = _ROOT + target[1:]
    return moved


def literal(text: str) -> tuple[str, str] | None:
    """The type and the JSON of a value that is written in JSON or in Python; None if it is none.

    >>> literal("{'a': [True, null, 'b']}")
    ('object', '{"a": [true, null, "b"]}')
    """
    try:
        return _type(json.loads(text, parse_constant=refuse_constant)), text.strip()
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            tree = _JSONNames().visit(ast.parse(text.strip(), mode="eval"))
        value = ast.literal_eval(tree)
        return _type(value), without_surrogates(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


class _JSONNames(ast.NodeTransformer):
    """JSON's names among Python's, for what models mix."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        names = {"true": True, "false": False, "null": None}
        return ast.Constant(names[node.id]) if node.id in names else node


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    kinds = {str: "string", float: "number", type(None): "null", list: "array", tuple: "array", dict: "object"}
    return kinds.get(type(value), "string")
