"""Hosts: which names a server answers for, in Host and in URLs as targets."""

import anyio
import pytest

from rocforge.server.hosts import Hosts

LOOPBACK, NETWORK = "127.0.0.1", "192.168.1.5"


def ask(host, allowed=(), local=LOOPBACK, target="/health"):
    """The status that a request gets, and the scope that goes on: path and Host."""
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append((scope["path"], dict(scope["headers"]).get(b"host")))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    headers = [] if host is None else [(b"host", host.encode("latin-1"))]
    scope = {"type": "http", "method": "GET", "server": (local, 8000), "headers": headers}
    scope |= {"path": target, "raw_path": target.encode()}
    anyio.run(Hosts(app, allowed), scope, None, send)
    return sent[0]["status"], reached


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LocalHost.:1", "127.0.0.1", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000",
     "[0:0::1]", None],
)  # fmt: skip
def test_this_machine(host):
    """Its own names need no option; HTTP/1.0 without a Host comes from no browser."""
    assert ask(host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost", "127.1",
     "2130706433", "0x7f000001", "8.8.8.8", "[2001:db8::1]", "127.0.0.1%2e", "a.localhost"],
)  # fmt: skip
def test_other_hosts_are_misdirected(host):
    """Names that may be rebound are refused, however they resemble this machine's."""
    assert ask(host) == (421, [])
    assert ask(host, allowed=["example.com", "*.example.net"])[0] == 421


@pytest.mark.parametrize(
    "host",
    ["", ":80", "a b", "u@localhost", "localhost/", "localhost:x", "localhost:80:80", "[::1", "::1", "localhost, evil",
     "localhost:123456", "ä", "[", "localhost#", "localhost?x"],
)  # fmt: skip
def test_no_hosts(host):
    """What is no host and port is a fault (RFC 9112, 3.2)."""
    assert ask(host) == (400, [])


def test_allowed_hosts():
    """Names and addresses that are named, all below a name, and everything."""
    assert ask("Example.com:8000", ["example.COM"])[0] == 200
    assert ask("a.b.example.net", ["*.example.net"])[0] == 200
    assert ask("example.net", ["*.example.net"])[0] == 421
    assert ask("evilexample.net", ["*.example.net"])[0] == 421
    assert ask("8.8.8.8", ["8.8.8.8"])[0] == 200
    assert ask("[2001:DB8:0::1]", ["2001:db8::1"])[0] == 200
    assert ask("evil.example", ["*"])[0] == 200
    assert ask("a b", ["*"])[0] == 400


def test_from_other_machines():
    """An address cannot be rebound; a name can."""
    assert ask("192.168.1.5:8000", local=NETWORK)[0] == 200
    assert ask("[fe80::1]", local="fe80::1%eth0")[0] == 200
    assert ask("evil.example", local=NETWORK)[0] == 421


def test_urls_as_targets():
    """The URL's host counts, whatever Host says (RFC 9112, 3.2.2), and the path goes on."""
    assert ask("evil.example", target="http://localhost:8000/a%20b") == (200, [("/a b", b"localhost:8000")])
    assert ask("localhost", target="HTTP://localhost") == (200, [("/", b"localhost")])
    assert ask("localhost", target="http://evil.example/health")[0] == 421
    for target in ("http:///health", "http://u@localhost/", "ftp://localhost/", "localhost:80", "*"):
        assert ask("localhost", target=target)[0] == 400
