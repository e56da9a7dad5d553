"""Errors: a line, a hint and the documented exit code; never a traceback."""

import io
import re
import socket
from pathlib import Path

import pytest

import rocforge as rf
import rocforge.cli
from rocforge.cli import errors, output

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
    (("generate", "x", "y", "--top-k", "many"), 2, "--top-k"),
    (("generate", "x", "y", "--temperature", "9"), 2, "--temperature is 9.0; allowed is from 0 to 2"),
    (("generate", "x", "y", "--system", "z"), 2, "--system and --chat-template need --chat"),
    (("generate", "nowhere.gguf", "y"), 1, "no such file: nowhere.gguf"),
    (("generate", "hf:nonsense", "y"), 2, "model name is 'hf:nonsense'"),
    (("generate", DOCS, "y"), 1, "GGUF"),
    (("generate", "MODEL", "y", "--device", "gpu:99"), 1, "gpu"),
    (("generate", "MODEL", "y", "--device", "tpu"), 2, "--device is 'tpu'; allowed are \"cpu\""),
    (("generate", "MODEL", "y", "--fp16-weights", "some"), 2, "some' is not one of 'auto', 'on', 'off'"),
    (("serve", "x", "--port", "99999"), 2, "99999"),
    (("serve", "x", "--host", "192.0.2.1"), 1, "cannot listen on 192.0.2.1, port 8000: Cannot assign"),
    (("serve", DOCS.parent, "--port", "0"), 1, "no model in"),
    (("serve", "x", "--tool-parser", "xml"), 2, "--tool-parser is 'xml'; allowed are command_r7b,"),
    (("models", "/nowhere"), 2, "no such folder: /nowhere"),
    (("inspect", DOCS), 1, "GGUF"),
    (("bench", "MODEL", "-p", "0", "-n", "0"), 2, "leaves nothing to measure"),
    (("bench", "MODEL", "-p", "99999"), 2, "tokens need a context of"),
    (("status", "--url", "127.0.0.1"), 2, "allowed are http://"),
    (("status", "--url", "http://127.0.0.1:1"), 3, "no server answers"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), CASES, ids=lambda value: str(value)[:40])
def test_one_line_and_a_hint(capfd, model, arguments, code, message):
    """Two lines on stderr, nothing on stdout."""
    assert rocforge.cli.main([str(model if a == "MODEL" else a) for a in arguments]) == code
    out, err = capfd.readouterr()
    line, hint = err.splitlines()
    assert out == ""
    assert line.startswith("error: ") and message.lower() in line.lower() and hint.startswith("hint: ")


def test_no_chat_template(tmp_path, model, capsys):
    """A file without one is named as what cannot chat, before a message is asked for."""
    loaded, _ = rf.load(model, device="cpu")
    del loaded.metadata["tokenizer.chat_template"]
    loaded.save(tmp_path / "plain.gguf")
    for arguments in (
        ["generate", "--chat", str(tmp_path / "plain.gguf"), "y"],
        ["chat", str(tmp_path / "plain.gguf")],
    ):
        assert rocforge.cli.main([*arguments, "--device", "cpu", "--quiet"]) == 1
        assert "no default chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("bogus",), "rocforge --help shows"),
        (("generate",), "rocforge generate --help shows"),
        (("generate", "x", "y", "--temperature", "9"), "rocforge generate --help lists"),
    ],
)
def test_hints_name_the_command(capsys, arguments, hint):
    """The one that was given, where there is one of that name."""
    assert rocforge.cli.main(arguments) == 2
    assert f"hint: {hint}" in capsys.readouterr().err


def test_a_port_in_use(capsys):
    """`serve` says which port, and how to take another; before it loads the model."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert rocforge.cli.main(["serve", "x.gguf", "--port", str(port)]) == 1
    expected = f"error: port {port} of 127.0.0.1 is in use: another program listens there\nhint: --port takes another"
    assert expected in capsys.readouterr().err


def test_tables_keep_names_whole(monkeypatch):
    """On a terminal narrower than a table, names stay whole, to be copied; long values of two columns are folded."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    name = "hf:someone/a-model-with-a-long-name-in-a-long-line-GGUF:Q4_K_M"
    output.table([(name, "llama", "11.01 M", "11.3 MiB", "Q8_0", 1024)], ["model", "b", ">c", ">d", "e", ">f"])
    assert any(name in line and "1024" in line for line in terminal.getvalue().splitlines())
    output.table([("key", "word " * 40)], ["metadata", "value"])
    assert all(len(line) <= 80 for line in terminal.getvalue().splitlines() if "word" in line)


def test_errors_of_the_system_and_of_arguments(capsys):
    """Without Python's numbers, quotes and names: of a file, of a connection, of an argument that is an option."""
    for error, options, line in (
        (FileNotFoundError(2, "No such file or directory", "x y"), (), "No such file or directory: x y"),
        (PermissionError(13, "Permission denied", "/x"), (), "Permission denied: /x"),
        (OSError(99, "Cannot assign"), (), "Cannot assign"),
        (ValueError("top_k is -2; allowed is 0 or more"), ("--top-k",), "--top-k is -2; allowed is 0 or more"),
        (ValueError("top_k is -2"), (), "top_k is -2"),
    ):
        errors.report(error, ["serve"], options)
        assert capsys.readouterr().err.splitlines()[0] == f"error: {line}"


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
    errors.report(OSError("two\nlines\x1b[2J"), ["models"])
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
