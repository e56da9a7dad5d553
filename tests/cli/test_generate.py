"""`rocforge generate`: the text that the library gives, plain when piped, and livelier on a terminal."""

import os
import subprocess
import sys

import pytest

import rocforge as rf
from rocforge.cli import main

pytestmark = pytest.mark.slow

UTF8 = {"PYTHONIOENCODING": "utf-8:strict"}
PROMPT = "def fibonacci(n):"


def test_the_text_is_the_librarys(rocforge, model):
    """Stdout holds what rf.generate gives, and nothing else; stderr has the statistics."""
    done = rocforge("generate", model, PROMPT, "--max-tokens", 12, "--seed", 5, "--device", "cpu")
    loaded = rf.load(model, device="cpu")
    assert done.stdout == rf.generate(*loaded, PROMPT, max_tokens=12, seed=5, top_p=0.95) + "\n"
    assert "12 tokens" in done.stderr and "loading" not in done.stderr


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        (("--max-tokens", "3"), "stopped by --max-tokens"),
        (("--context", "12"), "stopped where the context ends"),
        (("--stop", "binary"), "the model ended the text, or it came to --stop"),
    ],
)
def test_says_why_it_stopped(model, capsys, options, ending):
    """The last line has the reason; one of `length` names which limit; without a GPU, why there is none."""
    arguments = ["generate", str(model), "def binary_search(items):", "--temperature", "0", *options]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert capsys.readouterr().err.rstrip().endswith(ending)


def test_says_why_there_is_no_gpu(model, capsys, monkeypatch):
    """Unless the CPU was asked for."""
    monkeypatch.setattr("rocforge.device.arrays.import_cupy", lambda: (None, "no card is here"))
    assert main(["generate", str(model), "import os", "--max-tokens", "1"]) == 0
    assert capsys.readouterr().err.rstrip().endswith("no GPU: no card is here")


def test_prompt_from_stdin(rocforge, model):
    """Without a prompt, or with -, stdin is the prompt; --echo writes it too; --quiet leaves stderr empty."""
    options = ("--max-tokens", 6, "--temperature", 0, "--quiet")
    given = rocforge("generate", model, PROMPT, *options)
    for prompt in ((), ("-",)):
        done = rocforge("generate", model, *prompt, "--echo", *options, input=PROMPT)
        assert done.stdout == PROMPT + given.stdout and done.stderr == ""


def test_a_prompt_comes_out_as_it_went_in(model):
    """Byte for byte: line ends, tabs, control characters, what reads like markup or an emoji's name, and no text."""
    prompt = b"a[bold] = b[:x:2]\r\n\tif x:\x07 \xff\xc3\xa9 " + b"y" * 200
    command = [sys.executable, "-m", "rocforge", "generate", model, "-", "--echo", "--max-tokens", "1", "--quiet"]
    done = subprocess.run(command, input=prompt, capture_output=True, timeout=120, env={**os.environ, **UTF8})
    assert done.stdout.startswith(prompt) and done.stderr == b""


def test_other_encodings(rocforge, model):
    """An output that cannot say a character shows a question mark."""
    done = rocforge(
        "generate", model, "é", "--echo", "--max-tokens", 1, "--quiet", environment={"PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout.startswith("?")


def test_chat_template(rocforge, model, template):
    """--chat puts system message and prompt through the template; --stop ends the text."""
    options = ("--max-tokens", 8, "--temperature", 0)
    chat = ("--chat", "--chat-template", template, "--system", "Be brief.")
    done = rocforge("generate", model, "Hello", *chat, *options)
    loaded, tokenizer = rf.load(model)
    ids = tokenizer.encode("system: Be brief.\nuser: Hello\nassistant:", add_special_tokens=False)
    text = rf.generate(loaded, tokenizer, ids, max_tokens=8, temperature=0, top_p=0.95)
    assert done.stdout == text + "\n" and len(text) > 8
    stopped = rocforge("generate", model, "Hello", *chat, *options, "--stop", text[4:8])
    assert stopped.stdout == text[: text.index(text[4:8])] + "\n"


def test_lora(rocforge, model, adapter, capsys):
    """--lora applies an adapter, as strong as it says."""
    loaded, tokenizer = rf.load(model, device="cpu")
    loaded.adapters.load("x", adapter, 0.75)
    text = rf.generate(loaded, tokenizer, PROMPT, max_tokens=12, temperature=0, lora="x")
    assert text != rf.generate(loaded, tokenizer, PROMPT, max_tokens=12, temperature=0)
    options = ("--max-tokens", 12, "--temperature", 0, "--device", "cpu")
    assert rocforge("generate", model, PROMPT, "--lora", f"{adapter}=0.75", *options).stdout == text + "\n"
    assert main(["generate", model, PROMPT, "--lora", model, "--quiet"]) == 1
    assert "is no LoRA adapter: general.type is ''" in capsys.readouterr().err


def test_terminal(terminal, model):
    """A terminal sees the prompt before the text, and the statistics."""
    process = terminal("generate", model, PROMPT, "--max-tokens", 4)
    process.expect_exact(PROMPT)
    process.expect("generation: 4 tokens")
    process.wait()
    assert process.exitstatus == 0


def test_terminal_gets_no_control_characters(monkeypatch, capsys):
    """What a model writes cannot command the terminal; a pipe gets it as it is."""
    from rocforge.cli.output import write_text

    hostile = "a\x1b[2J\x07\x9b31m\r\x08b\n\tü 漢 🙂"
    write_text(hostile)
    assert capsys.readouterr().out == hostile
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write_text(hostile)
    assert capsys.readouterr().out == "a[2J31mb\n\tü 漢 🙂"


@pytest.mark.parametrize("unbuffered", [(), ("-u",)])
def test_the_reader_leaves(model, unbuffered):
    """Where the reader of the pipe has gone, the command ends with code 141 and says nothing."""
    command = [sys.executable, *unbuffered, "-m", "rocforge", "generate", model, PROMPT, "--max-tokens", "50", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
