"""benches/serving/client.py: what it reads of a stream, however the bytes come."""

import asyncio

import pytest
from serving.client import Connection, Endpoint
from serving.figures import Trace
from serving.load import Job

EVENTS = [
    b'{"choices":[{"text":"one","finish_reason":null}]}',
    b'{"choices": [{"text": " data: two", "finish_reason": null}]}',
    b'{"choices":[{"text":"","finish_reason":"length"}]}',
    b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}',
    b"[DONE]",
]


def chunked(*events):
    """A response in chunked transfer encoding, a chunk an event."""
    parts = [b"data: " + event + b"\n\n" for event in events]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


class Transport(asyncio.Transport):
    """Takes what is written, and does nothing."""

    def write(self, data):
        self.written = data

    def abort(self):
        pass


def read(pieces, cancel_after=None, lost=False):
    """The trace of a stream that comes in these pieces, and whether its connection can be used again."""

    async def stream():
        connection, trace = Connection(), Trace(0.0, 3)
        connection.connection_made(Transport())
        done = asyncio.ensure_future(connection.stream(b"request", trace, cancel_after))
        await asyncio.sleep(0)
        for piece in pieces:
            connection.data_received(piece)
        if lost:
            connection.connection_lost(None)
        return trace, await asyncio.wait_for(done, 1)

    return asyncio.run(stream())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10000])
def test_events(size):
    """Texts are arrivals, the usage says how many tokens they are, and the connection can be used again: also where
    the bytes come in pieces of any size."""
    data = chunked(*EVENTS)
    trace, reusable = read([data[i : i + size] for i in range(0, len(data), size)])
    assert (len(trace.arrivals), trace.tokens, trace.prompt_tokens) == (2, 5, 7)
    assert trace.arrivals[0] <= trace.arrivals[1] <= trace.finished and trace.error is None and reusable


def test_end_by_closing():
    """A server that ends its response by closing the connection."""
    trace, reusable = read([b"HTTP/1.1 200 OK\r\n\r\n", *(b"data: " + e + b"\n\n" for e in EVENTS)], lost=True)
    assert trace.finished and trace.error is None and not reusable


def test_leaving():
    """A client that leaves after the first text sees no more."""
    trace, reusable = read([chunked(*EVENTS)], cancel_after=1)
    assert trace.cancelled and len(trace.arrivals) == 1 and trace.finished and not reusable


def test_lost_connection():
    trace, reusable = read([chunked(*EVENTS)[:200]], lost=True)
    assert trace.error == "the connection was lost: closed by the server" and not reusable


def test_error_in_the_stream():
    trace, _ = read([chunked(EVENTS[0], b'{"error":{"message":"a step failed"}}')])
    assert "a step failed" in trace.error and len(trace.arrivals) == 1


@pytest.mark.parametrize("size", [9, 10000])
def test_refusal(size):
    """A response that is no stream is an error, with what it says."""
    data = b'HTTP/1.1 429 Too Many Requests\r\ncontent-length: 9\r\n\r\n{"a": "b"}'
    trace, reusable = read([data[i : i + size] for i in range(0, len(data), size)])
    assert trace.error.startswith("HTTP/1.1 429 Too Many Requests: {") and not reusable


def test_request():
    """Token ids or words, at the path of the URL, with a length that is right."""
    job = Job(5, 0.0, [1, 2, 3], 16, False, None)
    head, _, body = Endpoint("http://host:1/api", "name", 10, key="k").request(job).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/v1/completions HTTP/1.1\r\nHost: host:1\r\nAuthorization: Bearer k\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert b'"prompt": [1, 2, 3]' in body and b'"max_tokens": 16' in body and b'"ignore_eos": true' in body
    assert b'"prompt": "year people way"' in Endpoint("http://host", "name", 10, text=True).request(job)
    with pytest.raises(ValueError, match="the URL is https://host; allowed is http://HOST"):
        Endpoint("https://host", "name", 10).request(job)
