"""Tools beside the other fields of a request: each is worked wherever it is accepted, streamed or not."""

import json

import pytest

import rocforge as rf
from rocforge.engine.engine import Engine
from rocforge.server.schema import ChatCompletionRequest
from rocforge.server.tools import tools_of
from rocforge.text.chat.formats import ReplyFormat
from rocforge.text.chat.reply import joined
from rocforge.text.chat.tool_parsers import TOOL_PARSERS
from rocforge.text.grammar import GrammarCompiler

MESSAGES = [{"role": "user", "content": "hi"}]
CITY = {
    "$defs": {"City": {"enum": ["Oslo", "Rome"]}},
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
TIME = {"type": "function", "function": {"name": "time"}}
AGE = {"type": "object", "properties": {"age": {"enum": [3, 4]}}, "required": ["age"], "additionalProperties": False}
PERSON = {"type": "json_schema", "json_schema": {"name": "person", "schema": AGE, "strict": True}}
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call>"}}</tool_call>'


def ask(server, **body):
    """Status and body of a chat completion."""
    answer = server.post(
        "/v1/chat/completions", json={"model": "small", "messages": MESSAGES, "max_tokens": 400, "seed": 1, **body}
    )
    return answer.status_code, answer.json()


def streamed(server, **body):
    """Content, reasoning, calls and finish reason, put together."""
    body = {"model": "small", "messages": MESSAGES, "max_tokens": 400, "seed": 1, "stream": True, **body}
    content, reasoning, calls, reason = "", "", [], None
    for line in server.post("/v1/chat/completions", json=body).text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                content += choice["delta"].get("content") or ""
                reasoning += choice["delta"].get("reasoning_content") or ""
                for call in choice["delta"].get("tool_calls") or []:
                    if "id" in call:
                        calls.append({"name": call["function"]["name"], "arguments": ""})
                    calls[-1]["arguments"] += call["function"]["arguments"]
                reason = choice["finish_reason"] or reason
    return content, reasoning, calls, reason


def writes(text):
    """A field that makes the model write exactly this."""
    return {"grammar": "start: " + json.dumps(text)}


@pytest.mark.parametrize(
    "choice, kind", [("required", PERSON), (NAMED, {"type": "json_object"}), (NAMED, {"type": "text"})]
)
def test_required_calls_beside_a_format(server, choice, kind):
    """The reply is a call, as response_format is about content; a stop string is, too."""
    status, reply = ask(server, tools=[WEATHER, TIME], tool_choice=choice, response_format=kind, stop=['"', "name"])
    assert status == 200 and reply["choices"][0]["finish_reason"] == "tool_calls", reply
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert arguments == {} if call["function"]["name"] == "time" else arguments["city"] in ("Oslo", "Rome")


def test_a_format_where_calls_are_allowed(server):
    """The reply is a call, or content of the format; without calls it is content."""
    for choice, seeds in (("auto", range(4)), ("none", range(1))):
        for seed in seeds:
            _, reply = ask(server, tools=[WEATHER], tool_choice=choice, response_format=PERSON, seed=seed)
            message = reply["choices"][0]["message"]
            if calls := message.get("tool_calls"):
                assert choice == "auto" and json.loads(calls[0]["function"]["arguments"])["city"] in ("Oslo", "Rome")
            else:
                assert json.loads(message["content"])["age"] in (3, 4)


@pytest.mark.parametrize(
    "body, param",
    [
        ({"tool_choice": "required", "regex": "a"}, "tool_choice"),
        ({"tool_choice": NAMED, "grammar": 'start: "a"'}, "tool_choice"),
        ({"regex": "", "grammar": ""}, "response_format"),
        ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        ({"response_format": PERSON, "ignore_eos": True}, "ignore_eos"),
        ({"response_format": PERSON, "regex": "a"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tools"),
    ],
)
def test_what_does_not_go_together(server, body, param):
    """It is refused by name."""
    status, reply = ask(server, **{"tools": [WEATHER], **body})
    assert status == 400 and reply["error"]["param"] == param, reply


def test_calls_as_they_are_written(server):
    """Marks in arguments are text, functions that are not offered are not called; streamed is whole."""
    for text, tools, calls, content in (
        (CALL, [WEATHER], [{"name": "weather", "arguments": '{"city": "</tool_call>"}'}], None),
        (CALL, [TIME], [], CALL),
    ):
        _, reply = ask(server, tools=tools, **writes(text))
        message = reply["choices"][0]["message"]
        assert [call["function"] for call in message.get("tool_calls", [])] == calls and message["content"] == content
        reason = "tool_calls" if calls else "stop"
        assert reply["choices"][0]["finish_reason"] == reason
        assert streamed(server, tools=tools, **writes(text)) == (content or "", "", calls, reason)


def test_logprobs_of_a_call(server):
    """Each token has its own, streamed or not, though a call comes as one piece."""
    body = {"tools": [WEATHER], "tool_choice": "required", "logprobs": True, "top_logprobs": 1}
    whole = ask(server, **body)[1]["choices"][0]["logprobs"]["content"]
    request = {"model": "small", "messages": MESSAGES, "max_tokens": 400, "seed": 1, "stream": True, **body}
    lines = server.post("/v1/chat/completions", json=request).text.splitlines()
    choices = [choice for line in lines if line.startswith("data: {") for choice in json.loads(line[6:])["choices"]]
    reported = [entry for choice in choices for entry in (choice.get("logprobs") or {"content": []})["content"]]
    assert [entry["token"] for entry in reported] == [entry["token"] for entry in whole] and len(whole) > 20


HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant"
    "{# <|channel|> #}"
)
THINKS = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}<tool_call>{{ '<think>' if add_generation_prompt }}"
)


def test_channels(start):
    """JSON in the channel of content; nothing that is written is lost."""
    with start(chat_template=HARMONY) as server:
        message = ask(server, response_format=PERSON)[1]["choices"][0]["message"]
        assert json.loads(message["content"])["age"] in (3, 4) and "reasoning_content" not in message
        assert json.loads(streamed(server, response_format=PERSON)[0]) == json.loads(message["content"])
        assert ask(server, **writes("Hello there"))[1]["choices"][0]["message"]["content"] == "Hello there"


def test_thoughts(start):
    """What a thought holds that the prompt opens is reasoning; it ends after so many tokens, by whichever name, and the
    reply goes on; under a grammar there is none."""
    with start(chat_template=THINKS, reasoning_budget=3) as server:
        assert json.loads(ask(server, response_format=PERSON)[1]["choices"][0]["message"]["content"])["age"] in (3, 4)
        _, reply = ask(server, tools=[WEATHER], tool_choice="required")
        assert len(reply["choices"][0]["message"]["tool_calls"]) == 1
        body = {"tools": [WEATHER], **writes(f"I could {CALL}\n</think>\n\nNo.")}
        _, reply = ask(server, **body)
        message, usage = reply["choices"][0]["message"], reply["usage"]
        assert (message["content"], message["reasoning_content"]) == ("No.", f"I could {CALL}")
        assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
        assert streamed(server, **body) == ("No.", f"I could {CALL}", [], "stop")
        for fields, budget in (
            ({}, 3),
            ({"thinking_budget": 5}, 5),
            ({"thinking": {"type": "enabled", "budget_tokens": 2}}, 2),
            ({"reasoning_budget_tokens": 0}, 0),
            ({"thinking_budget": -1}, None),
        ):
            body = {"max_tokens": 30, "logprobs": True, "ignore_eos": True, **fields}
            _, reply = ask(server, **body)
            tokens = [entry["token"] for entry in reply["choices"][0]["logprobs"]["content"]]
            texts = ["".join(tokens[:count]) for count in range(len(tokens) + 1)]
            end = next((count for count, text in enumerate(texts) if text.endswith("</think>")), None)
            mark = len(server.service.tokenizer.encode("</think>", add_special_tokens=False))
            assert end == (None if budget is None else budget + mark)
            assert (len(tokens), bool(reply["choices"][0]["message"]["content"])) == (30, budget is not None)
            assert streamed(server, **body)[:2] == (
                reply["choices"][0]["message"]["content"], reply["choices"][0]["message"].get("reasoning_content", "")
            )  # fmt: skip
        assert ask(server, thinking_budget=1, regex="a")[1]["error"]["param"] == "thinking_budget"
        assert ask(server, thinking_budget=1, reasoning_budget=2)[0] == 400


def test_a_named_tool_parser(start):
    """The format that was asked for, whatever the template says: arguments of the schema's types, in pieces."""
    arguments = {"city": "Oslo"}
    text = "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>"
    with start(tool_parser="qwen3_coder") as server:
        body = {"tools": [WEATHER], **writes(text)}
        (call,) = ask(server, **body)[1]["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == arguments
        assert streamed(server, **body) == (
            "",
            "",
            [{"name": "weather", "arguments": '{"city": "Oslo"}'}],
            "tool_calls",
        )
        _, reply = ask(server, tools=[WEATHER], tool_choice="required")
        (call,) = reply["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Rome")


def test_tools_of_a_request():
    """Which are shown, which may be called, and whether one must be."""

    def found(**body):
        request = {"model": "m", "messages": MESSAGES, "tools": [WEATHER, TIME], **body}
        tools = tools_of(ChatCompletionRequest.model_validate(request))
        return len(tools.shown), sorted(tools.by_name), tools.required

    assert found() == found(tool_choice="auto") == (2, ["time", "weather"], False)
    assert found(tool_choice="required") == (2, ["time", "weather"], True)
    assert found(tool_choice=NAMED) == (2, ["weather"], True)
    allowed = {"mode": "required", "tools": [NAMED]}
    assert found(tool_choice={"type": "allowed_tools", "allowed_tools": allowed}) == (2, ["weather"], True)
    allowed = {"mode": "auto", "tools": [NAMED]}
    assert found(tool_choice={"type": "allowed_tools", "allowed_tools": allowed}) == (2, ["weather"], False)
    assert found(tool_choice="none") == found(tools=None) == (0, [], False)


def test_required_calls(model_file):
    """A random model under the grammar of a format writes calls that the format's parser finds."""
    model, tokenizer = rf.load(model_file, device="cpu", context=1024)
    compiler, format = GrammarCompiler(tokenizer), ReplyFormat(TOOL_PARSERS["qwen3_coder"])
    no_space = {id: -100 for id in range(tokenizer.vocab_size) if not tokenizer.token_bytes(id).strip()}
    properties = {"x": {"enum": [1, 22]}}
    schema = {"type": "object", "properties": properties, "required": ["x"], "additionalProperties": False}
    tools = [{"name": "f", "parameters": schema}, {"name": "g", "parameters": schema}]
    with Engine(model, tokenizer.eog_token_ids) as engine:
        constraint = compiler.lark(format.lark(compiler, False, tools, parallel=False))
        params = rf.SamplingParams(seed=0, temperature=1, max_tokens=400, logit_bias=no_space)
        request = engine.add([1, 2], params, constraint)
        while engine.busy:
            engine.step()
    text = tokenizer.decode([id for id in request.output if id not in tokenizer.eog_token_ids])
    parser = format.parser({tool["name"]: tool for tool in tools}, False)
    found = joined([parser.add(text), parser.finish()])
    assert len(found.calls) == 1 and json.loads(found.calls[0].arguments)["x"] in (1, 22), text
