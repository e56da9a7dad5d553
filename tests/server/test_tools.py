"""Tool calls: each family's format is recognized, parsed whatever pieces its text comes in, and can be required."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rocforge as rf
from rocforge.engine.engine import Engine
from rocforge.server.tools import Call, HarmonyFormat, JSONFormat, MarkedFormat, PlainParser, format_of
from rocforge.text.grammar import GrammarCompiler

HERMES, MISTRAL = MarkedFormat("<tool_call>", "</tool_call>"), MarkedFormat("[TOOL_CALLS]", "")
CALL = Call("f", '{"x": 1}')
TEXT = '{"name": "f", "arguments": {"x": 1}}'
TEMPLATES = Path(__file__).parents[2] / ".." / "shared" / "data" / "chat_templates"

CASES = [
    (HERMES, f"<tool_call>\n{TEXT}\n</tool_call>", "", "", [CALL]),
    (HERMES, f"Well. <tool_call>{TEXT}</tool_call>\n<tool_call>{TEXT}</tool_call>", "Well. ", "", [CALL, CALL]),
    (HERMES, f"<tool_call>{TEXT}", "", "", [CALL]),
    (HERMES, "a < b, <tool> and <tool_cal", "a < b, <tool> and <tool_cal", "", []),
    (HERMES, "<tool_call>oops</tool_call> x", "<tool_call>oops</tool_call> x", "", []),
    (HERMES, "<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", "", []),
    (MISTRAL, f"[TOOL_CALLS] [{TEXT}, {TEXT}]", "", "", [CALL, CALL]),
    (MISTRAL, "plain [TOOL", "plain [TOOL", "", []),
    (MISTRAL, "[TOOL_CALLS] oops", "[TOOL_CALLS] oops", "", []),
    (JSONFormat(), TEXT.replace("arguments", "parameters"), "", "", [CALL]),
    (JSONFormat(), "<|python_tag|>" + TEXT, "", "", [CALL]),
    (JSONFormat(), "Hello {}", "Hello {}", "", []),
    (JSONFormat(), '{"answer": 42}', '{"answer": 42}', "", []),
    (JSONFormat(), "<|python", "<|python", "", []),
    (
        HarmonyFormat(),
        "<|channel|>analysis<|message|>Hm <| well.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
        "Yes.",
        "Hm <| well.",
        [],
    ),
    (
        HarmonyFormat(),
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>',
        "",
        "",
        [CALL],
    ),
    (
        HarmonyFormat(),
        "<|channel|>commentary<|message|>First.<|end|><|start|>assistant to=functions.f<|channel|>commentary"
        '<|message|>{"x": 1}',
        "First.",
        "",
        [CALL],
    ),
]


@pytest.mark.parametrize("format, text, content, reasoning, calls", CASES)
@given(data=st.data())
def test_any_pieces(format, text, content, reasoning, calls, data):
    """However the text is cut, content, reasoning and calls are the same, and nothing is lost."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parser = format.parser()
    said = [parser.add(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    said.append(parser.finish())
    assert "".join(part.content for part in said) == content
    assert "".join(part.reasoning for part in said) == reasoning
    assert [call for part in said for call in part.calls] == calls


@given(st.text(alphabet='<tool_cal>/[]TOLCS{}|" x'), st.sampled_from([HERMES, MISTRAL, JSONFormat()]))
def test_what_is_no_call_is_content(text, format):
    """Text that holds no call comes out as it went in."""
    parser = format.parser()
    said = [*map(parser.add, text), parser.finish()]
    if not any(part.calls for part in said):
        assert "".join(part.content for part in said) == text


def test_content_is_not_held_back_without_need():
    """Text that cannot become a mark comes out at once."""
    parser = HERMES.parser()
    assert [parser.add(piece).content for piece in ("a", " b <", "c")] == ["a", " b ", "<c"]
    assert PlainParser().add("<tool_call>").content == "<tool_call>"


@pytest.mark.parametrize(
    "name, kind",
    [
        ("Qwen-Qwen2.5-7B-Instruct", MarkedFormat),
        ("meta-llama-Llama-3.1-8B-Instruct", JSONFormat),
        ("mistralai-Mistral-Nemo-Instruct-2407", MarkedFormat),
        ("google-gemma-2-2b-it", type(None)),
    ],
)
def test_formats_of_published_templates(name, kind):
    """The templates of the families name their formats; one that knows no tools has none."""
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    format = format_of(path.read_text())
    assert isinstance(format, kind)
    if isinstance(format, MarkedFormat):
        assert (format.begin == "[TOOL_CALLS]") == ("mistral" in name)


def test_harmony_is_recognized():
    """By its channels."""
    assert isinstance(format_of("<|start|>assistant<|channel|>final<|message|>{{ tools }}"), HarmonyFormat)


@pytest.mark.parametrize("format", [HERMES, MISTRAL, JSONFormat(), HarmonyFormat()])
def test_required_calls(format, model_file):
    """A random model under the grammar of a format writes a call that the format's parser finds."""
    model, tokenizer = rf.load(model_file, device="cpu", context=1024)
    compiler = GrammarCompiler(tokenizer)
    no_space = {id: -100 for id in range(tokenizer.vocab_size) if not tokenizer.token_bytes(id).strip()}
    properties = {"x": {"enum": [1, 22]}}
    schema = {"type": "object", "properties": properties, "required": ["x"], "additionalProperties": False}
    tools = [{"name": "f", "parameters": schema}, {"name": "g", "parameters": schema}]
    with Engine(model, tokenizer.eog_token_ids) as engine:
        for seed in range(3):
            constraint = compiler.lark(format.lark(compiler, tools))
            params = rf.SamplingParams(seed=seed, temperature=1, max_tokens=900, logit_bias=no_space)
            request = engine.add([1, 2], params, constraint)
            while engine.busy:
                engine.step()
            end = request.output[-1] in tokenizer.eog_token_ids
            text = tokenizer.decode(request.output[:-1] if end else request.output)
            parser = format.parser()
            calls = parser.add(text).calls + parser.finish().calls
            assert calls and {call.name for call in calls} <= {"f", "g"}, text
            assert all(json.loads(call.arguments)["x"] in (1, 22) for call in calls)
