"""JSON schemas as rules of a grammar: one reading of a schema, wherever it comes from.

Each schema is a document of its own, so its references (to the root, to $defs, by $id) mean what they meant. Source:
https://json-schema.org/draft/2020-12, and the keywords that llguidance compiles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of JSON mode."""
WHITE_SPACE = r"[ \t\n]{0,16}"
"""White space in JSON is bounded, or a model could write it forever."""
FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
"""Values of `format` that constrain a string; all others annotate it."""
_DRAFTS = re.compile(r"https?://json-schema\.org/(draft-0[467]/schema|draft/20(19-09|20-12)/schema)#?")
_ID = re.compile(r"(?!#/)[\w.~:/?#@!$&'()*+,;=%-]*", re.ASCII)
"""A URI reference. Generators also write titles, and "#/properties/name", which names what `$ref` finds without it."""
_LOOK_AROUND = re.compile(r"\(\?<?[=!]|\\[1-9]|\\k<")
_ONE = frozenset(["additionalProperties", "items", "not", "if", "then", "else", "contains", "unevaluatedProperties",
                  "additionalItems", "unevaluatedItems"])  # fmt: skip
_SEVERAL = frozenset(["allOf", "anyOf", "oneOf", "prefixItems", "items"])
_NAMED = frozenset(["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"])


def json_rule(schema: Mapping[str, Any] | bool, strict: bool = True) -> str:
    """The body of a rule in llguidance's dialect of Lark: JSON that obeys a schema.

    Args:
        schema: JSON Schema.
        strict: refuse keywords that cannot be enforced. Otherwise they only annotate, and `oneOf` means `anyOf`.

    Raises:
        RecursionError: it is nested too deeply.

    >>> json_rule({"const": "a", "format": "password"}).partition(', "x-guidance"')[0]
    '%json {"const": "a"'
    """
    options = {"whitespace_pattern": WHITE_SPACE, "lenient": not strict, "coerce_one_of": not strict}
    plain = _normalized(schema, strict)
    if isinstance(plain, bool):
        plain = {} if plain else {"enum": []}
    return f"%json {json.dumps({**plain, 'x-guidance': options})}"


def parameters(schema: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The schema of a function's arguments: an object, without members where the function declares no parameters.

    Raises:
        ValueError: it is a schema of something else.

    >>> parameters({"properties": {"city": {"type": "string"}}})
    {'properties': {'city': {'type': 'string'}}, 'type': 'object'}
    """
    if not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ValueError(f"the type of a function's parameters is {kind!r}; allowed is 'object'")
    return {**schema, "type": "object"}


def _normalized(schema: Any, strict: bool) -> Any:
    """The schema without what adds nothing to it, and with what means the same in keywords that are enforced."""
    if not isinstance(schema, Mapping):
        return schema
    plain = {key: _below(key, value, strict) for key, value in schema.items() if _counts(key, value, strict)}
    if "patternProperties" in plain and not strict:
        patterns = plain["patternProperties"]
        plain["patternProperties"] = {key: value for key, value in patterns.items() if not _LOOK_AROUND.search(key)}
    if "propertyNames" in plain:
        plain = _with_names(plain)
    if _excludes(plain.get("oneOf")) and "anyOf" not in plain:
        plain["anyOf"] = plain.pop("oneOf")
    return plain


def _below(key: str, value: Any, strict: bool) -> Any:
    if key in _SEVERAL and isinstance(value, list):
        return [_normalized(entry, strict) for entry in value]
    if key in _NAMED and isinstance(value, Mapping):
        return {name: _normalized(entry, strict) for name, entry in value.items()}
    return _normalized(value, strict) if key in _ONE else value


def _counts(key: str, value: Any, strict: bool) -> bool:
    """Whether a keyword adds anything to its schema."""
    if key == "x-guidance":
        return False  # the options of llguidance are not the client's
    if key == "$schema":
        return isinstance(value, str) and _DRAFTS.fullmatch(value) is not None
    if key == "$id":
        return isinstance(value, str) and _ID.fullmatch(value) is not None
    if key == "format":
        return not isinstance(value, str) or value in FORMATS
    if key == "propertyNames":
        return value not in (True, {}, {"type": "string"})
    if key == "pattern" and isinstance(value, str):
        return strict or not _LOOK_AROUND.search(value)
    return True


def _with_names(schema: dict[str, Any]) -> dict[str, Any]:
    """Names from a list, or of a pattern, as the properties of an object that declares none."""
    names, values = schema["propertyNames"], schema.get("additionalProperties", True)
    if not isinstance(names, Mapping) or schema.keys() & {"properties", "patternProperties"}:
        return schema
    rest = {key: value for key, value in schema.items() if key != "propertyNames"}
    constraints = names.keys() - {"type", "title", "description"}
    listed = listed_values(names)
    if constraints in ({"enum"}, {"const"}) and listed is not None:
        found = {name: values for name in listed if isinstance(name, str)}
        return {**rest, "properties": found, "additionalProperties": False}
    if constraints == {"pattern"}:
        return {**rest, "patternProperties": {names["pattern"]: values}, "additionalProperties": False}
    return schema


def listed_values(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema allows, where it lists them.

    >>> listed_values({"const": 1}), listed_values({"enum": ["a", "b"]}), listed_values({"type": "string"})
    ([1], ['a', 'b'], None)
    """
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return values if isinstance(values, list) else None


def _excludes(alternatives: Any) -> bool:
    """Whether alternatives are lists of values of which no two are equal."""
    if not isinstance(alternatives, list):
        return False
    values: list[str] = []
    for entry in alternatives:
        if not isinstance(entry, Mapping) or not entry.keys() & {"const", "enum"}:
            return False
        listed = listed_values(entry)
        values += [""] * 2 if listed is None else {json.dumps(value, sort_keys=True) for value in listed}
    return len(values) == len(set(values))
