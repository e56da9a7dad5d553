"""Histories that the API allows reach the model whole, however little its template takes."""

import contextlib
import gc
import json
import pathlib
import weakref

import pytest

from rocforge.errors import ChatTemplateError
from rocforge.server.history import History
from rocforge.server.schema import Message
from rocforge.text.chat.templates import ChatTemplates

PUBLISHED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "chat_templates"
CHATML = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"
SKIPS = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}[{{ m.role }}]{{ m.content }}"
    "{% endif %}{% endfor %}"
)
FIRST_ONLY = (
    "{% if messages[0].role == 'system' %}<{{ messages[0].content }}>{% endif %}"
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
LAST_ONLY = (
    "{% set ns = namespace(text='') %}{% for m in messages if m.role == 'system' %}{% set ns.text = m.content %}"
    "{% endfor %}<{{ ns.text }}>{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
KNOWS = "{# developer, tool #}" + CHATML
STRICT_IDS = (
    "{% for m in messages %}{% for call in m.tool_calls or [] %}{% if call.id | length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}{{ call.id }} {% endfor %}"
    "{% if m.role == 'tool' %}={{ m.tool_call_id }}{% endif %}{% endfor %}"
)
ONE_CALL = (
    "{% for m in messages %}{% if m.tool_calls %}({{ m.tool_calls[0].function.name }}"
    "{{ m.tool_calls[0].function.arguments | tojson }}){% else %}[{{ m.name or m.role }}]{{ m.content }}{% endif %}"
    "{% endfor %}"
)


def text_of(template, messages, **variables):
    """The prompt of messages of the API."""
    templates = ChatTemplates({"tokenizer.chat_template": template})
    history = History(template, lambda turns: templates.render(messages=turns))
    return history.render(
        [Message.model_validate(message) for message in messages],
        lambda turns: templates.render(messages=turns, **variables),
    )


def called(*calls, content=None, **fields):
    """An assistant's message with calls: (id, name, arguments)."""
    entries = [{"id": id, "type": "function", "function": {"name": n, "arguments": a}} for id, n, a in calls]
    return {"role": "assistant", "content": content, "tool_calls": entries, **fields}


def result(id, content):
    return {"role": "tool", "tool_call_id": id, "content": content}


def system(text, role="system"):
    return {"role": role, "content": text}


USER = {"role": "user", "content": "u"}
REPLY = {"role": "assistant", "content": "r"}


@pytest.mark.parametrize(
    "template, messages, text",
    [
        (SKIPS, [system("s", "developer"), USER], "[system]s[user]u"),
        (KNOWS, [system("s", "developer"), USER], "[developer]s[user]u"),
        (FIRST_ONLY, [system("s"), system("d", "developer"), USER], "<s\n\nd>[user]u"),
        (FIRST_ONLY, [system("s"), USER, REPLY, system("t"), USER], "<s>[user]u[assistant]r[user]t[user]u"),
        (LAST_ONLY, [system("s"), USER, REPLY, system("t"), USER], "<s>[user]u[assistant]r[user]t[user]u"),
        (NO_SYSTEM, [system("s"), USER, REPLY, USER], "[user]s\n\nu[assistant]r[user]u"),
        (NO_SYSTEM, [USER, USER, REPLY, REPLY, USER], "[user]u\n\nu[assistant]r\n\nr[user]u"),
        (NO_SYSTEM, [REPLY, USER], "[user][assistant]r[user]u"),
        (CHATML, [USER, {"role": "assistant", "content": None, "refusal": "no"}, USER], "[user]u[assistant]no[user]u"),
        (CHATML, [{"role": "user", "content": []}, {"role": "assistant"}], "[user][assistant]"),
        (CHATML, [{"role": "user", "content": [{"type": "text", "text": c} for c in "ab"]}], "[user]ab"),
        (CHATML, [{**REPLY, "tool_calls": []}], "[assistant]r"),
    ],
)
def test_roles_and_content(template, messages, text):
    """No instruction is lost, whatever the template knows; empty and missing content is none."""
    assert text_of(template, messages) == text


@pytest.mark.parametrize(
    "arguments, shown",
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        (" ", {}),
        ("null", {}),
        ('{"a": "cut o', '{"a": "cut o'),
        ("[1]", "[1]"),
        ("NaN", "NaN"),
        ("[" * 1000, "[" * 1000),
        ('"\\ud800"', '"\\ud800"'),
    ],
)
def test_arguments(arguments, shown):
    """Objects as objects, none as {}, anything else as the text that it is."""
    text = text_of(CHATML, [USER, called(("1", "f", arguments)), result("1", "c")])
    calls = json.loads(text.removeprefix("[user]u[assistant]").removesuffix("[tool]c"))
    assert calls[0]["function"]["arguments"] == shown


@pytest.mark.parametrize(
    "shown, arguments, text",
    [
        ("{% for name, value in a.items() %}{{ name }}={{ value }}{% endfor %}", '{"a": 1}', "a=1"),
        ("{% for name, value in a.items() %}{{ name }}={{ value }}{% endfor %}", '{"a": "cut o', ""),
        ("{{ 'json ' + a }}", '{"a": 1}', 'json {"a": 1}'),
        ("{{ 'json ' + a }}", "", "json "),
    ],
)
def test_arguments_as_the_template_wants_them(shown, arguments, text):
    """Some iterate over an object, some write a text."""
    template = "{% for m in messages %}{% for c in m.tool_calls %}{% set a = c.function.arguments %}" + shown
    assert text_of(template + "{% endfor %}{% endfor %}", [called(("1", "f", arguments))]) == text


def test_calls_together():
    """A template that shows the first call of a message gets them one by one, each with its result and its name."""
    messages = [USER, called(("1", "f", "{}"), ("2", "g", "{}")), result("2", "c"), result("1", "c"), REPLY]
    assert text_of(ONE_CALL, messages) == "[user]u(f{})[f]c(g{})[g]c[assistant]r"
    assert text_of(CHATML, messages).count('"name"') == 2


def test_a_user_after_a_result():
    """Where turns of user and assistant must alternate, calls aside, an empty reply stands between the two."""
    template = (
        "{% set ns = namespace(i=0) %}{% for m in messages %}{% if m.role == 'user' or (m.role == 'assistant' and not "
        "m.tool_calls) %}{% if (m.role == 'user') != (ns.i % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
        "{% set ns.i = ns.i + 1 %}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    messages = [USER, called(("1", "f", "{}")), result("1", "c"), USER]
    assert text_of(template, messages) == "[user]u[assistant][tool]c[assistant][user]u"


def test_ids():
    """A template that insists on its model's ids gets such, the same for the call and its result."""
    call, answer = text_of(STRICT_IDS, [called(("call_0123456789", "f", "{}")), result("call_0123456789", "c")]).split()
    assert len(call) == 9 and answer == f"={call}"
    assert text_of(STRICT_IDS, [called(("abcdefghi", "f", "{}"))]) == "abcdefghi "


def test_functions_before_tools():
    """The API's older form of a call, and of its result."""
    function = {"name": "f", "arguments": '{"a": 1}'}
    messages = [{"role": "assistant", "content": None, "function_call": function}]
    messages.append({"role": "function", "name": "f", "content": "c"})
    assert text_of(ONE_CALL, messages) == '(f{"a": 1})[f]c'


def test_reasoning_comes_back():
    """gpt-oss's template calls it thinking, and takes no content beside it."""
    template = "{% for m in messages %}{% set message = m %}{{ message.thinking }}|{{ m.content }};{% endfor %}"
    messages = [{**REPLY, "reasoning_content": "t"}, called(("1", "f", "{}"), content="c", reasoning_content="t")]
    assert text_of(template, messages) == "t|r;|c;"


def test_a_refusal_is_the_first_one():
    """What no form helps against is said of the history as it came."""
    template = "{{ raise_exception('no ' + messages[0].role) }}"
    with pytest.raises(ChatTemplateError, match="no assistant"):
        text_of(template, [REPLY, USER])


def test_a_refused_history_is_not_kept():
    """No cycle of error and frames waits for the garbage collector."""

    def refuse(turns):
        raise ChatTemplateError("no")

    message = Message.model_validate(called(("1", "f", "cut o")))
    watched = weakref.ref(message)
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ChatTemplateError):
            History("", refuse).render([message], refuse)
        del message
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["Qwen-Qwen2.5", "google-gemma-2", "meta-llama-Llama-3.1", "mistralai-Mistral"])
def test_published_templates(name):
    """An agent's history of all kinds of messages, of which each published template shows all."""
    paths = list(PUBLISHED.glob(f"{name}*.jinja"))
    if not paths:
        pytest.skip("no published templates here")
    messages = [system("SYS", "developer"), USER, {"role": "user", "content": "MORE"}, REPLY, USER]
    variables = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, "tools": None}
    if "gemma" not in name:  # which has no tools
        calls = [("call_1", "ONE", '{"a": 1}'), ("call_2", "TWO", '{"b": "cut o')]
        messages += [called(*calls), result("call_1", "X"), result("call_2", "Y"), REPLY, USER]
    text = text_of(paths[0].read_text(), messages, **variables)
    wanted = ("SYS", "MORE") if "gemma" in name else ("SYS", "MORE", "ONE", "TWO", "cut o", "X", "Y")
    assert [mark for mark in wanted if mark not in text] == []


def test_long_histories():
    """A template that looks, for each message, at all after it, and an agent's 500 calls with long results."""
    template = (
        "{% for m in messages %}{% set ns = namespace(later=false) %}{% for n in messages[loop.index:] %}"
        "{% if n.role == 'user' %}{% set ns.later = true %}{% endif %}{% endfor %}{{ m.role }}{{ ns.later }}"
        "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}\n{% endfor %}"
    )
    messages = [USER]
    for index in range(500):
        messages += [called((f"call_{index}", "f", '{"a": 1}')), result(f"call_{index}", "r" * 5000)]
    assert text_of(template, messages).count("r" * 5000) == 500
