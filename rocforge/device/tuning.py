"""Tuning constants: a table by architecture, the only place that has them.

A source in rawkernels/ names what it takes from here: `RF_TUNE_NORM_THREADS` is the field norm_threads of the card it
is compiled for. rocforge.device.geometry computes what also depends on a kernel's sizes. Ops launch by the same table,
so host and device cannot differ. `rocforge tune` measures some of these constants (see rocforge.device.tuned).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rocforge.device import tuned
from rocforge.device.cards import Card, card_of
from rocforge.device.libraries import cupy_module

ANY = 1 << 30
"""More tokens than there are at a time."""


@dataclass(frozen=True, eq=False)
class Tuning:
    """Numbers for one card. Threads are those of a block, if not said otherwise.

    Attributes:
        basis: "measured" on a card of that architecture, or "reasoned" from measurements of others and published data
            (docs/amd.md).
        elementwise_threads: of kernels in which a thread takes an element or a few, or a wave a head or a token.
        beside: where launches overlap, one may run beside the one before it, of which it takes nothing.

        int8_tokens: up to so many tokens, packed weights are multiplied by GEMV on int8 activations.
        tile_tokens: up to so many they are multiplied on the matrix unit, more by the BLAS library, where there are
            float16 copies of the weights; 0 without a unit.
        tile_tokens_alone: the same where there are no copies, so that the library's weights are unpacked each time.
        fp16_copies: float16 copies of packed weights are kept where memory is ample: without them, products of many
            tokens run at less than 90 % of the BLAS library's rate.
        wide_from, wide_tokens: from so many on by wide.hip, which only Hopper has, and fewer by tiles.hip; and of
            weights with copies up to so many.

        gemv_threads: of a product of up to 8 tokens.
        gemv_rows_4, gemv_rows_8: rows that a group of lanes computes together, for 2 to 4 and for 5 to 8 tokens.
        gemv_small_rows, gemv_long_cells: with fewer rows, or more cells, 32 lanes share a row of one token, not 16.
        gemv_wanted_threads: for several tokens, as few lanes share a row as give so many threads times tokens.
        gemv_float_cells, gated_float_cells, gemv_float_cells_many: loads of floats that a lane has in flight of a row,
            of one token, of that in a gated product, and of several tokens.
        gemv_resident, gemv_resident_narrow: threads a multiprocessor that registers are left for on NVIDIA; and where a
            cell has at most gemv_narrow_nbytes.
        gated_threads, gated_lanes: of a gated product, and the lanes that share a row.
        gated_pairs_8: rows of gate and of up that they compute together, for 5 to 8 tokens.
        gated_resident: as gemv_resident.
        experts_gated_resident_narrow: the same of a product with each pair's expert, where a cell has at most
            experts_gated_narrow_nbytes; a lane then has one in flight.
        then_norm_threads: the most of a product that begins the norm after it, whose block has 32 rows.
        then_norm_ahead_nbytes: of its cells that a lane has in flight on NVIDIA, of formats whose values are looked up.
        then_norm_fill: the share of the card that its blocks have to keep busy; else the norm is a launch of its own.
        wide_simd_threads: threads a SIMD that registers are left for on AMD, where loads in flight count for more.

        tile_threads: of a product on the matrix unit.
        tile_wide_tokens, tile_most_wide_tokens: of so many to so many tokens a block, a wave takes two tiles
            of rows.
        tile_blocks, tile_blocks_wide: blocks that a unit runs at a time; and of those with two tiles of rows.
        tile_runs_ahead: runs of 16 elements that weights are loaded ahead of their use, for up to 16 tokens.
        float_gemv_tokens, float_tile_tokens: float16 and bfloat16 weights are multiplied by GEMV up to so many tokens,
            and then up to so many on the matrix unit from where they lie; more by the BLAS library.
        float_tile_wide_tokens: of so many tokens on, a wave takes two tiles of rows there.
        float_tile_ahead, float_tile_ahead_wide: stripes of 64 elements that weights are loaded ahead of their use.
        dequantize_rows: rows that are unpacked at a time for the BLAS library.

        decode_threads, decode_threads_alone: the most threads of decode attention; and for one sequence.
        decode_lds_floats: floats of LDS for their results.
        decode_heads: the most query heads that a wave serves.
        decode_matrix_group: of so many query heads on that share a key head, float16 keys and values are multiplied on
            NVIDIA's matrix unit, from sm_80 on: in lanes, instructions are the limit.
        decode_matrix_packed: whether packed ones are, of heads of whole 128.
        decode_loads: the most loads of keys, and of values, that a wave has in flight.
        decode_resident: as gemv_resident.
        decode_blocks: blocks a unit that sequences are split into; on the matrix unit as many as it runs at a time.
        unsplit_tokens: a sequence of no more is not split: to combine parts of so few costs more than it saves.
        most_splits: parts of a sequence.
        split_heads: sequences times key heads up to which they are split; more fill any device without.
        decode_prefetch: tokens behind a split's first whose keys and values are asked for before queries are there, up
            to as many as threads, of up to two splits of a sequence.
        combine_loads: parts of a sequence whose loads are in flight at a time when they are combined.
        combine_nbytes: of parts that one block combines; where there are more, blocks wait for all and share the sum.
        prefill_waves: of prefill attention.
        prefill_keys, prefill_keys_wide: keys of a tile; and for heads of more than 128.
        prefill_resident: as gemv_resident.
        prefill_lds: bytes of LDS of a block where it multiplies by warpgroups, as it does heads of whole 64 that tiles
            fit; 0: by waves.
        expanded_queries: so many queries of a chunk, each of which sees all of a sequence, take as long over latents as
            to make keys and values of them.
        expanded_nbytes: keys and values that are made of latents at a time, for prompts.

        experts_int8_tokens: up to so many tokens, each token-expert pair is a product of its own, where the matrix unit
            could multiply all of an expert's together.
        experts_few_tokens: up to so many tokens, an expert's pairs are multiplied by experts_few.hip, without that
            unit, whose kernels unpack weights for eight tokens that there mostly are not.
        experts_wide_from: from so many tokens on by experts_wide.hip, which only Hopper has; fewer by
            experts_tiles.hip.
        router_tokens: up to so many tokens, a mixture's norm and router are one launch.
        experts_tile_rows, experts_tile_pairs: rows of an expert's matrix, a thread each, and token-expert pairs that a
            block multiplies.
        experts_unpacked_nbytes: float16 values of experts without a kernel that are unpacked at a time.

        lora_tokens: the most tokens of a block of a low-rank update, which share its loads of an adapter.
        lora_tiles: blocks of tokens that there are before one has several.

        norm_threads, norm_kept: of a norm, and the loads of 4 elements that a thread keeps in registers.
        sample_slice, sample_slice_threads: logits a block, and threads, of sampling's first launch.
        sample_row_threads: of its last, a block a row.
        sample_list, sample_counted: the most tokens listed in LDS; and of those that are put in order by counting.
    """

    basis: str = "reasoned"
    elementwise_threads: int = 256
    beside: bool = False

    int8_tokens: int = 2
    tile_tokens: int = 64
    tile_tokens_alone: int = 128
    fp16_copies: bool = True
    wide_from: int = ANY
    wide_tokens: int = ANY

    gemv_threads: int = 128
    gemv_rows_4: int = 2
    gemv_rows_8: int = 4
    gemv_small_rows: int = 4096
    gemv_long_cells: int = 256
    gemv_wanted_threads: int = 300_000
    gemv_float_cells: int = 8
    gated_float_cells: int = 8
    gemv_float_cells_many: int = 2
    gemv_resident: int = 512
    gemv_resident_narrow: int = 768
    gemv_narrow_nbytes: int = 96
    gated_threads: int = 256
    gated_lanes: int = 8
    gated_pairs_8: int = 2
    gated_resident: int = 512
    experts_gated_resident_narrow: int = 768
    experts_gated_narrow_nbytes: int = 0
    then_norm_threads: int = 512
    then_norm_ahead_nbytes: int = 192
    then_norm_fill: float = 0.8
    wide_simd_threads: int = 256

    tile_threads: int = 256
    tile_wide_tokens: int = 64
    tile_most_wide_tokens: int = 128
    tile_blocks: int = 4
    tile_blocks_wide: int = 4
    tile_runs_ahead: int = 3
    float_gemv_tokens: int = 2
    float_tile_tokens: int = 64
    float_tile_wide_tokens: int = 32
    float_tile_ahead: int = 2
    float_tile_ahead_wide: int = 2
    dequantize_rows: int = 4096

    decode_threads: int = 256
    decode_threads_alone: int = 256
    decode_lds_floats: int = 8192
    decode_heads: int = 8
    decode_matrix_group: int = ANY
    decode_matrix_packed: bool = False
    decode_loads: int = 4
    decode_resident: int = 512
    decode_blocks: int = 2
    unsplit_tokens: int = 128
    most_splits: int = 64
    split_heads: int = 1 << 16
    decode_prefetch: int = 256
    combine_loads: int = 8
    combine_nbytes: int = 160 << 10
    prefill_waves: int = 4
    prefill_keys: int = 32
    prefill_keys_wide: int = 16
    prefill_resident: int = 256
    prefill_lds: int = 0
    expanded_queries: int = 32
    expanded_nbytes: int = 256 << 20

    experts_int8_tokens: int = 4
    experts_few_tokens: int = 8
    experts_wide_from: int = ANY
    router_tokens: int = 16
    experts_tile_rows: int = 128
    experts_tile_pairs: int = 64
    experts_unpacked_nbytes: int = 256 << 20

    lora_tokens: int = 8
    lora_tiles: int = 64

    norm_threads: int = 512
    norm_kept: int = 2
    sample_slice: int = 2048
    sample_slice_threads: int = 256
    sample_row_threads: int = 1024
    sample_list: int = 3072
    sample_counted: int = 256


_CDNA = Tuning()
# 512 registers a lane: a block of 1,024 threads still has all loads of a cell in flight. gfx908 has as many, but half
# of them for accumulators alone.
_CDNA2 = replace(_CDNA, then_norm_threads=1024)
# a lane has whole rows of its tiles, of which two would spill in float_tiles.hip
_RDNA3 = Tuning(float_tile_wide_tokens=ANY)
# at most 512 threads, or 256 of two tiles of rows, keep all loads in flight; two tiles times 128 tokens would spill
_NVIDIA = Tuning(tile_most_wide_tokens=64, tile_blocks=2, tile_blocks_wide=1)
_AMPERE = replace(_NVIDIA, decode_matrix_group=8, decode_matrix_packed=True)

_H200 = replace(
    _AMPERE,
    basis="measured",
    gemv_float_cells=4,
    float_tile_tokens=16,
    wide_from=33,
    wide_tokens=64,
    experts_gated_narrow_nbytes=80,
    experts_wide_from=129,
    decode_threads=128,
    decode_matrix_group=3,
    beside=True,
    prefill_lds=227 << 10,
)

TABLE = {
    "gfx908": _CDNA,
    "gfx90a": _CDNA2,
    "gfx942": _CDNA2,
    "gfx950": _CDNA2,
    "gfx103": Tuning(  # no matrix unit
        int8_tokens=8, tile_tokens=0, tile_tokens_alone=0, float_gemv_tokens=8, float_tile_tokens=0
    ),
    "gfx110": _RDNA3,
    "gfx115": _RDNA3,
    "gfx120": Tuning(),
    "sm_75": _NVIDIA,
    "sm_80": _AMPERE,
    "sm_90": _H200,
    "sm_100": _AMPERE,
}
"""By AMD architecture or family of them; by NVIDIA's compute capability, where each holds up to the next."""


def shipped(arch: str) -> Tuning:
    """The table's entry for an architecture, with or without its features, such as gfx90a:sramecc+:xnack-."""
    family = arch.partition(":")[0]
    if family.startswith("sm_"):
        number = int(family.removeprefix("sm_"))
        return TABLE[f"sm_{max(n for n in _CAPABILITIES if n <= number)}"]
    return TABLE.get(family) or TABLE[family[:-1]]


_CAPABILITIES = [int(key.removeprefix("sm_")) for key in TABLE if key.startswith("sm_")]


def of_card(card: Card) -> Tuning:
    """The settings of a card: the table's entry, with what `rocforge tune` has measured on such a card."""
    entry = shipped(card.arch)
    measured: dict[str, Any] = tuned.measured(card)
    return replace(entry, basis="measured", **measured) if measured else entry


_of_device: dict[int, Tuning] = {}


def of(device: int) -> Tuning:
    """The settings of a device number."""
    return _of_device.get(device) or _of_device.setdefault(device, of_card(card_of(device)))


def current() -> Tuning:
    """The settings of the current device."""
    return of(cupy_module().cuda.runtime.getDevice())


@contextlib.contextmanager
def trying(**changes: Any) -> Iterator[Tuning]:
    """In this context, other settings for the current device, in all threads; recompiles the kernels that take them.

    Raises:
        TypeError: a name that is no field.
    """
    device = cupy_module().cuda.runtime.getDevice()
    before = of(device)
    _of_device[device] = replace(before, **changes)
    try:
        yield _of_device[device]
    finally:
        _of_device[device] = before
