"""`rocforge status` and `rocforge cancel`: ask a running server."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from rocforge.cli.errors import UnreachableError, UsageError
from rocforge.cli.options import Json
from rocforge.cli.output import note, table, write_json
from rocforge.errors import RocforgeError

_SECONDS = 10.0
_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: \d+)?$")

Id = Annotated[str, typer.Argument(metavar="ID", help="Request id, as in the server's replies.")]
Url = Annotated[str, typer.Option(envvar="ROCFORGE_URL", help="The server's URL.")]
Key = Annotated[
    str | None, typer.Option("--api-key", envvar="ROCFORGE_API_KEY", help="The server's API key.", show_default=False)
]
LOCAL = "http://127.0.0.1:8000"


def status(
    request: Annotated[str | None, typer.Argument(metavar="ID", help="Request id; default: the server itself.")] = None,
    url: Url = LOCAL,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Show the status of a running server, or of a request."""
    if request is not None:
        found = json.loads(_call(url, f"/v1/requests/{urllib.parse.quote(request, safe='')}", api_key))
    else:
        found = {**json.loads(_call(url, "/health", api_key)), **metrics(_call(url, "/metrics", api_key))}
    if as_json:
        write_json(found)
    else:
        table([(key, _cell(value)) for key, value in found.items()], ["", ""])


def cancel(request: Id, url: Url = LOCAL, api_key: Key = None) -> None:
    """Cancel a request of a running server."""
    _call(url, f"/v1/requests/{urllib.parse.quote(request, safe='')}", api_key, method="DELETE")
    note(f"cancelled {request}")


def metrics(text: str) -> dict[str, float]:
    """The samples of Prometheus's text format: counters and gauges as they are, histograms as count and mean.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    samples = {name: value for name, value in _samples(text) if name.startswith("rocforge_")}
    found = {}
    for name, value in samples.items():
        base, brace, rest = name.partition("{")
        labels = brace + rest
        total = samples.get(f"{base.removesuffix('_count')}_sum{labels}")
        if base.endswith("_count") and total is not None:
            found[name] = value
            found[f"{base.removesuffix('_count')}_mean{labels}"] = total / value if value else 0.0
        elif not base.endswith(("_bucket", "_sum", "_created")):
            found[name] = value
    return {name.removeprefix("rocforge_"): value for name, value in found.items()}


def _samples(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match:
            yield match["name"] + (f"{{{match['labels']}}}" if match["labels"] else ""), float(match["value"])


def _call(url: str, path: str, api_key: str | None, method: str = "GET") -> str:
    """The body of an answer.

    Raises:
        UsageError: the URL is not http:// or https://.
        UnreachableError: no server answers there.
        RocforgeError: the server answers with an error; its reason is the message.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url is {url!r}; allowed are http:// and https:// URLs")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(url.rstrip("/") + path, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        raise RocforgeError(f"the server at {url} answered {error.code}: {_reason(error)}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UnreachableError(f"no server answers at {url}: {getattr(reason, 'strerror', None) or reason}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    """The message of an answer in OpenAI's error shape, else its status line."""
    try:
        return json.loads(error.read())["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return error.reason


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else f"{value:.4g}"
    return json.dumps(value) if isinstance(value, (dict, list)) else value


COMMANDS = [status, cancel]
