"""Frameworks that drive the server through their own clients: answers, streams, nested models as tools and as output.

Each is skipped where it is not installed: the extra `clients` has them all.
"""

import asyncio

import pytest
from server.people import MESSAGES, Person

pytestmark = pytest.mark.slow


def test_litellm(server):
    """Chats, responses and messages, streamed or not, with a tool."""
    litellm = pytest.importorskip("litellm")
    options = {"api_base": f"{server.url}/v1", "api_key": "none"}
    chat = {"model": "openai/small", "messages": MESSAGES, "max_tokens": 4, "seed": 1, **options}
    whole = litellm.completion(**chat).choices[0].message.content
    chunks = litellm.completion(**chat, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    tool = {"type": "function", "function": {"name": "greet", "parameters": Person.model_json_schema()}}
    reply = litellm.completion(**{**chat, "max_tokens": 300}, tools=[tool], tool_choice="required")
    Person.model_validate_json(reply.choices[0].message.tool_calls[0].function.arguments)
    reply = litellm.responses(model="openai/small", input="hi", max_output_tokens=4, **options)
    assert reply.output[0].content[0].text and reply.status == "incomplete"
    reply = litellm.completion(
        model="anthropic/small", messages=MESSAGES, max_tokens=4, api_base=server.url, api_key="a"
    )
    assert reply.choices[0].message.content and reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize("responses", [False, True])
def test_langchain(server, responses):
    """By chats and by responses: text, streams, tools, structured output."""
    langchain = pytest.importorskip("langchain_openai")
    options = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0, "extra_body": {"seed": 1}}
    model = langchain.ChatOpenAI(model="small", max_tokens=4, use_responses_api=responses, **options)
    whole = model.invoke("hi")
    assert whole.usage_metadata["output_tokens"] <= 4
    assert "".join(chunk.text for chunk in model.stream("hi")) == whole.text
    longer = model.model_copy(update={"max_tokens": 300})
    assert isinstance(longer.with_structured_output(Person).invoke("hi"), Person)
    called = longer.bind_tools([Person], tool_choice="required").invoke("hi")
    Person.model_validate(called.tool_calls[0]["args"])


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS"])
def test_instructor(server, mode):
    """A model by its modes."""
    instructor, openai = pytest.importorskip("instructor"), pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    patched = instructor.from_openai(client, mode=getattr(instructor.Mode, mode))
    person = patched.create(model="small", messages=MESSAGES, response_model=Person, max_retries=0, max_tokens=300)
    assert isinstance(person, Person)


@pytest.mark.parametrize("api", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_pydantic_ai(server, api):
    """An agent that answers with a nested model."""
    pydantic_ai = pytest.importorskip("pydantic_ai")
    models, providers = (pytest.importorskip(f"pydantic_ai.{name}.openai") for name in ("models", "providers"))
    provider = providers.OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
    model = getattr(models, api)("small", provider=provider)
    agent = pydantic_ai.Agent(model, output_type=Person, model_settings={"max_tokens": 300, "extra_body": {"seed": 1}})
    assert isinstance(agent.run_sync("hi").output, Person)


def test_agents_sdk(server):
    """An agent whose tool takes a nested model, run and streamed; one whose output is one; one whose tool is that."""
    agents = pytest.importorskip("agents")
    openai = pytest.importorskip("openai")
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    model = agents.OpenAIResponsesModel("small", openai_client=client)
    met = []

    @agents.function_tool
    def greet(person: Person) -> str:
        """Greet somebody."""
        met.append(person)
        return f"Hello {person.name}"

    settings = agents.ModelSettings(tool_choice="required", max_tokens=300, extra_body={"seed": 1})
    brief = agents.ModelSettings(max_tokens=300, extra_body={"seed": 1})
    outer = agents.Agent(
        "greeter", tools=[greet], model=model, model_settings=settings, tool_use_behavior="stop_on_first_tool"
    )
    typed = agents.Agent("typed", output_type=Person, model=model, model_settings=brief)

    async def run():
        assert (await agents.Runner.run(outer, "hi")).final_output.startswith("Hello")
        streamed = agents.Runner.run_streamed(outer, "hi")
        names = [event.name async for event in streamed.stream_events() if event.type == "run_item_stream_event"]
        assert names == ["tool_called", "tool_output"] and len(met) == 2
        assert isinstance((await agents.Runner.run(typed, "hi")).final_output, Person)
        asks = outer.clone(tools=[typed.as_tool("ask", "Ask for somebody.", parameters=Person)])
        assert "home" in str((await agents.Runner.run(asks, "hi", max_turns=2)).final_output)
        await client.close()

    asyncio.run(run())
