"""Hostile connections: each is refused or dropped in bounded time and memory, and the server serves the next one."""

import contextlib
import json
import re
import socket
import struct
import time

import pytest
from server.raw import HEAD, closes_within, connected, until_closed

pytestmark = pytest.mark.usefixtures("alive_afterwards")


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
