"""Links between processes: who does not know the key is turned away, and the end of the other side is seen."""

import os
import socket
import threading
import time
from multiprocessing import Pipe

import pytest

from rocforge.device import links
from rocforge.device.links import Door, connect, hang_up, wait_until_gone

KEY = b"the key"


@pytest.fixture
def door():
    door = Door("127.0.0.1", KEY)
    yield door
    door.close()


def accepted(door):
    """A list that gets the next link."""
    found = []
    thread = threading.Thread(target=lambda: found.append(door.accept()), daemon=True)
    thread.start()
    return found, thread


def pair(door):
    found, thread = accepted(door)
    there = connect(door.address, KEY)
    thread.join(5)
    return found[0], there


def test_messages_of_any_size_go_both_ways(door):
    here, there = pair(door)
    there.send({"a": 1})
    assert here.recv() == {"a": 1}
    large = os.urandom(3 << 20)
    sending = threading.Thread(target=here.send_bytes, args=(large,))
    sending.start()
    assert there.recv_bytes() == large
    sending.join(5)
    option = socket.socket(fileno=os.dup(here.fileno())).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert option == 1


def test_another_key_is_turned_away(door):
    found, thread = accepted(door)
    with pytest.raises(ConnectionError, match=rf"no connection to 127.0.0.1, port {door.address[1]}: digest"):
        connect(door.address, b"another")
    assert not found
    connect(door.address, KEY)
    thread.join(5)
    assert len(found) == 1


@pytest.mark.parametrize("says", [b"", b"\x00\x00\x00\x05hello", b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n"])
def test_strangers_are_turned_away(door, says, monkeypatch):
    """What they send is not unpickled, and who says nothing keeps nobody for long."""
    monkeypatch.setattr(links, "PATIENCE", 1)
    found, thread = accepted(door)
    with socket.create_connection(door.address) as stranger, socket.create_connection(door.address) as another:
        stranger.sendall(says)
        another.sendall(says)
        connect(door.address, KEY)
        thread.join(5)
        assert len(found) == 1


def test_a_door_that_is_closed(door):
    door.close()
    with pytest.raises(ConnectionError, match=r"no connection to 127.0.0.1, port \d+: .*refused"):
        connect(door.address, KEY)


@pytest.mark.parametrize("says", [b"", b"\x00\x00\x00\x05hello", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_who_answers_and_does_not_know_the_key(says, monkeypatch):
    monkeypatch.setattr(links, "PATIENCE", 1)
    monkeypatch.setattr(links, "STRANGERS", 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answers = threading.Thread(target=lambda: kept.append(listener.accept()[0]) or kept[0].sendall(says))
        kept, started = [], time.monotonic()
        answers.start()
        with pytest.raises(ConnectionError, match="no connection"):
            connect(listener.getsockname(), KEY)
        assert time.monotonic() - started < 5
        kept[0].close()


def test_a_link_waits_for_messages_as_long_as_they_take(door, monkeypatch):
    monkeypatch.setattr(links, "PATIENCE", 1)
    here, there = pair(door)
    threading.Timer(1.5, there.send, ["late"]).start()
    assert here.recv() == "late"


@pytest.mark.parametrize("over_tcp", [True, False])
@pytest.mark.parametrize("how", ["close", "hang up", "hang up here"])
def test_the_end_is_seen(door, over_tcp, how):
    here, there = pair(door) if over_tcp else Pipe()
    waiting = threading.Thread(target=wait_until_gone, args=(here,), daemon=True)
    waiting.start()
    there.send("something that nobody reads yet")
    waiting.join(0.1)
    assert waiting.is_alive()
    if how == "close":
        there.close()
    else:
        hang_up(here if how == "hang up here" else there)
    waiting.join(5)
    assert not waiting.is_alive()
