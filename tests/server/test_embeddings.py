"""/v1/embeddings by the official client, against rf.embed; /props and /version."""

import base64
import contextlib
import time

import httpx
import numpy as np
import pytest

import rocforge as rf
from rocforge.engine.embedder import Embedder, Embedding
from rocforge.engine.engine import Engine

pytestmark = pytest.mark.slow
TEXTS = ["def f(x):", "a" * 700, "import os"]


@pytest.fixture(scope="module")
def expected(server):
    return rf.embed(server.engine.model, TEXTS)


@pytest.mark.parametrize("format", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_texts(client, server, expected, format):
    """Vectors of rf.embed in the order of the texts, and their tokens counted; the client decodes base64 by itself."""
    reply = client.embeddings.create(model="small", input=TEXTS, **format)
    assert [one.index for one in reply.data] == [0, 1, 2] and reply.model == "small"
    if format.get("encoding_format") == "base64":
        vectors = [np.frombuffer(base64.b64decode(one.embedding), "<f4") for one in reply.data]
    else:
        vectors = [one.embedding for one in reply.data]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    counts = [server.post("/tokenize", json={"content": text, "add_special": True}).json()["count"] for text in TEXTS]
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(counts)


def test_ids_and_one_text(client, server, expected):
    """Token ids, of one text or several, mean what their text does."""
    ids = [server.post("/tokenize", json={"content": text, "add_special": True}).json()["tokens"] for text in TEXTS]
    for given, vectors in ((ids, expected), (ids[2], expected[2:]), (TEXTS[0], expected[:1])):
        reply = client.embeddings.create(model="small", input=given, dimensions=expected.shape[1])
        np.testing.assert_allclose([one.embedding for one in reply.data], vectors, atol=1e-5)


@pytest.mark.parametrize(
    "fields, param, code",
    [
        ({"input": []}, "input", "invalid_value"),
        ({"input": [[]]}, "input", None),
        ({"input": [1 << 30]}, "input", None),
        ({"input": [72] * 3000}, "messages", "context_length_exceeded"),
        ({"dimensions": 7}, "dimensions", None),
        ({"model": "gpt-4"}, "model", "model_not_found"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
    ],
)
def test_refusals(server, fields, param, code):
    """With the field's name."""
    answer = server.post("/v1/embeddings", json={"model": "small", "input": "a", **fields})
    error = answer.json()["error"]
    assert 400 <= answer.status_code < 500 and error["param"].startswith(param), error
    assert code in (None, error["code"])


def test_a_client_that_leaves(server, monkeypatch):
    """Its vectors are computed no further, and nothing of them is left."""
    passes = []

    def endless(engine, prompts, lora):
        while True:
            passes.append(time.sleep(0.01))
            yield

    monkeypatch.setattr(Engine, "embed", lambda *args: Embedding(np.zeros((1, 4)), endless(*args)))
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/embeddings", json={"model": "small", "input": "a"}, timeout=0.3, trust_env=False)
    deadline = time.monotonic() + 10
    while server.service._embedding and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not server.service._embedding
    time.sleep(0.05)
    count = len(passes)
    time.sleep(0.1)
    assert count == len(passes) > 0


def test_a_pass_that_fails(server, monkeypatch):
    """It fails its request alone."""
    monkeypatch.setattr(Embedder, "_run", lambda embedder, passes: (1 / 0 for _ in range(1)))
    answer = server.post("/v1/embeddings", json={"model": "small", "input": "a"})
    assert answer.status_code == 500
    monkeypatch.undo()
    assert server.post("/v1/embeddings", json={"model": "small", "input": "a"}).status_code == 200


def test_props_and_version(server):
    """As llama.cpp's and vLLM's clients read them."""
    props = server.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == server.engine.limit
    assert props["default_generation_settings"]["params"]["temperature"] == 1
    assert props["chat_template"].startswith("{% if tools %}") and props["model_alias"] == "small"
    assert server.get("/version").json() == {"version": rf.__version__}
