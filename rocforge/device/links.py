"""Links: connections between the processes of a group, whose two ends have shown that they know the same key.

They are those of multiprocessing.connection, over TCP. What arrives is unpickled, since who sends it knows the key;
nothing is encrypted. A machine that does not answer for a while counts as gone, and so do both ends of what it had.

Source of the challenges: multiprocessing, https://docs.python.org/3/library/multiprocessing.html#authentication-keys.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

Address = tuple[str, int]
PATIENCE = 10
"""Seconds that the other end has to be there, and a door waits for each word until it knows who it is."""
STRANGERS = 6
"""So many may be at a door before one who knows the key, who waits until they have been turned away."""
SILENCE = 20
"""Seconds without a sign of the other machine after which it is gone."""


class Door:
    """Where others connect to this process.

    Args:
        host: an address of this machine.
        key: what they have to know.

    Attributes:
        address: for `connect`.
    """

    def __init__(self, host: str, key: bytes):
        self._socket = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._key = key
        self.address: Address = self._socket.getsockname()[:2]

    def accept(self) -> Connection:
        """A link to the next that knows the key; waits for it, and turns others away."""
        while True:
            found, _ = self._socket.accept()
            with contextlib.suppress(AuthenticationError, EOFError, OSError):
                return _link(found, self._key, PATIENCE, deliver_challenge, answer_challenge)

    def close(self) -> None:
        """Take no more; links that there are stay."""
        self._socket.close()


def connect(address: Address, key: bytes) -> Connection:
    """A link to a door.

    Raises:
        ConnectionError: there is none, or it has another key.
    """
    try:
        found = socket.create_connection(address, PATIENCE)
        return _link(found, key, (1 + STRANGERS) * PATIENCE, answer_challenge, deliver_challenge)
    except (AssertionError, AuthenticationError, EOFError, OSError) as error:  # the first before Python 3.12
        host, port = address
        raise ConnectionError(f"no connection to {host}, port {port}: {error or type(error).__name__}") from error


def _link(
    found: socket.socket, key: bytes, patience: int, *challenges: Callable[[Connection, bytes], None]
) -> Connection:
    with found:
        found.setblocking(True)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_NODELAY, 1),
            (socket.TCP_KEEPIDLE, 5),
            (socket.TCP_KEEPINTVL, 5),
            (socket.TCP_USER_TIMEOUT, SILENCE * 1000),
        ):
            found.setsockopt(socket.IPPROTO_TCP, option, value)
        link = Connection(os.dup(found.fileno()))
        _set_patience(found, patience)
        try:
            for challenge in challenges:
                challenge(link, key)
        except BaseException:
            link.close()
            raise
        _set_patience(found, 0)
    return link


def _set_patience(found: socket.socket, seconds: int) -> None:
    """Let receiving fail after so many seconds; 0: never."""
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


def wait_until_gone(link: Connection) -> None:
    """Wait until the other end of a link, or of a pipe, has been closed, or this one has been hung up."""
    waiting = select.poll()
    waiting.register(link.fileno(), select.POLLRDHUP)
    waiting.poll()


def hang_up(link: Connection) -> None:
    """End a link, or a pipe, for both ends and all processes that have them."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(link.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)
    link.close()
