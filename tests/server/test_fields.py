"""Fields of OpenAI's, llama.cpp's and vLLM's clients, by the official client: each is worked, or refused by name."""

import json

import numpy as np
import openai
import pytest

pytestmark = pytest.mark.slow
MESSAGES = [{"role": "user", "content": "Say something."}]


def complete(client, **options):
    return client.completions.create(**{"model": "small", "prompt": "hello", "max_tokens": 8, "seed": 1, **options})


def chat(client, **options):
    return client.chat.completions.create(**{"model": "small", "messages": MESSAGES, "max_tokens": 8, **options})


def text_of(reply):
    return reply.choices[0].text


def test_echo(client):
    """The prompt stands before each text, streamed or not, of a text and of ids."""
    plain, echoed = complete(client, n=2), complete(client, n=2, echo=True)
    assert [choice.text for choice in echoed.choices] == ["hello" + choice.text for choice in plain.choices]
    chunks = list(complete(client, n=2, echo=True, stream=True))
    for index in range(2):
        mine = [chunk.choices[0].text for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(mine) == echoed.choices[index].text
    both = complete(client, prompt=[[72, 73], [74, 75]], echo=True)
    assert [choice.text[:2] for choice in both.choices] == ["HI", "JK"]


def test_echo_with_logprobs(client, server):
    """The prompt's tokens have theirs, as the model's logits give them; the text's tokens follow, streamed or not."""
    ids = server.post("/tokenize", json={"content": "hello, w<|end|>"}).json()["tokens"]
    logits = server.engine.model(np.array(ids)).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    options = {"prompt": "hello, w<|end|>", "echo": True, "logprobs": 2, "temperature": 0}
    for most in (0, 3):
        choice = complete(client, **options, max_tokens=most).choices[0]
        report, count = choice.logprobs, len(ids)
        assert report.token_logprobs[0] is None and report.top_logprobs[0] is None
        chosen = expected[np.arange(count - 1), ids[1:]]
        np.testing.assert_allclose(report.token_logprobs[1:count], chosen, atol=1e-4)
        likeliest = np.sort(expected[: count - 1])[:, :-3:-1]
        np.testing.assert_allclose([[*top.values()] for top in report.top_logprobs[1:count]], likeliest, atol=1e-4)
        assert count <= len(report.tokens) <= count + most and len(report.text_offset) == len(report.tokens)
        for token, offset in zip(report.tokens[:count], report.text_offset, strict=False):
            assert choice.text[offset:].startswith(token)
    assert "".join(report.tokens[:count]) == "hello, w<|end|>"
    chunks = list(complete(client, **options, max_tokens=3, stream=True))
    assert [t for chunk in chunks for t in chunk.choices[0].logprobs.tokens] == report.tokens
    plain = complete(client, prompt=[ids, ids[:1]], logprobs=0, echo=True, n=2, temperature=0, max_tokens=1).choices
    assert [len(choice.logprobs.tokens) >= size for choice, size in zip(plain, (count, count, 1, 1), strict=True)]
    np.testing.assert_allclose(plain[1].logprobs.token_logprobs[1:count], chosen, atol=1e-4)


def test_no_tokens(client):
    """max_tokens 0 gives the prompt or nothing, and counts it; in a chat it is refused, as by OpenAI's server."""
    reply = complete(client, max_tokens=0, echo=True, n=2)
    assert [(c.text, c.finish_reason) for c in reply.choices] == [("hello", "length")] * 2
    assert reply.usage.completion_tokens == 0 and reply.usage.prompt_tokens > 0
    (chunk,) = complete(client, max_tokens=0, stream=True)
    assert (chunk.choices[0].text, chunk.choices[0].finish_reason) == ("", "length")
    assert text_of(complete(client, max_tokens=0, best_of=2)) == ""
    with pytest.raises(openai.BadRequestError, match="max_tokens is 0"):
        chat(client, max_tokens=0)


def test_no_limit(client):
    """-1 goes on to the end of the context, or of the text."""
    reply = complete(client, max_tokens=-1, prompt=[72] * 2040, extra_body={"ignore_eos": True})
    assert reply.usage.completion_tokens == 8 and reply.choices[0].finish_reason == "length"
    assert complete(client, max_tokens=None, extra_body={"n_predict": 3}).usage.completion_tokens <= 3


def test_best_of(client):
    """The n texts with the highest mean log-probability of a token, best first; all are counted."""
    options = {"temperature": 1.5, "prompt": [[72, 73], [74]], "extra_body": {"ignore_eos": True}}
    every = complete(client, **options, n=4, logprobs=0)
    values = [sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs) for c in every.choices]
    best = complete(client, **options, n=2, best_of=4)
    for prompt in range(2):
        own = sorted(range(4 * prompt, 4 * prompt + 4), key=lambda index: -values[index])[:2]
        assert [c.text for c in best.choices[2 * prompt :][:2]] == [every.choices[index].text for index in own]
    assert [choice.index for choice in best.choices] == [0, 1, 2, 3] and best.choices[0].logprobs is None
    assert best.usage.completion_tokens == 64


def test_tokens_that_end_a_text(client):
    """stop_token_ids end it before them, and none does before min_tokens."""
    bias = {"logit_bias": {"65": 100}, "temperature": 0}
    reply = complete(client, **bias, extra_body={"stop_token_ids": [66, 65]})
    assert (text_of(reply), reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("", "stop", 1)
    reply = complete(client, **bias, extra_body={"stop_token_ids": [65], "min_tokens": 3})
    assert reply.usage.completion_tokens == 4 and "A" not in text_of(reply)
    with pytest.raises(openai.BadRequestError, match="min_tokens is 9; allowed is up to max_tokens, 8"):
        complete(client, extra_body={"min_tokens": 9})


def test_continued_message(client, server):
    """The prompt ends with the message's content; the text goes on from it."""
    continued = {"add_generation_prompt": False, "continue_final_message": True}
    messages = [*MESSAGES, {"role": "assistant", "content": "One, two,"}]
    reply = chat(client, messages=messages, temperature=0, extra_body=continued)
    ids = server.post("/tokenize", json={"content": "<|user|>user: Say something.<|user|>assistant: One, two,"})
    by_hand = complete(client, prompt=ids.json()["tokens"], temperature=0)
    assert reply.choices[0].message.content == text_of(by_hand)
    assert reply.usage.prompt_tokens == by_hand.usage.prompt_tokens
    for body in ({"continue_final_message": True}, continued):
        with pytest.raises(openai.BadRequestError, match="continue_final_message is true"):
            chat(client, messages=messages if body is not continued else MESSAGES, extra_body=body)


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": {"enum": ["yes"]}},
        {"guided_json": '{"enum": ["yes"]}'},
        {"json_schema": {"enum": ["yes"]}},
        {"structured_outputs": {"json": {"enum": ["yes"]}}},
        {"guided_regex": '"yes"'},
        {"structured_outputs": {"regex": '"yes"'}},
        {"guided_choice": ['"yes"']},
        {"structured_outputs": {"choice": ['"yes"']}},
        {"guided_grammar": 'start: "\\"yes\\""'},
        {"grammar": 'root ::= "\\"" word "\\""\nword ::= "yes"'},
        {"structured_outputs": {"grammar": 'root ::= "\\"yes\\""'}},
    ],
    ids=lambda fields: "-".join(map(str, fields)),
)
def test_constraints(client, fields):
    """By whatever name and in whatever syntax, the text obeys."""
    assert chat(client, max_tokens=64, extra_body=fields).choices[0].message.content.strip() == '"yes"'


def test_names_of_other_servers(client):
    """Those that mean the same give the same text."""
    options = {"temperature": 0.9, "seed": 3}
    penalized = complete(client, **options, extra_body={"repetition_penalty": 1.8})
    assert text_of(complete(client, **options, extra_body={"repeat_penalty": 1.8})) == text_of(penalized)
    everything = text_of(complete(client, **options))
    assert everything == text_of(complete(client, **options, extra_body={"top_k": -1, "cache_prompt": False}))
    assert everything != text_of(penalized)


def test_samplers(client):
    """llama.cpp's are those of rf.SamplingParams: each leaves out what it should, and nothing where it is off."""
    plain, greedy = (text_of(complete(client, temperature=temperature)) for temperature in (1, 0))
    assert text_of(complete(client, temperature=1, extra_body={"top_n_sigma": 0.0001})) == greedy != plain
    least = [
        {"temperature": 1, "seed": seed, "extra_body": {"xtc_probability": 1, "xtc_threshold": 0}} for seed in (1, 2)
    ]
    texts = [text_of(complete(client, **options)) for options in least]
    assert texts[0] == texts[1] != greedy, "all but the least likely token is left out"
    off = {"top_n_sigma": -1, "typical_p": 1, "xtc_probability": 0, "xtc_threshold": 0.1}
    assert text_of(complete(client, temperature=1, extra_body=off)) == plain
    typical = text_of(complete(client, temperature=1, extra_body={"typical_p": 0.2}))
    assert typical != plain


def test_fields_without_effect(client):
    """What only describes a request, or hints, is taken; a tier that is named is said."""
    options = {"user": "me", "metadata": {"a": "b"}, "store": False, "parallel_tool_calls": True}
    options["extra_body"] = {"verbosity": "low", "prompt_cache_key": "a", "prompt_cache_retention": "24h"}
    hint = {"type": "content", "content": "something"}
    reply = chat(client, **options, prediction=hint, service_tier="auto")
    assert reply.service_tier == "default" and chat(client).service_tier is None


@pytest.mark.parametrize(
    "call, fields, param",
    [
        (complete, {"suffix": "end"}, "suffix"),
        (complete, {"echo": True, "logprobs": 1, "suffix": "end"}, "echo"),
        (complete, {"best_of": 1, "n": 2}, "best_of"),
        (complete, {"best_of": 2, "stream": True}, "best_of"),
        (chat, {"store": True}, "store"),
        (chat, {"service_tier": "flex"}, "service_tier"),
        (chat, {"extra_body": {"top_k": -2}}, "top_k"),
        (chat, {"extra_body": {"top_n_sigma": -2}}, "top_n_sigma"),
        (chat, {"extra_body": {"typical_p": 0}}, "typical_p"),
        (chat, {"extra_body": {"dry_multiplier": -1}}, "dry_multiplier"),
        (chat, {"extra_body": {"dry_sequence_breakers": [""]}}, "dry_sequence_breakers"),
        (chat, {"extra_body": {"mirostat": 3}}, "mirostat"),
        (chat, {"extra_body": {"samplers": ["top_k", "temperature"]}}, "samplers"),
        (chat, {"extra_body": {"repeat_penalty": 1.1, "repetition_penalty": 1.2}}, "repeat_penalty"),
        (chat, {"extra_body": {"guided_json": "{"}}, "guided_json"),
        (chat, {"extra_body": {"guided_json": "[]"}}, "guided_json"),
        (chat, {"extra_body": {"guided_choice": []}}, "guided_choice"),
        (chat, {"extra_body": {"guided_regex": "a", "regex": "b"}}, "guided_regex"),
        (chat, {"extra_body": {"stop_token_ids": [99999]}}, "stop_token_ids"),
        (chat, {"extra_body": {"min_tokens": 2, "regex": "a"}}, "min_tokens"),
        (chat, {"extra_body": {"structured_outputs": {"structural_tag": "a"}}}, "structured_outputs.structural_tag"),
    ],
)
def test_refusals(client, call, fields, param):
    """400, with the field's name."""
    with pytest.raises(openai.BadRequestError) as error:
        call(client, **fields)
    assert error.value.body["param"] == param, error.value.body


def test_one_call_at_a_time(client):
    """parallel_tool_calls false: whatever the model writes, one call is given."""
    tool = {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}
    call = '<tool_call>{"name": "go", "arguments": {}}</tool_call>'
    options = {"tools": [tool], "max_tokens": 300, "extra_body": {"guided_choice": [call + call]}}
    for parallel, count in ((False, 1), (True, 2)):
        message = chat(client, **options, parallel_tool_calls=parallel).choices[0].message
        assert len(message.tool_calls) == count and json.loads(message.tool_calls[0].function.arguments) == {}
        chunks = chat(client, **options, parallel_tool_calls=parallel, stream=True)
        deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        assert [call.index for call in deltas if call.id] == list(range(count))
        assert "".join(call.function.arguments for call in deltas) == "{}" * count


def test_variables_of_templates(start):
    """An effort, and what else is named, reaches the template; none also turns thinking off, unless that is said."""
    template = "{{ reasoning_effort }}{% if enable_thinking is false %}-off{% endif %}{{ more }}"
    with start(chat_template=template) as server:
        for fields, prompt in (
            ({"reasoning_effort": "high", "chat_template_kwargs": {"more": "-x"}}, "high-x"),
            ({"reasoning_effort": "none"}, "none-off"),
            ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, "none"),
            ({"chat_template_kwargs": {"enable_thinking": False}}, "-off"),
        ):
            body = {"model": "small", "messages": MESSAGES, "max_tokens": 1, **fields}
            usage = server.post("/v1/chat/completions", json=body).json()["usage"]
            ids = server.post("/tokenize", json={"content": prompt}).json()
            assert usage["prompt_tokens"] == ids["count"], fields


def test_defaults_of_sampling(start):
    """What a request leaves out is as the command says, else as the file recommends, else the API's; so says /props."""
    with start(sampling={"temperature": 0.0, "dry_multiplier": 0.5}) as server:
        server.service.tokenizer.recommended_sampling = {"temperature": 0.4, "min_p": 0.2}
        shown = server.get("/props").json()["default_generation_settings"]["params"]
        assert (shown["temperature"], shown["min_p"], shown["dry_multiplier"], shown["typ_p"]) == (0, 0.2, 0.5, 1)
        texts = set()
        for fields in ({"seed": 1}, {"seed": 2}, {"seed": 3, "temperature": 1.5, "mirostat": 2}):
            body = {"model": "small", "prompt": [5, 6, 7], "max_tokens": 12, "ignore_eos": True, **fields}
            texts.add(server.post("/v1/completions", json=body).json()["choices"][0]["text"])
        assert len(texts) == 2
