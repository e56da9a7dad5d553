"""The chat page, and its Content-Security-Policy: its own script and style only."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.responses import HTMLResponse

_FILE = Path(__file__).with_name("page.html")


def page() -> HTMLResponse:
    """The page with its headers."""
    headers = {
        "Content-Security-Policy": policy(),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(_text(), headers=headers)


@functools.cache
def policy() -> str:
    """The Content-Security-Policy: script and style by their digests, so that no injected script runs.

    Source: https://www.w3.org/TR/CSP3/
    """
    sources = {f"{tag}-src": f"'sha256-{_digest(tag)}'" for tag in ("script", "style")}
    sources |= {"connect-src": "'self'", "img-src": "data:"}
    sources |= dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    return "; ".join(f"{name} {value}" for name, value in sources.items())


@functools.cache
def _text() -> str:
    return _FILE.read_text(encoding="utf-8")


def _digest(tag: str) -> str:
    """SHA-256, in base64, of what the page's one element of that name holds."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", _text(), re.DOTALL)
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
