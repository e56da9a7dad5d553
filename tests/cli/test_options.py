"""Options that several commands share reach what loads the model."""

import importlib

import pytest

import rocforge.cli
from rocforge.cli.options import adapter_file

WANTED = {(): None, ("--fp16-weights", "auto"): None, ("--fp16-weights", "on"): True, ("--fp16-weights", "off"): False}
FILES = {"a.gguf": ("a.gguf", 1.0), "a.gguf=0.5": ("a.gguf", 0.5), "b=c/a.gguf": ("b=c/a.gguf", 1.0)}
LOADERS = {
    ("generate", "MODEL", "x"): "rocforge.load",
    ("chat", "MODEL"): "rocforge.load",
    ("serve", "MODEL", "--port", "0", "--quiet", "--processes", "0"): "rocforge.server.run.load",
    ("bench", "MODEL"): "rocforge.load.load_model",
}


@pytest.mark.parametrize("text", FILES)
def test_adapter_file(text):
    """What follows the last = is the scale, if it is a number."""
    assert adapter_file(text) == FILES[text]


@pytest.mark.parametrize("command", LOADERS, ids=lambda command: command[0])
def test_fp16_weights(monkeypatch, capsys, model, command):
    """auto, the default, leaves it to the loader."""
    if command[0] == "serve":
        pytest.importorskip("fastapi", reason="the extra server is not installed")
    seen = []

    def load(path, device=None, context=None, progress=False, fp16_weights=None):
        seen.append(fp16_weights)
        raise FileNotFoundError("no further")

    owner, _, name = LOADERS[command].rpartition(".")
    monkeypatch.setattr(importlib.import_module(owner), name, load)
    for option, wanted in WANTED.items():
        assert rocforge.cli.main([model if word == "MODEL" else word for word in command] + [*option]) == 1
        assert "no further" in capsys.readouterr().err and seen.pop() is wanted
