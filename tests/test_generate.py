"""generate and stream_generate on the demo model: the text, the stops, the statistics, many prompts at once."""

import html
import inspect

import numpy as np
import pytest
from adapters import random_lora
from golden import demo, load, relative_error

import rocforge as rf
from rocforge.engine.response import GeneratedText
from rocforge.ops.sampling import SamplingOptions

PROMPT = "def fibonacci(n):\n"


@pytest.fixture(scope="module")
def loaded():
    """The bundled demo model and its tokenizer, on the CPU."""
    return rf.load(demo.bundled(), device="cpu")


def test_stream_equals_generate(loaded):
    """The pieces of a stream make up the text; only the last has a finish reason."""
    pieces = list(rf.stream_generate(*loaded, PROMPT, max_tokens=40, temperature=0.8, seed=1))
    assert "".join(p.text for p in pieces) == rf.generate(*loaded, PROMPT, max_tokens=40, temperature=0.8, seed=1)
    assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason in ("length", "stop")


def test_many_prompts_share_steps_and_change_nothing(loaded, monkeypatch):
    """A list gives a list, each text as if alone, in fewer steps of the model than one by one."""
    model, tokenizer = loaded
    prompts = [PROMPT, "import os\n", "class Stack:\n    def push(self", tokenizer.encode("for i in range(")]
    options = {"max_tokens": 24, "temperature": 0.7, "seed": 3}
    alone = [rf.generate(model, tokenizer, p, **options) for p in prompts]
    steps = []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: (steps.append(1), forward(*a, **k))[1])
    assert rf.generate(model, tokenizer, prompts, **options) == alone
    assert len(steps) <= 25


def test_seed_decides(loaded):
    """The same seed gives the same text, another one another text."""
    texts = [rf.generate(*loaded, PROMPT, max_tokens=30, temperature=1, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_stop_string(loaded):
    """The text ends before a stop string, with finish reason "stop"; nothing of it shows."""
    whole = rf.generate(*loaded, PROMPT, max_tokens=40, temperature=0)
    middle = whole[len(whole) // 2 : len(whole) // 2 + 4]
    pieces = list(rf.stream_generate(*loaded, PROMPT, max_tokens=40, temperature=0, stop=["nowhere", middle]))
    assert "".join(p.text for p in pieces) == whole[: whole.index(middle)]
    assert pieces[-1].finish_reason == "stop"


def test_logprobs_and_stats(loaded):
    """Log-probabilities come with each token; the statistics count prompt and tokens and take time."""
    model, tokenizer = loaded
    pieces = list(rf.stream_generate(model, tokenizer, PROMPT, max_tokens=5, temperature=0, logprobs=2))
    assert all(p.logprobs.token == max(p.logprobs.top.values()) for p in pieces)
    stats = pieces[-1].stats
    assert stats.prompt_tokens == len(tokenizer.encode(PROMPT)) and stats.generated_tokens == len(pieces)
    assert 0 < stats.time_to_first_token < 60 and stats.tokens_per_second > 0 and stats.peak_memory > 2**20
    assert "device cpu" in str(stats)


def test_a_closed_stream_leaves_nothing(loaded, monkeypatch):
    """Leaving a stream early closes its engine."""
    closed = []
    close = rf.Engine.close
    monkeypatch.setattr(rf.Engine, "close", lambda self: (closed.append(self), close(self))[1])
    stream = rf.stream_generate(*loaded, PROMPT, max_tokens=40)
    next(stream)
    stream.close()
    (engine,) = closed
    assert engine.scheduler.state.idle


def test_bad_arguments(loaded):
    """Unknown sampling names, values out of range, and empty prompts."""
    with pytest.raises(TypeError, match="top_q"):
        rf.generate(*loaded, PROMPT, top_q=1)
    with pytest.raises(ValueError, match="temperature is 9"):
        rf.generate(*loaded, PROMPT, temperature=9)
    with pytest.raises(ValueError, match="is empty"):
        rf.generate(*loaded, [[]])
    with pytest.raises(ValueError, match="context is -5"):
        rf.load(demo.bundled(), device="cpu", context=-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 4}, "'max_new_tokens'; did you mean 'max_tokens'"),
        ({"n_predict": 4}, "did you mean 'max_tokens'"),
        ({"temp": 0.5}, "did you mean 'temperature'"),
        ({"topk": 5}, "did you mean 'top_k'"),
        ({"repeat_penalty": 1.1}, "did you mean 'repetition_penalty'"),
        ({"frequency_penalti": 1.1}, "did you mean 'frequency_penalty'"),
        ({"stop_sequences": ["x"]}, "did you mean 'stop'"),
        ({"do_sample": True}, "temperature=0 takes the most likely token"),
        ({"num_return_sequences": 2}, r"\[prompt\] \* 3"),
        ({"stream": True}, "rf.stream_generate"),
        ({"wholly_unknown": 1}, "allowed are max_tokens, temperature, .*ignore_eos"),
    ],
)
def test_names_of_other_libraries(loaded, options, message):
    """Are refused as Python refuses unknown names, with the right one; a stream says so before its first token."""
    for call in (rf.generate, rf.stream_generate):
        with pytest.raises(TypeError, match=f"unexpected keyword argument .*{message}"):
            call(*loaded, PROMPT, **options)
    with pytest.raises(TypeError, match=message):
        rf.SamplingParams(**options)


def test_help_and_completion_know_the_sampling_parameters():
    """The signatures list them with their defaults; the names that type checkers know are those."""
    fields = inspect.signature(rf.SamplingParams).parameters
    for call in (rf.generate, rf.stream_generate):
        shown = inspect.signature(call).parameters
        assert {name: shown[name].default for name in fields} == {name: p.default for name, p in fields.items()}
    known = {name: str(kind.__forward_arg__) for name, kind in SamplingOptions.__annotations__.items()}
    own = {"lora": "str | None"}  # which takes one for each prompt, too
    assert {**known, **own} == {name: p.annotation for name, p in fields.items()}


@pytest.mark.parametrize("prompt", [None, 5, b"def", iter(["a"]), {"input_ids": [1]}, [1.5], [[1.5]], [None]])
def test_prompts_of_other_kinds(loaded, prompt):
    """Are a TypeError that says what is allowed."""
    with pytest.raises(TypeError, match=r"allowed are|pass its ids"):
        rf.generate(*loaded, prompt)


def test_model_and_tokenizer_in_order(loaded):
    """Anything else than what rf.load gives, in its order, is named."""
    model, tokenizer = loaded
    for wrong in ((tokenizer, model), (model, "text"), ("model.gguf", tokenizer)):
        with pytest.raises(TypeError, match=f"got {type(wrong[0]).__name__} and {type(wrong[1]).__name__}"):
            rf.generate(*wrong, PROMPT)


def test_no_prompts(loaded):
    """An empty list of prompts gives an empty list."""
    assert rf.generate(*loaded, []) == rf.generate(*loaded, ()) == []


def test_generations_in_a_notebook(loaded):
    """A text is shown with its lines, and nothing in it is taken for HTML; a piece with its token and statistics."""
    text = rf.generate(*loaded, PROMPT, max_tokens=8, temperature=0)
    assert isinstance(text, str) and html.unescape(text._repr_html_().partition(">")[2]).startswith(text)
    assert "&lt;b&gt;" in GeneratedText("<b>")._repr_html_()
    (piece,) = rf.stream_generate(*loaded, PROMPT, max_tokens=1, logprobs=2)
    shown = piece._repr_html_()
    assert str(piece.token) in shown and "length" in shown and "device cpu" in shown


def test_a_request_that_fails(loaded, monkeypatch):
    """What fails is what is raised, by both."""
    monkeypatch.setattr("rocforge.engine.sampler.sample", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rf.generate(*loaded, PROMPT)
    with pytest.raises(ZeroDivisionError):
        next(rf.stream_generate(*loaded, PROMPT))


def test_prompts_of_numpy_ids(loaded):
    """Ids may be NumPy's: a list of them is one prompt, a list of arrays many."""
    ids = np.array(loaded[1].encode(PROMPT))
    text = rf.generate(*loaded, ids.tolist(), max_tokens=3, temperature=0)
    assert rf.generate(*loaded, list(ids), max_tokens=3, temperature=0) == text
    assert rf.generate(*loaded, ids, max_tokens=3, temperature=0) == text
    assert rf.generate(*loaded, [ids, ids], max_tokens=3, temperature=0) == [text, text]


@pytest.mark.parametrize("recipe", ["F32", "Q8_0"])
def test_logits_against_llama_cpp(tmp_path, recipe):
    """The demo model's logits over a prompt: 2e-5 in F32, 8e-2 quantized."""
    demo.build(tmp_path / "demo.gguf", recipe)
    model, _ = rf.load(tmp_path / "demo.gguf", device="cpu")
    golden = load("demo", recipe)
    logits = model(golden["tokens"])[golden["rows"]]
    assert relative_error(logits, golden["logits"]) < (2e-5 if recipe == "F32" else 8e-2)


def test_greedy_tokens_agree_with_llama_cpp(tmp_path):
    """In F32, 64 greedy tokens of the demo model are llama.cpp's."""
    demo.build(tmp_path / "demo.gguf", "F32")
    model, tokenizer = rf.load(tmp_path / "demo.gguf", device="cpu")
    tokens = load("demo", "F32")["tokens"]
    prompt, expected = tokens[:64].tolist(), tokens[64:128].tolist()
    pieces = rf.stream_generate(model, tokenizer, prompt, max_tokens=64, temperature=0, ignore_eos=True)
    assert [p.token for p in pieces] == expected
    assert np.array_equal(tokenizer.encode(demo.TEXT)[:64], prompt)


def test_adapters(loaded):
    """One for all prompts, or one for each."""
    model, tokenizer = loaded
    model.adapters["x"] = random_lora(np.random.default_rng(0), model, ["attn_q", "ffn_up", "ffn_down"], size=0.7)
    options = {"max_tokens": 8, "temperature": 0}
    plain, adapted = (rf.generate(model, tokenizer, PROMPT, lora=lora, **options) for lora in (None, "x"))
    assert plain != adapted
    assert rf.generate(model, tokenizer, [PROMPT] * 3, lora=["x", None, "x"], **options) == [adapted, plain, adapted]
    assert "".join(p.text for p in rf.stream_generate(model, tokenizer, PROMPT, lora="x", **options)) == adapted
    with pytest.raises(ValueError, match="lora has 1 names for 2 prompts"):
        rf.generate(model, tokenizer, [PROMPT] * 2, lora=["x"])
    with pytest.raises(ValueError, match="lora is 'y'; the model's adapters are 'x'"):
        rf.generate(model, tokenizer, PROMPT, lora="y")
    del model.adapters["x"]
