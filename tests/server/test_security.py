"""Hostile requests: each is refused in bounded time and memory, reaches no file and is no code; the next is served."""

import builtins
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from server.raw import HEAD, closes_within, connected, until_closed
from server_process import descendants

pytestmark = pytest.mark.usefixtures("alive_afterwards")


@pytest.mark.parametrize(
    "name",
    ["../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "small/x", "hf:a/b", "\0", "small\n", "\ud800"],
)
def test_model_names_reach_no_file(server, name, monkeypatch):
    """A name that is not the served model's is not found, in body or URL, and no file is opened for it."""
    opened = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: (opened.append(file), real(file, *a, **k))[1])
    real_os = os.open
    monkeypatch.setattr(os, "open", lambda file, *a, **k: (opened.append(file), real_os(file, *a, **k))[1])
    body = json.dumps({"model": name, "prompt": "a"})
    answer = server.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404) and answer.json()["error"]["type"] == "invalid_request_error"
    if "\0" not in name and "\n" not in name and "\ud800" not in name:
        assert server.get(f"/v1/models/{name}").status_code == 404
    assert not [file for file in opened if "passwd" in str(file) or "gguf" in str(file)]


def test_paths_reach_no_file(server):
    """Neither do paths, encoded or not."""
    for path in (b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/page.html/../../settings.py", b"//etc/passwd"):
        with connected(server) as connection:
            connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 404") and b"root:" not in answer


INJECTIONS = [
    "{{ 7 * 7 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('x') }}",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_template_code_in_messages_is_text(server, text):
    """What clients write is not run as a template, wherever they write it: the prompt holds it as it is."""
    plain = [{"role": "user", "content": "a"}]
    count = server.post("/tokenize", json={"content": text}).json()["count"]

    def tokens(messages, **options):
        body = {"model": "small", "messages": messages, "max_tokens": 1, **options}
        answer = server.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["prompt_tokens"]

    difference = tokens([{"role": "user", "content": text}]) - tokens(plain)
    assert abs(difference - count) <= 4, "as many tokens as the text has, up to merges at its ends"
    assert tokens(plain, chat_template_kwargs={"name": text}) == tokens(plain)
    tool = {"type": "function", "function": {"name": "f", "description": text}}
    assert tokens(plain, tools=[tool]) - tokens(plain) >= count


def test_templates_cannot_be_sent(server):
    """A client cannot bring its own template or variables that stand for the conversation."""
    messages = [{"role": "user", "content": "a"}]
    for kwargs in ({"chat_template": "x"}, {"messages": []}, {"tokenize": True}, {"tools": []}):
        body = {"model": "small", "messages": messages, "chat_template_kwargs": kwargs}
        assert server.post("/v1/chat/completions", json=body).status_code == 400
    body = {"model": "small", "messages": messages, "chat_template": "x"}
    assert server.post("/v1/chat/completions", json=body).json()["error"]["code"] == "unknown_parameter"


def test_control_tokens_in_messages_are_text(server):
    """A client that writes a control token's text in a message gets that text, not a turn of its own making."""
    tokenizer = server.service.tokenizer
    body = {"model": "small", "max_tokens": 1}
    usage = [
        server.post("/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": text}]}).json()
        for text in ("<|user|>", "x")
    ]
    spelled = len(tokenizer.encode("<|user|>", parse_special_tokens=False))
    assert usage[0]["usage"]["prompt_tokens"] - usage[1]["usage"]["prompt_tokens"] >= spelled - 3


def test_oversized_bodies(server, start):
    """A body over the limit is refused, whether its length is declared, is a lie, or is not given."""
    with start(max_body_bytes=10_000) as small:
        body = json.dumps({"model": "small", "prompt": "a" * 20_000}).encode()
        small.client.headers["Content-Type"] = "application/json"
        declared = small.post("/v1/completions", content=body)
        assert declared.status_code == 413 and "10000 bytes" in declared.json()["error"]["message"]
        assert small.post("/v1/completions", content=iter([body[:8000], body[8000:]])).status_code == 413
        with connected(small) as connection:
            connection.sendall(HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n")
            assert b" 413 " in connection.recv(100) or closes_within(connection, 10)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("depth", [100, 100_000])
def test_nested_json(server, opening, depth):
    """Nesting beyond any honest request is refused before a parser recurses on it."""
    for text in (opening * depth, '{"model": "small", "prompt": ' + opening * depth):
        answer = server.post("/v1/completions", content=text, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and "levels deep" in answer.json()["error"]["message"]


def test_brackets_in_text_are_no_nesting(server):
    """Brackets inside strings, also after escaped quotes, do not count."""
    body = {"model": "small", "prompt": '\\"[[' * 100, "max_tokens": 1}
    assert server.post("/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"\xff\xfe", b'{"model": "small", "prompt": NaN}', b'{"a": 1e999}', b"null", b"[]", b'"x"',
     b'{"model": "small", "prompt": "a", "seed": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_broken_json(server, content):
    """What is no JSON, or no object, is the client's error."""
    answer = server.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_lone_surrogates(server):
    """Text that is not Unicode comes back in answers and errors without breaking them."""
    for body in (b'{"model": "\\ud800", "prompt": "a"}', b'{"model": "small", "prompt": "\\ud800", "max_tokens": 1}',
                 b'{"model": "small", "prompt": "a", "stop": "\\ud800", "max_tokens": 1}',
                 b'{"model": "small", "prompt": "a", "\\ud800": 1}'):  # fmt: skip
        answer = server.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 404), answer.text
        answer.json()


def test_expensive_grammars(server):
    """Patterns and schemas that explode are refused, or fail their own request."""
    for extra in (
        {"regex": "((a{1,1000}){1,1000}){1,1000}"},
        {"regex": "(" * 3000 + ")" * 3000},
        {"grammar": "start: start start | start"},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://localhost/x"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string", "maxLength": 10**9}}}},
    ):
        start = time.monotonic()
        answer = server.post("/v1/completions", json={"model": "small", "prompt": "a", "max_tokens": 4, **extra})
        assert answer.status_code in (200, 400), answer.text
        assert time.monotonic() - start < 20


MULTIPLES = {"type": "json_schema", "json_schema": {"schema": {"type": "integer", "multipleOf": 99999989}}}


def test_compilation_holds_nobody_up(server, monkeypatch):
    """While endless schemas are compiled, others are served; each is refused in the end, or its time is over."""
    monkeypatch.setattr("rocforge.text.grammar.COMPILE_SECONDS", 0.5)
    body = {"model": "small", "prompt": "a", "max_tokens": 4}

    def ask(timeout):
        return server.post("/v1/completions", json={**body, "response_format": MULTIPLES, "timeout": timeout})

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, timeout) for timeout in [60] * 4 + [0.3] * 4]
        time.sleep(0.2)
        for path in ("/health", "/v1/models"):
            start = time.monotonic()
            assert server.get(path).status_code == 200
            assert time.monotonic() - start < 2
        assert server.post("/v1/completions", json=body).status_code == 200
        answers = [answer.result() for answer in answers]
    assert [answer.status_code for answer in answers] == [400] * 4 + [504] * 4
    error = answers[0].json()["error"]
    assert error["code"] == "invalid_grammar" and "too complex" in error["message"]
    assert server.post("/v1/completions", json={**body, "regex": "[a-z]{3}"}).status_code == 200


def test_grammars_leave_no_process(server, monkeypatch):
    """Each text's process ends with the text, however that ends; at most so many are written at a time."""

    def ended():
        deadline = time.monotonic() + 10
        while descendants(os.getpid()) - before and time.monotonic() < deadline:
            time.sleep(0.02)
        return not descendants(os.getpid()) - before

    body = {"model": "small", "prompt": "a", "max_tokens": 4, "regex": "[a-z]+", "n": 3}
    assert server.post("/v1/completions", json=body).status_code == 200
    before = descendants(os.getpid())
    for more in ({}, {"stream": True}, {"regex": "[a-z]{2}"}, {"max_tokens": 10**6}, {"timeout": 0.001}):
        assert server.post("/v1/completions", json={**body, **more}).status_code in (200, 400, 504)
    assert ended()  # those of the request whose time was over while its grammar was compiled, too
    monkeypatch.setattr("rocforge.server.grammars.MAX_GRAMMARS", 2)
    answer = server.post("/v1/completions", json=body)
    assert answer.status_code == 429 and "2 texts" in answer.json()["error"]["message"]
    deadline = time.monotonic() + 10  # a text's place is free a little after its process has ended
    while (status := server.post("/v1/completions", json={**body, "n": 2}).status_code) == 429:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert status == 200 and ended()


TEMPLATES = {
    "memory": "{% set x = 10**10 %}{{ 'a' * x }}",
    "time": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "lock": "{% set ns = namespace(d={}, e={}) %}{% set x = ns.d %}{% set y = ns.e %}{% for i in range(38) %}"
    "{% set c = {} %}{% set f = {} %}{% set _ = dict.update(ns.d, {'a': c, 'b': c}) %}"
    "{% set _ = dict.update(ns.e, {'a': f, 'b': f}) %}{% set ns.d = c %}{% set ns.e = f %}{% endfor %}{{ x == y }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template_holds_nobody_up(start, monkeypatch, name):
    """A chat under it is refused in the end, and others are served meanwhile."""
    monkeypatch.setattr("rocforge.text.chat.templates.SECONDS", 0.5)
    with start(chat_template=TEMPLATES[name]) as server, ThreadPoolExecutor(1) as pool:
        chat = {"model": "small", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        answer = pool.submit(server.post, "/v1/chat/completions", json=chat)
        time.sleep(0.1)
        begin = time.monotonic()
        assert server.get("/health").status_code == 200
        assert (
            server.post("/v1/completions", json={"model": "small", "prompt": "a", "max_tokens": 1}).status_code == 200
        )
        assert time.monotonic() - begin < 2
        assert answer.result().status_code == 400
        error = answer.result().json()["error"]
        assert error["code"] == "chat_template_error" and "took more than" in error["message"]


def test_other_media_types(server):
    """What a page of another origin can send without asking first is not taken; a program may leave the type out."""
    body = json.dumps({"content": "a"})
    for type in ("text/plain", "text/plain; application/json", "application/x-www-form-urlencoded"):
        assert server.post("/tokenize", content=body, headers={"Content-Type": type}).status_code == 415
    assert server.post("/tokenize", content=body, headers={"Origin": "null"}).status_code == 415
    assert server.post("/tokenize", content=body).status_code == 200
    for type in ("application/json; charset=utf-8", "Application/JSON"):
        assert server.post("/tokenize", content=body, headers={"Content-Type": type}).status_code == 200


def test_names_of_python(server):
    """Variables for the template may be called as Python's arguments and attributes are."""
    messages = [{"role": "user", "content": "a", "self": 1, "model_fields": 1}]
    for name in ("self", "func", "template", "args", "kwargs", "context", "cls", "keywords", "__class__", "", "a b"):
        body = {"model": "small", "messages": messages, "max_tokens": 1, "chat_template_kwargs": {name: 1}}
        assert server.post("/v1/chat/completions", json=body).status_code == 200, name


@pytest.mark.parametrize("arguments", ["[" * 100_000, "[" * 900 + "]" * 900, "NaN", "", "9" * 5000, '"\\ud800"'])
def test_arguments_of_calls(server, arguments):
    """Whatever a model wrote for arguments, JSON or not, is text of the history."""
    call = {"function": {"name": "f", "arguments": arguments}}
    body = {"model": "small", "messages": [{"role": "assistant", "tool_calls": [call]}], "max_tokens": 1}
    answer = server.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200 or answer.json()["error"]["code"] == "context_length_exceeded"


def test_errors_are_short(server):
    """A client does not get back all it sent."""
    for body in (
        {"k" * 100_000: 1},
        {"prompt": "a", "logit_bias": {"k" * 100_000: 1}},
        {"prompt": "a", "stop": "k" * 100_000},
    ):
        answer = server.post("/v1/completions", json={"model": "small", **body})
        assert answer.status_code == 400 and len(answer.content) < 5000
