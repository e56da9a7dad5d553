"""Adapters over HTTP: asked for by `lora` or in the model's name, listed, and refused where there is none."""

import numpy as np
import pytest
from adapters import random_lora


@pytest.fixture(scope="module")
def server(start):
    with start(endless=True, adapters=("a", "b")) as server:
        for name in ("a", "b"):
            model, rng = server.engine.model, np.random.default_rng(ord(name))
            model.adapters[name] = random_lora(rng, model, ["attn_q", "ffn_down", "output"], size=1)
        yield server


def completed(server, model="small", **body):
    body = {"model": model, "prompt": [5, 40, 7], "max_tokens": 12, "temperature": 0, "seed": 1, **body}
    answer = server.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    return answer.json()["choices"][0]["text"]


def test_models(server):
    """The model, and it with each adapter, under the names by which they are asked for."""
    listed = server.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["small", "small:a", "small:b"]
    assert [model.get("parent") for model in listed] == [None, "small", "small"]
    assert server.get("/v1/models/small:b").json()["id"] == "small:b"
    assert server.get("/v1/models/small:c").status_code == 404


def test_both_ways_to_ask(server):
    """Each adapter writes another text, the same by either way; whatever ran before."""
    texts = {name: completed(server, lora=name) for name in (None, "a", "b")}
    assert len(set(texts.values())) == 3
    for name in ("b", "a"):
        assert completed(server, f"small:{name}") == completed(server, f"small:{name}", lora=name) == texts[name]
    assert completed(server) == texts[None]


def test_chat(server):
    """Streams too; the model's name is the one that was asked for."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0}

    def said(**options):
        return server.post("/v1/chat/completions", json={**body, **options})

    whole = said(model="small:a").json()
    assert whole["model"] == "small:a" and whole["choices"] == said(model="small", lora="a").json()["choices"]
    assert whole["choices"] != said(model="small").json()["choices"]
    assert '"model":"small:a"' in said(model="small:a", stream=True).text


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"model": "small", "lora": "c"}, 404, "lora", "lora is 'c'; allowed are a, b"),
        ({"model": "small:c"}, 404, "model", "The model 'small:c' does not exist"),
        ({"model": "small:a", "lora": "b"}, 400, "lora", "lora is 'b', and the model's adapter 'a'"),
        ({"model": "small", "lora": 3}, 400, "lora", "string"),
    ],
)
def test_refused(server, body, status, param, message):
    answer = server.post("/v1/completions", json={"prompt": "x", **body})
    error = answer.json()["error"]
    assert answer.status_code == status and error["param"] == param and message in error["message"]
