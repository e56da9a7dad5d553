"""Options that several commands share reach what loads the model."""

import importlib
import inspect

import pytest

import rocforge as rf
import rocforge.cli
from rocforge.cli.errors import UsageError
from rocforge.cli.options import SplitMode, adapter_file, sampling_options, several_cards
from rocforge.cli.serve import serve
from rocforge.engine.service import Service

WANTED = {(): None, ("--fp16-weights", "auto"): None, ("--fp16-weights", "on"): True, ("--fp16-weights", "off"): False}
FILES = {"a.gguf": ("a.gguf", 1.0), "a.gguf=0.5": ("a.gguf", 0.5), "b=c/a.gguf": ("b=c/a.gguf", 1.0)}
LOADERS = {
    ("generate", "MODEL", "x"): "rocforge.load",
    ("chat", "MODEL"): "rocforge.load",
    ("serve", "MODEL", "--port", "0", "--quiet", "--processes", "0"): "rocforge.server.engine_options.load",
    ("bench", "MODEL"): "rocforge.load.load_model",
}


def test_sampling_defaults_are_those_of_python():
    """Each option's default is what rf.generate takes without it."""
    assert rf.SamplingParams(**{**sampling_options(), "seed": 0, "stop": ()}) == rf.SamplingParams(seed=0)


def test_engine_defaults_are_those_of_python():
    """And so are those of `serve`, of rf.Engine and of rf.load."""
    options = inspect.signature(serve).parameters
    for function in (rf.Engine, Service, rf.load):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in options and name not in ("quiet", "host", "port", "fp16_weights"):
                assert options[name].default == parameter.default, name


def test_a_warning_is_a_line(model, capsys):
    """Without the place in our code that warns."""
    command = ["generate", model, "x", "--context", "2000", "--max-tokens", "1", "--quiet"]
    assert rocforge.cli.main(command) == 0
    assert capsys.readouterr().err == (
        "warning: context is 2000, but the model was trained on 1024 tokens: what follows them may be poor\n"
    )


@pytest.mark.parametrize("text", FILES)
def test_adapter_file(text):
    """What follows the last = is the scale, if it is a number."""
    assert adapter_file(text) == FILES[text]


@pytest.mark.parametrize("command", LOADERS, ids=lambda command: command[0])
def test_what_reaches_the_loader(monkeypatch, capsys, model, command):
    """Whether float16 weights are kept: auto, the default, leaves it to the loader. And the cache's types."""
    if command[0] == "serve":
        pytest.importorskip("fastapi", reason="the extra server is not installed")
    seen = []

    def load(path, device=None, context=None, progress=False, fp16_weights=None, devices=None, shares=None, **types):
        seen.append((fp16_weights, *types.items()))
        raise FileNotFoundError("no further")

    owner, _, name = LOADERS[command].rpartition(".")
    monkeypatch.setattr(importlib.import_module(owner), name, load)
    command, neither = [model if word == "MODEL" else word for word in command], (None, None)
    types = ("--cache-type-k", "q8_0", "-ctv", "q4_0")
    runs = [(option, wanted, neither) for option, wanted in WANTED.items()] + [(types, None, types[1::2])]
    for option, wanted, (keys, values) in runs:
        assert rocforge.cli.main([*command, *option]) == 1 and "no further" in capsys.readouterr().err
        assert seen.pop() == (wanted, ("cache_type_k", keys), ("cache_type_v", values))
    assert rocforge.cli.main([*command, "--cache-type-k", "q5_0"]) == 2
    assert "'q5_0' is not one of 'f16', 'q8_0', 'q4_0', 'fp8_e4m3'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ((None, None, "rows", None), {"device": None, "devices": None, "shares": None}),
        (("gpu:1", 1, "rows", None), {"device": "gpu:1", "devices": None, "shares": None}),
        ((None, 4, "rows", None), {"device": None, "devices": 4, "shares": None}),
        (("cpu", 2, "rows", None), {"device": None, "devices": ["cpu", "cpu"], "shares": None}),
        ((None, 2, "layers", None), {"device": None, "devices": 2, "shares": [1.0, 1.0]}),
        ((None, None, "layers", "24,16"), {"device": None, "devices": 2, "shares": [24.0, 16.0]}),
    ],
)
def test_several_cards(given, arguments):
    device, cards, split, shares = given
    assert several_cards(device, cards, SplitMode(split), shares) == arguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, "rows", "1,1"), "without --split layers"),
        ((None, 3, "layers", "1,1"), "for 3 cards"),
        ((None, None, "layers", "1,x"), "allowed are numbers such as 24,16"),
        ((None, None, "layers", "1,0"), "allowed are numbers over 0"),
        (("gpu:1", 2, "rows", None), "'gpu:1' for 2 cards"),
    ],
)
def test_options_for_several_cards_that_do_not_go_together(given, message):
    device, cards, split, shares = given
    with pytest.raises(UsageError, match=message):
        several_cards(device, cards, SplitMode(split), shares)
