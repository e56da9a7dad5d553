"""Streams of events, as the server sends them."""

import json


def parsed(stream):
    """The events of a stream, as (type, data); each says its type twice."""
    found = [part.split("\n") for part in stream.split("\n\n") if part.startswith("event")]
    events = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in found]
    assert all(name == data["type"] for name, data in events)
    return events
