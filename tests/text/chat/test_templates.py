"""Chat templates render as Hugging Face's do, and a hostile one ends quickly in an error."""

import json
import pathlib
import resource
import time
from datetime import datetime
from types import SimpleNamespace

import pytest

from rocforge.errors import ChatTemplateError, RocforgeError
from rocforge.text.chat.templates import ChatTemplates
from rocforge.text.tokenizer import Tokenizer

TEMPLATE_DIR = pathlib.Path(__file__).parents[4] / "shared" / "data" / "chat_templates"
CHAT = [
    {"role": "user", "content": "Hi <b>é</b>"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of <a> town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
CHATML = (
    "{% for message in messages %}\n"
    "    {{ '<|im_start|>' ~ message.role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}\n"
    "{% endfor %}\n"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def render(template, **variables):
    variables = {"messages": CHAT, "tools": None, "add_generation_prompt": True, **variables}
    return ChatTemplates({"tokenizer.chat_template": template}).render(**variables)


def make_tokenizer(**templates):
    """A tokenizer with <s>, </s> and a token for each ASCII character."""
    from rocforge.text.bpe import byte_of_char

    tokens = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", *byte_of_char()]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 4 + [1] * 256,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }
    keys = {"default": "tokenizer.chat_template"}
    metadata |= {keys.get(name, f"tokenizer.chat_template.{name}"): text for name, text in templates.items()}
    return Tokenizer(SimpleNamespace(metadata=metadata))


def test_chatml():
    """Blocks are trimmed, left-stripped, nothing is escaped; the text is exact."""
    # A block's line leaves nothing; the indentation and the line end of an expression's line are text.
    expected = (
        "    <|im_start|>user\nHi <b>é</b><|im_end|>\n\n    <|im_start|>assistant\nHello!<|im_end|>\n\n"
        "    <|im_start|>user\nBye<|im_end|>\n\n"
    )
    assert render(CHATML) == expected + "<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == expected


USES = [
    ("{{ {'b': 'é<', 'a': [1, none, true, 1.5]} | tojson }}", '{"b": "é<", "a": [1, null, true, 1.5]}'),
    ("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
    ("{{ {'b': 1} | tojson(separators=(',', ':')) }}", '{"b":1}'),
    ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
    ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
    ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02345678"),
    ("{% for i in range(9) %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}", "0123"),
    ("{% for i in range(9) if i is odd %}{{ i }}{% else %}none{% endfor %}", "1357"),
    ("{% for i in [] %}{{ i }}{% else %}none{% endfor %}", "none"),
    ("a{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}b{{ x }}", "a1b"),
    ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
    ("{% for m in messages %}{{ loop.index }}/{{ loop.length }} {% endfor %}", "1/3 2/3 3/3 "),
    ("{% for m in messages %}{{ loop.first }}{{ loop.last }} {% endfor %}", "TrueFalse FalseFalse FalseTrue "),
    ("{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "123"),
    ("{% macro f(x, y=2) %}{{ x }}{{ y }}{% endmacro %}{{ f(1) }}{{ f(3, y=4) }}", "1234"),
    ("{% macro f() %}({{ caller() }}){% endmacro %}{% call f() %}c{% endcall %}", "(c)"),
    ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | last }}", "Bye"),
    ("{{ messages[1:] | map(attribute='role') | join(', ') }}", "assistant, user"),
    ("{{ messages[::-1][0].content ~ 1 ~ none }}", "Bye1None"),
    ("{{ messages[0].get('name', 'no') }}{{ 'name' in messages[0] }}", "noFalse"),
    ("{{ messages[0].name is defined }}", "False"),
    ("{% for k, v in messages[0].items() %}{{ k }}={{ v | upper }};{% endfor %}", "role=USER;content=HI <B>É</B>;"),
    ("{{ 'a\nb' | indent(2) }}{{ 'x,y'.split(',')[-1] }}{{ 'abc'.replace('b', 'BB') }}", "a\n  byaBBc"),
    ("{{ '%s=%05.1f' % ('x', 2.25) }}{{ '{}-{:>3}'.format('a', 'b') }}{{ ','.join(['a']) }}", "x=002.2a-  ba"),
    ("{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 8 }}{{ 3 * 'ab' }}{{ [1] + [2] }}{{ 1.27 | round(1) }}", "33256ababab[1, 2]1.3"),
    ("{{ [3, 1] | sort | list }}{{ [1, 2] | sum }}{{ {'b': 1, 'a': 2} | dictsort }}", "[1, 3]3[('a', 2), ('b', 1)]"),
    ("{% set x %}a{{ 1 }}{% endset %}{{ x }}{% filter upper %}b{{ 'c' }}{% endfilter %}", "a1BC"),
    ("{{ nothing }}{{ nothing is defined }}{{ nothing | default('d') }}{{ tools }}", "FalsedNone"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "expected"), USES)
def test_what_templates_use(template, expected):
    """The parts of Jinja that published templates are made of, each with its exact result."""
    assert render(template) == expected


def test_apply_chat_template():
    """Ids by default, text on request; the begin token comes from the template alone; variables reach it."""
    tok = make_tokenizer(default="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ mood }}{{ pad_token }}")
    text = tok.apply_chat_template([{"role": "user", "content": "yes"}], tokenize=False, mood="!")
    assert text == "<s>yes</s>!"
    ids = tok.apply_chat_template([{"role": "user", "content": "yes"}], mood="!")
    assert ids == tok.encode(text, add_special_tokens=False)
    assert ids[0] == 0 and ids.count(0) == 1 and 1 in ids


def test_named_templates():
    """By name; "tool_use" for tools where there is one; or a template of the caller's; none at all is an error."""
    tok = make_tokenizer(default="d", tool_use="t", rag="r{{ documents | length }}")
    assert tok.apply_chat_template(CHAT, tokenize=False) == "d"
    assert tok.apply_chat_template(CHAT, tools=[TOOL], tokenize=False) == "t"
    assert tok.apply_chat_template(CHAT, chat_template="rag", documents=[1], tokenize=False) == "r1"
    assert tok.apply_chat_template(CHAT, chat_template="{{ 1 + 1 }}", tokenize=False) == "2"
    with pytest.raises(ChatTemplateError, match=r"no default chat template \(named: rag\)"):
        make_tokenizer(rag="r").apply_chat_template(CHAT)
    with pytest.raises(ChatTemplateError, match=r"named: none"):
        make_tokenizer().apply_chat_template(CHAT)


def test_a_template_by_its_name():
    """RWKV's, which files of 2024 only name: as llama.cpp has it."""
    chat = [{"role": "system", "content": " Be brief.\n"}, *CHAT]
    text = make_tokenizer(default="rwkv-world").apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "System: Be brief.\n\nUser: Hi <b>é</b>\n\nAssistant: Hello!\n\nUser: Bye\n\nAssistant:"


def test_templates_cannot_change_the_messages():
    """They get a copy, and the copy is immutable to them."""
    before = json.dumps(CHAT)
    with pytest.raises(ChatTemplateError, match="append"):
        render("{{ messages.append(1) }}")
    assert json.dumps(CHAT) == before


def test_refusals_name_the_reason():
    """raise_exception, a mistake in the template and a mistake at run time: what and, where known, the line."""
    for template, match in [
        ("{{ raise_exception('Only user turns') }}", "chat template: Only user turns"),
        ("\n{% if x %}", "line 2: Unexpected end of template"),
        ("{{ x | nope }}", "No filter named 'nope'"),
        ("{{ messages[0] + 1 }}", "TypeError: unsupported operand"),
        ("{{ x.y }}", "'x' is undefined"),
    ]:
        with pytest.raises(ChatTemplateError, match=match):
            render(template)
    assert issubclass(ChatTemplateError, RocforgeError)


def test_variables_must_be_json():
    """What a template sees is plain data; anything else is refused before it runs."""
    with pytest.raises(TypeError, match="must be JSON values"):
        render("{{ messages }}", messages=[object()])


GROW = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(100) %}STEP{% endfor %}"
NEST = "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}STEP{% endfor %}"
LONG = "('a' * 100000)"
SHARED = (
    "{% set ns = namespace(d={}, e={}) %}{% set x = ns.d %}{% set y = ns.e %}{% for i in range(38) %}"
    "{% set c = {} %}{% set f = {} %}{% set _ = dict.update(ns.d, {'a': c, 'b': c}) %}"
    "{% set _ = dict.update(ns.e, {'a': f, 'b': f}) %}{% set ns.d = c %}{% set ns.e = f %}{% endfor %}"
)
HOSTILE = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "silent macro": "{% macro f() %}{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxx{% endfor %}"
    "{% endfor %}{% endmacro %}{{ f() }}",
    "long comparisons": GROW.replace("100", "16").replace("STEP", "{% set ns.x = ns.x ~ ns.x %}")
    + "{% for i in range(99999) %}{% for j in range(99999) %}{% if 'b' in ns.x %}{% endif %}{% endfor %}{% endfor %}",
    "loop recursion": "{% for i in range(99999) recursive %}{% if loop.depth < 4 %}{{ loop(range(99999)) }}{% endif %}"
    "{% endfor %}",
    "macro recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "many arguments": "{% macro f() %}{{ f(*varargs) }}{{ f(*varargs) }}{% endmacro %}{{ f(*range(99999)) }}",
    "text output": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "str *": "{{ 'a' * 10**10 }}",
    "* str": "{{ 10**10 * 'a' }}",
    "list *": "{{ [0] * 10**10 }}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "squares": GROW.replace("'aaaaaaaa'", "3").replace("STEP", "{% set ns.x = ns.x * ns.x %}"),
    "~": GROW.replace("STEP", "{% set ns.x = ns.x ~ ns.x %}"),
    "+": GROW.replace("STEP", "{% set ns.x = ns.x + ns.x %}"),
    "set block": GROW.replace("STEP", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "long ~": "{% set x = " + LONG + " %}{{ " + " ~ ".join(["x"] * 5000) + " }}",
    "lists of lists": NEST.replace("STEP", "{% set ns.x = [ns.x, ns.x] %}") + "{{ ns.x }}",
    "tuples as keys": NEST.replace("[1]", "(1,)").replace("STEP", "{% set ns.x = (ns.x, ns.x) %}") + "{{ {ns.x: 1} }}",
    "dicts of dicts": NEST.replace("STEP", "{% set ns.x = dict(a=ns.x, b=ns.x) %}") + "{{ ns.x | tojson }}",
    "shared dicts": SHARED + "{{ x == y }}",
    "shared dicts as JSON": SHARED + "{{ x | tojson }}",
    "shared dicts sorted": SHARED + "{{ [[x], [y]] | sort }}",
    "dicts that grow": "{% set big = dict.fromkeys(range(99999), 1) %}{% set store = {} %}{% for i in range(2000) %}"
    "{% set d = {} %}{% set _ = dict.update(store, {i: d}) %}{% set _ = dict.update(d, big) %}{% endfor %}",
    "lists that grow": "{% set x = [1] %}{% for i in range(99) %}{% set _ = x.__class__.extend(x, x) %}{% endfor %}",
    "deep list": NEST.replace("100", "99999").replace("STEP", "{% set ns.x = [ns.x] %}") + "{{ ns.x }}",
    "iterators of iterators": NEST.replace("100", "99999").replace("STEP", "{% set ns.x = ns.x | map('abs') %}")
    + "{{ ns.x | list }}",
    "slices": "{% set x = " + LONG + " %}" + "".join(f"{{% set a{i} = x[1:] %}}" for i in range(4000)),
    "% width": "{{ '%10000000000d' % 1 }}",
    "% computed width": "{{ '%*d' % (10**10, 1) }}",
    "% repeated": "{{ ('%(a)s' * 99999) % {'a': " + LONG + "} }}",
    "format width": "{{ '{:10000000000}'.format(1) }}",
    "format computed width": "{{ '{:{}}'.format(1, '9999999999') }}",
    "format repeated": "{{ ('{0}' * 99999).format(" + LONG + ") }}",
    "format_map": "{{ '{a:10000000000}'.format_map({'a': 1}) }}",
    "format through attr": "{{ ('{:10000000000}' | attr('format'))(1) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**10) }}",
    "translate": "{{ " + LONG + ".translate({97: " + LONG + "}) }}",
    "replace": "{{ " + LONG + ".replace('a', " + LONG + ") }}",
    "replace nothing": "{{ " + LONG + ".replace('', " + LONG + ") }}",
    "replace filter": "{{ " + LONG + " | replace('a', " + LONG + ") }}",
    "join": "{{ " + LONG + ".join(" + LONG + ") }}",
    "join filter": "{{ " + LONG + " | join(" + LONG + ") }}",
    "indent": "{{ ('\n' * 99999) | indent(99999, blank=true) }}",
    "indent text": "{{ ('\n' * 99999) | indent(" + LONG + ", blank=true) }}",
    "tojson indent": "{{ [1] | tojson(indent=10**10) }}",
    "round": "{{ 1 | round(10**10, 'ceil') }}",
    "sum of lists": "{{ ([[1] * 1000] * 1000) | sum(start=[]) }}",
    "lipsum": "{{ lipsum(10**7) }}",
    "batch": "{{ [1] | batch(10**10, 'x') | list }}",
    "strftime": "{{ strftime_now('%c' * 10**8) }}",
    "characters": GROW.replace("100", "23").replace("STEP", "{% set ns.x = ns.x ~ ns.x %}") + "{{ ns.x | list }}",
    "big template": "{{ 1 }}" * 10**5,
    "parentheses": "{{ " + "(" * 20000 + ")" * 20000 + " }}",
    "chain of +": "{{ 1" + "+1" * 20000 + " }}",
    "chain of filters": "{{ x" + "|upper" * 8000 + " }}",
    "many names": "".join(f"{{%set a{i}=1%}}" for i in range(1000)) + "{%if 1%}{%endif%}" * 500 + "{{ 1 / 0 }}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_quickly(name, monkeypatch):
    """Each ends in an error soon after its time, whatever holds Python's lock, and this process stays small."""
    monkeypatch.setattr("rocforge.text.chat.templates.SECONDS", 0.3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(ChatTemplateError):
        render(HOSTILE[name])
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_bounds_are_named(monkeypatch):
    """The error says what a template has: CPU time, memory, and room for its text."""
    monkeypatch.setattr("rocforge.text.chat.templates.SECONDS", 0.3)
    with pytest.raises(ChatTemplateError, match=r"took more than (0\.3 seconds of CPU time or 256 MB|1\.5 seconds)"):
        render(HOSTILE["nested loops"])
    for template in ("{{ 'a' * 10**10 }}", "{% set x = 10**10 %}{{ 'a' * x }}"):
        with pytest.raises(ChatTemplateError, match=r"took more than 256 MB of memory"):
            render(template)
    with pytest.raises(ChatTemplateError, match=r"returned more than 64 MB"):
        render("{{ messages[0] * 70 }}", messages=["a" * 10**6])


def test_renderings_do_not_see_each_other():
    """What a template changes, it changes for one conversation only."""
    templates = ChatTemplates({"tokenizer.chat_template": "{% set _ = dict.update(joiner.__dict__ or {}, a=1) %}"})
    with pytest.raises(ChatTemplateError):
        templates.render(messages=[])
    counted = (
        "{% macro f() %}{% endmacro %}{% set _ = dict.update(messages[0], n=messages[0].n + 1) %}{{ messages[0].n }}"
    )
    templates = ChatTemplates({"tokenizer.chat_template": counted})
    assert [templates.render(messages=[{"n": 1}]) for _ in range(3)] == ["2"] * 3


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__",
        "''.__class__.__mro__[1].__subclasses__()",
        "''['__class__']",
        "'' | attr('__class__')",
        "[''] | map(attribute='__class__') | list",
        "[''] | sort(attribute='__class__')",
        "'{0.__class__}'.format(1)",
        "'{0.__class__}'.format_map([1])",
        "raise_exception.__globals__",
        "strftime_now.__code__",
        "cycler.__init__.__globals__",
        "self.__init__",
        "messages.append(1)",
        "messages[0].update(a=1)",
        "messages[0].pop('role')",
        "nothing.__class__",
    ],
)
def test_templates_cannot_reach_for_attributes(expression):
    """Python's internals and methods that change what they are called on: an error, not an empty text."""
    with pytest.raises(ChatTemplateError):
        render("{{ " + expression + " }}")


@pytest.mark.parametrize("statement", ["{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% extends 'x' %}"])
def test_templates_cannot_load_files(statement):
    """There is no loader."""
    with pytest.raises(ChatTemplateError):
        render(statement)


def test_a_long_conversation():
    """A conversation of megabytes renders."""
    chat = [{"role": "user", "content": "x" * 200_000}] * 50
    assert len(render(CHATML, messages=chat)) > 10_000_000


def published(name):
    path = TEMPLATE_DIR / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"no {path}")
    return path.read_text()


def test_published_chatml():
    """Qwen2.5, with and without tools."""
    template = published("Qwen-Qwen2.5-7B-Instruct")
    text = render(template)
    assert text.startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
    assert text.endswith(
        "<|im_start|>user\nHi <b>é</b><|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in render(template, tools=[TOOL])


def test_published_gemma():
    """Gemma 2: exact, and it refuses a system turn in its own words."""
    template = published("google-gemma-2-2b-it")
    turns = "<start_of_turn>user\nHi <b>é</b><end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
    end = "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    assert render(template, bos_token="<bos>") == "<bos>" + turns + end
    with pytest.raises(ChatTemplateError, match="System role not supported"):
        render(template, messages=[{"role": "system", "content": "x"}, *CHAT])


def test_published_llama():
    """Llama 3.1: header, the date it is given, tools in the first user turn."""
    template = published("meta-llama-Llama-3.1-8B-Instruct")
    text = render(template, bos_token="<|begin_of_text|>", date_string="23 Nov 2026")
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 23 Nov 2026\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi <b>é</b><|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>user<|end_header_id|>"
        "\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert json.dumps(TOOL, indent=4) in render(template, tools=[TOOL])


def test_published_mistral():
    """Mistral Nemo: exact, tools before the last user turn, roles must alternate."""
    template = published("mistralai-Mistral-Nemo-Instruct-2407")
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    assert render(template, **tokens) == "<s>[INST]Hi <b>é</b>[/INST]Hello!</s>[INST]Bye[/INST]"
    assert "[AVAILABLE_TOOLS][" in render(template, tools=[TOOL], **tokens)
    with pytest.raises(ChatTemplateError, match="alternate"):
        render(template, messages=CHAT[1:], **tokens)
