"""The chat page: one document of the files in static/, and its Content-Security-Policy: no other script or style."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.responses import HTMLResponse

_FILES = Path(__file__).with_name("static")
_STYLE = re.compile(r'<link rel="stylesheet" href="([\w./-]+)">')
_SCRIPT = re.compile(r'<script src="([\w./-]+)"></script>')


def page() -> HTMLResponse:
    """The page with its headers."""
    headers = {
        "Content-Security-Policy": policy(),
        "X-Content-Type-Options": "nosniff",
        "X-DNS-Prefetch-Control": "off",  # no look-up of names in links that a model has written
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(document(), headers=headers)


@functools.cache
def document() -> str:
    """page.html with its styles and scripts in it: one request, under whatever path a proxy serves it."""
    html = _STYLE.sub(lambda match: f"<style>{_text(match[1])}</style>", _text("page.html"))
    return _SCRIPT.sub(lambda match: f"<script>{_escaped(_text(match[1]))}</script>", html)


@functools.cache
def policy() -> str:
    """The Content-Security-Policy: scripts and styles by their digests, so that no injected one runs or is loaded.

    Text becomes elements through DOMPurify's Trusted Types policy only, where the browser knows them.

    Sources: https://www.w3.org/TR/CSP3/ and https://www.w3.org/TR/trusted-types/
    """
    sources = {f"{tag}-src": _digests(tag) for tag in ("script", "style")}
    sources |= {"connect-src": "'self'", "img-src": "data:"}
    sources |= {"require-trusted-types-for": "'script'", "trusted-types": "dompurify"}
    sources |= dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    return "; ".join(f"{name} {value}" for name, value in sources.items())


def _text(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _escaped(script: str) -> str:
    """A script without what an HTML parser takes for marks; these stand in strings and regular expressions only.

    Source: https://html.spec.whatwg.org/multipage/scripting.html#restrictions-for-contents-of-script-elements
    """
    return re.sub(r"<(?=!--|/?script)", r"\\x3C", script, flags=re.IGNORECASE)


def _digests(tag: str) -> str:
    """SHA-256, in base64, of what each of the document's elements of that name holds."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", document(), re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
