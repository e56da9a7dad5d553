"""Hostile clients: each is refused or dropped in bounded time and memory, and the server serves the next one."""

import builtins
import contextlib
import json
import logging
import os
import re
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_process import descendants

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def alive_afterwards(server):
    """Whatever a test sends, an honest request is served after it."""
    yield
    answer = server.post("/v1/completions", json={"model": "small", "prompt": "abc", "max_tokens": 2})
    assert answer.status_code == 200


@contextlib.contextmanager
def connected(server, receive_buffer=None):
    """A raw connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(20)
        connection.connect((host, int(port)))
        yield connection


def until_closed(connection):
    """All that the server sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            received += part
    return received


def closes_within(connection, seconds):
    """Whether the server closes the connection in that time."""
    start = time.monotonic()
    until_closed(connection)
    return time.monotonic() - start < seconds


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


def test_header_floods(server):
    """Headers beyond the limit, many or long, and request lines without end, close the connection."""
    for flood in (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(100_000)),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 1_000_000,
        b"GET /" + b"a" * 1_000_000,
    ):
        with connected(server) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(flood)
            answer = until_closed(connection)
            assert not answer or b" 400 " in answer or b" 431 " in answer


def test_slow_loris(start):
    """Clients that dribble headers, or open connections and say nothing, are dropped; others are served meanwhile."""
    with start(client_timeout=1.0) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(40)]
        begin = time.monotonic()
        for index, connection in enumerate(slow):
            if index % 2:
                connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert server.get("/health").status_code == 200
        alive = set(slow)
        while alive and time.monotonic() - begin < 15:
            for connection in list(alive):
                try:
                    connection.sendall(b"X: y\r\n" if slow.index(connection) % 2 else b"")
                    connection.settimeout(0.001)
                    if connection.recv(1000) == b"":
                        alive.discard(connection)
                except TimeoutError:
                    continue
                except ConnectionError:
                    alive.discard(connection)
        assert not alive
        assert 0.5 < time.monotonic() - begin < 15


def test_slow_headers_on_a_connection_that_is_kept(start):
    """After a served request the same limit holds for the next one on the connection."""
    with start(client_timeout=1.0) as server, connected(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in connection.recv(1 << 16)
        connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        assert closes_within(connection, 10)


def test_slow_bodies(start):
    """A body that does not arrive in time is answered with 408."""
    with start(client_timeout=1.0) as server, connected(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        begin = time.monotonic()
        assert b" 408 " in connection.recv(1 << 16)
        assert 0.5 < time.monotonic() - begin < 10


def test_clients_that_do_not_read(start):
    """A stream whose client does not read is ended, and its request cancelled."""
    with start(client_timeout=1.0) as server, connected(server, receive_buffer=4096) as connection:
        body = json.dumps(
            {"model": "small", "prompt": "a", "max_tokens": 2000, "n": 8, "stream": True, "logprobs": 20,
             "ignore_eos": True}
        ).encode()  # fmt: skip
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        deadline = time.monotonic() + 60
        while not server.get("/v1/requests").json()["data"]:
            time.sleep(0.05)
        while server.service.in_flight and time.monotonic() < deadline:
            time.sleep(0.05)
        states = [job["status"] for job in server.get("/v1/requests").json()["data"]]
        assert states == ["cancelled"]


LARGE = {"model_name": "m" * 400_000}
"""Settings with which GET /v1/models has a large answer: more than the buffers of a connection hold."""
GET_LARGE = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


def test_clients_that_read_slowly(start):
    """Who reads some of an answer again and again gets all of it, however long that takes."""
    with start(client_timeout=1.0, **LARGE) as server, connected(server, receive_buffer=1 << 14) as connection:
        connection.sendall(GET_LARGE + b"\r\n")
        answer, begin = connection.recv(1), time.monotonic()
        while part := connection.recv(1 << 13):  # the server closes what is kept open when all has been read
            answer += part
            time.sleep(0.05)
        assert time.monotonic() - begin > 1.5
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert len(rest) == int(re.search(rb"content-length: (\d+)", head)[1]) > 400_000


def test_idle_connections_give_way(start):
    """One more than allowed takes the place of the one that has been idle longest, so that an honest one is served."""
    with start(max_connections=20) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(server)) for _ in range(60)]
        for path in ("/health", "/v1/models"):
            assert server.get(path).status_code == 200
        assert closes_within(idle[0], 5)
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b" 200 " in until_closed(idle[-1])


def test_unread_answers_give_way(start):
    """So do connections that are to be closed once their answer has been read, which it is not."""
    with start(max_connections=4, **LARGE) as server, contextlib.ExitStack() as stack:
        for _ in range(30):
            unread = stack.enter_context(connected(server, receive_buffer=4096))
            unread.sendall(GET_LARGE + b"Connection: close\r\n\r\n")
            assert unread.recv(1) == b"H"
        assert server.get("/health").status_code == server.get("/v1/models").status_code == 200


def test_more_requests_than_allowed(start):
    """With as many in progress as may be, more are refused at once, but for the probes; later all are served again."""
    with start(max_connections=20) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                slow = stack.enter_context(connected(server))
                slow.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
            deadline = time.monotonic() + 10
            while server.get("/v1/models").status_code != 503 and time.monotonic() < deadline:
                time.sleep(0.01)
            refused = server.get("/v1/models")
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "too_many_requests"
            assert refused.headers["connection"] == "close"
            assert server.get("/health").status_code == server.get("/ready").status_code == 200
        deadline = time.monotonic() + 10
        while server.get("/v1/models").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def faults(server):
    """What the server logs with a traceback meanwhile."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record) if record.exc_info else None
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", "rocforge.server")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


SMUGGLED = b"GET /v1/models/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
FRAMING = {
    "both lengths": HEAD + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "both lengths, otherwise": HEAD + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "both lengths of a GET": HEAD.replace(b"POST", b"GET") + b"Content-Length: 0\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 0\r\nContent-Length: 1\r\n\r\n",
    "a signed length": HEAD + b"Content-Length: +0\r\n\r\n",
    "a space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "two codings": HEAD + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "no chunk": HEAD + CHUNKED + b"\r\nx\r\n\r\n",
    "a chunk of another length": HEAD + CHUNKED + b"\r\n1\r\nab\r\n0\r\n\r\n",
    "no chunk, after the answer": b"POST /health HTTP/1.1\r\nHost: localhost\r\n" + CHUNKED + b"\r\n1\r\nab\r\n",
    "chunks in HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "a later version": b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("sent", FRAMING.values(), ids=FRAMING)
def test_doubtful_framing(server, faults, sent):
    """Where it is not certain what a request is, the connection is closed, and what follows is no request."""
    with connected(server) as connection:
        connection.sendall(sent + SMUGGLED)
        answer = until_closed(connection)
    assert b"smuggled" not in answer
    assert not answer or re.match(rb"HTTP/1.1 (400|405|505) ", answer)
    assert not faults


@pytest.mark.parametrize("path", [b"/tokenize", b"/health"])
def test_bodies_of_many_pieces(server, faults, path):
    """A byte in a chunk of its own costs far more than its share: few are taken, read or not."""
    head = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + CHUNKED
    for count, last in ((8192, b"0\r\n\r\n"), (8193, b"")):
        with connected(server) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(head + (b"" if last == b"" else b"Connection: close\r\n") + b"\r\n")
            connection.sendall(b"1\r\nx\r\n" * count + last)
            answer = until_closed(connection)
            assert re.match(rb"HTTP/1.1 40[05] ", answer)
    assert not faults


def test_heads_of_any_size(server):
    """The limit holds whether a head comes in one piece or not."""
    for lines, status in ((20, b"200"), (40, b"431")):
        with connected(server) as connection:
            head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            connection.sendall(head + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 1000) for i in range(lines)) + b"\r\n")
            assert until_closed(connection).startswith(b"HTTP/1.1 " + status)


def test_methods(server):
    """HEAD wherever there is GET, and 405 names what may be asked (RFC 9110, 9.3.2 and 15.5.6)."""
    for path in ("/", "/health", "/ready", "/metrics", "/v1/models", "/v1/models/small", "/v1/requests"):
        head = server.client.head(path)
        assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 0
    assert server.client.head("/v1/models/other").status_code == 404
    for method, path, allowed in (
        ("HEAD", "/v1/completions", "POST"),
        ("OPTIONS", "/health", "GET, HEAD"),
        ("PUT", "/v1/requests/x", "DELETE, GET, HEAD"),
    ):
        refused = server.client.request(method, path)
        assert refused.status_code == 405 and refused.headers["allow"] == allowed


def test_expectations(start):
    """A body is asked for where it is wanted, and not where the request is refused before."""
    with start(api_key="secret") as server:
        for key, begins in ((b"secret", b"HTTP/1.1 100 "), (b"wrong", b"HTTP/1.1 401 ")):
            with connected(server) as connection:
                head = HEAD + b"Authorization: Bearer " + key + b"\r\nExpect: 100-continue\r\n"
                connection.sendall(head + b"Content-Length: 2\r\n\r\n")
                assert connection.recv(1 << 16).startswith(begins)


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


def test_clients_that_leave(server, faults):
    """At any point: in the head, in the body, before the answer, in a stream; nothing is logged as a fault."""
    body = json.dumps({"model": "small", "prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True}).encode()
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    reset = struct.pack("ii", 1, 0)
    for sent in (b"", HEAD, whole[:-1], whole, whole.replace(b"true}", b"null}")):
        for hard in (False, True):
            with connected(server) as connection:
                connection.sendall(sent)
                if sent is whole:
                    assert connection.recv(1 << 16)
                if hard:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    deadline = time.monotonic() + 20
    while server.service.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not faults and server.service.in_flight == 0
