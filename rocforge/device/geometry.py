"""Launch geometry: how a kernel's work is split into waves and blocks, for its compilation and its launches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rocforge.device.cards import Card
from rocforge.device.tuning import ANY, Tuning

PREFILL_SHARED_REST = 2048
"""Bytes of LDS of attention_prefill besides its tiles: barriers, and what their alignment leaves unused."""
GEMV_RUN = 32
"""Rows of a block of matvec_then_norm: those that share a scale when they are quantized."""
STAGED_TOKENS = 128
"""Tokens of a block of tiles.hip whose waves have different rows, and get x through LDS."""
FEW_PAIRS = 2
"""Token-expert pairs of a tile of experts_few.hip."""
WIDE_PARTS = 8
"""The most parts that wide.hip cuts the depth into."""
WIDE_LDS = 227 << 10
"""Bytes of LDS of a block of wide.hip and experts_wide.hip: all that a block may have on Hopper."""


def gemv_rows(tuning: Tuning, tokens: int) -> int:
    """Rows that a group of lanes computes together, to read the activations once for all of them."""
    return 1 if tokens == 1 else tuning.gemv_rows_4 if tokens <= 4 else tuning.gemv_rows_8


def gemv_log_lanes(tuning: Tuning, tokens: int, rows: int, cells: int) -> int:
    """Lanes that share a row, as a power of two.

    For one token 16, or 32 of few rows, to make enough threads for the card, and of long ones, as floats are, but no
    more than there are cells; for more tokens as few as make enough.
    """
    if tokens == 1:
        if cells <= 8:
            return 3
        few = rows < tuning.gemv_small_rows or cells > tuning.gemv_long_cells
        return 5 if few and cells > 16 else 4
    enough = tuning.gemv_wanted_threads // tokens
    return next((log for log in (3, 4) if rows // gemv_rows(tuning, tokens) << log >= enough), 5)


def then_norm_log_lanes(tuning: Tuning, rows: int, cells: int, units: int) -> int:
    """Lanes that share a row of matvec_then_norm, as a power of two: 16, but no more than there are cells.

    With twice as many units as blocks it is 32, where the card allows blocks of so many threads, since the few waves of
    a block would wait for one cell after another.
    """
    few = 2 * -(-rows // GEMV_RUN) <= units
    most = 5 if tuning.then_norm_threads >= GEMV_RUN << 5 and few else 4
    return next(log for log in (3, 4, 5) if cells <= 1 << log or log == most)


def gated_pairs(tuning: Tuning, tokens: int) -> int:
    """Rows of gate, and as many of up, that a group of lanes of a gated product computes together."""
    return 1 if tokens <= 4 else tuning.gated_pairs_8


def gated_rows(tuning: Tuning, tokens: int) -> int:
    """Rows of gate that a block of a gated product has."""
    return gated_pairs(tuning, tokens) * tuning.gated_threads // tuning.gated_lanes


def resident_blocks(tuning: Tuning, card: Card) -> int:
    """Blocks of the threads of a gated product that a card runs at a time."""
    return card.compute_units * max(1, tuning.gated_resident // tuning.gated_threads)


DOWN_ROWS = 2
"""Rows that a group of lanes of experts.hip's down, and of head_linear.hip, computes together; twice as many where half
of the lanes have all cells."""


def down_step(tuning: Tuning, card: Card, rows: int, cells: int, tokens: int, used: int = 1) -> int:
    """How many blocks share out the rows of a token, each `used` products of a row: such that all of them run at a
    time."""
    groups = tuning.gated_threads // tuning.gated_lanes // used
    runs = -(-rows // (groups * DOWN_ROWS * (2 if cells <= tuning.gated_lanes // 2 else 1)))
    rounds = -(-runs * tokens // resident_blocks(tuning, card))
    return -(-runs // rounds)


def tile_row_tiles(tuning: Tuning, tokens: int) -> int:
    """Tiles of 16 rows that a wave of tiles.hip multiplies."""
    return 2 if tuning.tile_wide_tokens <= tokens <= tuning.tile_most_wide_tokens else 1


def tile_row_waves(tuning: Tuning, tokens: int, rows: int, card: Card) -> int:
    """Runs of rows that a block's waves take, which read x once for all: as many as leave a block for each unit."""
    if tokens == STAGED_TOKENS:
        return tuning.tile_threads // card.wave
    return _row_waves(tuning, tokens, rows, 16 * tile_row_tiles(tuning, tokens), card)


def _row_waves(tuning: Tuning, tokens: int, rows: int, run: int, card: Card) -> int:
    """How many runs of so many rows each leave a block for each unit; of 8 tokens one."""
    most = 1 if tokens == 8 else tuning.tile_threads // card.wave // 2
    return next((n for n in (4, 2) if n <= most and rows >= n * run * card.compute_units), 1)


class FloatTile(NamedTuple):
    """Of float_tiles.hip: tokens that it is compiled for; runs of rows that a block's waves take, as in tiles.hip; rows
    of a block; and blocks that the card runs at a time."""

    width: int
    row_waves: int
    rows: int
    resident: int


def float_tile_row_tiles(tuning: Tuning, tokens: int) -> int:
    """Tiles of 16 rows that a wave of float_tiles.hip multiplies."""
    return 2 if tokens >= tuning.float_tile_wide_tokens else 1


def float_tile(tuning: Tuning, tokens: int, rows: int, card: Card) -> FloatTile:
    """The geometry of float_tiles.hip: x is read again for each block, so that of many tokens its waves take as many
    runs of rows as leave a block for each unit."""
    width = next(n for n in (8, 16, 32, 64) if tokens <= n)
    tiles = float_tile_row_tiles(tuning, width)
    height, blocks = 16 * tiles, tuning.tile_blocks_wide if tiles > 1 else tuning.tile_blocks
    row_waves = _row_waves(tuning, width, rows, height, card)
    return FloatTile(width, row_waves, row_waves * height, blocks * card.compute_units)


def tile_blocks(tuning: Tuning, tokens: int, card: Card) -> int:
    """Blocks of tiles.hip that a card runs at a time."""
    wide = tile_row_tiles(tuning, tokens) > 1 or tokens == STAGED_TOKENS
    return card.compute_units * (tuning.tile_blocks_wide if wide else tuning.tile_blocks)


def expert_tile_pairs(pairs: int, experts: int) -> int:
    """Token-expert pairs of a tile of experts_tiles.hip: as many as hold all of most experts', of 8 to 64."""
    mean = pairs / experts
    return next((n for n in (8, 16, 32) if mean + 2 * mean**0.5 <= n), 64)


class Wide(NamedTuple):
    """Of wide.hip: tokens, rows and threads of a block, and the parts that the depth is cut into."""

    tokens: int
    rows: int
    threads: int
    depth: int


def wide(tokens: int, matrices: Sequence[int], cells: int, units: int) -> Wide:
    """The geometry of wide.hip.

    A block has as few tokens as there are, up to 256, since each block unpacks the weights. Blocks share out the depth,
    as long as each has a multiprocessor.

    Args:
        tokens: of the product.
        matrices: rows of each.
        cells: of a row.
        units: multiprocessors.
    """
    width = next((n for n in (64, 128) if tokens <= n), 256)
    rows, threads = {64: (256, 640), 128: (256, 384), 256: (128, 384)}[width]
    count = sum(-(-n // rows) for n in matrices) * -(-tokens // width)
    return Wide(width, rows, threads, max(1, min(WIDE_PARTS, units // count, -(-cells // 2))))


class Decode(NamedTuple):
    """Of decode attention: query heads that a wave serves, waves that share out the tokens, waves that share out a
    head's elements on the matrix unit, 0 where that is not used, threads of a block, and threads a unit that registers
    are left for."""

    heads: int
    stripes: int
    parts: int
    threads: int
    resident: int

    @property
    def macros(self) -> dict[str, int]:
        """Those of attention.hip."""
        parts = {"RF_MATRIX": int(self.parts > 0), "RF_PARTS": max(self.parts, 1), "RF_RESIDENT": self.resident}
        return {"RF_WAVE_HEADS": self.heads, "RF_STRIPES": self.stripes, **parts}

    @property
    def blocks(self) -> int:
        """That a unit runs at a time on the matrix unit, where more would wait for these to end; 0 in lanes."""
        return self.resident // self.threads if self.parts else 0


def decode(
    tuning: Tuning,
    head_dim: int,
    value_dim: int,
    group: int,
    wave: int,
    alone: bool,
    types: tuple[str, str] = ("F16", "F16"),
) -> Decode:
    """The geometry of attention_decode for `group` query heads a key head, of one sequence or of several, over keys and
    values of such types.

    As many waves as there may be threads, if `decode_lds_floats` hold their results. In lanes, of wide heads a wave
    serves half as many, since a lane has twice the elements of each. On the matrix unit twice as many waves as parts
    hide each other's waits.
    """
    parts = _decode_parts(tuning, head_dim, value_dim, group, types)
    most = 8 if parts else tuning.decode_heads if head_dim <= 256 else tuning.decode_heads // 2
    heads = _heads_of_wave(group, most)
    threads = tuning.decode_threads_alone if alone else tuning.decode_threads
    waves, slices = max(threads // wave, 2 * parts), group // heads
    fit = tuning.decode_lds_floats // (heads * head_dim)
    stripes = max(min(waves // (parts or 1), fit) // slices, 1)
    threads = stripes * slices * (parts or 1) * wave
    many = max(2 * threads, tuning.decode_resident)
    if parts:  # rows of 128 float16, or of packed parts that share out heads, leave registers for fewer
        small = head_dim // parts <= 64 or (types != ("F16", "F16") and parts == 1)
        return Decode(heads, stripes, parts, threads, many if small else max(threads, 384))
    return Decode(heads, stripes, parts, threads, threads if heads > 4 else many)


def _heads_of_wave(group: int, most: int) -> int:
    return max(n for n in range(1, min(group, most) + 1) if group % n == 0)


def _decode_parts(tuning: Tuning, head_dim: int, value_dim: int, group: int, types: tuple[str, str]) -> int:
    """Waves that share out a head's elements on the matrix unit, 128 or 64 each; 0: it is not used.

    Packed rows go there wherever it is, for they take more instructions in lanes.
    """
    if types == ("F16", "F16"):
        width, least = math.gcd(head_dim, 128), tuning.decode_matrix_group
    elif set(types) <= {"Q8_0", "Q4_0"}:
        width, least = 128, 0 if tuning.decode_matrix_packed else ANY
    else:
        return 0
    parts, slices = head_dim // width, group // _heads_of_wave(group, 8)
    fits = head_dim == value_dim and head_dim % width == 0 and width >= 64 and parts * slices <= 16
    return parts if fits and group >= least else 0


class Prefill(NamedTuple):
    """Of prefill attention: rows and threads of a block, blocks that have the same rows and a part of the output each,
    bytes of dynamic LDS, and macros of the source."""

    rows: int
    threads: int
    parts: int
    shared: int
    macros: dict[str, int]


def prefill(tuning: Tuning, head_dim: int, value_dim: int, wave: int) -> Prefill:
    """The geometry of attention_prefill, for elements of a head's keys and of its values.

    On waves, the output of 16 rows of a wide head would fill a wave's registers, so two have a part of it each, and of
    heads of more than 256 four.
    """
    warpgroups = _prefill_on_warpgroups(tuning.prefill_lds, head_dim, value_dim)
    if warpgroups is not None:
        return warpgroups
    parts = 1 if head_dim <= 128 else 2 if head_dim <= 256 else 4
    keys = tuning.prefill_keys if parts == 1 else tuning.prefill_keys_wide
    rows = tuning.prefill_waves // parts * 16
    return Prefill(rows, tuning.prefill_waves * wave, 1, 0, {"RF_PARTS": parts, "RF_KEYS": keys})


def _prefill_on_warpgroups(lds: int, head_dim: int, value_dim: int) -> Prefill | None:
    """The same in so many bytes of LDS: queries, and tiles of keys and values of 64 or 128 columns that one warpgroup
    brings to two others; or None.

    Registers hold 256 columns of 64 rows' output, and with those, or queries that leave tiles little LDS, the scores of
    64 keys, else of 128.
    """
    parts = -(-value_dim // 256)
    width, keys = math.gcd(head_dim, value_dim // parts, 128), 64 if max(head_dim, 2 * value_dim) > 256 else 128
    if not lds or width < 64:
        return None
    stages = (lds - PREFILL_SHARED_REST - 2 * 128 * head_dim) // (2 * keys * width)
    macros = {"RF_PARTS": parts, "RF_KEYS": keys, "RF_WIDTH": width, "RF_STAGES": stages, "RF_LDS": lds}
    return Prefill(128, 384, parts, lds, macros)


def _gemv_macros(tuning: Tuning, given: Mapping[str, Any], _: int) -> dict[str, int]:
    tokens = int(given["RF_TOKENS"])
    return {"RF_ROWS": gemv_rows(tuning, tokens), "RF_GATED_ROWS": gated_pairs(tuning, tokens)}


def _decode_macros(tuning: Tuning, given: Mapping[str, Any], wave: int) -> dict[str, int]:
    head_dim, alone = int(given["RF_HEAD_DIM"]), given["RF_ALONE"] in (1, "1")
    value_dim, types = int(given.get("RF_VALUE_DIM", head_dim)), decode_types(given)
    return decode(tuning, head_dim, value_dim, int(given["RF_GROUP"]), wave, alone, types).macros


def decode_types(given: Mapping[str, Any]) -> tuple[str, str]:
    """The types of keys and values that macros name."""
    return given.get("RF_KEY_TYPE", "F16"), given.get("RF_VALUE_TYPE", "F16")


def _prefill_macros(tuning: Tuning, given: Mapping[str, Any], wave: int) -> dict[str, int]:
    head_dim = int(given["RF_HEAD_DIM"])
    return prefill(tuning, head_dim, int(given.get("RF_VALUE_DIM", head_dim)), wave).macros


def _tile_macros(tuning: Tuning, given: Mapping[str, Any], wave: int) -> dict[str, int]:
    tokens = int(given["RF_TOKENS"])
    all_waves = {"RF_ROW_WAVES": tuning.tile_threads // wave} if tokens == STAGED_TOKENS else {}
    return {"RF_ROW_TILES": tile_row_tiles(tuning, tokens), **all_waves}


def _float_tile_macros(tuning: Tuning, given: Mapping[str, Any], _: int) -> dict[str, int]:
    return {"RF_ROW_TILES": float_tile_row_tiles(tuning, int(given["RF_TOKENS"]))}


def _expert_tile_macros(tuning: Tuning, given: Mapping[str, Any], wave: int) -> dict[str, int]:
    row_tiles = tile_row_tiles(tuning, int(given["RF_TOKENS"]))
    return {"RF_ROW_TILES": row_tiles, "RF_ROW_WAVES": tuning.tile_threads // wave}


_MACROS: dict[str, Callable[[Tuning, Mapping[str, Any], int], dict[str, int]]] = {
    "matvec.hip": _gemv_macros,
    "experts_few.hip": _gemv_macros,
    "tiles.hip": _tile_macros,
    "float_tiles.hip": _float_tile_macros,
    "experts_tiles.hip": _expert_tile_macros,
    "attention.hip": _decode_macros,
    "attention_prefill.hip": _prefill_macros,
}


def derived(source: str, given: Mapping[str, Any], tuning: Tuning, wave: int) -> dict[str, int]:
    """The macros of a source's geometry.

    Args:
        source: its name.
        given: macros that say what is computed, such as RF_QTYPE.
        tuning, wave: of the card.
    """
    return _MACROS[source](tuning, given, wave) if source in _MACROS else {}
