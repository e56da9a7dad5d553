"""/v1/messages: blocks in, blocks and events out, in Anthropic's shapes, errors too."""

import json
from types import SimpleNamespace

import pytest
from server.event_stream import parsed

from rocforge.engine.response import GenerationResponse
from rocforge.server.jobs import Job
from rocforge.server.messages_events import MessageEvents
from rocforge.server.messages_input import chat_of
from rocforge.server.messages_schema import MessagesRequest
from rocforge.text.chat.formats import reply_format
from rocforge.text.chat.reply import CountedParser

CITY = {"properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"], "additionalProperties": False}
WEATHER = {"name": "weather", "description": "Of a city.", "input_schema": CITY}
TEMPLATE = "{{ tools | tojson }} in <tool_call>, after a <think>"
REPLY = (
    "<think>Hm, a city.</think>Looking.\n"
    '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>\n'
    '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
)


def written(text, size, reason="stop", stop=None, shows="summarized", parallel=True, most=1000):
    """The message, and its events, of a reply in pieces of a size."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    reply = SimpleNamespace(prompt_tokens=5, completion_tokens=len(pieces), cached_tokens=2)
    parser = CountedParser(reply_format(TEMPLATE).parser({"weather": {}}, False))
    events = MessageEvents(Job("msg_1", 1, [reply]), parser, "small", most, shows, parallel)
    found = [events.start()]
    for number, piece in enumerate(pieces, 1):
        last = number == len(pieces)
        found += events.add(GenerationResponse(piece, 1, reason if last else None, None, None, stop if last else None))
    return events.message, data_of(b"".join([*found, events.finish()]).decode())


def data_of(stream):
    """What the events of a stream say."""
    return [data for _, data in parsed(stream)]


def accumulated(events):
    """The message that a client makes of events, as Anthropic's does."""
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
    message, written = events[0]["message"], ""
    assert message["content"] == [] and message["stop_reason"] is None
    for data in events[1:-1]:
        if data["type"] == "content_block_start":
            assert data["index"] == len(message["content"])
            message["content"].append(data["content_block"])
            written = ""
        elif data["type"] == "content_block_delta":
            block, delta = message["content"][data["index"]], data["delta"]
            if delta["type"] == "input_json_delta":
                written += delta["partial_json"]
                continue
            name = delta["type"].removesuffix("_delta")
            block[name] += delta[name]
        elif data["type"] == "content_block_stop":
            assert data["index"] == len(message["content"]) - 1
            if written:
                message["content"][-1]["input"] = json.loads(written)
        else:
            assert data["type"] == "message_delta"
            message |= {**data["delta"], "usage": data["usage"]}
    return message


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_blocks_of_a_reply(size):
    """Thinking, text and calls in their order; what a client puts together is the message."""
    message, events = written(REPLY, size)
    assert accumulated(events) == message and message["stop_reason"] == "tool_use"
    thinking, text, *calls = message["content"]
    assert (thinking["type"], thinking["thinking"], bool(thinking["signature"])) == ("thinking", "Hm, a city.", True)
    assert text["text"].strip() == "Looking."
    assert [call["input"] for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert len({call["id"] for call in calls}) == 2 and all(call["name"] == "weather" for call in calls)
    usage = message["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (3, 2), "what was cached is not counted twice"


def test_a_call_that_is_cut_off():
    """Its input came in parts, as far as it came; whole it is empty."""
    message, events = written('<tool_call>{"name": "weather", "arguments": {"city": "Os', 3, reason="length", most=2)
    parts = [data["delta"]["partial_json"] for data in events if data["type"] == "content_block_delta"]
    assert "".join(parts) == '{"city": "Os' and message["content"][0]["input"] == {}
    assert message["stop_reason"] == "max_tokens" and events[-1]["type"] == "message_stop"


def test_thinking_that_was_not_asked_for():
    """It is not shown; where it is to be omitted, the block is there without its text."""
    message, events = written(REPLY, 2, shows=None, parallel=False)
    assert accumulated(events) == message
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"], "one call where one is wanted"
    message, events = written(REPLY, 2, shows="omitted")
    assert accumulated(events) == message and message["content"][0]["thinking"] == ""


@pytest.mark.parametrize(
    "fields, reason, sequence",
    [
        ({}, "end_turn", None),
        ({"stop": "END"}, "stop_sequence", "END"),
        ({"reason": "length", "most": 2}, "max_tokens", None),
        ({"reason": "length"}, "model_context_window_exceeded", None),
    ],
)
def test_reasons(fields, reason, sequence):
    message, events = written("ab", 1, **fields)
    assert accumulated(events) == message
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def chat(**fields):
    body = {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}
    return chat_of(MessagesRequest.model_validate(body))


def test_histories():
    """Blocks as messages: results before text, calls and thinking with what was said, a prefill to be continued."""
    message, _ = written(REPLY, 1000)
    calls = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": calls[0], "content": "rain"},
        {"type": "tool_result", "tool_use_id": calls[1], "content": [{"type": "text", "text": "sun"}]},
    ]
    paper = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A paper."}}
    cached = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    body = chat(
        system=[{"type": "text", "text": "x-anthropic-billing-header: cch=1;"}, cached],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "hi"}, paper]},
            {"role": "assistant", "content": message["content"]},
            {"role": "user", "content": [*results, {"type": "text", "text": "and?"}]},
            {"role": "system", "content": "Later."},
            {"role": "assistant", "content": "So"},
        ],
    )
    found = [(message.role, message.content) for message in body.messages]
    said = body.messages[2]
    assert found == [
        ("system", "Be brief."), ("user", "hi\nA paper."), ("assistant", said.content), ("tool", "rain"),
        ("tool", "sun"), ("user", "and?"), ("system", "Later."), ("assistant", "So"),
    ]  # fmt: skip
    assert [call.id for call in said.tool_calls] == calls == [message.tool_call_id for message in body.messages[3:5]]
    assert said.reasoning_content == "Hm, a city." and body.continue_final_message


def test_fields():
    """Those of thinking, effort, format and tools, as chats have them."""
    body = chat(tools=[WEATHER], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert (body.tool_choice, body.parallel_tool_calls) == ("required", False)
    assert body.thinking.type == "disabled"
    assert body.tools[0].function.parameters == CITY and body.tools[0].function.description == "Of a city."
    body = chat(
        thinking={"type": "adaptive"},
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": CITY}},
    )
    assert body.thinking.type == "enabled" and body.reasoning_effort == "high"
    assert body.response_format.json_schema.schema_ == CITY and body.response_format.json_schema.strict
    body = chat(tools=[WEATHER], tool_choice={"type": "tool", "name": "weather"}, top_k=3)
    assert (body.tool_choice.function.name, body.top_k) == ("weather", 3)
    body = chat(thinking={"type": "enabled", "budget_tokens": 1024})
    assert (body.thinking.type, body.thinking.budget_tokens) == ("enabled", 1024)


def create(server, **fields):
    body = {"model": "small", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}], "seed": 1, **fields}
    return server.post("/v1/messages", json=body)


def test_messages(server):
    """Whole and streamed are the same; tokens are counted as they are used; a stop sequence is named."""
    whole = create(server).json()
    streamed = accumulated(data_of(create(server, stream=True).text))
    assert whole["content"] == streamed["content"] and whole["stop_reason"] == "max_tokens"
    counted = server.post(
        "/v1/messages/count_tokens", json={"model": "small", "messages": [{"role": "user", "content": "hi"}]}
    )
    usage = streamed["usage"]
    assert counted.json()["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
    stopped = create(server, stop_sequences=["no", "AB"], grammar='start: "xxABAB"', max_tokens=20).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "AB")
    assert stopped["content"] == [{"type": "text", "text": "xx"}]


def test_more_tokens_than_the_context_has(server):
    """max_tokens, which this API requires, is what the client would take at most: the context is the limit."""
    long = [{"role": "user", "content": "a" * 2000}]
    reply = create(server, messages=long, max_tokens=32000, ignore_eos=True).json()
    assert reply["stop_reason"] == "model_context_window_exceeded"
    assert reply["usage"]["input_tokens"] + reply["usage"]["output_tokens"] == 2048
    assert (
        create(server, messages=[{"role": "user", "content": "a" * 3000}]).json()["error"]["type"]
        == "invalid_request_error"
    )


@pytest.mark.parametrize(
    "fields, status, type, words",
    [
        ({"model": "claude"}, 404, "not_found_error", "'claude' does not exist"),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"unknown": 1}, 400, "invalid_request_error", "unknown"),
        ({"container": "a"}, 400, "invalid_request_error", "container"),
        ({"mcp_servers": [{"name": "a"}]}, 400, "invalid_request_error", "mcp_servers"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, 400, "invalid_request_error", "bash_20250124"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "b"}}, 400, "invalid_request_error", "'b'"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "needs tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]}, 400,
         "invalid_request_error", "'image' is not supported: the model reads text"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]}, 400,
         "invalid_request_error", "has no"),
    ],
)  # fmt: skip
def test_errors(server, fields, status, type, words):
    """In Anthropic's shape, wherever they come from."""
    answer = create(server, **fields)
    body = answer.json()
    assert answer.status_code == status and body["type"] == "error", body
    assert body["error"]["type"] == type and words in body["error"]["message"], body


def test_keys_and_paths(start):
    """x-api-key and bearer tokens; refusals before any endpoint have this shape below /v1/messages, and no other."""
    with start(api_key="secret") as server:
        right = ({"x-api-key": "secret"}, {"authorization": "Bearer secret"})
        for headers in (*right, {"x-api-key": "wrong"}, {}):
            status = 200 if headers in right else 401
            body = {"model": "small", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
            answer = server.post("/v1/messages", json=body, headers={**headers, "anthropic-beta": "any"})
            assert answer.status_code == status
            assert status == 200 or answer.json()["error"]["type"] == "authentication_error"
        assert server.get("/v1/messages", headers={"x-api-key": "secret"}).json()["type"] == "error"
        assert server.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        wrong = server.post(
            "/v1/messages", content=b"{", headers={"x-api-key": "secret", "content-type": "application/json"}
        )
        assert wrong.json()["error"]["type"] == "invalid_request_error"
