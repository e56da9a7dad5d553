"""Connections without a client's library, and what a server does with them."""

import contextlib
import socket
import time

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


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
