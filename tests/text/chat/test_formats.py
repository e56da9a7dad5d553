"""Each family's replies are recognized, and parsed to the same whatever pieces their text comes in."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.text.chat.calls import JSONCalls
from rocforge.text.chat.formats import HERMES, LLAMA, MISTRAL, ReplyFormat, reply_format
from rocforge.text.chat.harmony import HarmonyCalls
from rocforge.text.chat.reply import Call, PlainParser, joined

TEMPLATES = Path(__file__).parents[3] / ".." / "shared" / "data" / "chat_templates"
NAMES = frozenset(["f", "g"])
FAMILIES = {
    "hermes": ReplyFormat(HERMES),
    "mistral": ReplyFormat(MISTRAL),
    "llama": ReplyFormat(LLAMA),
    "harmony": ReplyFormat(HarmonyCalls()),
    "hermes that thinks": ReplyFormat(HERMES, thinks=True),
    "no calls, thinks": ReplyFormat(None, thinks=True),
}
MARKS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", "<|start|>", "<|channel|>",
    "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>",
]  # fmt: skip
CALL = Call("f", '{"x": 1}')
TEXT = '{"name": "f", "arguments": {"x": 1}}'
SPELLED = json.dumps({"text": 'a call ends with </tool_call> and <|call|>, and \\" begins with <tool_call>'})
TO_F = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"

CASES = [
    ("hermes", f"<tool_call>\n{TEXT}\n</tool_call>", "", "", [CALL]),
    ("hermes", f"Well. <tool_call>{TEXT}</tool_call>\n<tool_call>{TEXT}</tool_call>", "Well. ", "", [CALL, CALL]),
    ("hermes", f"<tool_call>{TEXT}\n{TEXT}</tool_call>\nSo.", "\nSo.", "", [CALL, CALL]),
    ("hermes", f"<tool_call>{TEXT}", "", "", [CALL]),
    ("hermes", f"<tool_call>{TEXT}</tool_c", "", "", [CALL]),
    ("hermes", TEXT.join(["<tool_call>", "}</tool_call>"]), "}</tool_call>", "", [CALL]),
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {SPELLED}}}</tool_call>', "", "", [Call("f", SPELLED)]),
    ("hermes", "a < b, <tool> and <tool_cal", "a < b, <tool> and <tool_cal", "", []),
    ("hermes", "<tool_call>oops</tool_call> x", "<tool_call>oops</tool_call> x", "", []),
    ("hermes", "<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", "", []),
    ("hermes", '<tool_call>{"name": "rm"}</tool_call>', '<tool_call>{"name": "rm"}</tool_call>', "", []),
    ("hermes", '<tool_call>{"name": "f", "arg', '<tool_call>{"name": "f", "arg', "", []),
    ("hermes", '<tool_call>{"name": ["f"]}', '<tool_call>{"name": ["f"]}', "", []),
    ("hermes", '<tool_call>{"name": "f"}', "", "", [Call("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": NaN}}', '<tool_call>{"name": "f", "arguments": {"x": NaN}}',
     "", []),
    ("hermes", "\n \n", "\n \n", "", []),
    ("mistral", f"[TOOL_CALLS] [{TEXT}, {TEXT}]", "", "", [CALL, CALL]),
    ("mistral", f"[TOOL_CALLS][{TEXT}] and [x]", " and [x]", "", [CALL]),
    ("mistral", "plain [TOOL", "plain [TOOL", "", []),
    ("mistral", "[TOOL_CALLS] oops", "[TOOL_CALLS] oops", "", []),
    ("llama", TEXT.replace("arguments", "parameters"), "", "", [CALL]),
    ("llama", "<|python_tag|>" + TEXT, "", "", [CALL]),
    ("llama", f"{TEXT}; {TEXT}", "", "", [CALL, CALL]),
    ("llama", "Hello {}", "Hello {}", "", []),
    ("llama", '{"answer": 42} is it', '{"answer": 42} is it', "", []),
    ("llama", "<|python", "<|python", "", []),
    ("harmony", "<|channel|>analysis<|message|>Hm <| well.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
     "Yes.", "Hm <| well.", []),
    ("harmony", TO_F + '{"x": 1}<|call|>', "", "", [CALL]),
    ("harmony", f"{TO_F}{SPELLED}<|call|>", "", "", [Call("f", SPELLED)]),
    ("harmony", "<|channel|>commentary<|message|>First.<|end|><|start|>assistant to=functions.f<|channel|>commentary"
     '<|message|>{"x": 1}', "First.", "", [CALL]),
    ("harmony", ' to=functions.f<|channel|>commentary<|message|>{"x": 1}<|call|>', "", "", [CALL]),
    ("harmony", TO_F.replace(".f", ".rm") + "{}<|call|>", TO_F.replace(".f", ".rm") + "{}", "", []),
    ("harmony", TO_F + '{"x": ', TO_F + '{"x": ', "", []),
    ("harmony", TO_F + "oops<|call|>", TO_F + "oops", "", []),
    ("harmony", f"<|channel|>analysis<|message|>I could write {TO_F}{{}}, but no.<|end|>", "",
     f"I could write {TO_F}{{}}, but no.", []),
    ("harmony", '<|channel|>final<|message|>{"mark": "<|end|>"}<|return|>', '{"mark": "<|end|>"}', "", []),
    ("harmony", "Hello there", "Hello there", "", []),
    ("harmony", " to be <|channel|>, or <|start|> is text<|end|>", " to be <|channel|>, or <|start|> is text", "", []),
    ("hermes that thinks", f"<think>\nI could <tool_call>{TEXT}</tool_call>.\n</think>\n\nNo.", "No.",
     f"I could <tool_call>{TEXT}</tool_call>.", []),
    ("hermes that thinks", f"<think>\n\n</think>\n\n<tool_call>{TEXT}</tool_call>", "", "", [CALL]),
    ("hermes that thinks", "<think>cut  off </thi", "", "cut  off </thi", []),
    ("hermes that thinks", "Is <think> a tag? </think>", "Is <think> a tag? </think>", "", []),
    ("hermes that thinks", " <thin", " <thin", "", []),
    ("no calls, thinks", f"<think>a</think><tool_call>{TEXT}", f"<tool_call>{TEXT}", "a", []),
]  # fmt: skip


def parse(format, pieces, opened=False):
    parser = format.parser(NAMES, opened)
    return joined([*map(parser.add, pieces), parser.finish()])


def cut(data, text):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("family, text, content, reasoning, calls", CASES)
def test_what_a_reply_says(family, text, content, reasoning, calls):
    """Content, reasoning and calls, cut at every place and into characters: marks in strings and thoughts are text."""
    for pieces in ([text[:at], text[at:]] for at in range(len(text) + 1)):
        parsed = parse(FAMILIES[family], pieces)
        assert (parsed.content, parsed.reasoning, list(parsed.calls)) == (content, reasoning, calls), pieces
    assert parse(FAMILIES[family], text) == parsed


def test_a_thought_that_the_prompt_opens():
    """The reply begins within it; without an end all is thought."""
    format = FAMILIES["hermes that thinks"]
    assert format.opens_thought("<|im_start|>assistant\n<think>\n") and not format.opens_thought("<think>x")
    assert not FAMILIES["hermes"].opens_thought("<think>")
    for text, content, reasoning in (("a </think>\n\nb", "b", "a"), ("\na <tool_call>{", "", "a <tool_call>{")):
        parsed = parse(format, text, opened=True)
        assert (parsed.content, parsed.reasoning, parsed.calls) == (content, reasoning, ())


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(data=st.data())
def test_any_text_in_any_pieces(family, data):
    """Streamed is whole, no word is lost, and only functions that were offered are called."""
    words = [f"word{i}" for i in range(3)]
    pieces = [*MARKS, *words, " ", "\n", "{", "}", "[", "]", '"', "\\", TEXT, '{"name": "rm"}', TO_F, " to=functions.g"]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=14))) + "!"
    opened = FAMILIES[family].thinks and data.draw(st.booleans())
    whole = parse(FAMILIES[family], [text], opened)
    assert parse(FAMILIES[family], cut(data, text), opened) == whole == parse(FAMILIES[family], text, opened)
    assert {call.name for call in whole.calls} <= NAMES
    said = whole.content + whole.reasoning + "".join(call.arguments for call in whole.calls)
    for word in words:
        assert said.count(word) + len(re.findall(rf"<\|[a-z]+\|>{word}", text)) >= text.count(word)


ARGUMENTS = st.dictionaries(
    st.text("ab", max_size=2), st.lists(st.sampled_from([*MARKS, '"', "\\", "}", "🦙", "\n"])).map("".join), max_size=2
)
WRITTEN = {
    "hermes": lambda name, arguments: f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>',
    "mistral": lambda name, arguments: f'[TOOL_CALLS] [{{"name": "{name}", "arguments": {arguments}}}]',
    "llama": lambda name, arguments: f'<|python_tag|>{{"name": "{name}", "parameters": {arguments}}}',
    "harmony": lambda name, arguments: f"<|start|>assistant{TO_F.replace('.f', '.' + name)}{arguments}<|call|>",
}


@pytest.mark.parametrize("family", WRITTEN)
@settings(max_examples=40)
@given(data=st.data(), calls=st.lists(st.tuples(st.sampled_from(sorted(NAMES)), ARGUMENTS), min_size=1, max_size=3))
def test_calls_with_any_arguments(family, data, calls):
    """Every call that is written is found with its arguments, whatever their strings hold; the text before it stays."""
    text = "Well." + "\n".join(WRITTEN[family](name, json.dumps(arguments)) for name, arguments in calls)
    parsed = parse(FAMILIES[family], cut(data, text))
    assert [(call.name, json.loads(call.arguments)) for call in parsed.calls] == calls
    assert parsed.content == "Well."


def test_content_is_not_held_back_without_need():
    """Text that cannot become a mark comes out at once, and JSON in a channel as it is written."""
    parser = HERMES.parser(NAMES)
    assert [parser.add(piece).content for piece in ("a", " b <", "c")] == ["a", " b ", "<c"]
    assert PlainParser().add("<tool_call>").content == "<tool_call>"
    parser = HarmonyCalls().parser(NAMES)
    assert [parser.add(piece).content for piece in ("<|channel|>final<|message|>", '{"a":', ' "<|')] == [
        "", '{"a":', ' "<|',
    ]  # fmt: skip


def test_long_calls_take_linear_time():
    """A call of a megabyte in pieces of a token is read once."""
    text = WRITTEN["hermes"]("f", json.dumps({"x": "a\\" * (1 << 16)}))
    parsed = parse(FAMILIES["hermes"], [text[at : at + 4] for at in range(0, len(text), 4)])
    assert len(parsed.calls) == 1


@pytest.mark.parametrize(
    "name, calls",
    [
        ("Qwen-Qwen2.5-7B-Instruct", HERMES),
        ("meta-llama-Llama-3.1-8B-Instruct", LLAMA),
        ("mistralai-Mistral-Nemo-Instruct-2407", MISTRAL),
        ("google-gemma-2-2b-it", None),
    ],
)
def test_formats_of_published_templates(name, calls):
    """The templates of the families name their formats; one that knows no tools has none."""
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    assert reply_format(path.read_text()) == ReplyFormat(calls)


def test_formats_of_templates():
    """Harmony by its channels, thoughts by their marks."""
    assert isinstance(reply_format("<|start|>assistant<|channel|>final<|message|>{{ tools }}").calls, HarmonyCalls)
    assert reply_format("{{ tools }}{{ content.split('</think>')[-1] }}<tool_call>") == ReplyFormat(HERMES, True)
    assert isinstance(reply_format("{{ tools }}").calls, JSONCalls)
