"""The official `openai` client against the server: both completions, streams, tools, logprobs, errors."""

import asyncio
import json
import time

import httpx
import openai
import pytest

pytestmark = pytest.mark.slow

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}]


def chat(client, **options):
    return client.chat.completions.create(model="small", messages=MESSAGES, max_completion_tokens=12, **options)


def test_models(client):
    """The one model is listed and found by name; another is not."""
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "rocforge"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-4")


def test_completion(client, server):
    """Text, finish reason and usage; a list of prompts and n give a choice for each, in order."""
    one = client.completions.create(model="small", prompt="hello", max_tokens=8, temperature=0)
    (choice,) = one.choices
    assert choice.finish_reason in ("length", "stop") and one.object == "text_completion"
    assert one.usage.completion_tokens == 8 or choice.finish_reason == "stop"
    assert one.usage.prompt_tokens == server.post("/tokenize", json={"content": "hello"}).json()["count"]
    assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens
    prompts = [[5, 6], [1, 2, 3]]
    many = client.completions.create(model="small", prompt=prompts, n=2, max_tokens=8, temperature=1, seed=5)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text != many.choices[1].text, "each choice has a seed of its own"
    again = client.completions.create(model="small", prompt=[1, 2, 3], max_tokens=8, temperature=1, seed=5)
    assert again.choices[0].text == many.choices[2].text


def test_completion_stream(client):
    """The chunks make up the text of the completion that is not streamed; the last has the finish reason."""
    options = {"model": "small", "prompt": "hello", "max_tokens": 20, "temperature": 1, "seed": 3}
    whole = client.completions.create(**options)
    stream = client.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_completion_logprobs(client):
    """In the form of this API: four lists of one entry a token."""
    reply = client.completions.create(model="small", prompt="hello", max_tokens=5, temperature=0, logprobs=3, seed=1)
    report = reply.choices[0].logprobs
    assert len(report.tokens) == len(report.token_logprobs) == len(report.top_logprobs) == len(report.text_offset)
    for value, top in zip(report.token_logprobs, report.top_logprobs, strict=True):
        assert value == max(top.values()) <= 0 and 1 <= len(top) <= 3
    assert report.text_offset[0] == 0


def test_chat(client):
    """Message, finish reason, usage."""
    reply = chat(client, temperature=0)
    message = reply.choices[0].message
    assert message.role == "assistant" and isinstance(message.content, str) and message.tool_calls is None
    assert reply.object == "chat.completion" and reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage.completion_tokens <= 12 and reply.usage.completion_tokens_details.reasoning_tokens == 0
    assert reply.usage.prompt_tokens_details.cached_tokens <= reply.usage.prompt_tokens


def test_chat_stream(client):
    """First a chunk with the role, then text, then the finish reason, then usage; as much text as without streaming."""
    whole = chat(client, seed=4, n=2)
    chunks = list(chat(client, seed=4, n=2, stream=True, stream_options={"include_usage": True}))
    assert [chunk.choices[0].delta.role for chunk in chunks[:3]] == ["assistant", "assistant", None]
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    for index in range(2):
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == whole.choices[index].message.content
        assert [choice.finish_reason for choice in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == whole.choices[index].finish_reason


def test_chat_logprobs(client):
    """In the form of this API, streamed or not."""
    whole = chat(client, temperature=0, logprobs=True, top_logprobs=2)
    content = whole.choices[0].logprobs.content
    assert len(content) in (whole.usage.completion_tokens, whole.usage.completion_tokens - 1)
    assert all(entry.logprob == entry.top_logprobs[0].logprob and len(entry.top_logprobs) == 2 for entry in content)
    for entry in content:
        assert entry.token.startswith("bytes:") or bytes(entry.bytes).decode() == entry.token
    chunks = chat(client, temperature=0, logprobs=True, top_logprobs=2, stream=True)
    streamed = [entry for c in chunks if c.choices[0].logprobs for entry in c.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]


def test_stop_and_seed_and_bias(client):
    """A stop string ends the text before it; the seed decides; a bias of -100 bans a token, one of 100 forces it."""
    options = {"model": "small", "prompt": "hello", "max_tokens": 30}
    text = client.completions.create(**options, temperature=0, logit_bias={"65": 100}).choices[0].text
    assert text == "A" * 30
    choice = client.completions.create(**options, temperature=0, logit_bias={"65": 100}, stop=["AAAA", "x"]).choices[0]
    assert choice.text == "" and choice.finish_reason == "stop"
    texts = [client.completions.create(**options, temperature=1.5, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    penalized = client.completions.create(**options, temperature=0, frequency_penalty=2, presence_penalty=2)
    plain = client.completions.create(**options, temperature=0)
    assert penalized.choices[0].text != plain.choices[0].text


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_required_tool_calls(client, choice):
    """A model that knows nothing of tools calls one where it must, with arguments of its schema."""
    reply = client.chat.completions.create(
        model="small", messages=MESSAGES, tools=[WEATHER], tool_choice=choice, seed=1, max_tokens=300
    )
    (call,) = reply.choices[0].message.tool_calls
    assert reply.choices[0].finish_reason == "tool_calls" and reply.choices[0].message.content is None
    assert call.type == "function" and call.function.name == "get_weather" and call.id
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    conversation = [*MESSAGES, reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = client.chat.completions.create(model="small", messages=conversation, tools=[WEATHER, TIME], max_tokens=4)
    assert after.choices[0].finish_reason in ("length", "stop")


def test_streamed_tool_calls(client):
    """The same calls in chunks: the name at once, the arguments as they are written."""
    options = {"model": "small", "messages": MESSAGES, "tools": [WEATHER, TIME], "seed": 2, "max_tokens": 300}
    stream = client.chat.completions.create(
        **options, tool_choice={"type": "function", "function": {"name": "get_weather"}}, stream=True
    )
    chunks = list(stream)
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.index for call in calls] == [0] * len(calls) and len(calls) > 1
    assert [call.function.name for call in calls if call.id] == ["get_weather"]
    assert json.loads("".join(call.function.arguments for call in calls))["city"] in ("Oslo", "Rome")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_no_tools_where_none_are_wanted(client):
    """tool_choice "none": the tools are not shown to the model."""
    with_tools = chat(client, tools=[WEATHER], tool_choice="none", temperature=0)
    assert with_tools.usage.prompt_tokens == chat(client, temperature=0).usage.prompt_tokens
    shown = chat(client, tools=[WEATHER], temperature=0)
    assert shown.usage.prompt_tokens > with_tools.usage.prompt_tokens


def test_response_format(client):
    """JSON of a schema, any JSON object, and as extensions a pattern and a grammar."""
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "name": {"enum": ["a", "b"]}},
        "required": ["age", "name"],
        "additionalProperties": False,
    }
    options = {"model": "small", "messages": MESSAGES, "max_tokens": 300, "seed": 1}
    format = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    person = json.loads(client.chat.completions.create(**options, response_format=format).choices[0].message.content)
    assert 0 <= person["age"] <= 99 and person["name"] in ("a", "b")
    reply = client.chat.completions.create(**options, extra_body={"regex": "[0-9]{3}-[a-f]{2}"})
    digits, letters = reply.choices[0].message.content.split("-")
    assert digits.isdecimal() and len(digits) == 3 and len(letters) == 2 and set(letters) <= set("abcdef")
    reply = client.chat.completions.create(**options, extra_body={"grammar": 'start: "yes" | "no"'})
    assert reply.choices[0].message.content in ("yes", "no")
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**options, extra_body={"regex": "("})
    assert error.value.code == "invalid_grammar"


def test_errors(client):
    """The client finds message, type, param and code where OpenAI's server puts them."""
    for error_type, options, param, code in [
        (openai.NotFoundError, {"model": "gpt-4"}, "model", "model_not_found"),
        (openai.BadRequestError, {"temperature": 3}, "temperature", None),
        (openai.BadRequestError, {"logit_bias": {"x": 1}}, "logit_bias", None),
        (openai.BadRequestError, {"extra_body": {"tempratur": 1}}, "tempratur", "unknown_parameter"),
        (openai.BadRequestError, {"max_tokens": 99999}, "messages", "context_length_exceeded"),
        (openai.BadRequestError, {"messages": []}, "messages", "invalid_value"),
        (openai.BadRequestError, {"top_logprobs": 2}, "top_logprobs", None),
        (openai.BadRequestError, {"tool_choice": "required"}, "tool_choice", None),
    ]:
        with pytest.raises(error_type) as error:
            client.chat.completions.create(**{"model": "small", "messages": MESSAGES, **options})
        body = error.value.body
        assert (body["param"], body["code"], body["type"]) == (param, code, "invalid_request_error"), body


async def first_chunk(server):
    """The id of a long stream that is left after its first chunk."""
    async with httpx.AsyncClient(trust_env=False) as http:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http)
        stream = await client.completions.create(
            model="small", prompt="hello", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        async for chunk in stream:
            await stream.close()
            return chunk.id


def test_a_client_that_leaves_is_noticed(server):
    """Closing a stream cancels the request: its blocks are free soon, long before it would have been done."""
    id = asyncio.run(first_chunk(server))
    deadline = time.monotonic() + 10
    while server.service.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    status = server.get(f"/v1/requests/{id}").json()
    assert status["status"] == "cancelled" and status["completion_tokens"] < 1500
    assert server.engine.scheduler.state.idle
