"""Errors: a line, a hint and the documented exit code; never a traceback."""

import re
from pathlib import Path

import pytest

import rocforge.cli
from rocforge.cli import errors

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"

CASES = [
    (("bogus",), 2, "no such command 'bogus'"),
    (("generate",), 2, "missing argument 'MODEL'"),
    (("generate", "x", "y", "--temperatur", "1"), 2, "no such option: --temperatur"),
    (("generate", "x", "y", "--temp", "1"), 2, "no such option: --temp; did you mean --temperature?"),
    (("generate", "--model", "x"), 2, "no such option: --model"),
    (("generate", "x", "y", "--max-length", "1"), 2, "no such option: --max-length; did you mean --max-tokens?"),
    (("generate", "x", "y", "--ctx-size", "1"), 2, "no such option: --ctx-size; did you mean --context?"),
    (("generate", "x", "y", "--top-k", "many"), 2, "invalid value for '--top-k'"),
    (("generate", "x", "y", "--temperature", "9"), 2, "temperature is 9.0; allowed is from 0 to 2"),
    (("generate", "x", "y", "--system", "z"), 2, "--system and --chat-template need --chat"),
    (("generate", "nowhere.gguf", "y"), 1, "no such file: nowhere.gguf"),
    (("generate", "hf:nonsense", "y"), 2, "model name is 'hf:nonsense'"),
    (("generate", DOCS, "y"), 1, "GGUF"),
    (("generate", "MODEL", "y", "--device", "gpu:99"), 1, "gpu"),
    (("generate", "MODEL", "y", "--device", "tpu"), 2, "device is 'tpu'"),
    (("generate", "MODEL", "y", "--fp16-weights", "some"), 2, "'some' is not one of 'auto', 'on', 'off'"),
    (("generate", "MODEL", "y", "--chat"), 1, "no default chat template"),
    (("chat", "MODEL"), 1, "no default chat template"),
    (("models", "/nowhere"), 2, "no such folder: /nowhere"),
    (("inspect", DOCS), 1, "GGUF"),
    (("bench", "MODEL", "-p", "0", "-n", "0"), 2, "leaves nothing to measure"),
    (("bench", "MODEL", "-p", "99999"), 2, "tokens need a context of"),
    (("status", "--url", "127.0.0.1"), 2, "allowed are http://"),
    (("status", "--url", "http://127.0.0.1:1"), 3, "no server answers"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), CASES, ids=lambda value: str(value)[:40])
def test_one_line_and_a_hint(rocforge, model, arguments, code, message):
    """Two lines on stderr, nothing on stdout."""
    done = rocforge(*(model if a == "MODEL" else a for a in arguments), check=False)
    assert done.returncode == code and done.stdout == ""
    line, hint = done.stderr.splitlines()
    assert line.startswith("error: ") and message.lower() in line.lower() and hint.startswith("hint: ")


def test_a_fault_of_ours(monkeypatch, capsys):
    """What nobody foresaw is named with its type; ROCFORGE_TRACEBACK shows where it happened."""
    monkeypatch.setattr(rocforge.cli, "_run", lambda argv: {}["missing"])
    assert rocforge.cli.main([]) == 1
    assert capsys.readouterr().err.startswith("error: KeyError: 'missing'\nhint: this is a bug in rocforge")
    monkeypatch.setenv("ROCFORGE_TRACEBACK", "1")
    with pytest.raises(KeyError):
        rocforge.cli.main([])


def test_a_message_is_one_printable_line(capsys):
    """Line breaks and control characters of a message, which may come out of a file, are not passed on."""
    errors.report(OSError("two\nlines\x1b[2J"))
    assert capsys.readouterr().err.splitlines()[0] == r"error: two lines\x1b[2J"


def test_exit_codes_are_documented():
    """docs/cli.md lists exactly the exit codes that there are."""
    listed = set(map(int, re.findall(r"^\| (\d+) \|", DOCS.read_text(), re.MULTILINE)))
    named = {errors.FAILED, errors.USAGE, errors.UNREACHABLE, errors.INTERRUPTED, errors.OUTPUT_CLOSED}
    assert listed == {0, *named, 143}


def test_help_and_version(rocforge):
    """Help lists every command, and goes with code 0; so does the version."""
    text = rocforge().stdout
    assert text == rocforge("--help").stdout
    for command in ("generate", "chat", "serve", "models", "info", "inspect", "bench", "status", "cancel"):
        assert re.search(rf"^  {command} ", text, re.MULTILINE)
        assert f"\n### `rocforge {command}" in DOCS.read_text()
    assert rocforge("--version").stdout == f"rocforge {rocforge_version()}\n"


def rocforge_version():
    import rocforge

    return rocforge.__version__
