"""Cells answer, keep to themselves, and end at their bounds; no process outlives who may ask it."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rocforge.text.jail import Jail, JailError, LimitError


@pytest.fixture(scope="module")
def jail():
    return Jail("jailed", "Program", "first")


def pids(cell):
    """Of the cell and of its parent."""
    return [int(word) for word in cell.call(5, "pid").split()]


def ends(pid, seconds=10):
    """Whether the process is gone, or dead and not yet waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_cells_are_apart(jail):
    """Each begins as the jail's object is, a fork as the cell that it is of, and goes its own way."""
    one, two = jail.cell(), jail.cell()
    assert one.call(5, "say", "a") == b"first a"
    assert two.call(5, "say", "b") == b"first b"
    three = one.fork()
    assert one.call(5, "say", "c") == b"first a c"
    assert three.call(5, "say", "d") == b"first a d"
    one.close()
    assert three.call(5, "say", "e") == b"first a d e", "a cell needs no other"


def test_calls_overlap(jail):
    """What is begun in many cells is answered in each."""
    cells = [jail.cell() for _ in range(8)]
    for i, cell in enumerate(cells):
        cell.send(5, "say", str(i))
    assert [cell.receive(25) for cell in cells] == [b"first %d" % i for i in range(8)]


def test_exceptions(jail):
    """They are their message, and the cell goes on."""
    cell = jail.cell()
    with pytest.raises(JailError, match=r"^it is xxx") as error:
        cell.call(5, "fail", "it is " + "x" * 10_000)
    assert len(str(error.value)) <= 4096 and not isinstance(error.value, LimitError)
    assert cell.call(5, "say", "a") == b"first a"


@pytest.mark.parametrize("method", ["spin", "hold_the_lock"])
def test_time(jail, method):
    """A call that goes on ends with its CPU time, also in one long operation of C."""
    cell = jail.cell()
    pid, _ = pids(cell)
    with pytest.raises(LimitError, match=r"more than 0\.2 seconds of CPU time or 256 MB of memory"):
        cell.send(0.2, method)
        cell.receive(30)
    assert ends(pid)
    with pytest.raises(LimitError):
        cell.call(1, "say", "a")


def test_time_of_each_call(jail):
    """A cell that is used for long has the time anew for each call."""
    cell = jail.cell()
    for _ in range(20):
        assert cell.call(0.1, "fill", 10 << 20) == b"10"


def test_patience(jail):
    """Who waits no longer than so long goes on then; the cell ends by itself."""
    cell = jail.cell()
    pid, _ = pids(cell)
    cell.send(0.5, "spin")
    start = time.monotonic()
    with pytest.raises(LimitError, match=r"more than 0\.05 seconds"):
        cell.receive(0.05)
    assert time.monotonic() - start < 0.5 and cell.closed and ends(pid)


def test_memory(jail):
    """What does not fit is an error; what does fit is not."""
    assert jail.cell().call(5, "fill", 100 << 20) == b"100"
    with pytest.raises(LimitError, match="more than 256 MB of memory"):
        jail.cell().call(5, "fill", 300 << 20)


def test_large_answers(jail):
    """An answer has a bound of its own."""
    assert len(jail.cell().call(5, "answer", 10**6)) == 10**6
    with pytest.raises(LimitError, match="returned more than 64 MB"):
        jail.cell().call(5, "answer", 70 * 10**6)


def test_crashes(jail):
    """A cell that dies is an error, and no other notices."""
    other = jail.cell()
    with pytest.raises(LimitError):
        jail.cell().call(5, "crash")
    assert other.call(5, "say", "a") == b"first a"


def test_closed_and_forgotten_cells_end(jail):
    """Without delay, and without zombies, those of other cells too."""
    parent = jail.cell()
    cells = [parent, parent.fork(), jail.cell()]
    numbers = [pids(cell)[0] for cell in cells]
    cells[2].close()
    assert ends(numbers[2]) and not pathlib.Path(f"/proc/{numbers[2]}").exists()
    del parent, cells
    for number in numbers:
        assert ends(number)
        time.sleep(0.05)
        assert not pathlib.Path(f"/proc/{number}").exists()


def test_a_jail_starts_again():
    """Where somebody ends its process, the next cell is of a new one; a jail that is dropped ends."""
    jail = Jail("jailed", "Program", "first")
    cell = jail.cell()
    _, first = pids(cell)
    os.kill(first, signal.SIGKILL)
    assert ends(first)
    again = jail.cell()
    assert again.call(5, "say", "a") == b"first a"
    _, second = pids(again)
    assert second != first
    del jail
    assert ends(second)


def test_a_fork_of_the_owner_has_a_jail_of_its_own():
    """It does not write into its parent's connections, and leaves the parent's process alone when it ends."""
    jail = Jail("jailed", "Program", "first")
    mine = jail.cell()
    _, parent = pids(mine)
    forked = os.fork()
    if not forked:
        good = False
        with contextlib.suppress(BaseException):
            with pytest.raises(LimitError):
                mine.call(5, "say", "a")
            good = pids(jail.cell())[1] != parent
            del jail
        os._exit(0 if good else 1)
    assert os.waitpid(forked, 0)[1] == 0
    assert mine.call(5, "say", "a") == b"first a" and pids(jail.cell())[1] == parent


def test_what_cannot_be_made():
    """Each attempt says why."""
    jail = Jail("nowhere", "Program")
    for _ in range(2):
        with pytest.raises(JailError, match="No module named 'nowhere'"):
            jail.cell()


SERVER = """
import sys
from rocforge.text.jail import Jail
jail = Jail("jailed", "Program", "first")
idle, busy = jail.cell(), jail.cell()
print((idle.call(5, "pid") + b" " + busy.call(5, "pid")).decode(), flush=True)
busy.send(1, "spin")
sys.stdin.read()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_no_process_outlives_its_owner(end):
    """However it ends, also within a call."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        numbers = {int(word) for word in process.stdout.readline().split()}
        assert len(numbers) == 3
        if end is not None:
            process.send_signal(end)
        process.stdin.close()
        process.wait(30)
    assert all(ends(number, 30) for number in numbers)
