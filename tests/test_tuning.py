"""How kernels are cut for each card: the shipped table, and what `rocforge tune` has measured."""

import dataclasses
import itertools
import json
import re
import warnings

import pytest

from rocforge.device import geometry, tuned, tuning
from rocforge.device.cards import AMD, Card
from rocforge.device.kernels import macros, source_folder, source_text, tuned_names, variants
from rocforge.device.tuning import TABLE, Tuning, shipped
from rocforge.formats.blocks import QTYPES
from rocforge.formats.planar import CELL, PLANAR, planar_row_nbytes
from rocforge.ops.device.attention import splits_of
from rocforge.tune.work import FULL, cases

FIELDS = {field.name for field in dataclasses.fields(Tuning)}
SOURCES = sorted(path.name for path in source_folder().glob("*.hip"))
CARD = Card("a card", "gfx942:sramecc+:xnack-", 64, compute_units=304, shares_host_memory=False)


def test_every_supported_card_has_an_entry():
    """AMD's by family; NVIDIA's from the oldest on, a newer generation as the newest before it."""
    assert {shipped(arch).tile_tokens for arch in AMD if arch.startswith("gfx103")} == {0}
    assert all(shipped(arch).tile_tokens for arch in AMD if not arch.startswith("gfx103"))
    assert [shipped(arch) is TABLE[key] for arch, key in (("sm_75", "sm_75"), ("sm_89", "sm_80"), ("sm_90", "sm_90"))]
    assert shipped("sm_121") is TABLE["sm_100"]
    assert {name for name, entry in TABLE.items() if entry.basis == "measured"} == {"sm_90"}
    assert {entry.basis for entry in TABLE.values()} == {"measured", "reasoned"}


def test_every_number_is_used():
    """By a source, by the geometry of one, or by a launch; and sources name nothing else."""
    named = set().union(*(tuned_names(source) for source in SOURCES))
    package = source_folder().parent / "rocforge"
    python = "\n".join(path.read_text() for path in package.rglob("*.py"))
    used = set(re.findall(r"\.(\w+)", python))
    assert named <= FIELDS and FIELDS - {"basis"} <= named | used
    assert tuned.CANDIDATES.keys() <= FIELDS


@pytest.mark.parametrize("source", SOURCES)
def test_macros_of_a_source(source):
    """Each macro of the card's that a source takes is given, for each of its variants; what is computed stays."""
    for defines in variants(source):
        for arch, wave in (("gfx942", 64), ("gfx1100", 32), ("sm_90", 32)):
            found = macros(source, defines, dataclasses.replace(CARD, arch=arch, wave=wave), shipped(arch))
            assert defines.items() <= found.items()
            wanted = set(re.findall(r"\bRF_TUNE_\w+", source_text(source)))
            assert wanted <= found.keys() and all(str(value) for value in found.values())


@pytest.mark.parametrize("wave", [32, 64])
@pytest.mark.parametrize(("head_dim", "group"), [(64, 2), (96, 1), (128, 7), (128, 16), (256, 2)])
def test_decode_attention_fits(head_dim, group, wave):
    """Heads are shared out evenly among waves; their results fit where they are said to, and threads in a block."""
    cut = geometry.decode(Tuning(), head_dim, head_dim, group, wave, False)
    assert group % cut.heads == 0 and cut.threads == cut.stripes * group // cut.heads * wave <= 1024
    assert cut.stripes == 1 or cut.stripes * group * head_dim <= Tuning().decode_lds_floats


@pytest.mark.parametrize(("head_dim", "parts"), [(64, 1), (128, 1), (192, 3), (256, 2), (320, 5), (512, 4)])
@pytest.mark.parametrize("alone", [True, False])
def test_decode_attention_on_the_matrix_unit_fits(head_dim, parts, alone):
    """Waves share out heads of whole 64s, in parts of 128 or 64; two at least have the same part."""
    everywhere = dataclasses.replace(shipped("sm_90"), decode_matrix_group=0)
    for group in (1, 4, 8, 16):
        cut = geometry.decode(everywhere, head_dim, head_dim, group, 32, alone)
        assert cut.parts == parts and group % cut.heads == 0 and cut.heads <= 8
        assert cut.threads == cut.stripes * cut.parts * group // cut.heads * 32 <= 512
        assert cut.stripes == 1 or cut.stripes * group * head_dim <= everywhere.decode_lds_floats
        assert cut.stripes > 1 or 2 * group * head_dim > everywhere.decode_lds_floats or group > 8
    for given in ((96, 96, 16), (192, 128, 16), (256, 256, 2)):  # odd sizes; short values; few heads
        assert geometry.decode(shipped("sm_90"), *given, 32, alone).macros["RF_MATRIX"] == 0
    assert not geometry.decode(shipped("sm_90"), 256, 256, 23, 32, alone).parts  # a head a wave, 46 waves
    for given in ((64, 64, 4), (128, 128, 3), (256, 256, 8), (512, 512, 16)):
        assert geometry.decode(shipped("sm_90"), *given, 32, alone).parts
    assert not geometry.decode(shipped("sm_75"), 512, 512, 8, 32, alone).parts
    for types in (("Q8_0", "Q4_0"), ("Q8_0", "FP8_E4M3"), ("F16", "Q8_0")):
        packed = geometry.decode(shipped("sm_90"), 256, 256, 1, 32, alone, types)
        assert packed.parts == (2 if types == ("Q8_0", "Q4_0") else 0)


def test_splits_on_the_matrix_unit_all_run_at_a_time():
    """No split waits for another to end: one that began late would end as late again. In lanes they may."""
    for head_dim, heads, alone in itertools.product((64, 128, 256, 512), (1, 2, 3, 4, 8, 40, 128, 1000), (True, False)):
        cut = geometry.decode(shipped("sm_90"), head_dim, head_dim, 8, 32, alone)
        splits = splits_of(132, heads, 1 << 20, shipped("sm_90"), cut.blocks)
        assert splits == 1 or (splits * heads <= 132 * cut.blocks and splits <= 64)
        assert splits == 64 or (splits + 1) * heads > 132 * cut.blocks >= 132
        assert cut.blocks * cut.threads <= cut.resident <= 768
    assert splits_of(132, 8, 1 << 20, shipped("sm_90")) == 33 and splits_of(132, 8, 64, shipped("sm_90")) == 2


def test_prefill_attention_fits():
    """On warpgroups tiles are whole, LDS holds those in use together, and registers 256 columns; others have waves."""
    sizes = [(keys, values) for keys in range(64, 513, 64) for values in range(64, keys + 1, 64)]
    cuts = {size: geometry.prefill(shipped("sm_90"), *size, 32) for size in sizes}
    assert {size for size, cut in cuts.items() if not cut.shared} == {(n, v) for n, v in sizes if v in (320, 448)}
    for (keys, values), cut in cuts.items():
        if not cut.shared:
            continue
        macros, columns = cut.macros, values // cut.parts
        width, stages = macros["RF_WIDTH"], macros["RF_STAGES"]
        assert columns <= 256 and not keys % width and not columns % width
        assert stages >= (keys + columns) // width
        tiles = 2 * (128 * keys + stages * macros["RF_KEYS"] * width)
        assert tiles + geometry.PREFILL_SHARED_REST <= cut.shared == macros["RF_LDS"] <= 227 << 10
        assert columns / 2 + macros["RF_KEYS"] * 3 / 4 <= 176  # a lane's sums, scores and weights
    assert geometry.prefill(shipped("sm_90"), 96, 96, 32).parts == geometry.prefill(Tuning(), 512, 512, 64).parts == 1


def test_a_gated_block_has_whole_runs():
    """Of 32 rows, which share a scale, for any number of tokens."""
    assert all(geometry.gated_rows(entry, tokens) % 32 == 0 for entry in TABLE.values() for tokens in range(1, 9))


def test_measured_values_are_found(cache):
    """On a card of the same architecture and number of units, and on no other; the rest is as shipped."""
    path = tuned.store(CARD, {"gemv_small_rows": 8192, "int8_tokens": 1})
    assert path.parent == cache and path.stat().st_mode & 0o777 == 0o600
    found = tuning.of_card(CARD)
    assert (found.gemv_small_rows, found.int8_tokens) == (8192, 1) and found.then_norm_threads == 1024
    for other in ({"compute_units": 228}, {"arch": "gfx950"}):
        assert tuning.of_card(dataclasses.replace(CARD, **other)) is shipped({"arch": "gfx942", **other}["arch"])


GOOD = {"arch": "gfx942", "compute_units": 304, "values": {"int8_tokens": 1}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        json.dumps({**GOOD, "arch": "gfx90a"}).encode(),
        json.dumps({**GOOD, "compute_units": 8}).encode(),
        json.dumps({**GOOD, "values": {"gemv_threads": 100}}).encode(),
        json.dumps({**GOOD, "values": {"int8_tokens": True}}).encode(),
        json.dumps({**GOOD, "values": {"basis": 1}}).encode(),
        json.dumps({**GOOD, "values": [1]}).encode(),
    ],
)
def test_a_wrong_file_is_ignored(cache, content):
    """Cut short, of another card, or with a value that is no candidate: one warning that names it."""
    tuned.path_of(CARD).write_bytes(content)
    with pytest.warns(UserWarning, match=f"ignoring {tuned.path_of(CARD)}") as told:
        assert tuning.of_card(CARD) is shipped("gfx942")
    assert len(told) == 1


def test_nothing_measured(cache):
    """No file is no reason for a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.of_card(CARD) is shipped("gfx942")


def test_everything_measured_has_work():
    """Each candidate's field has cases, and the shipped value is among the candidates or beside them."""
    for name, values in tuned.CANDIDATES.items():
        assert cases(name, FULL) and len(set(values)) > 1


@pytest.mark.parametrize("tokens", [1, 64, 65, 128, 129, 2048])
def test_wide_blocks_fit(tokens):
    """Whatever the format, a block of wide.hip has LDS for two cells of x, two stages of weights, and sums of a wave;
    and each has a multiprocessor where the depth is shared."""
    for matrices in ([128], [4096], [4096, 1024, 1024], [28672], [128256]):
        cut = geometry.wide(tokens, matrices, 32, 132)
        sums = (cut.threads // 32 - 4) * 32 * 20 * 4
        for qtype in PLANAR:
            row = 16 * (planar_row_nbytes(2 * CELL, QTYPES[qtype]) // 16 | 1)
            assert 4 * 128 * cut.tokens + 2 * cut.rows * row + sums + 512 <= geometry.WIDE_LDS
        count = sum(-(-rows // cut.rows) for rows in matrices) * -(-tokens // cut.tokens)
        assert cut.depth == 1 or count * cut.depth <= 132
    assert geometry.wide(64, [256], 3, 132).depth == 2
