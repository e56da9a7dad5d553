"""Jobs: what is kept of requests, in progress and ended, and streams that have nothing to say."""

import asyncio
import gc
import json
import time
import weakref

import pytest

from rocforge.engine.reply import Progress, Reply
from rocforge.ops.sampling import SamplingParams
from rocforge.server import events
from rocforge.server.jobs import Job, Jobs

PROMPT = {"model": "small", "prompt": [[5, 6, 7] * 50, [8, 9] * 50], "max_tokens": 3, "n": 2}


def job(id, progress=None, replies=1):
    """A job, ended if `progress` says how."""
    made = Job(id, 1, [Reply([1, 2], SamplingParams(), None, None, lambda reply: None) for _ in range(replies)])
    for reply in made.replies:
        if progress is not None:
            reply.end(progress)
    return made


@pytest.mark.parametrize("end", ["finished", "streamed", "deadline", "client leaves"])
def test_ended_requests_leave_nothing(server, monkeypatch, end):
    """No prompt, no constraint and no reply is alive once a request has ended, however that was."""
    alive, submit = [], server.service.submit

    def noting(prompt, params, constraint, timeout):
        reply = submit(prompt, params, constraint, timeout)
        alive.extend(map(weakref.ref, (reply, params, constraint)))
        return reply

    monkeypatch.setattr(server.service, "submit", noting)
    body = {**PROMPT, "regex": "[ab]{900}", "stream": end != "finished"}
    if end == "deadline":
        body |= {"max_tokens": 900, "timeout": 0.3}  # after the grammar is compiled, before 900 tokens
    if end == "client leaves":
        with server.client.stream("POST", "/v1/completions", json={**body, "max_tokens": 900}) as answer:
            next(answer.iter_lines())
    else:
        server.post("/v1/completions", json=body)
    deadline = time.monotonic() + 20
    while any(ref() is not None for ref in alive) and time.monotonic() < deadline:
        (last, *_) = server.get("/v1/requests").json()["data"]
        gc.collect()
        time.sleep(0.02)
    assert len(alive) == 12 and all(ref() is None for ref in alive)
    assert last["prompt_tokens"] == 250 and last["choices"] == 4
    outcome = {"deadline": "failed", "client leaves": "cancelled"}.get(end, "finished")
    assert last["status"] == outcome and server.get(f"/v1/requests/{last['id']}").json() == last


def test_statuses_within_a_budget():
    """The oldest of those that have ended go; those in progress stay, and come first."""
    kept = Jobs(kept_bytes=2000)
    kept.add(job("running"))
    for index in range(100):
        kept.add(job(f"ended-{index}", Progress.FINISHED, replies=1 + index % 3))
    statuses = kept.statuses()
    assert statuses[0]["id"] == "running" and statuses[0]["status"] == "queued"
    ended = statuses[1:]
    assert [status["id"] for status in ended] == [f"ended-{99 - index}" for index in range(len(ended))]
    assert 1000 < sum(len(json.dumps(status)) for status in ended) <= 2000
    assert kept.status("ended-99") == ended[0] and kept.status("ended-0") is None
    kept.cancel("ended-99"), kept.cancel("nothing")
    assert kept.status("ended-99")["status"] == "finished"


def test_pings(monkeypatch):
    """A body that waits gets comments between its parts, and none while it has something to say."""
    monkeypatch.setattr(events, "PING_SECONDS", 0.03)
    sent = []

    async def send(message):
        sent.append(message["body"])

    async def body():
        pings = events.Pings(send)
        task = asyncio.ensure_future(pings.run())
        for part in (b"a", b"b", b"c"):
            await pings.send(part)
            await asyncio.sleep(0.1)
        for _ in range(20):
            await pings.send(b"d")
            await asyncio.sleep(0.005)
        task.cancel()

    asyncio.run(body())
    assert [part for part in sent if not part.startswith(b":")] == [b"a", b"b", b"c"] + [b"d"] * 20
    assert sent[0] == b"a" and sent[1] == b": ping\n\n"
    assert b": ping\n\n" not in sent[sent.index(b"d") :]


def test_pings_of_the_server(server, monkeypatch):
    """A request that waits for its first token is not silent, and its stream is complete."""
    monkeypatch.setattr(events, "PING_SECONDS", 0.001)
    body = {"model": "small", "prompt": "abc", "max_tokens": 40, "ignore_eos": True, "stream": True, "seed": 1}
    lines = server.post("/v1/completions", json=body).text.splitlines()
    assert ": ping" in lines
    text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {"))
    whole = server.post("/v1/completions", json={**body, "stream": False}).json()
    assert lines[-2] == "data: [DONE]" and text == whole["choices"][0]["text"]
