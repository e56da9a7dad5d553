"""Kernels: finds the sources in rawkernels/, compiles them for the device in use, keeps the modules, and launches.

    _scale = Kernel("scale.hip", "scale", "float32* float32* int32 float32")
    _scale((blocks,), (256,), (y, x, x.size, 2.0))

A source is compiled at its first use on a device, by hiprtc or NVRTC, or ahead of it by rocforge.loading.warmup; the
code is kept on disk, by content (rocforge.device.kernel_cache), so a later process only loads it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rocforge.device import geometry, overlap, tuning
from rocforge.device.arrays import cupy_module
from rocforge.device.cards import Card, card_of, supported_card
from rocforge.device.compile_program import CompileError, compile_program
from rocforge.device.compiler import Compile, code_file, load_module
from rocforge.errors import DeviceError

PREFIX = "rf_"
"""Of every kernel's name in the sources, where names of HIP's and CUDA's headers stand beside it."""
SCALARS_KEPT = 1024
"""Numbers that an argument is remembered for, with what CuPy passes for them."""


def source_folder() -> Path:
    """Where the sources lie: in the package (a wheel), or beside it (a checkout).

    Raises:
        FileNotFoundError: they lie in neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "rawkernels", package.parent / "rawkernels"):
        if (folder / "target" / "platform.h").exists():
            return folder
    raise FileNotFoundError(f"no rawkernels/ with the kernels' sources in {package} or beside it")


@functools.cache
def source_text(name: str) -> str:
    """A source with its `#include "..."` lines replaced by the files they name, each once.

    The compiler then needs no include folder, and the cache of compiled kernels, which goes by text, sees every change.
    """
    return _with_includes(name, set())


def _with_includes(name: str, seen: set[str]) -> str:
    if name in seen:
        return ""
    seen.add(name)
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate((source_folder() / name).read_text().splitlines(), 1):
        include = re.match(r'\s*#include "([^"]+)"', line)
        if include:
            lines += [_with_includes(include[1], seen), f'#line {number + 1} "{name}"']
        elif line.strip() != "#pragma once":
            lines.append(line)
    return "\n".join(lines)


def variants(source: str) -> list[dict[str, str]]:
    """The sets of defines that a source names in its `// variants: NAME=value,value ...` lines: what models use."""
    lines = re.findall(r"^// variants: (.+)$", (source_folder() / source).read_text(), re.M)
    found: list[dict[str, str]] = []
    for line in lines:
        axes = [(name, values.split(",")) for name, values in (axis.split("=") for axis in line.split())]
        names = [name for name, _ in axes]
        found += [dict(zip(names, values, strict=True)) for values in itertools.product(*(v for _, v in axes))]
    return found or [{}]


def parameter_names(source: str, kernel: str, count: int) -> list[str]:
    """What a source calls the `count` parameters of a kernel; none where a macro declares it."""
    for parameters in re.findall(rf"\b{PREFIX}{kernel}\(([^()]*)\)\s*\{{", source_text(source)):
        names = re.findall(r"(\w+)\s*(?:,|$)", parameters)
        if len(names) == count:
            return names
    return []


@functools.cache
def tuned_names(source: str) -> frozenset[str]:
    """The fields of rocforge.device.tuning.Tuning that a source takes, as RF_TUNE_NAME."""
    return frozenset(name.lower() for name in re.findall(r"\bRF_TUNE_(\w+)", source_text(source)))


def macros(source: str, given: dict[str, Any], card: Card, tuned: tuning.Tuning) -> dict[str, Any]:
    """What a source is compiled with for a card.

    Args:
        given: macros that say what is computed, such as RF_QTYPE.
        tuned: how kernels are cut for the card, of which the others follow.

    Raises:
        AttributeError: the source names a field that Tuning does not have.
    """
    named = {f"RF_TUNE_{name.upper()}": getattr(tuned, name) for name in tuned_names(source)}
    return {**named, **geometry.derived(source, given, tuned, card.wave), **given}


def with_defines(source: str, defines: dict[str, Any]) -> str:
    """A source's text with macros defined before it, in a fixed order."""
    return "".join(f"#define {name} {defines[name]}\n" for name in sorted(defines)) + source_text(source)


class _Module:
    """One source, with its defines, compiled for one device: at first use, once, whichever thread comes first."""

    def __init__(self, source: str, defines: dict[str, Any], macros: dict[str, Any], device: int):
        self.source, self.defines, self.macros, self.device = source, defines, macros, device
        self._lock, self._module = threading.Lock(), None
        self._failure: Exception | None = None

    @property
    def text(self) -> str:
        """The program that is compiled."""
        return with_defines(self.source, self.macros)

    @property
    def on_disk(self) -> bool:
        """Whether it has been compiled for this card before."""
        return code_file(self.text, supported_card(self.device)).exists()

    def prepare(self, compile: Compile = compile_program) -> None:
        """Compile and load it, with its device current; an error is kept, for the first `load` to raise."""
        with self._lock:
            if self._module is None:
                try:
                    self._module = self._loaded(compile)
                except Exception as error:
                    self._failure = error

    def get_function(self, name: str) -> Any:
        return self.load().get_function(name)

    def load(self) -> Any:
        """The module, compiled and loaded; raises what kept `prepare` from that."""
        with self._lock:
            if self._failure is not None:
                failure, self._failure = self._failure, None  # what may have passed, as want of memory, is tried again
                raise failure
            if self._module is None:
                self._module = self._loaded()
            return self._module

    def _loaded(self, compile: Compile = compile_program) -> Any:
        try:
            return load_module(self.text, supported_card(self.device), compile)
        except CompileError as error:
            defines = " ".join(f"{name}={value}" for name, value in sorted(self.defines.items()))
            raise DeviceError(f"{self.source} does not compile with {defines or 'no defines'}:\n{error}") from error


_modules: dict[tuple, _Module] = {}


def _module(source: str, defines: dict[str, Any], device: int) -> _Module:
    every = macros(source, defines, card_of(device), tuning.of(device))
    # setdefault is atomic: of two threads that come at once, one's _Module is kept, and neither has compiled yet
    key = (source, device, *sorted(every.items()))
    return _modules.get(key) or _modules.setdefault(key, _Module(source, defines, every, device))


class Kernel:
    """A kernel of a source in rawkernels/, to be called with its grid, block and arguments.

    Args:
        source: the file's name.
        name: of the kernel, without the prefix rf_ that all have in the sources (see platform.h).
        signature: a type for each argument, separated by spaces: a NumPy scalar type (`int32`, `float32`, ...) for a
            Python number; with `*` for a C-contiguous CuPy array of that dtype; `void*` for one of any dtype;
            with `*?` where None is allowed and gives a null pointer.
        defines: macros that say what it computes; how it is cut for the card is added (`macros`).
    """

    def __init__(self, source: str, name: str, signature: str, **defines: Any):
        self.source, self.name, self.defines = source, name, defines
        self._checks = [_check_of(kind) for kind in signature.split()]
        self._functions: dict[tuning.Tuning, Any] = {}

    def __repr__(self) -> str:
        defines = "".join(f", {key}={value}" for key, value in self.defines.items())
        return f"Kernel({self.source}, {self.name}{defines})"

    def module(self, device: int) -> _Module:
        """What it is compiled with for a device: the same for all kernels of one source with the same defines."""
        return _module(self.source, self.defines, device)

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any]) -> None:
        """Launch on the current device and its current stream.

        Args:
            grid, block: blocks and threads a block, up to three axes each.
            args: as the signature says.

        Raises:
            TypeError: an argument is not of its declared type, or their number is wrong.
            ValueError: an array is not C-contiguous or lies on another device; a number does not fit its type.
        """
        if _this_thread.record is not None:
            _this_thread.record(self)
            return
        device = cupy_module().cuda.runtime.getDevice()
        function = self._functions.get(tuning.of(device)) or self._load(device)
        if len(args) != len(self._checks):
            raise TypeError(f"{self.name} takes {len(self._checks)} arguments, and was given {len(args)}")
        try:
            checked = [check(value, device) for check, value in zip(self._checks, args, strict=True)]
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {self._blame(args, device)}") from error
        if _this_thread.overlap:
            overlap.launch(function.kernel, grid, block, checked)
        else:
            function.kernel(grid, block, checked)

    def _load(self, device: int) -> Any:
        function = self.module(device).get_function(PREFIX + self.name)
        self._functions[tuning.of(device)] = function
        return function

    def _blame(self, args: Sequence[Any], device: int) -> str:
        """Which argument is wrong, and how: worked out only after a check has failed."""
        names = parameter_names(self.source, self.name, len(args))
        for position, (check, value) in enumerate(zip(self._checks, args, strict=True)):
            try:
                check(value, device)
            except (TypeError, ValueError) as error:
                name = f" ({names[position]})" if names else ""
                return f"argument {position}{name}: {error}"
        return "arguments"


class _ThisThread(threading.local):
    record: Callable[[Kernel], Any] | None = None
    overlap = False


_this_thread = _ThisThread()


@contextlib.contextmanager
def launches_recorded(record: Callable[[Kernel], Any]) -> Iterator[None]:
    """In this context, and this thread, `record` gets each kernel instead of a launch, and new CuPy arrays are zeros.

    So code that launches kernels says itself which ones it needs; what it computes means nothing.
    """
    cupy = cupy_module()
    allocate = cupy.cuda.get_allocator()

    def zeros(nbytes: int) -> Any:
        memory = allocate(nbytes)
        memory.memset_async(0, nbytes, cupy.cuda.get_current_stream())
        return memory

    _this_thread.record = record
    try:
        with cupy.cuda.using_allocator(zeros):
            yield
    finally:
        _this_thread.record = None


@contextlib.contextmanager
def launches_overlap() -> Iterator[None]:
    """In this context, and this thread, kernels begin while the one before still runs, where the device can do that."""
    _this_thread.overlap = overlap.overlaps(cupy_module().cuda.runtime.getDevice())
    try:
        yield
    finally:
        _this_thread.overlap = False


def _check_of(kind: str) -> Callable[[Any, int], Any]:
    """A function that checks an argument of a kind, as `Kernel` describes them, and makes it what CuPy passes."""
    name, star, optional = kind.partition("*")
    if star:
        return _array_check(None if name == "void" else np.dtype(name), optional == "?")
    scalar = np.dtype(name).type
    whole = issubclass(scalar, np.integer)
    number = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    usual: type = int if whole else float
    seen: dict[Any, Any] = {}

    def check(value: Any, device: int) -> Any:
        known = seen.get(value) if type(value) is usual else None
        if known is not None:
            return known
        if not isinstance(value, number) or isinstance(value, bool):
            raise TypeError(f"{name} expected, not {type(value).__name__} ({value!r})")
        try:
            known = scalar(value)
        except OverflowError as error:
            raise ValueError(str(error)) from None
        if type(value) is usual and len(seen) < SCALARS_KEPT and (whole or value):  # -0.0 equals 0.0
            seen[value] = known
        return known

    return check


@functools.cache
def _contiguity(kind: type) -> Callable[[Any], bool] | None:
    """What tells whether an array of a class of CuPy is C-contiguous; None where it is no such class.

    `flags` are a new object each time, which takes longer than all else that is checked.
    """
    if kind.__module__.partition(".")[0] != "cupy":
        return None
    return operator.attrgetter("_c_contiguous" if hasattr(kind, "_c_contiguous") else "flags.c_contiguous")


def _array_check(dtype: np.dtype | None, optional: bool) -> Callable[[Any, int], Any]:
    null = np.uint64(0)

    def check(value: Any, device: int) -> Any:
        if value is None and optional:
            return null
        is_contiguous = _contiguity(type(value))
        if is_contiguous is None:
            raise TypeError(f"a CuPy array of {dtype or 'any dtype'} expected, not {type(value).__name__}")
        if dtype is not None and value.dtype is not dtype and value.dtype != dtype:
            raise TypeError(f"an array of {dtype} expected, not of {value.dtype}")
        if not is_contiguous(value):
            raise ValueError(f"a C-contiguous array expected; this one of shape {value.shape} is not")
        if value.data.device_id != device:
            there = value.data.device_id
            raise ValueError(
                f"an array on gpu:{device}, the current device, expected, not on gpu:{there}; "
                f'inside `with rf.Stream("gpu:{there}")` that one is current'
            )
        return value

    return check
