"""Each family's replies are recognized, and parsed to the same whatever pieces their text comes in."""

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from rocforge.text.chat.formats import ReplyFormat, reply_format
from rocforge.text.chat.gemma import GemmaCalls
from rocforge.text.chat.harmony import HarmonyCalls
from rocforge.text.chat.pythonic import PythonicCalls
from rocforge.text.chat.reply import Call, PlainParser, joined
from rocforge.text.chat.tagged import TaggedCalls
from rocforge.text.chat.thoughts import THINK
from rocforge.text.chat.tool_parsers import TOOL_PARSERS

TEMPLATES = Path(__file__).parents[3] / ".." / "shared" / "data" / "chat_templates"
PROPERTIES = {
    "x": {"type": "string"},
    "n": {"$ref": "#/$defs/Number"},
    "o": {"type": "object"},
    "s": {"type": ["string", "null"]},
}
PARAMETERS = {"$defs": {"Number": {"type": "number"}}, "type": "object", "properties": PROPERTIES}
FUNCTIONS = {name: {"name": name, "parameters": PARAMETERS} for name in ("f", "g")}
HERMES = TOOL_PARSERS["hermes"]
FAMILIES = {
    **{name: ReplyFormat(calls) for name, calls in TOOL_PARSERS.items()},
    "hermes that thinks": ReplyFormat(HERMES, THINK),
    "no calls, thinks": ReplyFormat(None, THINK),
    "framed": ReplyFormat(HERMES, THINK, ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
}
MARKS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", "<|start|>", "<|channel|>",
    "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>",
]  # fmt: skip
CALL = Call("f", '{"x": 1}')
TEXT = '{"name": "f", "arguments": {"x": 1}}'
SPELLED = json.dumps({"text": 'a call ends with </tool_call> and <|call|>, and \\" begins with <tool_call>'})
TO_F = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
QWEN = "<tool_call>\n<function=f>\n<parameter=x>\n{}\n</parameter>\n</function>\n</tool_call>"

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
    ("hermes", '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', "", "", [CALL]),
    ("hermes", '<tool_call>{"arguments": {"x": NaN}, "name": "f"}', '<tool_call>{"arguments": {"x": NaN}, "name": "f"}',
     "", []),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "a\n', "", "", [Call("f", '{"x": "a\\n')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{}"}', "", "", [Call("f", "{}")]),
    ("hermes", "\n \n", "\n \n", "", []),
    ("mistral", f"[TOOL_CALLS] [{TEXT}, {TEXT}]", "", "", [CALL, CALL]),
    ("mistral", f"[TOOL_CALLS][{TEXT}, 1] and", ", 1] and", "", [CALL]),
    ("mistral", "[TOOL_CALLS]f[CALL_ID]a1[ARGS]{\"x\": 1}[TOOL_CALLS]f{\"x\": 1}", "", "", [CALL, CALL]),
    ("mistral", "[TOOL_CALLS]rm[ARGS]{}", "[TOOL_CALLS]rm[ARGS]{}", "", []),
    ("mistral", f"[TOOL_CALLS][{TEXT}] and [x]", " and [x]", "", [CALL]),
    ("mistral", "plain [TOOL", "plain [TOOL", "", []),
    ("mistral", "[TOOL_CALLS] oops", "[TOOL_CALLS] oops", "", []),
    ("llama3_json", TEXT.replace("arguments", "parameters"), "", "", [CALL]),
    ("llama3_json", "<|python_tag|>" + TEXT, "", "", [CALL]),
    ("llama3_json", f"{TEXT}; {TEXT}", "", "", [CALL, CALL]),
    ("llama3_json", "Hello {}", "Hello {}", "", []),
    ("llama3_json", '{"answer": 42} is it', '{"answer": 42} is it', "", []),
    ("llama3_json", "<|python", "<|python", "", []),
    ("openai", "<|channel|>analysis<|message|>Hm <| well.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
     "Yes.", "Hm <| well.", []),
    ("openai", TO_F + '{"x": 1}<|call|>', "", "", [CALL]),
    ("openai", f"{TO_F}{SPELLED}<|call|>", "", "", [Call("f", SPELLED)]),
    ("openai", "<|channel|>commentary<|message|>First.<|end|><|start|>assistant to=functions.f<|channel|>commentary"
     '<|message|>{"x": 1}', "First.", "", [CALL]),
    ("openai", ' to=functions.f<|channel|>commentary<|message|>{"x": 1}<|call|>', "", "", [CALL]),
    ("openai", TO_F.replace(".f", ".rm") + "{}<|call|>", TO_F.replace(".f", ".rm") + "{}", "", []),
    ("openai", TO_F + '{"x": ', "", "", [Call("f", '{"x": ')]),
    ("openai", TO_F + "[1]<|call|>", TO_F + "[1]", "", []),
    ("openai", TO_F + "oops<|call|>", TO_F + "oops", "", []),
    ("openai", f"<|channel|>analysis<|message|>I could write {TO_F}{{}}, but no.<|end|>", "",
     f"I could write {TO_F}{{}}, but no.", []),
    ("openai", '<|channel|>final<|message|>{"mark": "<|end|>"}<|return|>', '{"mark": "<|end|>"}', "", []),
    ("openai", "Hello there", "Hello there", "", []),
    ("openai", " to be <|channel|>, or <|start|> is text<|end|>", " to be <|channel|>, or <|start|> is text", "", []),
    ("qwen3_coder", "So. " + QWEN.format("1"), "So. ", "", [Call("f", '{"x": "1"}')]),
    ("qwen3_coder", QWEN.format("</parameter> is\n\n"), "", "", [Call("f", '{"x": "</parameter> is\\n\\n"}')]),
    ("qwen3_coder", QWEN.format("a").removeprefix("<tool_call>\n"), "", "", [Call("f", '{"x": "a"}')]),
    ("qwen3_coder", QWEN.format("a")[:40], "", "", [Call("f", '{"x": "a')]),
    ("qwen3_coder", QWEN.format("a").partition("\n</function")[0], "", "", [Call("f", '{"x": "a"')]),
    ("qwen3_coder", QWEN.replace("=f", "=rm"), QWEN.replace("=f", "=rm"), "", []),
    ("qwen3_coder", "<tool_call>\n<function=f>\n</function>\n</tool_call> b", " b", "", [Call("f", "{}")]),
    ("qwen3_coder", "<tool_call><function=f>oh <parameter=n>no</parameter></function>", "oh ", "",
     [Call("f", '{"n": "no"}')]),
    ("glm45", "<tool_call>f\n</tool_call>\n<tool_call>rm</tool_call>", "\n<tool_call>rm</tool_call>", "",
     [Call("f", "{}")]),
    ("glm45", "a <tool_call> b", "a <tool_call> b", "", []),
    ("pythonic", "[f(x='a', o={'k': [True, null]}), f(1)] b", " b", "",
     [Call("f", '{"x": "a", "o": {"k": [true, null]}}'), CALL]),
    ("pythonic", "[1, 2]", "[1, 2]", "", []),
    ("pythonic", "[rm(x=1)]", "[rm(x=1)]", "", []),
    ("pythonic", "[f(x=1), rm()]", ", rm()]", "", [CALL]),
    ("pythonic", "[f(x=oops(1), n='a", "", "", [Call("f", '{"x": "oops(1)", "n": \'a')]),
    ("gemma4", '<|tool_call>call:f{x:<|"|>a}"<|"|>,o:{k:[1,None]},n:oops}<tool_call|>.', ".", "",
     [Call("f", '{"x": "a}\\"", "o": {"k": [1, null]}, "n": "oops"}')]),
    ("gemma4", '<|tool_call>call:rm{}<tool_call|>', "<|tool_call>call:rm{}<tool_call|>", "", []),
    ("hermes that thinks", f"<think>\nI could <tool_call>{TEXT}</tool_call>.\n</think>\n\nNo.", "No.",
     f"I could <tool_call>{TEXT}</tool_call>.", []),
    ("hermes that thinks", f"<think>\n\n</think>\n\n<tool_call>{TEXT}</tool_call>", "", "", [CALL]),
    ("hermes that thinks", "<think>cut  off </thi", "", "cut  off </thi", []),
    ("hermes that thinks", "Is <think> a tag? </think>", "Is <think> a tag? </think>", "", []),
    ("hermes that thinks", " <thin", " <thin", "", []),
    ("framed", "<think>a</think><|START_RESPONSE|>b <|c<|END_RESPONSE|>", "b <|c", "a", []),
    ("framed", f"<|START_RESPONSE|>So.<|END_RESPONSE|><tool_call>{TEXT}", "So.", "", [CALL]),
    ("framed", "<|START_RE", "<|START_RE", "", []),
    ("no calls, thinks", f"<think>a</think><tool_call>{TEXT}", f"<tool_call>{TEXT}", "a", []),
]  # fmt: skip


def parse(format, pieces, opened=False):
    parser = format.parser(FUNCTIONS, opened)
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


@settings(max_examples=150)
@given(data=st.data(), family=st.sampled_from(sorted(FAMILIES)))
def test_any_text_in_any_pieces(family, data):
    """Streamed is whole, no word is lost, and only functions that were offered are called."""
    words = [f"word{i}" for i in range(3)]
    pieces = [*MARKS, *words, " ", "\n", "{", "}", "[", "]", '"', "\\", TEXT, '{"name": "rm"}', TO_F, " to=functions.g"]
    own = re.findall(r"[<\[][^<\[]*|[^<\[]+", WRITTEN[family]("f", {"x": "a", "n": 1})) if family in WRITTEN else []
    text = "".join(data.draw(st.lists(st.sampled_from(pieces) | st.sampled_from(own or [" "]), max_size=14))) + "!"
    opened = FAMILIES[family].thought and data.draw(st.booleans())
    whole = parse(FAMILIES[family], [text], opened)
    assert parse(FAMILIES[family], cut(data, text), opened) == whole == parse(FAMILIES[family], text, opened)
    assert {call.name for call in whole.calls} <= FUNCTIONS.keys()
    said = whole.content + whole.reasoning + "".join(call.arguments for call in whole.calls)
    for word in words:
        in_headers = len(re.findall(rf"<\|[a-z]+\|>[^<]*{word}", text)) if family == "openai" else 0
        assert said.count(word) + in_headers >= text.count(word), text


STRINGS = st.lists(st.sampled_from([*MARKS, '"', "\\", "}", "🦙", "\n", "1", "'", "a < b"])).map("".join)
OBJECTS = st.dictionaries(st.text("ab", min_size=1, max_size=2), st.lists(st.none() | st.integers()), max_size=2)
ARGUMENTS = st.fixed_dictionaries({}, optional={"x": STRINGS, "n": st.integers(), "o": OBJECTS, "s": st.none()})


def tagged(begin, key, end, after, line=""):
    def text(value):
        return value if isinstance(value, str) else json.dumps(value)

    return lambda name, arguments: (
        begin.format(name) + "".join(f"{key.format(k)}{line}{text(v)}{line}{end}" for k, v in arguments.items()) + after
    )


def json_call(before, after, key="arguments", name_key="name"):
    def call(name, arguments):
        return before + json.dumps({name_key: name, key: arguments}) + after

    return call


def named(before, after):
    return lambda name, arguments: before.format(name) + json.dumps(arguments) + after


def in_gemma(quote, before, after):
    def value(v):
        if isinstance(v, dict):
            return "{" + ",".join(f"{key}:{value(entry)}" for key, entry in v.items()) + "}"
        if isinstance(v, list):
            return "[" + ",".join(map(value, v)) + "]"
        return f"{quote}{v}{quote}" if isinstance(v, str) else json.dumps(v)

    return lambda name, arguments: f"{before}call:{name}{value(arguments)}{after}"


def dsml(section):
    def call(name, arguments):
        texts = [
            f'<｜DSML｜parameter name="{k}" string="{json.dumps(isinstance(v, str))}">'
            f"{v if isinstance(v, str) else json.dumps(v)}</｜DSML｜parameter>\n"
            for k, v in arguments.items()
        ]
        invoke = f'<｜DSML｜invoke name="{name}">\n{"".join(texts)}</｜DSML｜invoke>'
        return f"<｜DSML｜{section}>\n{invoke}\n</｜DSML｜{section}>"

    return call


def python_call(before, after):
    def call(name, arguments):
        return f"{before}[{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})]{after}"

    return call


DEEPSEEK = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
KIMI = "<|tool_calls_section_begin|><|tool_call_begin|>functions.{}:0<|tool_call_argument_begin|>"
FUNCTION = "<function={}>\n", "<parameter={}>", "</parameter>\n", "</function>\n"
WRITTEN = {
    "hermes": json_call("<tool_call>\n", "\n</tool_call>"),
    "qwen3_coder": tagged("<tool_call>\n" + FUNCTION[0], *FUNCTION[1:3], FUNCTION[3] + "</tool_call>", "\n"),
    "seed_oss": tagged("<seed:tool_call>\n" + FUNCTION[0], *FUNCTION[1:3], FUNCTION[3] + "</seed:tool_call>"),
    "glm45": tagged("<tool_call>{}\n", "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>\n", "</tool_call>"),
    "glm47": tagged("<tool_call>{}", "<arg_key>{}</arg_key><arg_value>", "</arg_value>", "</tool_call>"),
    "minimax_m2": tagged('<minimax:tool_call>\n<invoke name="{}">\n', '<parameter name="{}">', "</parameter>\n",
                         "</invoke>\n</minimax:tool_call>"),
    "deepseek_v32": dsml("function_calls"),
    "deepseek_v4": dsml("tool_calls"),
    "deepseek_v3": named(DEEPSEEK[0] + "function<｜tool▁sep｜>{}\n```json\n", "\n```" + DEEPSEEK[1]),
    "deepseek_v31": named(DEEPSEEK[0] + "{}<｜tool▁sep｜>", DEEPSEEK[1]),
    "kimi_k2": named(KIMI, "<|tool_call_end|><|tool_calls_section_end|>"),
    "mistral": json_call("[TOOL_CALLS][", "]"),
    "mistral_v11": named("[TOOL_CALLS]{}[ARGS]", ""),
    "llama3_json": json_call("<|python_tag|>", "", "parameters"),
    "llama4_json": json_call("<|python_start|>", "<|python_end|>", "parameters"),
    "pythonic": python_call("", ""),
    "llama4_pythonic": python_call("<|python_start|>", "<|python_end|>"),
    "lfm2": python_call("<|tool_call_start|>", "<|tool_call_end|>"),
    "gemma4": in_gemma('<|"|>', "<|tool_call>", "<tool_call|>"),
    "functiongemma": in_gemma("<escape>", "<start_function_call>", "<end_function_call>"),
    "granite": json_call("<|tool_call|>[", "]"),
    "phi4_mini_json": json_call("<|tool_call|>[", "]<|/tool_call|>"),
    "command_r7b": json_call("<|START_ACTION|>[", "]<|END_ACTION|>", "parameters", "tool_name"),
    "nemotron_v2": json_call("<TOOLCALL>[", "]</TOOLCALL>"),
    "jamba": json_call("<tool_calls>[", "]</tool_calls>"),
    "minimax": json_call("<tool_calls>\n", "\n</tool_calls>"),
    "functionary_v31": named("<function={}>", "</function>"),
    "internlm": json_call("<|action_start|><|plugin|>\n", "\n<|action_end|>", "parameters"),
    "openai": named("<|channel|>commentary to=functions.{} <|constrain|>json<|message|>", "<|call|>"),
}  # fmt: skip


def text_before(family):
    """What the model may say before a call; a list in Python is the whole reply."""
    return "" if family == "pythonic" or family == "llama4_pythonic" else "Well."


CALLS = st.lists(st.tuples(st.sampled_from(sorted(FUNCTIONS)), ARGUMENTS), min_size=1, max_size=3)


@settings(max_examples=150)
@given(data=st.data(), family=st.sampled_from(sorted(TOOL_PARSERS)), calls=CALLS)
def test_calls_with_any_arguments(family, data, calls):
    """Every call that is written is found with its arguments, of the types that its schema declares, whatever their
    strings hold; the text before it stays."""
    before = text_before(family)
    calls = calls[:1] if not before else calls
    text = before + "\n".join(WRITTEN[family](name, arguments) for name, arguments in calls)
    parsed = parse(FAMILIES[family], cut(data, text))
    assert [(call.name, json.loads(call.arguments)) for call in parsed.calls] == calls, text
    assert parsed.content == before


@pytest.mark.parametrize("family", TOOL_PARSERS)
def test_arguments_come_as_they_are_written(family):
    """A client has most of a long argument before it ends, wherever an argument is not a whole for the format."""
    text = text_before(family) + WRITTEN[family]("f", {"x": "word " * 200})
    parser, half = FAMILIES[family].parser(FUNCTIONS, False), ""
    for at in range(0, len(text) // 2, 7):
        half += "".join(call.arguments for call in parser.add(text[at : at + 7]).calls)
    assert half.startswith('{"x": ') and (len(half) > 400 or isinstance(TOOL_PARSERS[family], PythonicCalls))


NEXT = {"type": "object", "additionalProperties": False}


@pytest.mark.parametrize("family", TOOL_PARSERS)
def test_grammars_of_calls(family):
    """What the grammar of a format lets a model write, its parser finds: the published form of calls, and random ones;
    several calls only where they may be parallel."""
    schema = {
        "$defs": {"Next": {**NEXT, "properties": {"k": {"$ref": "#/$defs/Kind"}}}, "Kind": {"enum": ["a", 7]}},
        "type": "object",
        "properties": {"x": {"type": "string"}, "e": {"enum": ["a", "b"]}, "i": {"type": "integer", "maximum": 9},
                       "b": {"type": "boolean"}, "o": {"$ref": "#/$defs/Next"}},
        "required": ["x", "o"],
        "additionalProperties": False,
    }  # fmt: skip
    functions = {name: {"name": name, "parameters": schema} for name in ("f", "g")}
    compiler, calls = SimpleNamespace(literal=json.dumps), TOOL_PARSERS[family]
    arguments = {"x": "a 1", "e": "b", "i": 3, "b": True, "o": {"k": "a"}}
    if isinstance(calls, (PythonicCalls, GemmaCalls)):  # which let required ones come first
        arguments = {name: arguments[name] for name in ("x", "o", "e", "i", "b")}
    written = WRITTEN[family]("g", arguments).replace("'", '"').removesuffix("<|call|>")
    if family in ("llama3_json", "llama4_json", "llama4_pythonic"):  # the marks are for other calls
        written = re.sub(r"<\|.*?\|>", "", written)
    for parallel in (False, True):
        lark = f"start: calls\n{calls.lark(compiler, list(functions.values()), parallel)}"
        assert accepts(lark, written), (lark, written)
        assert parallel or not accepts(lark, f"{written}\n{written}")
        end = calls.inner + calls.parameter[1] if isinstance(calls, TaggedCalls) else getattr(calls, "quote", '"')
        text = walk(lark, end, random.Random(parallel))
        parser = calls.parser(functions)
        found = joined([parser.add(text), parser.finish()])
        assert found.calls and not found.content.strip(), text
        for call in found.calls:
            given = json.loads(call.arguments)
            assert given.keys() >= {"x", "o"} and isinstance(given["x"], str), text
            assert given["o"].get("k") in (None, "a", 7) and given.get("e") in (None, "a", "b"), text
            assert isinstance(given.get("b", True), bool) and isinstance(given.get("i", 1), int), text


BYTES = LLTokenizer("byte")


def matcher(lark):
    found = LLMatcher(BYTES, LLMatcher.grammar_from_lark(lark), log_level=0)
    assert not found.is_error(), found.get_error()
    return found


def accepts(lark, text):
    found = matcher(lark)
    return all(found.consume_token(byte) for byte in text.encode()) and found.is_accepting()


def walk(lark, end, draw):
    """A random text of a grammar, with a word and `end` where any text may be."""
    found, text = matcher(lark), b""
    while not found.is_stopped() and len(text) < 4000:
        allowed = np.unpackbits(np.frombuffer(found.compute_bitmask(), np.uint8), bitorder="little")[:256]
        choice = np.flatnonzero(allowed).tolist()
        if found.is_accepting() and (not choice or draw.random() < 0.5):
            break
        plain = [byte for byte in choice if chr(byte) not in " \t\n\r"] or choice
        word = f"ab{end}".encode() if len(plain) > 100 else bytes([draw.choice(plain)])
        assert all(found.consume_token(byte) for byte in word), (text, word)
        text += word
    return text.decode()


def test_content_is_not_held_back_without_need():
    """Text that cannot become a mark comes out at once, and JSON in a channel as it is written."""
    parser = HERMES.parser(FUNCTIONS)
    assert [parser.add(piece).content for piece in ("a", " b <", "c")] == ["a", " b ", "<c"]
    assert PlainParser().add("<tool_call>").content == "<tool_call>"
    parser = HarmonyCalls().parser(FUNCTIONS)
    assert [parser.add(piece).content for piece in ("<|channel|>final<|message|>", '{"a":', ' "<|')] == [
        "", '{"a":', ' "<|',
    ]  # fmt: skip


@pytest.mark.parametrize("family", TOOL_PARSERS)
def test_a_head_that_does_not_end(family):
    """What is longer than any call's beginning is content, in one piece or in many."""
    written = WRITTEN[family]("f", {"x": "a"})
    text = re.sub(r"(?<![a-z])f(?![a-z])", "f" + " " * 2000, written, count=1)
    assert len(text) > 2000
    whole = parse(FAMILIES[family], [text])
    assert parse(FAMILIES[family], [text[at : at + 7] for at in range(0, len(text), 7)]) == whole


def test_long_calls_take_linear_time():
    """A long call in pieces of a token is read once."""
    text = WRITTEN["hermes"]("f", json.dumps({"x": "a\\" * (1 << 14)}))
    parsed = parse(FAMILIES["hermes"], [text[at : at + 4] for at in range(0, len(text), 4)])
    assert len(parsed.calls) == 1


PUBLISHED = [
    ("Qwen-Qwen2.5-7B-Instruct", "hermes"),
    ("meta-llama-Llama-3.1-8B-Instruct", "llama3_json"),
    ("mistralai-Mistral-Nemo-Instruct-2407", "mistral"),
    ("google-gemma-2-2b-it", None),
]


@pytest.mark.parametrize("name, calls", PUBLISHED)
def test_formats_of_published_templates(name, calls):
    """The templates of the families name their formats; one that knows no tools has none."""
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    assert reply_format(path.read_text()) == ReplyFormat(calls and TOOL_PARSERS[calls])


# what templates of a family have, and others have not
HAVE = {
    "qwen3_coder": "{{ tools }}<tool_call>\\n<function=' + name + '>\\n<parameter=",
    "glm45": "{{ tools }}<tool_call>{function-name}\\n<arg_key>{k}</arg_key>\\n<arg_value>",
    "glm47": "{{ tools }}<tool_call>{function-name}<arg_key>{k}</arg_key><arg_value>",
    "deepseek_v3": "{{ tools }}<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\\n```json",
    "deepseek_v31": "{{ tools }}<｜tool▁call▁begin｜>f<｜tool▁sep｜>",
    "deepseek_v32": "{{ tools }}{% set dsml = '｜DSML｜' %}<function_calls>",
    "mistral_v11": "{{ tools }}[TOOL_CALLS]f[ARGS]",
    "kimi_k2": "{{ tools }}<|tool_call_begin|>",
    "minimax_m2": "{{ tools }}<minimax:tool_call><invoke name=",
    "seed_oss": "{{ tools }}<seed:tool_call><function=f><parameter=",
    "gemma4": "{{ tools }}<|tool_call>call:",
    "functiongemma": "{{ tools }}<start_function_call>call:",
    "llama4_json": '{{ tools }}<|python_start|>"parameters"',
    "pythonic": "{{ tools }} parameters: [func_name1(params_name1=params_value1), func_name2(params)]",
    "llama4_pythonic": "{{ tools }}<|python_start|>",
    "lfm2": "{{ tools }}<|tool_list_start|>",
    "command_r7b": "{{ tools }}<|START_ACTION|>",
    "granite": "{{ tools }}<|tool_call|>",
    "openai": "<|start|>assistant<|channel|>final<|message|>{{ tools }}",
    "hermes": "{{ tools }}",
}


def test_formats_of_templates():
    """A family by its marks, thoughts by theirs; a name says the format where the template does not."""
    assert {name: reply_format(template).calls for name, template in HAVE.items()} == {
        name: TOOL_PARSERS[name] for name in HAVE
    }
    assert reply_format("{{ tools }}{{ content.split('</think>')[-1] }}<tool_call>") == ReplyFormat(HERMES, THINK)
    assert reply_format("{{ x }}<|channel>thought").thought.end == "<channel|>"
    assert reply_format("{{ x }}<|START_RESPONSE|>").frame == ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
    assert reply_format("{{ tools }}<tool_call>", "pythonic") == ReplyFormat(TOOL_PARSERS["pythonic"])
