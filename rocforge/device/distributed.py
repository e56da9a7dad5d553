"""Groups: several cards that work on one model, a process each, and the collectives by which their parts become whole.

All members, on one machine or several, call the same collectives in the same order. Between CPUs the arrays go over
sockets, and rank 0 sums: a member that has ended closes its sockets, so that nobody waits for it. Between GPUs they go
by RCCL or NCCL, on the current stream, and may be captured in a graph.

Source of the collectives: the NCCL user guide, https://docs.nvidia.com/deeplearning/nccl/user-guide.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from rocforge.device.kernels import is_recording
from rocforge.device.libraries import cupy_module
from rocforge.device.links import Address, Door, connect
from rocforge.device.peer_memory import PeerMemory
from rocforge.errors import DeviceError

FAILED = "failed"
"""What rank 0 sends in place of a result: the text of an error follows."""
FIRST_SIZES = (1 << 10, 1 << 20)
"""Numbers of the first all-reduces between GPUs, for which NCCL has different ways."""


class Group:
    """The members of a group, as one of them sees them. This class is the group of one, whose collectives do nothing.

    Args:
        rank: the member's number, from 0.
        devices: of all members, in order: "cpu" or "gpu:N".
        hosts: the addresses of their machines; none where all are on one.

    Attributes:
        size: how many there are.
    """

    def __init__(self, rank: int = 0, devices: Sequence[str] = ("cpu",), hosts: Sequence[str] = ()):
        self.rank, self.devices, self.hosts, self.size = rank, tuple(devices), tuple(hosts), len(devices)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name(self.rank)} of {', '.join(self.devices)})"

    def name(self, rank: int) -> str:
        """What messages call a member."""
        return f"card {rank} ({self.devices[rank]}{f' on {self.hosts[rank]}' if self.hosts else ''})"

    def close(self) -> None:
        """Leave: members that wait for this one are told."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """A float32 array where the group's are, of any values."""
        return np.zeros(shape, np.float32)

    def all_reduce(self, x: Any, norm: Mapping[str, Any] | None = None) -> Any:
        """The sum of all members' arrays, of one shape and dtype; written to `x`, where that is a device's.

        Args:
            x: contiguous.
            norm: as in PeerMemory.all_reduce, where the group `gives_norm`.
        """
        return x

    def gives_norm(self, x: Any) -> bool:
        """Whether `all_reduce` of x (rows, n) can give the norm of its rows too."""
        return False

    def all_gather(self, x: Any) -> Any:
        """All members' arrays, (size, *x.shape)."""
        return x[None]

    def broadcast(self, x: Any) -> None:
        """Fill `x` with what rank 0 has."""

    def send(self, x: Any, rank: int) -> None:
        """Send an array to a member, which receives it meanwhile."""
        raise ValueError(f"send: rank is {rank}; a group of one has nobody else")

    def receive(self, x: Any, rank: int) -> None:
        """Fill `x` with what a member sends."""
        raise ValueError(f"receive: rank is {rank}; a group of one has nobody else")


ALONE = Group()


class HostGroup(Group):
    """A group of CPUs. `connect` comes before the first collective.

    Args:
        rank, devices, hosts: as in Group.
        key: that all members know.

    Attributes:
        door: where members of lower ranks find this one; rank 0 has none.
    """

    def __init__(self, rank: int, devices: Sequence[str], hosts: Sequence[str], key: bytes):
        super().__init__(rank, devices, hosts)
        self.door = Door(hosts[rank] if hosts else "127.0.0.1", key) if rank else None
        self._key = key
        self._links: dict[int, Connection] = {}

    def connect(self, doors: Sequence[Address]) -> None:
        """Meet the other members; waits for all of them.

        Args:
            doors: of ranks 1, 2, ...

        Raises:
            DeviceError: one of them is not reached.
        """
        if self.door is not None:
            for _ in range(self.rank):
                link = self.door.accept()
                self._links[int(link.recv_bytes())] = link
            self.door.close()
        for rank in range(self.rank + 1, self.size):
            try:
                self._links[rank] = connect(doors[rank - 1], self._key)
                self._links[rank].send_bytes(str(self.rank).encode())
            except OSError as error:
                raise DeviceError(f"{self.name(self.rank)} does not reach {self.name(rank)}: {error}") from error

    def close(self) -> None:
        """As in Group."""
        for link in self._links.values():
            link.close()

    def all_reduce(self, x: np.ndarray, norm: Mapping[str, Any] | None = None) -> np.ndarray:
        """Summed in the order of ranks."""
        return self._at_rank_0("all-reduce", x, lambda parts: np.add.reduce(parts, dtype=x.dtype), x.shape)

    def all_gather(self, x: np.ndarray) -> np.ndarray:
        """As in Group."""
        return self._at_rank_0("all-gather", x, np.stack, (self.size, *x.shape))

    def broadcast(self, x: np.ndarray) -> None:
        """As in Group."""
        x[...] = self._at_rank_0("broadcast", x, lambda parts: parts[0], x.shape)

    def send(self, x: np.ndarray, rank: int) -> None:
        """As in Group."""
        self._send(rank, _described("send", x), np.ascontiguousarray(x).tobytes())

    def receive(self, x: np.ndarray, rank: int) -> None:
        """As in Group."""
        described, sent = self._receive(rank)
        if described != _described("send", x):
            raise DeviceError(f"{self.name(self.rank)} receives {_described('', x)}, {self.name(rank)}: {described}")
        x[...] = np.frombuffer(sent, x.dtype).reshape(x.shape)

    def _at_rank_0(self, call: str, x: np.ndarray, combine: Callable[[Any], Any], shape: tuple[int, ...]) -> np.ndarray:
        """What rank 0 makes of all parts, at every member."""
        described, x = _described(call, x), np.ascontiguousarray(x)
        if self.rank:
            self._send(0, described, x.tobytes())
            answer, result = self._receive(0)
            if answer == FAILED:
                raise DeviceError(result.decode())
            return np.frombuffer(bytearray(result), x.dtype).reshape(shape)
        received = {rank: self._receive(rank) for rank in range(1, self.size)}
        if problem := self._mismatch(described, {rank: theirs for rank, (theirs, _) in received.items()}):
            for rank in received:
                self._send(rank, FAILED, problem.encode())
            raise DeviceError(problem)
        parts = [x, *(np.frombuffer(sent, x.dtype).reshape(x.shape) for _, sent in received.values())]
        whole: np.ndarray = combine(parts)
        for rank in received:
            self._send(rank, described, whole.tobytes())
        return whole

    def _mismatch(self, ours: str, theirs: Mapping[int, str]) -> str | None:
        calls = {self.name(0): ours, **{self.name(rank): call for rank, call in theirs.items()}}
        if len(set(calls.values())) == 1:
            return None
        return f"collectives differ: {'; '.join(f'{name} calls {call}' for name, call in calls.items())}"

    def _send(self, rank: int, described: str, data: bytes) -> None:
        try:
            self._links[rank].send_bytes(described.encode())
            self._links[rank].send_bytes(data)
        except OSError:
            raise DeviceError(f"{self.name(rank)} has ended") from None

    def _receive(self, rank: int) -> tuple[str, bytes]:
        try:
            return self._links[rank].recv_bytes().decode(), self._links[rank].recv_bytes()
        except (EOFError, OSError):
            raise DeviceError(f"{self.name(rank)} has ended") from None


def _described(call: str, x: np.ndarray) -> str:
    return f"{call} of {x.dtype} {x.shape}"


class NcclGroup(Group):
    """A group of GPUs, by RCCL or NCCL, which also go from machine to machine. What it does is queued on the current
    stream.

    `connect` comes before the first collective. Where launches are recorded in place of being made, nothing is sent.
    """

    _communicator: Any = None
    _peers: PeerMemory | None = None

    @staticmethod
    def new_id() -> bytes:
        """What all members of a new group connect with.

        Raises:
            DeviceError: CuPy has no RCCL or NCCL.
        """
        nccl = _nccl()
        unique: bytes = nccl.get_unique_id()
        return unique

    def connect(self, unique: bytes) -> None:
        """Meet the other members, on the current device and stream; waits for all of them.

        Where all of them see each other's memory, small sums go over that: unless ROCFORGE_PEER_MEMORY=0, and on AMD
        only with ROCFORGE_PEER_MEMORY=1.
        """
        self._communicator = communicator = _nccl().NcclCommunicator(self.size, unique, self.rank)
        # To end one NCCL waits until no graph has collectives of it. So Python never does that by the way, and a thread
        # does when the group has gone, whose graphs may still be going.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(communicator))
        weakref.finalize(self, _end_in_time, communicator).atexit = False
        cupy = cupy_module()
        for size in FIRST_SIZES:  # what they take memory for at their first call, while there is some
            self.all_gather(self.all_reduce(cupy.zeros(size, np.float32)))
        default = "0" if cupy.cuda.runtime.is_hip else "1"
        if len(set(self.hosts)) < 2 and os.environ.get("ROCFORGE_PEER_MEMORY", default) != "0":
            self._see_each_other()
        cupy.cuda.get_current_stream().synchronize()  # the group is for other streams too

    def _see_each_other(self) -> None:
        cupy, own = cupy_module(), int(self.devices[self.rank][4:])
        others = [int(device[4:]) for rank, device in enumerate(self.devices) if rank != self.rank]
        sees = all(cupy.cuda.runtime.deviceCanAccessPeer(own, other) for other in others)
        if int(self.all_reduce(cupy.asarray(np.array([sees], np.int32))).get()[0]) < self.size:
            return
        peers = PeerMemory(self.rank, self.size)
        handles = self.all_gather(cupy.asarray(np.frombuffer(peers.handle, np.uint8))).get()
        peers.open([handle.tobytes() for handle in handles])
        self._peers = peers

    def abort(self) -> None:
        """End collectives that wait for a member which has ended; any thread may do so. The group is of no more use."""
        if self._peers is not None:
            self._peers.abort()
        if self._communicator is not None:
            self._communicator.abort()

    def empty(self, shape: tuple[int, ...]) -> Any:
        """As in Group."""
        return cupy_module().empty(shape, np.float32)

    def gives_norm(self, x: Any) -> bool:
        """As in Group."""
        return self._peers is not None and self._peers.takes(x, rows=True)

    def all_reduce(self, x: Any, norm: Mapping[str, Any] | None = None) -> Any:
        """As in Group."""
        if self._peers is not None and self._peers.takes(x, rows=norm is not None):
            self._peers.all_reduce(x, norm)
            return x
        self._queue("allReduce", x.data.ptr, x.data.ptr, x.size, _kind(x), _nccl().NCCL_SUM)
        return x

    def all_gather(self, x: Any) -> Any:
        """As in Group."""
        whole = cupy_module().empty((self.size, *x.shape), x.dtype)
        self._queue("allGather", x.data.ptr, whole.data.ptr, x.size, _kind(x))
        return whole

    def broadcast(self, x: Any) -> None:
        """As in Group."""
        self._queue("broadcast", x.data.ptr, x.data.ptr, x.size, _kind(x), 0)

    def send(self, x: Any, rank: int) -> None:
        """As in Group."""
        self._queue("send", x.data.ptr, x.size, _kind(x), rank)

    def receive(self, x: Any, rank: int) -> None:
        """As in Group."""
        self._queue("recv", x.data.ptr, x.size, _kind(x), rank)

    def _queue(self, call: str, *args: Any) -> None:
        if not is_recording():
            getattr(self._communicator, call)(*args, cupy_module().cuda.get_current_stream().ptr)


def _end_in_time(communicator: Any) -> None:
    threading.Thread(target=communicator.abort, daemon=True).start()


def _nccl() -> Any:
    """CuPy's binding of RCCL or NCCL."""
    nccl = importlib.import_module(f"{cupy_module().__name__}.cuda.nccl")
    if not nccl.available:
        raise DeviceError("several GPUs need RCCL or NCCL, and CuPy finds none: install rccl, or nvidia-nccl-cu13")
    return nccl


def _kind(x: Any) -> int:
    """NCCL's number of a contiguous array's dtype."""
    if not x.flags.c_contiguous:
        raise ValueError(f"a collective of an array of strides {x.strides}; allowed are contiguous ones")
    return int(getattr(_nccl(), f"NCCL_{x.dtype.name.upper()}"))
