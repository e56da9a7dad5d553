"""tinygrad's instruction emulator, with what it gets wrong mended in memory.

Its checkout is not changed: the sources named in MENDED are changed as they are loaded.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = 4096
LDS_WINDOW = 4 << 30
"""Bytes that an LDS address can reach: the emulator also loads for lanes that are switched off."""
MAP_NORESERVE = 0x4000
"""Linux's; Python's mmap does not name it."""

MENDED: dict[str, list[tuple[str, str]]] = {
    "test.mockgpu.amd.pcode": [
        # a fused multiply-add rounds once
        (
            "lambda a, b, c: a * b + c,",
            "lambda a, b, c: (a.cast(dtypes.float64) * b.cast(dtypes.float64) + c.cast(dtypes.float64)).cast(a.dtype),",
        ),
        # products of operands of which only 24 bits count
        (
            "    dt = DTYPES.get(field)\n    if dt is None: return base\n",
            "    if field in ('u24', 'i24'):\n"
            "      top = base.cast(dtypes.uint32) << _u32(8)\n"
            "      return (top if field == 'u24' else top.bitcast(dtypes.int)) >> _const(top.dtype, 8)\n"
            "    dt = DTYPES.get(field)\n    if dt is None: return base\n",
        ),
    ],
    "test.mockgpu.amd.emu": [
        # LDS lies in a window of which every address may be read, since lanes that are switched off read too
        (
            "Buffer('CPU', max(lds_size // 4, 1), dtypes.uint32).ensure",
            "Buffer('CPU', max(lds_size // 4, 1), dtypes.uint32, options=BufferSpec(external_ptr=lds_window)).ensure",
        ),
        # each wave has scratch of its own
        ("Buffer('CPU', scratch_size * wave_size,", "Buffer('CPU', scratch_size * (total_threads + wave_size),"),
        ("scratch_buf._buf.va_addr if", "scratch_buf._buf.va_addr + scratch_size * wave_start if"),
        # whether an atomic operation gives the old value: a bit with another name on each architecture
        ("_iattr(inst, 'glc')\n", "_iattr(inst, 'glc') or _iattr(inst, 'sc0') or _iattr(inst, 'th') & 1\n"),
        # there are no caches: what writes them back or empties them does nothing
        (
            "  handler = _INST_HANDLERS.get(type(inst))\n",
            "  handler = _INST_HANDLERS.get(type(inst))\n"
            "  if re.search('_(WB|WBL2|INV|WBINV)$', _op_name(inst)):\n"
            "    handler = lambda inst, ctx: UOp.sink(*ctx.inc_pc())\n",
        ),
        # an instruction that moves lanes within one register goes lane by lane: it reads a copy
        (
            "  swizzled = ctx.rvgpr_dyn(ctx.inst_field(type(inst).vsrc0), safe_src_lane)\n",
            "  copy = UOp.placeholder((ctx.wave_size,), dtypes.uint32, slot=0, addrspace=AddrSpace.LOCAL)\n"
            "  at = ctx.range()\n"
            "  copied = copy.index(at).store(ctx.rvgpr_dyn(ctx.inst_field(type(inst).vsrc0), at)).end(at)\n"
            "  swizzled = copy.after(copied).index(safe_src_lane)\n",
        ),
        # v128 and up in short 16-bit instructions are high halves of registers on RDNA alone
        ("bits['d'] == 16 and (vdst_reg", "ctx.wave_size == 32 and bits['d'] == 16 and (vdst_reg"),
        ("bits['s0'] == 16 and (vsrc1_reg", "ctx.wave_size == 32 and bits['s0'] == 16 and (vsrc1_reg"),
        ("if bits['s0'] == 16:  # src0", "if ctx.wave_size == 32 and bits['s0'] == 16:  # src0"),
        (
            "    if bits['s0'] == 16:\n      vsrc1_hi",
            "    if ctx.wave_size == 32 and bits['s0'] == 16:\n      vsrc1_hi",
        ),
        # a literal may say which lanes to permute
        *(
            (
                f"self.rsrc_dyn({n}_off, _c(0, dtypes.int)) if {n}",
                f"self.rsrc_dyn({n}_off, _c(0, dtypes.int), 32, self.optional_field(inst, 'literal')) if {n}",
            )
            for n in ("src1", "src2")
        ),
        # parts of registers have signs too
        *(
            (
                f"_sdwa_select(s{n}_raw, src{n}_sel, src{n}_sext)",
                f"_apply_src_mods(_sdwa_select(s{n}_raw, src{n}_sel, src{n}_sext), 0, _iattr(inst, 'src{n}_abs'),"
                f" _iattr(inst, 'src{n}_neg'), inst.canonical_op_bits['s{n}'])",
            )
            for n in (0, 1)
        ),
        # float16 operands of the matrix unit: subnormal, infinite, not a number
        (
            "    return exp.eq(_c(0)).where(_c(0), f32_bits)\n",
            "    small = (mant.cast(dtypes.float32) * UOp.const(2.0 ** -24, dtypes.float32)).bitcast(dtypes.uint32)\n"
            "    large = exp.eq(_c(31)).where(f32_bits | _c(0x7F800000), f32_bits)\n"
            "    return exp.eq(_c(0)).where(small | (sign << _c(31)), large)\n",
        ),
    ],
}


@functools.cache
def emulator() -> Any:
    """The module, from the checkout that HIPSIM_MACHINE_CODE names."""
    root = Path(os.environ["HIPSIM_MACHINE_CODE"])
    sys.path.insert(0, str(root))
    os.environ.setdefault("CC", "clang-19")
    from tinygrad.renderer.amd import _load_formats as formats

    for name, changes in MENDED.items():
        module = mended(root, name, changes)
    window = mmap.mmap(-1, LDS_WINDOW + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    module.lds_memory = ctypes.c_char.from_buffer(window)
    module.lds_window = ctypes.addressof(module.lds_memory)
    formats()["rdna3"].append(module.ir3.MUBUF)  # those that empty caches
    return module


def mended(root: Path, name: str, changes: list[tuple[str, str]]) -> ModuleType:
    """A module of a checkout, loaded with parts of its text replaced.

    Raises:
        RuntimeError: it does not have such a part.
    """
    path = root / f"{name.replace('.', '/')}.py"
    text = path.read_text()
    for before, after in changes:
        if before not in text:
            raise RuntimeError(f"{path} is of another version of tinygrad: it does not have {before!r}")
        text = text.replace(before, after)
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(path)
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module
