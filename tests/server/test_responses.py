"""/v1/responses: items in, items and events out; what is kept, for how long; what is refused, and with which words."""

import base64
import json
import time
from types import SimpleNamespace

import pytest
from server.event_stream import parsed

from rocforge.engine.response import GenerationResponse
from rocforge.server.errors import APIError
from rocforge.server.jobs import Job
from rocforge.server.response_store import ResponseStore
from rocforge.server.responses_events import ResponseEvents
from rocforge.server.responses_input import chat_of, items_of, messages_of, offered_tools
from rocforge.server.responses_schema import ResponsesRequest
from rocforge.server.tools import Tools, tools_of
from rocforge.text.chat.formats import reply_format
from rocforge.text.chat.reply import CountedParser

CITY = {"properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"], "additionalProperties": False}
WEATHER = {"type": "function", "name": "weather", "parameters": CITY}
PATCH = {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"}}
SPACE = {"type": "namespace", "name": "mcp", "description": "", "tools": [{"type": "function", "name": "read"}]}
TEMPLATE = "{{ tools | tojson }} in <tool_call>, after a <think>"
REPLY = (
    "<think>Hm, a city.</think>Looking.\n"
    '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>\n'
    '<tool_call>{"name": "patch", "arguments": {"input": "*** a\\n\\"b\\""}}</tool_call>\n'
    '<tool_call>{"name": "mcp__read", "arguments": {}}</tool_call>'
)


def request(**fields):
    return ResponsesRequest.model_validate({"model": "small", "input": "hi", **fields})


def written(text, size, reason="stop", parallel=True, **options):
    """The response, and its events as (type, data), of a reply in pieces of a size."""
    tools = offered_tools(request(tools=[WEATHER, PATCH, SPACE])).by_name
    pieces = [text[at : at + size] for at in range(0, len(text), size)] or [""]
    reply = SimpleNamespace(prompt_tokens=5, completion_tokens=len(pieces), cached_tokens=2)
    response = {"id": "resp_1", "status": "in_progress", "output": [], "parallel_tool_calls": parallel}
    parser = CountedParser(reply_format(TEMPLATE).parser(tools, False))
    events = ResponseEvents(response, Job("resp_1", 1, [reply]), parser, tools, **options)
    found = [events.start()]
    for number, piece in enumerate(pieces, 1):
        found += events.add(GenerationResponse(piece, 1, reason if number == len(pieces) else None, None, None))
    return response, parsed(b"".join([*found, events.finish()]).decode())


def check_order(events):
    """Numbers are consecutive; each item is added, grows, and is done, before the next; deltas make what is done."""
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert [name for name, _ in events[:2]] == ["response.created", "response.in_progress"]
    opened, text, done = None, "", []
    for name, data in events[2:-1]:
        if name == "response.output_item.added":
            assert opened is None and data["output_index"] == len(done)
            opened, text = data["item"]["id"], ""
        elif name == "response.output_item.done":
            assert data["item"]["id"] == opened and data["item"]["status"] != "in_progress"
            opened = None
            done.append(data["item"])
        else:
            assert data["item_id"] == opened and data["output_index"] == len(done)
            text += data.get("delta", "")
            if name.endswith((".arguments.done", "text.done", "input.done")):
                assert text == next(data[key] for key in ("text", "arguments", "input") if key in data)
    assert opened is None and events[-1][1]["response"]["output"] == done


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_items_of_a_reply(size):
    """Reasoning, text and calls in their order, functions, custom tools and those of a namespace by their own names."""
    response, events = written(REPLY, size, encrypts=True)
    check_order(events)
    reasoning, message, weather, patch, read = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm, a city."}] and reasoning["summary"] == []
    assert base64.b64decode(reasoning["encrypted_content"]) == b"Hm, a city."
    assert message["content"][0]["text"].strip() == "Looking." and message["role"] == "assistant"
    assert (weather["name"], json.loads(weather["arguments"])) == ("weather", {"city": "Oslo"})
    assert (patch["type"], patch["name"], patch["input"]) == ("custom_tool_call", "patch", '*** a\n"b"')
    assert (read["name"], read["namespace"], read["arguments"]) == ("read", "mcp", "{}")
    assert response["status"] == "completed" and all(item["status"] == "completed" for item in response["output"])
    usage = response["usage"]
    assert (usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]) == (5, 2)
    if size == 1:
        assert usage["output_tokens_details"]["reasoning_tokens"] == len("<think>Hm, a city.")


def test_ends_of_replies():
    """An empty reply has an empty message; a cut one says so, as its last item does; one call where one is wanted."""
    response, events = written("", 1)
    check_order(events)
    assert response["output"][0]["content"][0]["text"] == "" and response["status"] == "completed"
    response, events = written("<think>Hm", 1, reason="length")
    check_order(events)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in response["output"]] == ["incomplete"] and events[-1][0] == "response.incomplete"
    response, events = written('<tool_call>{"name": "weather", "arguments": {"city": "Os', 3, reason="length")
    check_order(events)
    (call,) = response["output"]
    assert (call["name"], call["arguments"], call["status"]) == ("weather", '{"city": "Os', "incomplete")
    response, events = written(REPLY, 2, parallel=False)
    check_order(events)
    assert [item["type"] for item in response["output"]] == ["reasoning", "message", "function_call"]


def test_history_of_items(server):
    """What a response gave goes back as it came: one message of the assistant, and a result for each call."""
    response, _ = written(REPLY, 1000, encrypts=True)
    for item in response["output"]:
        if item["type"] == "reasoning":
            del item["content"]  # as Codex sends it
    results = [
        {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": [{"type": "input_text", "text": "ok"}]}
        for item in response["output"][2:]
    ]
    before = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    items = items_of(request(input=[*before, *response["output"], *results]))
    messages = messages_of(items)
    assert [message["role"] for message in messages] == ["developer", "user", "assistant", "tool", "tool", "tool"]
    said = messages[2]
    assert said["reasoning_content"] == "Hm, a city." and said["content"].strip() == "Looking."
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in said["tool_calls"]]
    assert calls == [("weather", {"city": "Oslo"}), ("patch", {"input": '*** a\n"b"'}), ("mcp__read", {})]
    assert [message["tool_call_id"] for message in messages[3:]] == [call["id"] for call in said["tool_calls"]]
    body = {"model": "small", "input": items, "tools": [WEATHER, PATCH, SPACE], "max_output_tokens": 2, "store": False}
    assert server.post("/v1/responses", json=body).status_code == 200


def create(server, **fields):
    body = {"model": "small", "input": "hi", "max_output_tokens": 3, "seed": 1, **fields}
    answer = server.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def test_streamed_is_whole(server):
    """With a seed the last event has the response that is given without a stream."""
    whole = create(server, include=["message.output_text.logprobs"], top_logprobs=1).json()
    events = parsed(create(server, include=["message.output_text.logprobs"], top_logprobs=1, stream=True).text)
    check_order(events)
    content, streamed = (r["output"][0]["content"] for r in (whole, events[-1][1]["response"]))
    assert content == streamed and len(content[0]["logprobs"]) == 3
    deltas = [entry for name, data in events if name.endswith("text.delta") for entry in data["logprobs"]]
    assert deltas == content[0]["logprobs"]


def test_kept_responses(server):
    """A response is continued, read, listed by its items, and deleted; with store false it is not kept."""
    first = create(server).json()
    second = create(server, previous_response_id=first["id"], input=[{"role": "user", "content": "more"}]).json()
    assert server.get(f"/v1/responses/{second['id']}").json() == second
    listed = server.get(f"/v1/responses/{second['id']}/input_items", params={"order": "asc"}).json()
    assert [item["role"] for item in listed["data"]] == ["user", "assistant", "user"] and not listed["has_more"]
    page = {"order": "asc", "limit": 1, "after": listed["first_id"]}
    one = server.get(f"/v1/responses/{second['id']}/input_items", params=page).json()
    assert one["data"] == listed["data"][1:2] and one["has_more"]
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    by_hand = create(server, input=[*listed["data"]], store=False).json()
    assert by_hand["output"][0]["content"] == second["output"][0]["content"]
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    again = [listed["data"][0], reference, {"role": "user", "content": "more"}]
    assert create(server, input=again).json()["output"][0]["content"] == second["output"][0]["content"]
    assert server.client.delete(f"/v1/responses/{first['id']}").json()["deleted"]
    for id in (first["id"], by_hand["id"]):
        assert server.get(f"/v1/responses/{id}").status_code == 404
    count = {"model": "small", "input": "hi"}
    tokens = server.post("/v1/responses/input_tokens", json=count).json()["input_tokens"]
    assert tokens == first["usage"]["input_tokens"]


def test_cancel(server):
    """A stream in progress is cancelled by its id, and ends as such; one that has ended stays as it is."""
    body = {"model": "small", "input": "hi", "ignore_eos": True, "stream": True}
    with server.client.stream("POST", "/v1/responses", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        id = json.loads(next(lines).removeprefix("data: "))["response"]["id"]
        assert server.get(f"/v1/responses/{id}").json()["status"] == "in_progress"
        assert server.post(f"/v1/responses/{id}/cancel").json()["status"] == "cancelled"
        last = json.loads([line for line in lines if line.startswith("data")][-1].removeprefix("data: "))
    assert last["type"] == "response.failed" and last["response"]["status"] == "cancelled"
    kept = server.get(f"/v1/responses/{id}").json()
    assert kept["status"] == "cancelled" and kept["error"]["code"] == "request_cancelled"
    assert server.post(f"/v1/responses/{id}/cancel").json() == kept


def test_required_tools(server):
    """A choice is of functions, custom tools and those of a namespace; the format is that of text."""
    tools = [WEATHER, PATCH, SPACE]
    choice = {"type": "function", "name": "read", "namespace": "mcp"}
    (item,) = create(server, tools=tools, tool_choice=choice, max_output_tokens=200).json()["output"]
    assert item["type"] == "function_call" and item["name"] == choice["name"]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "patch"}]}
    body = request(tools=tools, tool_choice=choice)
    assert tools_of(
        chat_of(body, [{"type": "message", "role": "user", "content": "hi"}], offered_tools(body))
    ) == Tools(
        shown=offered_tools(body).functions, functions=[offered_tools(body).functions[1]["function"]], required=True
    )
    schema = {
        "type": "object",
        "properties": {"age": {"enum": [3]}},
        "required": ["age"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "name": "person", "schema": schema, "strict": True}
    reply = create(server, text={"format": format, "verbosity": "low"}, max_output_tokens=99).json()
    assert json.loads(reply["output"][0]["content"][0]["text"]) == {"age": 3} and reply["text"]["format"] == format


@pytest.mark.parametrize(
    "fields, param, words",
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "web_search"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools", "file_search"),
        ({"tools": [SPACE], "tool_choice": {"type": "function", "name": "read"}}, "tools", "'read'"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "mcp", "server_label": "a"}}, "tool_choice", "mcp"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "input_image"),
        ({"input": [{"type": "computer_call"}]}, "input", "computer_call"),
        ({"input": [{"type": "function_call", "name": "a"}]}, "input.arguments", "no arguments"),
        ({"input": [{"type": "item_reference", "id": "msg_0"}]}, "input", "not found"),
        ({"previous_response_id": "resp_0"}, "previous_response_id", "not found"),
        ({"background": True}, "background", ""),
        ({"conversation": "conv_1"}, "conversation", ""),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", ""),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"service_tier": "flex"}, "service_tier", ""),
        ({"include": ["all"]}, "include", "'all'"),
        ({"max_tokens": 3}, "max_tokens", "Unrecognized"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": 3}}}}, None, ""),
    ],
)  # fmt: skip
def test_refusals(server, fields, param, words):
    """With the field's name, and what is allowed; nothing is ignored in silence."""
    answer = server.post("/v1/responses", json={"model": "small", "input": "hi", **fields})
    error = answer.json()["error"]
    assert answer.status_code in (400, 404) and error["param"] == param and words in error["message"], error


def test_fields_without_effect(server):
    """What Codex and others send beside their request, with null for what they leave out."""
    codex = {"include": ["reasoning.encrypted_content"], "prompt_cache_key": "a", "client_metadata": {"a": "b"}}
    codex |= {"reasoning": {"effort": "low", "summary": "auto"}, "parallel_tool_calls": True, "metadata": {"a": "b"}}
    codex |= {"tools": [WEATHER, {"type": "web_search", "external_web_access": False}], "tool_choice": "auto"}
    nothing = dict.fromkeys(("instructions", "previous_response_id", "temperature", "user", "text", "background"))
    reply = create(server, **codex, **nothing, store=False).json()
    assert reply["prompt_cache_key"] == "a" and reply["metadata"] == {"a": "b"} and reply["tools"] == codex["tools"]
    plain = create(server, tools=[WEATHER], store=False).json()
    assert plain["usage"]["input_tokens"] == reply["usage"]["input_tokens"]


def test_bounds_of_the_store(monkeypatch):
    """The oldest go first: by their number, their bytes and their age."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def put(store, id, size=1):
        store.put({"id": id, "output": [{"id": f"{id}-item", "text": "a" * size}]}, [])

    store = ResponseStore(seconds=10, most_bytes=1000, most=2)
    for id in "abc":
        put(store, id)
    assert store.record("a") is None and store.item("a-item") is None
    assert json.loads(store.item("c-item"))["text"] == "a"
    put(store, "b")
    put(store, "d", 900)
    assert [id for id in "abcd" if store.record(id)] == ["d"], "b was put again after c, and both make room for d"
    put(store, "e", 2000)
    assert store.record("e") is None, "what is larger than the store is not kept"
    now[0] = 5.0
    put(store, "f")
    now[0] = 12.0
    assert store.record("d") is None and store.record("f")
    now[0] = 16.0
    assert store.record("f") is None and not store._bytes


def test_an_unknown_item_says_what_is_allowed():
    with pytest.raises(APIError, match="'mcp_call' are not supported; allowed are message, reasoning"):
        messages_of([{"type": "mcp_call", "id": "a"}])
