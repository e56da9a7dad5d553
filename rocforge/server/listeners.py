"""The sockets that a server listens on: of a host and port, of a path, or inherited."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence

BACKLOG = 1024
"""Connections that the kernel queues until they are accepted."""


def listen(
    host: str, port: int, uds: str | os.PathLike[str] | None, fd: int | None, count: int
) -> list[list[socket.socket]]:
    """The sockets of each of `count` processes, among which the kernel divides connections.

    A host that has an IPv4 and an IPv6 address, such as localhost, is listened on at both.

    Raises:
        OSError: an address is in use, or none of this machine's; `fd` is no listening socket.
    """
    if fd is not None:
        return _shared(_inherited(fd), count)
    if uds is not None:
        return _shared(_unix(os.fspath(uds)), count)
    first = _tcp(_addresses(host), port)
    if count == 1:
        return [first]
    addresses = [(one.family, one.getsockname()[0]) for one in first]
    port = first[0].getsockname()[1]
    for one in first:  # which has found out that nobody else listens there
        one.close()
    return [_tcp(addresses, port, reuse_port=True) for _ in range(count)]


def listen_for_front_ends() -> socket.socket:
    """At an abstract address of the kernel's choice: no file is left of it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")
    listener.listen(BACKLOG)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where clients reach it: "http://127.0.0.1:8000", or "unix:/path" for a unix socket."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    return http_url(*listener.getsockname()[:2])


def http_url(host: str, port: int) -> str:
    """Of a host's name or address: "http://[::1]:8000"."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _addresses(host: str) -> Sequence[tuple[int, str]]:
    """Family and address of a host, IPv4 first."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(f"host is {host!r}, which is no address of this machine: {error.strerror}") from error
    addresses = dict.fromkeys((int(family), str(address[0])) for family, _, _, _, address in found)
    return sorted(addresses, key=lambda address: address[0] == socket.AF_INET6)


def _tcp(addresses: Sequence[tuple[int, str]], port: int, reuse_port: bool = False) -> list[socket.socket]:
    """A socket for each address, all at one port; IPv6 is left out where the machine has none beside IPv4."""
    found: list[socket.socket] = []
    for family, address in addresses:
        dual = address == "::" and len(addresses) == 1 and socket.has_dualstack_ipv6()
        try:
            found.append(
                socket.create_server(
                    (address, port), family=family, backlog=BACKLOG, reuse_port=reuse_port, dualstack_ipv6=dual
                )
            )
        except OSError as error:
            if found and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            for one in found:
                one.close()
            reason = os.strerror(error.errno) if error.errno else error
            raise OSError(error.errno, f"cannot listen on {address}, port {port}: {reason}") from error
        port = found[0].getsockname()[1]
    return found


def _unix(path: str) -> socket.socket:
    """A socket at a path, in place of one at which nobody listens any more."""
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode) and not _answers(path):
            os.unlink(path)
    try:
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {path}: {error.strerror}") from error
    listener.listen(BACKLOG)
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def _inherited(fd: int) -> socket.socket:
    """The socket of a descriptor that whoever started the process has opened, as systemd does."""
    try:
        listener = socket.socket(fileno=os.dup(fd))
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise OSError(f"file descriptor {fd} is no socket: {error.strerror}") from error
    if not listens:
        listener.close()
        raise OSError(f"file descriptor {fd} is a socket that does not listen")
    return listener


def _shared(listener: socket.socket, count: int) -> list[list[socket.socket]]:
    """One socket for all processes: each accepts what it can."""
    return [[listener], *([listener.dup()] for _ in range(count - 1))]
