"""/infill and `suffix`: the prompts that they make, checked by completions of the same tokens."""

import json

import pytest

from rocforge.text.vocabulary import FillInTokens

TOKENS = FillInTokens(10, 11, 12, 13, 14)
FILE = {"filename": "b.py", "text": "import os\n"}


@pytest.fixture
def fills_in(server, monkeypatch):
    """The server, whose model has tokens for it."""
    monkeypatch.setitem(vars(server.service.tokenizer._vocabulary), "fill_in_tokens", TOKENS)
    return server


def ids(server, text):
    return server.post("/tokenize", json={"content": text, "parse_special": False}).json()["tokens"]


def complete(server, prompt, **fields):
    body = {"model": "small", "prompt": prompt, "max_tokens": 6, "temperature": 0, **fields}
    answer = server.post("/v1/completions", json=body).json()
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]


def infill(server, **fields):
    body = {"input_prefix": "def f():\n", "input_suffix": "\n    return x", "n_predict": 6, "temperature": 0, **fields}
    answer = server.post("/infill", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def test_infill(fills_in):
    """The repository, other files, this file; prefix and prompt, suffix; text special tokens are spelled in is text."""

    def of(text):
        return ids(fills_in, text)

    extra = [13, *of("myproject\n"), 14, *of("b.py\n"), *of("import os\n"), 14, *of("filename\n")]
    prompt = [*extra, 10, *of("def f():\n"), *of("    x<|end|>"), 11, *of("\n    return x"), 12]
    found = infill(fills_in, input_extra=[FILE], prompt="    x<|end|>", samplers=["top_k"], n_indent=4).json()
    text, tokens = complete(fills_in, prompt)
    assert (found["content"], found["tokens_evaluated"]) == (text, tokens) == (text, len(prompt))
    assert found["stop"] and found["stop_type"] in ("limit", "eos") and found["tokens_predicted"] <= 6
    lines = infill(fills_in, input_extra=[FILE], prompt="    x<|end|>", stream=True).text.splitlines()
    parts = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert "".join(part["content"] for part in parts) == text
    assert [part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True]
    word = infill(fills_in, grammar='start: "abab"', stop=["ba"]).json()
    assert (word["content"], word["stop_type"], word["stopping_word"]) == ("a", "word", "ba")
    assert infill(fills_in, n_predict=0).json()["content"] == ""


def test_long_files(fills_in):
    """What is far from the gap is left out, so that there is room for the text."""
    long = {"filename": "c.py", "text": "a" * 3000}
    found = infill(fills_in, input_prefix="b" * 3000, input_suffix="c" * 3000, input_extra=[long]).json()
    assert found["tokens_evaluated"] == 2048 - 6 and found["tokens_predicted"] <= 6


def test_suffix(fills_in):
    """Of a text and of ids; echo gives the prompt alone."""
    prompt = [10, *ids(fills_in, "hello"), 11, *ids(fills_in, "end"), 12]
    text, tokens = complete(fills_in, prompt)
    assert complete(fills_in, "hello", suffix="end") == (text, tokens)
    assert complete(fills_in, ids(fills_in, "hello"), suffix="end") == (text, tokens)
    assert complete(fills_in, "hello", suffix="end", echo=True)[0] == "hello" + text


def test_models_that_do_not_fill_in(server):
    for path, body, param in (
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}, "input_suffix"),
        ("/v1/completions", {"model": "small", "prompt": "a", "suffix": "b"}, "suffix"),
    ):
        answer = server.post(path, json=body)
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == param and "fills in the middle" in error["message"]
