"""Grammars: what they let through obeys them, whatever the model would like to write; what is wrong says so."""

import json
import re
import resource
import time
from types import SimpleNamespace

import numpy as np
import pytest
from golden import build

import rocforge as rf
from rocforge.engine.engine import Engine
from rocforge.ops.sampling import SamplingParams, masked
from rocforge.text.grammar import GrammarCompiler, GrammarError


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A small random llama and its tokenizer."""
    path = tmp_path_factory.mktemp("grammar") / "small.gguf"
    build(path, "llama-linear", "F32")
    return rf.load(path, device="cpu", context=1024)


@pytest.fixture(scope="module")
def compiler(loaded):
    return GrammarCompiler(loaded[1])


def write(loaded, *grammars, **sampling):
    """A text for each grammar, all in one batch, with the reason that each ended for."""
    model, tokenizer = loaded
    with Engine(model, tokenizer.eog_token_ids) as engine:
        options = {"temperature": 1, "max_tokens": 400, **sampling}
        requests = [engine.add([1, 2], SamplingParams(seed=i, **options), g) for i, g in enumerate(grammars)]
        reasons = {}
        while engine.busy:
            reasons.update({token.request: token.finish_reason for token in engine.step()})
    texts = []
    for request in requests:
        end = request.output[-1] in tokenizer.eog_token_ids
        texts.append((tokenizer.decode(request.output[: len(request.output) - end]), reasons[request]))
    return texts


def allowed(grammar):
    """The ids of the tokens that may come next."""
    return np.flatnonzero(np.unpackbits(grammar.bits().view(np.uint8), bitorder="little"))


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 120}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_json_schema(loaded, compiler, temperature):
    """Texts are JSON of the schema, and end when it is complete."""
    for text, reason in write(loaded, *(compiler.json_schema(SCHEMA) for _ in range(4)), temperature=temperature):
        value = json.loads(text)
        assert reason == "stop" and 0 <= value["age"] <= 120 and value["kind"] in ("cat", "dog") and len(value) == 2


def test_regex(loaded, compiler):
    """Texts match the pattern as a whole."""
    pattern = "(19|20)[0-9]{2}-(0[1-9]|1[0-2]) [a-c]{1,3}é?"
    for text, reason in write(loaded, *(compiler.regex(pattern) for _ in range(6))):
        assert reason == "stop" and re.fullmatch(pattern, text), text


def test_lark(loaded, compiler):
    """Texts are of the grammar; a special token stands for itself, and its text is not spelled."""
    grammar = f'start: "a" {compiler.literal("<|user|>")} {compiler.literal("b")}'
    assert write(loaded, compiler.lark(grammar)) == [("a<|user|>b", "stop")]


def test_unconstrained_requests_are_not_touched(loaded, compiler):
    """A constraint in the batch changes nothing for the others."""
    alone = write(loaded, None, max_tokens=30)
    assert write(loaded, None, compiler.regex("[a-z]{5}"), max_tokens=30)[0] == alone[0]


def test_same_text_after_preemption(loaded, compiler):
    """A preempted request goes on under its grammar where it was."""
    model, tokenizer = loaded
    texts = []
    for cache_tokens in (1024, 96):
        with Engine(model, tokenizer.eog_token_ids, cache_tokens=cache_tokens) as engine:
            options = {"temperature": 1, "max_tokens": 60}
            requests = [
                engine.add([1, 2, i], SamplingParams(seed=i, **options), compiler.regex("([0-9]{3},){40}"))
                for i in range(4)
            ]
            while engine.busy:
                engine.step()
        texts.append([tokenizer.decode(request.output) for request in requests])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "kind, source, message",
    [
        ("regex", "(", "unclosed group"),
        ("json_schema", {"type": "nope"}, r"Invalid type: nope$"),
        ("json_schema", {"items": {"uniqueItems": True}}, r"^Unimplemented keys: \[\"uniqueItems\"\]$"),
        ("json_schema", {"$ref": "https://example.org/x"}, "not present in a registry"),
        ("lark", "start: foo", 'unknown name: "foo"'),
    ],
)
def test_errors(compiler, kind, source, message):
    """A GrammarError, which is a ValueError, with the library's reason."""
    with pytest.raises(GrammarError, match=message):
        getattr(compiler, kind)(source)


HOSTILE = {
    "multipleOf": {"type": "integer", "multipleOf": 99999989},
    "multiples of many": {"allOf": [{"type": "integer", "multipleOf": n} for n in (7, 11, 13, 17, 19, 23)]},
    "long enum": {"enum": [f"{n}" * 3 for n in range(10**5)]},
    "many names": {"properties": {f"{n}" * 5: {} for n in range(3000)}, "additionalProperties": {"type": "integer"}},
    "optional symbols": "start: " + '"a"? ' * 50_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_compilation_is_bounded(compiler, monkeypatch, name):
    """What asks for any time or memory is refused soon, and this process stays small."""
    monkeypatch.setattr("rocforge.text.grammar.COMPILE_SECONDS", 0.3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    source = HOSTILE[name]
    with pytest.raises(GrammarError):
        (compiler.lark if isinstance(source, str) else compiler.json_schema)(source)
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


def test_bounds_are_named(compiler, monkeypatch):
    """The error says that the grammar is too complex, and what it may take."""
    monkeypatch.setattr("rocforge.text.grammar.COMPILE_SECONDS", 0.3)
    with pytest.raises(GrammarError, match=r"too complex: took more than (0\.3 seconds of CPU|1\.5 seconds)"):
        compiler.json_schema(HOSTILE["multipleOf"])


@pytest.mark.parametrize("source", ['start: x+\nx: y | x x\ny: "a" | x y x', 'start: "b" ' + '"a"? ' * 10_000])
def test_masks_are_bounded(loaded, compiler, monkeypatch, source):
    """A grammar that is dear to follow keeps the engine waiting for a while; then its request fails, others go on."""
    monkeypatch.setattr("rocforge.text.grammar.PATIENCE", 0.1)
    monkeypatch.setattr("rocforge.text.grammar.PATIENCE_PER_TOKEN", 0.0)
    model, tokenizer = loaded
    dear, endless = compiler.lark(source), dict.fromkeys(tokenizer.eog_token_ids, -100.0)
    with Engine(model, tokenizer.eog_token_ids) as engine:
        params = SamplingParams(temperature=1, seed=1, logit_bias=endless, max_tokens=900)
        bad = engine.add([1, 2], params, dear)
        good = engine.add([1, 2], SamplingParams(temperature=0, max_tokens=30))
        errors, longest = {}, 0.0
        while engine.busy:
            start = time.monotonic()
            errors.update({token.request: token.error for token in engine.step()})
            longest = max(longest, time.monotonic() - start)
    assert isinstance(errors[bad], GrammarError) and errors[good] is None and len(good.output) > 0
    assert longest < 3


def test_copies_go_their_own_ways(loaded, compiler):
    """A grammar is compiled once for many texts; each is followed alone, and closing one closes no other."""
    first = compiler.regex("(ab|cd){3}")
    copies = [first.copy() for _ in range(3)]
    texts = write(loaded, first, *copies)
    assert all(re.fullmatch("(ab|cd){3}", text) for text, _ in texts) and len({text for text, _ in texts}) > 1
    first, second = compiler.regex("[a-z]"), None
    second = first.copy()
    first.close()
    assert len(allowed(second)) == 26


def test_text_that_sentencepiece_puts_a_space_before():
    """Text that a grammar forces is found in the tokens of a vocabulary whose tokenizer would begin it with a space."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "{",
        "}",
        '"',
        "a",
        "b",
        ":",
        "1",
    ]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 8,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tokenizer = rf.Tokenizer(SimpleNamespace(metadata=metadata))
    schema = {"type": "object", "properties": {"ab": {"const": 1}}, "required": ["ab"], "additionalProperties": False}
    grammar, text = GrammarCompiler(tokenizer).json_schema(schema), []
    for _ in range(100):
        text.append(int(allowed(grammar)[-1]))  # the last tokens are no bytes
        if text[-1] in tokenizer.eog_token_ids:
            break
        grammar.accept(text[-1])
    assert json.loads(tokenizer.decode(text[:-1])) == {"ab": 1}


def test_deep_schemas(compiler):
    """Nesting that a recursive parser would die of is refused."""
    schema = {}
    for _ in range(100_000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError, match="nested too deeply"):
        compiler.json_schema(schema)


def test_mask_reaches_rows_beyond_the_tokenizer(compiler):
    """Embeddings are often padded: what no token stands for is never chosen."""
    logits = masked(np.zeros(1000, np.float32), compiler.regex("[a-z]").bits())
    assert set(np.flatnonzero(np.isfinite(logits))) == {ord(c) for c in "abcdefghijklmnopqrstuvwxyz"}


def test_a_model_without_an_end():
    """Structured output needs an end-of-generation token."""

    class Endless:
        eog_token_ids = frozenset()

    with pytest.raises(GrammarError, match="needs an end-of-generation token"):
        GrammarCompiler(Endless())
