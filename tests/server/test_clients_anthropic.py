"""The official `anthropic` client: messages, its own putting together of streams, tools, errors."""

import pytest
from server.people import MESSAGES, Person

anthropic = pytest.importorskip("anthropic")
pytestmark = pytest.mark.slow

GREET = {"name": "greet", "input_schema": Person.model_json_schema()}


@pytest.fixture(scope="module")
def client(server):
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def body(**fields):
    return {"model": "small", "max_tokens": 4, "messages": MESSAGES, "extra_body": {"seed": 1}, **fields}


def test_messages(client):
    """A message, and the same as a stream; tokens are counted as they are used."""
    whole = client.messages.create(**body(system="Be brief."))
    with client.messages.stream(**body(system="Be brief.")) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert whole.stop_reason == final.stop_reason == "max_tokens"
    counted = client.messages.count_tokens(model="small", messages=MESSAGES, system="Be brief.").input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_tools(client):
    """A tool is used with nested models, which the client reads from a stream, and its result goes back."""
    with client.messages.stream(**body(tools=[GREET], max_tokens=300, tool_choice={"type": "any"})) as stream:
        reply = stream.get_final_message()
    (use,) = reply.content
    assert Person.model_validate(use.input) and reply.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "done"}
    history = [*MESSAGES, {"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(**body(tools=[GREET], messages=history))
    assert after.content[0].type == "text" and after.usage.input_tokens > 0


def test_errors(client):
    """The client's own classes of errors, with Anthropic's types."""
    for kind, type, fields in (
        (anthropic.NotFoundError, "not_found_error", {"model": "claude"}),
        (anthropic.BadRequestError, "invalid_request_error", {"max_tokens": 0}),
        (
            anthropic.BadRequestError,
            "invalid_request_error",
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        ),
    ):
        with pytest.raises(kind) as error:
            client.messages.create(**body(**fields))
        assert error.value.body["error"]["type"] == type
