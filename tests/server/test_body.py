"""Bodies: JSON by RFC 8259, refused in time in proportion to its length, and validated up to the first fault."""

import time

import pytest
from pydantic import ValidationError

from rocforge.server import body, schema
from rocforge.server.body import parse_json
from rocforge.server.messages_schema import MessagesRequest
from rocforge.server.responses_schema import ResponsesRequest

SIZE = 1 << 21


@pytest.mark.parametrize(
    "text, value",
    [
        (b' {"a": [1, -0.5, true, null, "x"]} ', {"a": [1, -0.5, True, None, "x"]}),
        ('"\\u00e9\\ud83d\\ude00\\u0000"', "é😀\0"),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'"[{\\"[{\\\\"', '[{"[{\\'),
    ],
)
def test_json(text, value):
    """What is JSON is read, and brackets in strings nest nothing."""
    assert parse_json(text) == value


@pytest.mark.parametrize(
    "text",
    [b"", b"NaN", b"[Infinity]", b"-Infinity", b"[1,]", b"01", b"1 2", b'"\x01"', b'"\\ud800"', '"\ud800"', b'"\xff"',
     b'"\xed\xa0\x80"', b'\xef\xbb\xbf"x"', '"x"'.encode("utf-16"), '"x"'.encode("utf-32-le"), b"9" * 5000],
)  # fmt: skip
def test_no_json(text):
    """What RFC 8259 does not have is refused, in whatever encoding."""
    with pytest.raises(ValueError):
        parse_json(text)


HOSTILE = {
    "quotes": b'"' * SIZE,
    "escaped quotes": b'"' + b'\\"' * (SIZE // 2),
    "backslashes": b'"' + b"\\" * SIZE,
    "open": b"[" * SIZE,
    "open objects": b'{"a":' * (SIZE // 5),
    "arrays": b"[" + b"[]," * (SIZE // 3) + b"1]",
    "deep arrays": b"[" + (b"[" * 60 + b"]" * 60 + b",") * (SIZE // 121) + b"1]",
    "members": b"{" + b'"a":0,' * (SIZE // 6) + b'"b":0}',
    "digits": b"9" * SIZE,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_refused_in_linear_time(text):
    """Two megabytes of what is worst for a scanner or a parser: a scan that is quadratic takes hours of it."""
    begin = time.process_time()
    with pytest.raises(ValueError):
        parse_json(text)
    assert time.process_time() - begin < 3


def test_limits_are_exact():
    """Of nesting and of parts, the last that is allowed is taken and one more is not; strings hold any number."""
    parse_json("[" * body.MAX_DEPTH + "]" * body.MAX_DEPTH)
    with pytest.raises(ValueError, match="64 levels"):
        parse_json("[" * (body.MAX_DEPTH + 1) + "]" * (body.MAX_DEPTH + 1))
    parse_json("[" + "{}," * (body.MAX_PARTS - 2) + "[]]")
    with pytest.raises(ValueError, match="131073 arrays"):
        parse_json("[" + "{}," * (body.MAX_PARTS - 2) + '{"a":1}]')
    parse_json('"' + "[{:" * body.MAX_PARTS + '"')


MANY = 20_000
FLOODS = [
    ("CompletionRequest", {"prompt": [-1] * MANY}),
    ("CompletionRequest", {"prompt": [[-1] * MANY]}),
    ("CompletionRequest", {"prompt": [["x"]] * MANY}),
    ("CompletionRequest", {"prompt": "a", "stop": [1] * MANY}),
    ("CompletionRequest", {"prompt": "a", "stop_token_ids": [-1] * MANY}),
    ("CompletionRequest", {"prompt": "a", "guided_choice": [1] * MANY}),
    ("CompletionRequest", {"prompt": "a", "structured_outputs": {"choice": [1] * MANY}}),
    ("CompletionRequest", {"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(MANY)), "x")}),
    ("CompletionRequest", {"prompt": "a", "stream_options": dict.fromkeys(map(str, range(MANY)), 1)}),
    ("CompletionRequest", dict.fromkeys(map(str, range(MANY)), 1)),
    ("ChatCompletionRequest", {"messages": [1] * MANY}),
    ("ChatCompletionRequest", {"messages": [{"role": "x"}] * 4000}),
    ("ChatCompletionRequest", {"messages": [{"role": "user", "content": [{"type": "x"}] * MANY}]}),
    ("ChatCompletionRequest", {"messages": [{"role": "user", "tool_calls": [1] * MANY}]}),
    ("ChatCompletionRequest", {"messages": [], "tools": [{}] * 100}),
    ("ChatCompletionRequest", {"messages": [], "metadata": dict.fromkeys(map(str, range(MANY)), 1)}),
    ("ChatCompletionRequest", {"messages": [], "modalities": [1] * MANY}),
    ("DetokenizeRequest", {"tokens": [-1] * MANY}),
    ("EmbeddingRequest", {"input": [[-1] * MANY]}),
    ("CompletionRequest", {"prompt": "a", "dry_sequence_breakers": [1] * MANY}),
    ("InfillRequest", {"input_extra": [1] * MANY}),
    ("InfillRequest", {"input_prefix": "a", "input_suffix": "b", "samplers": [1] * MANY}),
    ("RerankRequest", {"query": "a", "documents": [1] * MANY}),
    ("ResponsesRequest", {"input": [1] * MANY}),
    ("ResponsesRequest", {"input": [{"type": 1}] * 4000}),
    ("ResponsesRequest", {"input": [{"content": [{"type": 1}] * MANY}]}),
    ("ResponsesRequest", {"input": [{"output": [1] * MANY, "summary": [1] * MANY}]}),
    ("ResponsesRequest", {"input": "a", "tools": [{"tools": [1] * MANY}] * 100, "include": [1] * MANY}),
    ("ResponsesRequest", {"input": "a", "tool_choice": {"tools": [1] * MANY}}),
    ("ResponsesRequest", {"input": "a", "metadata": dict.fromkeys(map(str, range(MANY)), 1)}),
    ("MessagesRequest", {"messages": [1] * MANY, "system": [1] * MANY}),
    ("MessagesRequest", {"messages": [{"role": "user", "content": [{"type": 1}] * MANY}]}),
    ("MessagesRequest", {"messages": [], "tools": [{}] * 100, "stop_sequences": [1] * MANY, "mcp_servers": [1] * MANY}),
]
REQUESTS = {
    **{name: getattr(schema, name) for name, _ in FLOODS if hasattr(schema, name)},
    "ResponsesRequest": ResponsesRequest,
    "MessagesRequest": MessagesRequest,
}


@pytest.mark.parametrize("name, fields", FLOODS)
def test_few_errors_of_many_faults(name, fields):
    """However many entries or fields are wrong, a handful of errors is made of them: one costs a microsecond or ten."""
    with pytest.raises(ValidationError) as caught:
        REQUESTS[name].model_validate(fields)
    assert caught.value.error_count() < 10


def test_every_array_stops_early():
    """None that may be long has been left out of FLOODS."""
    long = set()
    for request in REQUESTS.values():
        described = request.model_json_schema()
        for model in [described, *described.get("$defs", {}).values()]:
            for name, field in model.get("properties", {}).items():
                if any(option.get("type") == "array" for option in [field, *field.get("anyOf", ())]):
                    long.add(name)
    tried = {name for _, fields in FLOODS for name in fields} | {"content", "tool_calls", "choice", "output", "summary"}
    assert {"prompt", "messages", "tokens"} <= long <= tried
