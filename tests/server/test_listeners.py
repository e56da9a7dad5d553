"""Where a server listens: at all addresses of a host, at a path, at a socket that it is given."""

import socket

import httpx
import pytest

from rocforge.server.listeners import listen, url_of


def addresses(several):
    return [(one.family, one.getsockname()[1]) for one in several]


def close(processes):
    for several in processes:
        for one in several:
            one.close()


@pytest.mark.parametrize("count", [1, 2])
def test_both_families(monkeypatch, count):
    """A host with two addresses is listened on at both, at one port, by all processes; the URL is IPv4's."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    found = [(family, socket.SOCK_STREAM, 6, "", (name, 0)) for family, name in
             ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1"))]  # fmt: skip
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    processes = listen("localhost", 0, None, None, count)
    monkeypatch.undo()
    try:
        port = processes[0][0].getsockname()[1]
        assert url_of(processes[0][0]) == f"http://127.0.0.1:{port}"
        if len(processes[0]) == 1:
            pytest.skip("this machine has no IPv6 address")
        assert [addresses(several) for several in processes] == [
            [(socket.AF_INET, port), (socket.AF_INET6, port)]
        ] * count
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), 5).close()
    finally:
        close(processes)


@pytest.mark.parametrize("count", [1, 2])
def test_in_use(count):
    """An address of another server is refused, and no socket is left open."""
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", other.getsockname()[1], None, None, count)


def test_a_host_of_another_machine():
    """The host is named."""
    with pytest.raises(OSError, match="host is 'no such host'"):
        listen("no such host", 0, None, None, 1)


def test_a_path(tmp_path):
    """Processes share a unix socket; that of a server which has died is replaced, another's and other files are not."""
    path = tmp_path / "server.sock"
    close(listen("", 0, path, None, 2))
    processes = listen("", 0, path, None, 2)
    try:
        assert url_of(processes[1][0]) == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            processes[1][0].accept()[0].close()
        with pytest.raises(OSError, match="in use"):
            listen("", 0, path, None, 1)
    finally:
        close(processes)
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(OSError, match="in use"):
        listen("", 0, file, None, 1)
    assert file.read_text() == "kept"


def test_an_inherited_socket():
    """That of whoever has started the process, which keeps it; what is no listening socket is named."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        processes = listen("", 0, None, given.fileno(), 2)
        assert url_of(processes[1][0]) == url_of(given)
        close(processes)
        with socket.create_connection(given.getsockname(), 5):
            given.accept()[0].close()
    with open("/dev/null") as file, pytest.raises(OSError, match=f"file descriptor {file.fileno()} is no socket"):
        listen("", 0, None, file.fileno(), 1)
    with socket.socket() as idle, pytest.raises(OSError, match="does not listen"):
        listen("", 0, None, idle.fileno(), 1)


def test_a_server_on_a_unix_socket(start, tmp_path):
    """Any host is answered there, since no browser is led to it by a name."""
    with start(listener=listen("", 0, tmp_path / "s", None, 1)[0][0]) as server:
        body = {"model": "small", "prompt": "a", "max_tokens": 1}
        assert server.post("/v1/completions", json=body).status_code == 200
        assert server.get("/health", headers={"Host": "other.example"}).status_code == 200


def test_under_a_path_of_a_proxy(start):
    """Requests come with the prefix or without it, also to what needs no key; the prefix alone leads to the page."""
    with start(root_path="/llm", api_key="secret") as server:
        key = {"Authorization": "Bearer secret"}
        for prefix in ("", "/llm"):
            assert server.get(f"{prefix}/health").status_code == server.get(f"{prefix}/").status_code == 200
            assert server.get(f"{prefix}/v1/models").status_code == 401
            assert server.get(f"{prefix}/v1/models", headers=key).json()["data"][0]["id"] == "small"
        assert server.get("/llm").headers["location"] == "/llm/"
        assert server.get("/llmx/health", headers=key).status_code == 404
        assert server.get("/openapi.json", headers=key).json()["servers"] == [{"url": "/llm"}]
        page = httpx.get(f"{server.url}/llm/", trust_env=False).text
        assert "'/v1" not in page and '"/v1' not in page and '"v1/chat/completions"' in page
