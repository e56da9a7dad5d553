"""Kernel: a HIP kernel of a user's own, from its source, that works on arrays and on packed weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import on_device
from rocforge.device.cards import supported_card
from rocforge.device.compile_program import CompileError
from rocforge.device.compiler import load_module
from rocforge.device.kernel_arguments import Positional
from rocforge.device.kernels import defined, source_folder, tuned_in, with_includes
from rocforge.device.libraries import cupy_module
from rocforge.errors import DeviceError
from rocforge.formats.planar import PLANAR
from rocforge.quant import QuantizedArray

_KINDS = {
    name: kind
    for kind, names in {
        "int8": ("i8", "int8_t", "char", "signed char"),
        "uint8": ("u8", "uint8_t", "unsigned char"),
        "int16": ("i16", "int16_t", "short"),
        "uint16": ("u16", "uint16_t", "bf16", "unsigned short"),
        "int32": ("i32", "int32_t", "int"),
        "uint32": ("u32", "uint32_t", "unsigned", "unsigned int"),
        "int64": ("i64", "int64_t", "long long"),
        "uint64": ("u64", "uint64_t", "size_t", "unsigned long long"),
        "float16": ("f16", "half", "__half", "_Float16"),
        "float32": ("float",),
        "float64": ("double",),
    }.items()
    for name in names
}
"""By a type's name in HIP, in CUDA and in platform.h, NumPy's."""
_QUALIFIERS = {"const", "volatile", "__restrict__", "__restrict", "RF_NULLABLE"}


class _Parameter(NamedTuple):
    name: str
    kind: str


class Kernel:
    """A HIP kernel of your own, compiled for the card of the arrays that it is called with.

    It is called as `cupy.RawKernel` is: `kernel(grid, block, args)`. The source is HIP, which on an NVIDIA card is
    compiled as CUDA. It may include rocforge's headers, those of rawkernels/: "target/platform.h" has the wave's size,
    reductions and types that are alike on all cards, "formats/rows.h" the elements of packed rows of every format.
    hiprtc or NVRTC compile it at its first call on a card, with no compiler of your own, and the code is kept on disk
    for later runs.

    Args:
        source: of one kernel or several, with their parameters written out: pointers, and numbers of 8 to 64 bits. They
            are declared with `RF_KERNEL(threads) name(...)`, or `extern "C" __global__ void name(...)`.
        name: of the kernel.
        defines: macros that are defined before the source, such as RF_QTYPE="Q4_K"; with RF_QTYPE every QuantizedArray
            that is passed has to be of that format.

    Raises:
        ValueError: the source has no such kernel, a parameter of another type, or includes what rocforge does not have.

    Example:
        A block multiplies a row of packed weights with x:

        >>> import cupy as cp, numpy as np, rocforge as rf
        >>> row_products = rf.Kernel('''
        ... #include "formats/rows.h"
        ... namespace rocforge {
        ... RF_KERNEL(64) row_products(const u8* w, const float* x, float* y, u32 columns) {
        ...     const u8* row = row_at<RF_QTYPE>(w, columns, block_x());
        ...     float sum = 0;
        ...     for (u32 k = thread_x(); k < columns; k += 64) sum += value_at<RF_QTYPE>(row, columns, k) * x[k];
        ...     sum = block_sum<64>(sum);
        ...     if (thread_x() == 0) y[block_x()] = sum;
        ... }
        ... }
        ... ''', "row_products", RF_QTYPE="Q8_0")
        >>> w = rf.to_device(rf.quantize(np.ones((10, 256)), "Q8_0"), "gpu")
        >>> y = cp.empty(10, np.float32)
        >>> row_products((10,), (64,), (w, cp.ones(256, np.float32), y, 256))
        >>> bool(cp.allclose(y, w @ cp.ones(256, np.float32), rtol=1e-3))
        True
    """

    def __init__(self, source: str, name: str, **defines: Any):
        self.source, self.name, self.defines = source, name, defines
        self._text = _program(source, name)
        self._parameters = _parameters(source, name)
        self._arguments = Positional([each.kind for each in self._parameters], [each.name for each in self._parameters])
        self._functions: dict[int, Any] = {}

    def __repr__(self) -> str:
        declared = ", ".join(f"{each.kind.rstrip('?')} {each.name}" for each in self._parameters)
        return f"Kernel {self.name}({declared})"

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int = 0) -> None:
        """Launch on the device of the first array, on its current stream.

        Args:
            grid, block: blocks, and threads a block, up to three axes each.
            args: one for each parameter. For a pointer a C-contiguous CuPy array of its type, a QuantizedArray, whose
                packed rows the kernel gets, or None for null; for a number one of Python's or NumPy's.
            shared_mem: bytes of dynamic LDS (shared memory).

        Raises:
            TypeError: an argument is of another type than its parameter, or on the host.
            ValueError: an array is not C-contiguous or on another device; a QuantizedArray of another format.
            DeviceError: the source does not compile, with the compiler's messages; or there is no GPU.
        """
        cupy = cupy_module()
        try:
            arrays = [self._memory(value) for value in args]
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from None
        first = next((array for array in arrays if isinstance(array, cupy.ndarray)), None)
        device = cupy.cuda.runtime.getDevice() if first is None else first.device.id
        try:
            checked = self._arguments.checked(arrays, device)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from None
        with on_device(f"gpu:{device}"):
            self._function(device)(grid, block, checked, shared_mem=shared_mem)

    def _memory(self, value: Any) -> Any:
        """What stands for an argument: of a QuantizedArray the array that holds its rows."""
        if isinstance(value, np.ndarray) or (isinstance(value, QuantizedArray) and value.device == "cpu"):
            raise TypeError(f"{_told(value)} is on the host; rf.to_device(array) copies it to the device")
        if not isinstance(value, QuantizedArray):
            return value
        if value.transposed:
            raise ValueError(f"{_told(value)} is the transpose of packed rows; pass the rows, w.T")
        if value.qtype.name != self.defines.get("RF_QTYPE", value.qtype.name):
            raise ValueError(f"{_told(value)} is not in {self.defines['RF_QTYPE']}, for which the kernel is compiled")
        if value.planar != (value.qtype.name in PLANAR):
            raise ValueError(f"{_told(value)} is in GGUF's blocks; rf.to_device(w) makes the planes that kernels read")
        return value.data

    def _function(self, device: int) -> Any:
        if device not in self._functions:
            tuned = tuning.of(device)
            macros = {f"RF_TUNE_{name.upper()}": getattr(tuned, name) for name in tuned_in(self._text)}
            text = defined(self._text, {**macros, **self.defines})
            try:
                module = load_module(text, supported_card(device))
            except CompileError as error:
                raise DeviceError(f"{self.name} does not compile:\n{error}") from None
            self._functions[device] = module.get_function(self.name)
        return self._functions[device]


def _told(array: Any) -> str:
    kind = array.qtype.name if isinstance(array, QuantizedArray) else str(array.dtype)
    return f"the {type(array).__name__} of shape {array.shape} in {kind}"


def _program(source: str, name: str) -> str:
    """A source with what it includes."""
    try:
        return with_includes(source, f"{name}.hip", set())
    except FileNotFoundError as error:
        folder = source_folder()
        headers = ", ".join(sorted(str(path.relative_to(folder)) for path in folder.rglob("*.h")))
        missing = Path(error.filename).relative_to(folder)
        raise ValueError(f"{name}: no header {missing}; rocforge has {headers}") from None


def _parameters(source: str, name: str) -> list[_Parameter]:
    """The parameters of a kernel, as its source declares them."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.S)
    declared = re.search(rf"\b{re.escape(name)}\s*\(([^()]*)\)\s*\{{", code)
    if declared is None:
        others = re.findall(r"(?:RF_KERNEL\w*\s*\([^)]*\)|__global__\s+void)\s*(\w+)", code)
        raise ValueError(f"the source declares no kernel {name!r}; those that it does: {', '.join(others) or 'none'}")
    if "RF_KERNEL" not in code and 'extern "C"' not in code:
        raise ValueError(
            f'{name} is found by its plain name: declare it as RF_KERNEL(threads), or extern "C" __global__ void'
        )
    return [_parameter(name, each) for each in declared[1].split(",") if each.strip()]


def _parameter(kernel: str, declaration: str) -> _Parameter:
    words = [word for word in declaration.replace("*", " * ").split() if word not in _QUALIFIERS]
    stars, words = words.count("*"), [word for word in words if word != "*"]
    kind = _KINDS.get(" ".join(words[:-1]))
    if len(words) < 2 or stars > 1 or (kind is None and not stars):
        allowed = ", ".join(sorted(_KINDS))
        raise ValueError(f"{kernel}: the parameter {declaration.strip()!r}; allowed are pointers, and {allowed}")
    return _Parameter(words[-1], f"{kind or 'void'}*?" if stars else str(kind))
