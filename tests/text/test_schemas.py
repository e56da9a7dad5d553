"""One reading of schemas: what clients' libraries write compiles, and lets through what the schema says."""

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from rocforge.text.schemas import ANY_OBJECT, json_rule, parameters

BYTES = LLTokenizer("byte")


def obeys(schema, text, strict=True):
    """Whether text is of the schema, as a rule among others. Raises ValueError for a schema that is refused."""
    matcher = LLMatcher(BYTES, f'start: "<" a ">"\na: {json_rule(schema, strict)}', log_level=0)
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    tokens = BYTES.tokenize_str(f"<{text}>")
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def closed(**properties):
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


PLACE = closed(city={"enum": ["Oslo"]})
REFERENCES = {
    "$defs": {**closed(p={"$ref": "#/$defs/Place"}), "$defs": {"Place": PLACE}},
    "definitions": {**closed(p={"$ref": "#/definitions/Place"}), "definitions": {"Place": PLACE}},
    "an anchor": {**closed(p={"$ref": "#place"}), "$defs": {"Place": {**PLACE, "$anchor": "place"}}},
    "the root's id": {
        **closed(p={"$ref": "tree.json#/$defs/P"}),
        "$id": "https://a.b/tree.json",
        "$defs": {"P": PLACE},
    },
    "a nested id": {
        **closed(p={"$ref": "https://a.b/place"}),
        "$defs": {
            "Place": {
                **closed(city={"$ref": "#/$defs/C"}),
                "$id": "https://a.b/place",
                "$defs": {"C": {"const": "Oslo"}},
            }
        },
    },
}


@pytest.mark.parametrize("name", REFERENCES)
def test_references(name):
    """They mean what they say."""
    assert obeys(REFERENCES[name], '{"p": {"city": "Oslo"}}') and not obeys(REFERENCES[name], '{"p": {"city": "Rome"}}')


def test_references_to_the_root():
    """A tree is one of trees."""
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}, "v": {"const": 1}}, "required": ["v"]}
    tree["additionalProperties"] = False
    assert obeys(tree, '{"next": {"next": {"v": 1}, "v": 1}, "v": 1}') and not obeys(tree, '{"next": {}, "v": 1}')


@pytest.mark.parametrize("strict", [True, False])
def test_keywords_that_add_nothing(strict):
    """Annotations, and alternatives that exclude each other, are no errors, and the rest of the schema holds."""
    for schema, good, bad in [
        ({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": False}, "{}", '{"a": 1}'),
        ({"type": "string", "format": "password", "enum": ["a", "b"]}, '"a"', '"c"'),
        ({"oneOf": [{"const": 1}, {"enum": [2, "1"]}]}, "2", "3"),
        ({"$schema": "https://a.b/schema", "type": "boolean"}, "true", "1"),
        ({"$id": "#/items", "items": {"$id": "My Item", "type": "integer"}, "minItems": 1}, "[1]", '["a"]'),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "boolean"}, "true", "1"),
        ({"properties": {"format": {"const": "password"}}}, '{"format": "password"}', '{"format": 1}'),
        ({"const": {"format": "password"}}, '{"format": "password"}', "{}"),
        ({"propertyNames": {"enum": ["a"]}, "additionalProperties": {"const": 1}}, '{"a": 1}', '{"b": 1}'),
        ({"type": "object", "propertyNames": {"type": "string", "pattern": "^a"}}, '{"ab": 1}', '{"b": 1}'),
        ({"type": "array", "items": {"type": "string", "format": "binary", "maxLength": 1}}, '["a"]', '["ab"]'),
        ({"x-guidance": {"whitespace_pattern": "[ ]*"}, "const": [1]}, "[ 1]", f"[{' ' * 17}1]"),
        (ANY_OBJECT, '{ "a": {\n"b": [1, 2] } }', f'{{{" " * 17}"a": 1}}'),
        (True, "1", "x"),
    ]:  # fmt: skip
        assert obeys(schema, good, strict) and not obeys(schema, bad, strict), schema


def test_strict():
    """What cannot be enforced is refused where a client insists on its schema, and a note otherwise."""
    for schema, text in [
        ({"type": "array", "items": {"const": 1}, "uniqueItems": True}, "[1]"),
        ({"type": "string", "pattern": "^(?!b)a$"}, '"a"'),
        ({"type": "object", "patternProperties": {"^(?=a)": {"const": 1}}}, '{"a": 1}'),
        ({"oneOf": [{"type": "integer"}, {"const": 1}]}, "1"),
        ({"oneOf": [{"const": 1}, {"const": 1}]}, "1"),
        ({"if": {"const": 1}, "then": {"const": 1}}, "1"),
    ]:
        assert obeys(schema, text, strict=False), schema
        with pytest.raises(ValueError):
            obeys(schema, text)
    with pytest.raises(ValueError, match="Unsatisfiable"):
        obeys(False, "1")


def test_parameters():
    """Arguments are an object; of a function that declares none, an empty one."""
    assert obeys(parameters(None), "{}") and not obeys(parameters({}), '{"a": 1}')
    schema = parameters({"$ref": "#/$defs/A", "$defs": {"A": PLACE}})
    assert obeys(schema, '{"city": "Oslo"}') and not obeys(schema, "1")
    assert not obeys(parameters({"type": ["object", "null"]}), "null")
    with pytest.raises(ValueError, match="is 'string'; allowed is 'object'"):
        parameters({"type": "string"})


def test_the_schema_is_left_alone():
    """What is passed in does not change."""
    schema = {"type": "object", "propertyNames": {"enum": ["a"]}, "oneOf": [{"const": {}}]}
    text = json.dumps(schema)
    json_rule(schema)
    assert json.dumps(schema) == text
