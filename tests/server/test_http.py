"""The server's own endpoints: state, metrics, tokens, requests by id, key, CORS, errors where nothing is found."""

import re
import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families


def values(server):
    """The samples of /metrics, by name and labels."""
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_state(server):
    """A server whose model is loaded is healthy and ready, and says how long a context it has."""
    assert server.get("/health").json() == {"status": "ok", "state": "ready"}
    assert server.get("/ready").status_code == 200
    (model,) = server.get("/v1/models").json()["data"]
    assert model["id"] == "small" and model["context_length"] == server.engine.limit


def test_tokens_and_back(server):
    """/tokenize and /detokenize undo each other; what is no token is refused."""
    text = "héllo <|user|>\n"
    ids = server.post("/tokenize", json={"content": text}).json()["tokens"]
    assert server.post("/detokenize", json={"tokens": ids}).json() == {"content": text}
    plain = server.post("/tokenize", json={"content": text, "parse_special": False}).json()["tokens"]
    assert len(plain) > len(ids)
    refused = server.post("/detokenize", json={"tokens": [10**6]})
    assert refused.status_code == 400 and "1000000" in refused.json()["error"]["message"]


def test_metrics(server):
    """Counters count what was asked and written; times have as many entries as tokens; nothing waits at rest."""
    before = values(server)
    reply = server.post("/v1/completions", json={"model": "small", "prompt": "abc", "max_tokens": 7, "n": 2}).json()
    ended, deadline = ("rocforge_requests_total", "finished"), time.monotonic() + 10
    while values(server)[ended] < before[ended] + 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # an end is counted just after the client is told
    after = values(server)

    def grown(name, *labels):
        key = (f"rocforge_{name}", *labels)
        return after[key] - before[key]

    usage = reply["usage"]
    assert grown("generated_tokens_total") == usage["completion_tokens"]
    assert grown("prompt_tokens_total") == 2 * usage["prompt_tokens"]
    assert grown("requests_total", "finished") == 2
    assert grown("time_to_first_token_seconds_count") == 2
    assert grown("time_between_tokens_seconds_count") == usage["completion_tokens"] - 2
    assert after["rocforge_requests_waiting",] == after["rocforge_requests_running",] == 0
    assert after["rocforge_cache_blocks_used",] == 0 < after["rocforge_cache_blocks",]


def test_a_request_by_its_id(server):
    """A request in flight is listed and running; DELETE ends it, and its client is told."""
    answers = []
    body = {"model": "small", "prompt": "abc", "max_tokens": 1500, "ignore_eos": True}
    thread = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", json=body)))
    thread.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        jobs = [job for job in server.get("/v1/requests").json()["data"] if job["status"] == "running"]
        if jobs and jobs[0]["completion_tokens"]:
            break
    (job,) = jobs
    assert job["prompt_tokens"] == 3 and job["choices"] == 1
    assert server.get(f"/v1/requests/{job['id']}").json()["status"] == "running"
    assert server.client.delete(f"/v1/requests/{job['id']}").status_code == 200
    thread.join(20)
    assert answers[0].status_code == 499 and answers[0].json()["error"]["code"] == "request_cancelled"
    after = server.get(f"/v1/requests/{job['id']}").json()
    assert after["status"] == "cancelled" and 0 < after["completion_tokens"] < 1500
    missing = server.get("/v1/requests/cmpl-nothing")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "unknown_request"


def test_a_deadline_of_the_client(server):
    """The request ends when its time is over, with an error that says so."""
    body = {"model": "small", "prompt": "abc", "max_tokens": 1500, "ignore_eos": True, "timeout": 0.05}
    refused = server.post("/v1/completions", json=body)
    assert refused.status_code == 504 and refused.json()["error"]["code"] == "deadline_exceeded"
    stream = server.post("/v1/completions", json={**body, "stream": True})
    assert stream.status_code == 200 and "deadline_exceeded" in stream.text and "[DONE]" not in stream.text


def test_no_chat_template(start):
    """A model without one says so, and what to do."""
    with start(chat_template=None) as server:
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
        error = server.post("/v1/chat/completions", json=body).json()["error"]
        assert error["code"] == "no_chat_template" and "--chat-template" in error["message"]


def test_a_template_that_refuses(start):
    """What a chat template raises is the client's error, with its message."""
    with start(chat_template="{{ raise_exception('roles must alternate') }}") as server:
        answer = server.post(
            "/v1/chat/completions", json={"model": "small", "messages": [{"role": "user", "content": "hi"}]}
        )
        assert answer.status_code == 400 and "roles must alternate" in answer.json()["error"]["message"]


def test_unknown_and_wrong_urls(server):
    """404 and 405 in OpenAI's shape."""
    missing, wrong = server.get("/v1/nothing"), server.get("/v1/completions")
    assert missing.status_code == 404 and missing.json()["error"]["type"] == "invalid_request_error"
    assert wrong.status_code == 405 and "error" in wrong.json() and wrong.headers["allow"] == "POST"


def test_key(start):
    """With a key, everything but the state and the page needs it."""
    with start(api_key="secret") as server:
        for given in (None, "Basic c2VjcmV0", "secret", "Bearer wrong", "Bearer", "Bearer s\xe9cret"):
            headers = {} if given is None else {"Authorization": given.encode()}
            refused = server.get("/v1/models", headers=headers)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
            told = ', error="invalid_token"' if given and given.startswith("Bearer") else ""
            assert refused.headers["www-authenticate"] == f'Bearer realm="rocforge"{told}'
            assert server.get("/metrics", headers=headers).status_code == 401
            assert server.get("/openapi.json", headers=headers).status_code == 401
            assert server.get("/health", headers=headers).status_code == 200
        for given in ("Bearer secret", "bearer secret", "BEARER  secret"):
            assert server.get("/v1/models", headers={"Authorization": given}).status_code == 200


def test_request_ids(server):
    """Every response names its request: by the client's id, or by one of its own."""
    for path in ("/v1/models", "/v1/nothing"):
        assert server.get(path, headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"
    ids = [
        server.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"]
        for given in ("", "a b", "x" * 999)
    ]
    assert len(set(ids)) == 3 and all(re.fullmatch("req_[0-9a-f]{32}", id) for id in ids)


def test_cors(server, start):
    """Other origins' pages may not read answers unless asked; with origins, these may."""
    origin = {"Origin": "https://elsewhere.example"}
    assert "access-control-allow-origin" not in server.get("/v1/models", headers=origin).headers
    with start(cors_origins=("https://elsewhere.example",)) as allowed:
        headers = allowed.get("/v1/models", headers=origin).headers
        assert headers["access-control-allow-origin"] == "https://elsewhere.example"
        other = allowed.get("/v1/models", headers={"Origin": "https://other.example"}).headers
        assert "access-control-allow-origin" not in other


def test_page(server):
    """The chat page is served, and may load nothing from elsewhere."""
    answer = server.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("n", [65, 200])
def test_too_many_choices(server, n):
    """A request for more choices than allowed is refused as a whole."""
    refused = server.post("/v1/completions", json={"model": "small", "prompt": "a", "n": n})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "n"
    prompts = {"model": "small", "prompt": ["a"] * 65, "max_tokens": 1}
    assert server.post("/v1/completions", json=prompts).status_code == 400


@pytest.mark.slow
def test_a_full_queue(start):
    """What does not fit in the queue is refused with 429, all choices or none, and the rest is served."""
    with start() as server:
        bodies = [{"model": "small", "prompt": "abc", "max_tokens": 40, "n": 60, "seed": 1} for _ in range(6)]
        answers = []
        threads = [
            threading.Thread(target=lambda body=body: answers.append(server.post("/v1/completions", json=body)))
            for body in bodies
        ]
        [thread.start() for thread in threads]
        [thread.join(60) for thread in threads]
        codes = sorted(answer.status_code for answer in answers)
        assert set(codes) <= {200, 429} and 200 in codes
        for answer in answers:
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "queue_full" and answer.headers["retry-after"]
            else:
                assert len(answer.json()["choices"]) == 60
