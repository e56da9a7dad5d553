"""Loading what files in the wild hold: vectors of any type, padded vocabularies, ids without a token, NaN."""

import dataclasses
import sys
import warnings

import numpy as np
import pytest
from fuzz_gguf import architectures
from golden import demo, relative_error
from packed_vectors import TYPES, with_vectors_in

import rocforge as rf
from rocforge.errors import NonFiniteError
from rocforge.load import load_model
from rocforge.models import build_model


@pytest.fixture
def write(tmp_path):
    """Writes a Model to a file of its own."""
    count = iter(range(100))

    def write(model):
        path = tmp_path / f"{next(count)}.gguf"
        path.write_bytes(model.bytes())
        return path

    return write


@pytest.fixture(params=sorted(architectures()))
def file(request, write):
    """An open file of each architecture."""
    with rf.open_gguf(write(architectures()[request.param])) as file:
        yield file


def test_a_context_beyond_the_trained_one_warns():
    """In the line that loads; one within does not."""
    with pytest.warns(UserWarning, match="context is 2000, but the model was trained on 1024 tokens") as seen:
        rf.load(demo.bundled(), "cpu", 2000)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rf.load(demo.bundled(), "cpu", 1024)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_ctx": 64}, TypeError, "'n_ctx'; did you mean 'context'"),
        ({"contxt": 64}, TypeError, "did you mean 'context'"),
        ({"torch_dtype": "auto"}, TypeError, "weights stay in the file's format"),
        ({"load_in_4bit": True}, TypeError, 'quantize="Q4_K_M", .* packs on the way'),
        ({"context": "64"}, TypeError, "context is '64'; allowed are integers"),
        ({"context": True}, TypeError, "context is True; allowed are integers"),
    ],
)
def test_wrong_arguments(options, error, message):
    """Names of other libraries, and values of other types."""
    with pytest.raises(error, match=message):
        rf.load(demo.bundled(), device="cpu", **options)


@pytest.mark.parametrize(
    ("progress", "terminal", "delay", "shown"),
    [
        (None, False, 0, False),
        (None, True, 0, True),
        (None, True, 60, False),
        (True, False, 60, True),
        (False, True, 0, False),
    ],
)
def test_progress(monkeypatch, capsys, progress, terminal, delay, shown):
    """A bar where it is asked for; else on a terminal only, once the load has taken a while."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr(sys.modules["rocforge.load"], "BAR_AFTER", delay)
    rf.load(demo.bundled(), device="cpu", progress=progress)
    assert ("loading" in capsys.readouterr().err) == shown


@pytest.mark.parametrize("kind", TYPES)
def test_vectors_of_any_type(file, kind):
    """Norms, biases, sinks, experts' biases and rope factors in any type give the logits of the same values in F32."""
    packed, plain = (load_model(each, "cpu")(np.arange(5, 30)) for each in with_vectors_in(file, kind))
    assert np.isfinite(packed).all() and (packed == plain).all()


def test_weights_without_rf_load(file):
    """Filling a model from an open file by hand makes vectors float32 too."""
    packed, plain = with_vectors_in(file, "BF16")
    model = build_model(packed)
    model.load_weights({name: packed[name] for name in packed if not name.startswith("rope_f")})
    assert relative_error(model(np.arange(5, 30)), load_model(plain, "cpu")(np.arange(5, 30))) < 1e-6


def without_key(model, *keys):
    return [each for each in model.pairs if each[0] not in keys]


def test_a_padded_vocabulary(write):
    """Rows of the embedding without a token are unused: they can be drawn, biased and given, and have no text."""
    model = architectures()["llama"]
    tokens = next(value for key, _, value in model.pairs if key == "tokenizer.ggml.tokens")
    for key in ("tokens", "scores", "token_type"):
        i = next(i for i, each in enumerate(model.pairs) if each[0] == f"tokenizer.ggml.{key}")
        model.pairs[i] = (*model.pairs[i][:2], model.pairs[i][2][:-8])
    loaded, tokenizer = rf.load(write(model), device="cpu")
    rows = len(tokens)
    assert loaded.config.vocabulary == tokenizer.vocab_size == rows and tokenizer.token_bytes(rows - 1) == b""
    assert rf.generate(loaded, tokenizer, "ab", temperature=0, max_tokens=3, logit_bias={rows - 1: 100}) == ""
    assert rf.generate(loaded, tokenizer, [5, rows - 1], temperature=1, seed=0, max_tokens=20) is not None
    assert tokenizer.decode([rows - 2, rows - 1]) == "" and tokenizer.encode("") == [1]


def test_more_tokens_than_rows(write):
    """An id without a row would end in the middle of a prompt, so such a file is refused."""
    model = architectures()["llama"]
    for i, (key, kind, value) in enumerate(model.pairs):
        if key in ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
            model.pairs[i] = (key, kind, [*value, "more" if kind == "[string]" else 1])
    with pytest.raises(rf.GGUFError, match=r"tokenizer.ggml.tokens is .*; allowed are 1 to \d+ tokens, the rows"):
        rf.load(write(model), device="cpu")


@pytest.mark.parametrize("id", [300, (1 << 32) - 1])
@pytest.mark.parametrize(
    ("name", "attribute", "usual"),
    [
        ("bos", "bos_token_id", 1),
        ("eos", "eos_token_id", 2),
        ("unknown", "unk_token_id", 0),
        ("padding", "pad_token_id", None),
        *((name, "eog_token_ids", frozenset((2,))) for name in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")),
    ],
)
def test_special_ids_outside(write, name, attribute, usual, id):
    """They count as absent: SentencePiece has its usual ones then, others none."""
    model = architectures()["llama"]
    model.pairs = without_key(model, f"tokenizer.ggml.{name}_token_id")
    model.pairs.append((f"tokenizer.ggml.{name}_token_id", "uint32", id))
    _, tokenizer = rf.load(write(model), device="cpu")
    found = getattr(tokenizer, attribute)
    assert (found - {tokenizer.vocab_size - 1} if attribute == "eog_token_ids" else found) == usual


def with_nan(model, part):
    """The model with NaN in the tensors of that name."""
    for i, entry in enumerate(model.tensors):
        if part in entry.name:
            model.tensors[i] = dataclasses.replace(entry, data=b"\xff" * len(entry.data))
    return model


def test_vectors_that_hold_nan(write):
    """They are named when the model is loaded."""
    with pytest.raises(rf.GGUFError, match=r"tensor blk.1.ffn_norm.weight contains NaN"):
        rf.load(write(with_nan(architectures()["llama"], "blk.1.ffn_norm")), device="cpu")


@pytest.mark.parametrize(
    "part", ["token_embd.weight", "attn_q.weight", "attn_output.weight", "ffn_down", "ffn_gate_inp"]
)
def test_matrices_that_hold_nan(write, part):
    """Generation ends in an error, however it samples."""
    name = "mixtral" if part == "ffn_gate_inp" else "qwen2"
    loaded, tokenizer = rf.load(write(with_nan(architectures()[name], part)), device="cpu")
    for sampling in ({"temperature": 0}, {"temperature": 1, "seed": 0}, {"temperature": 1, "top_k": 5, "seed": 0}):
        with np.errstate(all="ignore"), pytest.raises(NonFiniteError):
            rf.generate(loaded, tokenizer, "the quick", max_tokens=4, **sampling)


def test_nan_fails_one_request(write):
    """Of a batch, the request whose token has NaN for an embedding ends in an error; the other is as it is alone."""
    model, bad = architectures()["qwen2"], 10
    i = next(i for i, entry in enumerate(model.tensors) if entry.name == "token_embd.weight")
    entry, row = model.tensors[i], 34  # bytes of a row of 32 in Q8_0
    data = entry.data[: bad * row] + b"\xff" * row + entry.data[(bad + 1) * row :]
    model.tensors[i] = dataclasses.replace(entry, data=data)
    loaded, _ = rf.load(write(model), device="cpu")
    params = rf.SamplingParams(temperature=0, max_tokens=5)

    def outputs_of(*prompts):
        with rf.Engine(loaded) as engine, np.errstate(all="ignore"):
            requests, errors = [engine.add(prompt, params) for prompt in prompts], {}
            while engine.busy:
                errors |= {token.request: token.error for token in engine.step() if token.finish_reason == "error"}
        return [errors.get(request, request.output) for request in requests]

    (alone,) = outputs_of([3, 4])
    good, failed = outputs_of([3, 4], [3, bad])
    assert good == alone and len(good) == 5 and isinstance(failed, NonFiniteError)


def test_experts_that_are_not_there(write):
    """An architecture of experts says how many it has."""
    model = architectures()["gpt-oss"]
    model.pairs = without_key(model, "gpt-oss.expert_count")
    with pytest.raises(rf.GGUFError, match=r"gpt-oss\.expert_count is missing; allowed are integers from 1"):
        rf.load(write(model), device="cpu")
