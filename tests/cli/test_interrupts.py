"""Ctrl-C, with real processes and real signals: one ends or stops cleanly, a second one ends at once."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import gguf
import pytest
from golden import build

pytestmark = pytest.mark.slow

BUSY = """
import hashlib, sys, time
from rocforge.cli.interrupts import Interrupts
with Interrupts():
    print("ready", flush=True)
    try:
        if sys.argv[1] == "library":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # Python's handler cannot run before this returns
        time.sleep(60)
    except KeyboardInterrupt:
        print("cleaning up", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_while_modules_are_imported(tmp_path, ignored):
    """The command's own imports end quietly, with an interrupt's code; where SIGINT is ignored they go on."""
    (tmp_path / "numpy.py").write_text("import time\nprint('importing', flush=True)\nwhile True: time.sleep(0.01)\n")
    code = "import sys, rocforge_command; sys.exit(rocforge_command.main())"
    command = ["sh", "-c", f'trap "{"" if ignored else "-"}" INT; exec "$@"', "sh", sys.executable, "-c", code]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    if ignored:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()
        process.communicate()
    else:
        assert process.communicate(timeout=5) == ("", "") and process.returncode == 130


@pytest.mark.parametrize("where", ["library", "clean-up"])
def test_the_second_always_ends_it_at_once(where):
    """Also inside a library, and while the first one's clean-up hangs."""
    process = subprocess.Popen([sys.executable, "-c", BUSY, where], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    if where == "clean-up":
        assert process.stdout.readline() == "cleaning up\n"
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(3) == 130


def test_a_process_that_ignores_it_goes_on_to():
    """Where SIGINT is ignored from the start, as for a script's background jobs, it stays ignored."""
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", BUSY, "clean-up"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_handlers_are_put_back():
    """After Interrupts the process handles SIGINT as before, and has no thread and no pipe more."""
    from rocforge.cli.interrupts import Interrupts

    handler, threads, pipes = signal.getsignal(signal.SIGINT), set(threading.enumerate()), open_pipes()
    for _ in range(3):
        with Interrupts(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is handler and signal.set_wakeup_fd(-1) == -1
    assert set(threading.enumerate()) <= threads and open_pipes() <= pipes


def open_pipes():
    """The pipes of this process, as "pipe:[inode]"."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return {name for name in found if name.startswith("pipe:")}


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A small random model that, greedily, goes on for as long as it may: its end token's logit is always 0."""
    path = tmp_path_factory.mktemp("endless") / "small.gguf"
    build(path, "llama-linear", "F32")
    file = gguf.GGUFReader(path, "r+")
    (output,) = (tensor for tensor in file.tensors if tensor.name == "output.weight")
    output.data[file.get_field("tokenizer.ggml.eos_token_id").contents()] = 0
    file.data.flush()
    return path


def test_generate_ends_at_any_time(endless, rng):
    """One SIGINT while it loads or writes: code 130, no traceback, and no process of its group is left."""
    for _ in range(4):
        command = [sys.executable, "-m", "rocforge", "generate", endless, "def f(", "--echo"]
        command += ["--temperature", "0", "--context", "8000", "--device", "cpu"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
        )
        assert process.stdout.read(1) == "d"  # the prompt: the model is loaded
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGINT)
        code, text = process.wait(10), process.stderr.read()
        assert code == 130 and "Traceback" not in text, text
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


def start_chat(terminal, model, template, *options):
    fixed = ("--chat-template", template, "--device", "cpu", "--temperature", 0, "--context", 8000)
    process = terminal("chat", model, *fixed, *options)
    process.expect(">>> ")
    return process


def test_chat_stops_a_reply_and_goes_on(terminal, endless, template):
    """Ctrl-C ends the reply, not the program, again and again; the next turn works; /exit gives code 0."""
    process = start_chat(terminal, endless, template)
    for delay in (0.2, 0.5, 1.0):
        process.sendline("tell me a long story")
        process.expect("long story\r\n")  # a terminal throws away at Ctrl-C what was typed and not yet read
        time.sleep(delay)
        process.sendintr()
        process.expect("stopped")
        process.expect(">>> ")
    process.sendline("/set max_tokens 3")
    process.expect(">>> ")
    process.sendline("and now a short one")
    process.expect("generation: 3 tokens")
    process.expect(">>> ")
    process.sendline("/exit")
    process.wait()
    assert process.exitstatus == 0


def test_chat_ends_at_the_second_in_a_row(terminal, endless, template):
    """At the prompt the first Ctrl-C clears the line and says how to leave, the second leaves, with the terminal as it
    was; a line between them starts the count anew."""
    process = start_chat(terminal, endless, template)
    for _ in range(2):
        process.send("half a li")
        process.expect("half a li")  # Ctrl-C in the same instant would take the typed text from under line editing
        process.sendintr()
        process.expect("Ctrl-C again")
        process.expect(">>> ")
        process.sendline("/set")
        process.expect("temperature 0.0")
        process.expect(">>> ")
    process.sendintr()
    process.expect("Ctrl-C again")
    process.sendintr()
    started = time.monotonic()
    process.wait()
    assert process.exitstatus == 130 and time.monotonic() - started < 2


def test_chat_stops_a_long_prompt(terminal, endless, template):
    """Ctrl-C is heard while a prompt of thousands of tokens is computed."""
    process = start_chat(terminal, endless, template)
    process.sendline("word " * 1200 + "the end")
    process.expect("the end\r\n")  # the line is read: before that Ctrl-C would clear it
    time.sleep(0.3)
    process.sendintr()
    process.expect("stopped")
    process.expect(">>> ")
    process.sendeof()
    process.wait()
    assert process.exitstatus == 0 and not re.search("error", process.before)
