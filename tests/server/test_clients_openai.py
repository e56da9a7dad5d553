"""The official `openai` client with the Responses API: typed events, tools, structured output, what is kept."""

import openai
import pytest
from server.people import MESSAGES, Person

pytestmark = pytest.mark.slow


def create(client, **fields):
    return client.responses.create(**{"model": "small", "input": "hi", "extra_body": {"seed": 1}, **fields})


def test_text(client):
    """The client's own sum of the text; a response that goes on from one, and one that is read and deleted."""
    first = create(client, instructions="Be brief.", max_output_tokens=4)
    assert first.output_text == first.output[0].content[0].text and first.status == "incomplete"
    assert first.usage.total_tokens == first.usage.input_tokens + first.usage.output_tokens
    second = create(client, previous_response_id=first.id, max_output_tokens=4)
    assert second.usage.input_tokens > first.usage.output_tokens
    assert [item.type for item in client.responses.input_items.list(second.id)] == ["message"] * 3
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as error:
        create(client, previous_response_id=first.id)
    assert error.value.code == "previous_response_not_found"


def test_stream(client):
    """The client's helper puts the events together, and finds the same as without a stream."""
    whole = create(client, max_output_tokens=6)
    body = {"model": "small", "input": "hi", "max_output_tokens": 6, "extra_body": {"seed": 1}}
    with client.responses.stream(**body) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == whole.output_text


def test_structured_output(client):
    """`parse` with nested models, in both APIs."""
    parsed = client.responses.parse(
        model="small", input="hi", text_format=Person, max_output_tokens=200, extra_body={"seed": 1}
    )
    assert isinstance(parsed.output_parsed, Person)
    parsed = client.chat.completions.parse(
        model="small", messages=MESSAGES, response_format=Person, max_tokens=200, seed=1
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)


def test_tools(client):
    """A function is called with nested models, in a stream, and its result goes back."""
    tool = openai.pydantic_function_tool(Person, name="greet")["function"]
    tools = [{"type": "function", **tool}]
    events = list(create(client, tools=tools, tool_choice="required", max_output_tokens=300, stream=True))
    deltas = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    person, reply = Person.model_validate_json(deltas), events[-1].response
    (call,) = reply.output
    assert call.arguments == deltas
    result = {"type": "function_call_output", "call_id": call.call_id, "output": f"Hello {person.name}"}
    after = create(client, previous_response_id=reply.id, input=[result], tools=tools, max_output_tokens=2)
    assert after.status == "incomplete" and after.usage.input_tokens > reply.usage.input_tokens
