"""Hosts: an ASGI middleware that refuses unknown Host headers.

It prevents DNS rebinding: a web page whose name resolves to this machine could otherwise read from a server that
listens on a loopback address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rocforge.server.errors import APIError

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(:[0-9]{0,5})?")
"""Source: RFC 3986, 3.2.2, as RFC 9110, 7.2 refers to it."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Hosts:
    """Refuses requests for other hosts with 421, and invalid Host headers with 400.

    Allowed are `localhost` and loopback addresses; on connections from other machines every address, since an address
    cannot be rebound; and `allowed`. Unix sockets take all.

    Args:
        app: what comes next.
        allowed: further names and addresses; "*.example.com" for all names below one, "*" for everything.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str] = ()):
        self.app = app
        self.allowed = {"localhost", *map(_normal, allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope = _origin_form(scope)
            self._check(scope)
        except APIError as error:
            return await error.response(scope["path"])(scope, receive, send)
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        host = Headers(scope=scope).get("host")
        if host is None:  # HTTP/1.0, which no browser speaks; h11 wants one in HTTP/1.1
            return
        address, port = scope["server"] or ("", None)
        if port is None:  # a unix socket, to which no name leads a browser
            return
        match = _HOST.fullmatch(host)
        if match is None:
            raise APIError(f"Host is {host[:200]!r}; allowed is host[:port]")
        name = _normal(match["name"])
        if not self._allows(name, local=_address(address)):
            message = f"host {name[:200]!r} is not in the server's --allowed-hosts"
            raise APIError(message, 421, code="unknown_host")

    def _allows(self, name: str, local: Address | None) -> bool:
        """`local` is the address of this end of the connection."""
        if "*" in self.allowed or name in self.allowed:
            return True
        if any(pattern.startswith("*.") and name.endswith(pattern[1:]) for pattern in self.allowed):
            return True
        address = _address(name)
        from_outside = local is not None and not local.is_loopback
        return address is not None and (address.is_loopback or from_outside)


def _origin_form(scope: Scope) -> Scope:
    """The request with a path as its target. Where that is a URL its host counts, and not Host (RFC 9112, 3.2.2)."""
    target = scope["raw_path"].decode("ascii")
    if target.startswith("/"):
        return scope
    match = re.fullmatch(r"https?://(?P<host>[^/]*)(?P<path>/.*)?", target, re.IGNORECASE)
    if match is None:
        raise APIError(f"the request target is {target[:200]!r}; allowed are paths and http(s) URLs")
    path = match["path"] or "/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    headers.append((b"host", match["host"].encode()))
    return {**scope, "path": unquote(path), "raw_path": path.encode(), "headers": headers}


def _normal(host: str) -> str:
    """A name in lower case without the root's dot, an address as Python writes it."""
    name = host.strip("[]").lower().removesuffix(".")
    return str(_address(name) or name)


def _address(name: str) -> Address | None:
    try:
        address = ipaddress.ip_address(name)
        return getattr(address, "ipv4_mapped", None) or address  # as a socket of both families has it
    except ValueError:
        return None
