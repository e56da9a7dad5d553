"""Kernels: finds the sources in rawkernels/, compiles them for the device in use, keeps the modules, and launches.

    _scale = Kernel("scale.hip", "scale", "float32* float32* int32 float32")
    _scale((blocks,), (256,), (y, x, x.size, 2.0))

A source is compiled at its first use on a device, by hiprtc or NVRTC, or ahead of it by rocforge.device.background; the
code is kept on disk, by content (rocforge.device.kernel_cache), so a later process only loads it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rocforge.device import geometry, overlap, tuning
from rocforge.device.cards import Card, card_of, supported_card
from rocforge.device.compile_program import CompileError, compile_program
from rocforge.device.compiler import Compile, code_file, load_module
from rocforge.device.kernel_arguments import Arguments, Packed, Positional
from rocforge.device.libraries import cupy_module
from rocforge.device.params import assertions, kernel_structs, struct_fields
from rocforge.errors import DeviceError
from rocforge.formats.blocks import QTYPES
from rocforge.formats.planar import KINDS, PLANAR

PREFIX = "rf_"
"""Prefix of every kernel in the sources, to avoid clashes with names in HIP's and CUDA's headers."""


def source_folder() -> Path:
    """The folder of the sources: in the package (a wheel), or beside it (a checkout).

    Raises:
        FileNotFoundError: it is in neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "rawkernels", package.parent / "rawkernels"):
        if (folder / "target" / "platform.h").exists():
            return folder
    raise FileNotFoundError(f"no folder rawkernels/ with the kernel sources in {package} or beside it")


@functools.cache
def source_text(name: str) -> str:
    """A source with its `#include "..."` lines replaced by the files they name, each once.

    The compiler then needs no include folder, and the cache of compiled kernels, keyed by text, sees every change.
    """
    return with_includes((source_folder() / name).read_text(), name, set())


def with_includes(text: str, name: str, seen: set[str]) -> str:
    """A text with the files of rawkernels/ that it includes in place of its `#include "..."` lines.

    Args:
        text: a source, or a header.
        name: what the compiler's messages call it.
        seen: the files that are in already, which are left out; those that come are added.

    Raises:
        FileNotFoundError: an included file is not in rawkernels/.
    """
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(text.splitlines(), 1):
        include = re.match(r'\s*#include "([^"]+)"', line)
        if include:
            if include[1] not in seen:
                seen.add(include[1])
                lines.append(with_includes((source_folder() / include[1]).read_text(), include[1], seen))
            lines.append(f'#line {number + 1} "{name}"')
        elif line.strip() != "#pragma once":
            lines.append(line)
    return "\n".join(lines)


def variants(source: str) -> list[dict[str, str]]:
    """The sets of defines that a source names in its `// variants: NAME=value,value ...` lines: what models use.

    PLANAR stands for the formats that have planes on a device, KINDS for one of each kind of these, WIDE for those that
    wide.hip multiplies, BLOCKS for the formats without planes.
    """
    lines = re.findall(r"^// variants: (.+)$", (source_folder() / source).read_text(), re.M)
    found: list[dict[str, str]] = []
    for line in lines:
        axes = {name: _values(text) for name, text in (axis.split("=") for axis in line.split())}
        found += [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return found or [{}]


def is_for(source: str, target: str) -> bool:
    """Whether a source is for a target, gfx... or sm_...: by its `// targets: ...` line, where it has one.

    A line that names none of NVIDIA's is about AMD's alone.
    """
    line = re.search(r"^// targets: (.+)$", (source_folder() / source).read_text(), re.M)
    named = line[1].split() if line else [target]
    if target.startswith("sm_") and not any(name.startswith("sm_") for name in named):
        return True
    return target in named


def _values(text: str) -> list[str]:
    groups = {
        "PLANAR": list(PLANAR),
        "KINDS": list(KINDS),
        "WIDE": [name for name, planes in PLANAR.items() if planes.wide],
        "BLOCKS": [name for name in QTYPES if name not in PLANAR],
    }
    return [value for word in text.split(",") for value in groups.get(word, [word])]


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
    return tuned_in(source_text(source))


def tuned_in(text: str) -> frozenset[str]:
    """The fields of Tuning that a text takes, as RF_TUNE_NAME."""
    return frozenset(name.lower() for name in re.findall(r"\bRF_TUNE_(\w+)", text))


def macros(source: str, given: dict[str, Any], card: Card, tuned: tuning.Tuning) -> dict[str, Any]:
    """What a source is compiled with for a card.

    Args:
        given: macros that say what is computed, such as RF_QTYPE.
        tuned: the card's settings.

    Raises:
        AttributeError: the source names a field that Tuning does not have.
    """
    named = {f"RF_TUNE_{name.upper()}": getattr(tuned, name) for name in tuned_names(source)}
    return {**named, **geometry.derived(source, given, tuned, card.wave), **given}


def with_defines(source: str, defines: dict[str, Any]) -> str:
    """A source's text with macros defined before it, in a fixed order, and assertions of its structs behind it."""
    text = source_text(source)
    return defined(text, defines) + assertions(text)


def defined(text: str, defines: Mapping[str, Any]) -> str:
    """A text with macros defined before it."""
    return "".join(f"#define {name} {defines[name]}\n" for name in sorted(defines)) + text


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
        """Compile and load it, with its device current; an error is raised by the next `load`."""
        with self._lock:
            if self._module is None:
                try:
                    self._module = self._loaded(compile)
                except Exception as error:
                    self._failure = error

    def get_function(self, name: str) -> Any:
        return self.load().get_function(name)

    def load(self) -> Any:
        """The module, compiled and loaded; raises the error of `prepare`, if any."""
        with self._lock:
            if self._failure is not None:
                failure, self._failure = self._failure, None  # it may be transient (out of memory): try again next time
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


_modules: dict[tuple[Any, ...], _Module] = {}


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
            with `*?` where None is allowed and gives a null pointer. None: the kernel takes one struct, whose fields
            the source declares (rocforge.device.params).
        defines: macros that say what it computes; those of the card are added (`macros`).
    """

    def __init__(self, source: str, name: str, signature: str | None = None, **defines: Any):
        self.source, self.name, self.defines, self._signature = source, name, defines, signature
        self._functions: dict[tuple[int, tuning.Tuning], Any] = {}

    def __repr__(self) -> str:
        defines = "".join(f", {key}={value}" for key, value in self.defines.items())
        return f"Kernel({self.source}, {self.name}{defines})"

    @functools.cached_property
    def _arguments(self) -> Arguments:
        """How its arguments are checked and passed; not known before its source is read."""
        text = source_text(self.source)
        if self._signature is None:
            return Packed(struct_fields(text, kernel_structs(text)[self.name]))
        kinds = self._signature.split()
        return Positional(kinds, parameter_names(self.source, self.name, len(kinds)))

    def module(self, device: int) -> _Module:
        """What it is compiled with for a device: the same for all kernels of one source with the same defines."""
        return _module(self.source, self.defines, device)

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any] | Mapping[str, Any], shared: int = 0
    ) -> None:
        """Launch on the current device and its current stream. As `launch_of`."""
        self.launch_of(grid, block, args, shared)()

    def launch_of(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any] | Mapping[str, Any], shared: int = 0
    ) -> Callable[[], None]:
        """What launches on the current device and its current stream, as often as it is called there. The caller keeps
        the arrays until then, and the arguments are checked but once.

        Args:
            grid, block: blocks and threads a block, up to three axes each.
            args: as the signature says; of a struct, each field's value by its name, and for a field that is an array
                of structs a sequence of their values in order.
            shared: bytes of dynamic LDS, the same in each launch on a device.

        Raises:
            TypeError: an argument is not of its declared type, or missing, or unknown.
            ValueError: an array is not C-contiguous or lies on another device; a number does not fit its type.
        """
        if _this_thread.record is not None:
            return functools.partial(_this_thread.record, self)
        device = cupy_module().cuda.runtime.getDevice()
        function = self._functions.get((device, tuning.of(device))) or self._load(device, shared)
        try:
            checked = self._arguments.checked(args, device)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from error
        if _this_thread.overlap:
            return overlap.OverlappingLaunch(function.kernel, grid, block, checked, shared)
        return functools.partial(function.kernel, grid, block, checked, shared)

    def _load(self, device: int, shared: int) -> Any:
        function = self.module(device).get_function(PREFIX + self.name)
        if shared:
            function.max_dynamic_shared_size_bytes = shared
        self._functions[device, tuning.of(device)] = function
        return function


class _ThisThread(threading.local):
    record: Callable[[Kernel], Any] | None = None
    overlap = False


_this_thread = _ThisThread()


@contextlib.contextmanager
def launches_recorded(record: Callable[[Kernel], Any]) -> Iterator[None]:
    """In this context and thread, kernels are passed to `record` instead of launched, and new CuPy arrays are zeros.

    This finds the kernels that code needs; its results are meaningless.
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


def is_recording() -> bool:
    """Whether this thread's launches are recorded in place of being made."""
    return _this_thread.record is not None


@contextlib.contextmanager
def launches_overlap() -> Iterator[None]:
    """In this context and thread, kernels begin while the one before still runs, where the device supports it."""
    before, _this_thread.overlap = _this_thread.overlap, overlap.overlaps(cupy_module().cuda.runtime.getDevice())
    try:
        yield
    finally:
        _this_thread.overlap = before
