"""The plan of products: over formats, tokens and cards, without a device; and that nothing else decides."""

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocforge.device.tuning import TABLE
from rocforge.formats.blocks import QTYPES, block_elements, row_nbytes
from rocforge.formats.planar import PLANAR
from rocforge.ops.device import plan
from rocforge.ops.device.plan import MAX_MATRICES, GatedPlan, NormPlan, OperandForm, Product
from rocforge.ops.device.weights import format_of
from rocforge.quant import QuantizedArray

PACKAGE = Path(plan.__file__).parents[2]
TOKENS = [0, 1, 2, 3, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 512, 513]
WITHOUT_MATRIX_UNIT = ["gfx103"]
HOPPER = "sm_90"
HALVES = "F16", "BF16", "float16 array"
PACKED_FLOATS = {"F32": "Floats<float>", "F16": "Floats<f16>", "BF16": "Floats<bf16>"}


def packed(name, rows=4, copied=False):
    """A weight of a block format, as a device has it, perhaps with a float16 copy."""
    columns = max(block_elements(QTYPES[name]), 256)
    weight = QuantizedArray(np.zeros((rows, row_nbytes(columns, QTYPES[name])), np.uint8), (rows, columns), name)
    weight.planar = name in PLANAR
    weight.fp16 = np.zeros((rows, columns), np.float16) if copied else None
    return weight


WEIGHTS = {
    **{name: packed(name) for name in QTYPES},
    **{f"{name} and a copy": packed(name, copied=True) for name in PLANAR},
    "float32 array": np.zeros((4, 64), np.float32),
    "float16 array": np.zeros((4, 64), np.float16),
    "float64 array": np.zeros((4, 64)),
    "rows of 3 floats": np.zeros((4, 3), np.float32),
}
FORMATS = {name: format_of(weight) for name, weight in WEIGHTS.items()}


def expected_product(name, tokens, architecture):
    """What multiplies, as docs/kernels.md has it."""
    planes = PLANAR.get(name.removesuffix(" and a copy"))
    if planes:
        if architecture in WITHOUT_MATRIX_UNIT:
            return Product.GEMV_INT8 if 1 <= tokens <= 8 else Product.GEMM_FP16
        if tokens in (1, 2):
            return Product.GEMV_INT8
        if architecture == HOPPER and tokens > 32 and planes.wide:
            return Product.WIDE if tokens <= 64 or name in PLANAR else Product.GEMM_FP16
        return Product.TILE if 3 <= tokens <= (128 if name in PLANAR else 64) else Product.GEMM_FP16
    if (
        name in HALVES
        and architecture not in WITHOUT_MATRIX_UNIT
        and 3 <= tokens <= (16 if architecture == HOPPER else 64)
    ):
        return Product.FLOAT_TILE
    if (name in PACKED_FLOATS or name in ("float32 array", "float16 array")) and 1 <= tokens <= 8:
        return Product.GEMV_FLOAT
    return Product.GEMM_FLOAT32 if name in ("float32 array", "float64 array", "rows of 3 floats") else Product.GEMM_FP16


@pytest.mark.parametrize("architecture", TABLE)
@pytest.mark.parametrize("name", WEIGHTS)
def test_products(name, architecture):
    """Every format, on every card, for no token to many."""
    for tokens in TOKENS:
        product = plan.product_for(FORMATS[name], tokens, TABLE[architecture])
        assert product is expected_product(name, tokens, architecture), tokens


def test_formats():
    """Kernels know the planar formats by GGUF's names and floats by their types; each format is one object."""
    for name, weight in WEIGHTS.items():
        found = format_of(weight)
        assert found is FORMATS[name]
        block = name.removesuffix(" and a copy")
        assert found.planar == (block in PLANAR) and found.copied == (block != name)
        if found.planar or name in PACKED_FLOATS:
            assert found.kernel == PACKED_FLOATS.get(name, block)
    assert FORMATS["rows of 3 floats"].kernel is None
    assert (FORMATS["Q4_K"].cells(130), FORMATS["F32"].cells(64), FORMATS["F16"].cells(64)) == (2, 16, 8)


def test_formats_of_experts():
    """A stack of matrices is as one of them."""
    assert format_of(np.zeros((3, 4, 64), np.float32)) is FORMATS["float32 array"]
    assert format_of(np.zeros((3, 4, 6), np.float16)).kernel is None


@pytest.mark.parametrize(
    ("product", "tokens", "form"),
    [
        (Product.GEMV_INT8, 1, OperandForm.INT8),
        (Product.GEMV_FLOAT, 8, OperandForm.FLOAT32),
        *((Product.TILE, n, OperandForm.FRAGMENTS_8) for n in (1, 3, 8)),
        *((Product.TILE, n, OperandForm.FRAGMENTS_16) for n in (9, 16)),
        *((Product.TILE, n, OperandForm.FRAGMENTS_32) for n in (17, 32)),
        *((Product.TILE, n, OperandForm.FRAGMENTS_64) for n in (33, 64)),
        *((Product.TILE, n, OperandForm.FRAGMENTS_128) for n in (65, 128, 129, 2048)),
        (Product.FLOAT_TILE, 3, OperandForm.FP16),
        (Product.WIDE, 65, OperandForm.SWIZZLED),
        (Product.GEMM_FP16, 65, OperandForm.FP16),
        (Product.GEMM_FLOAT32, 65, OperandForm.FLOAT32),
        (Product.GROUPED_GEMM, 9, OperandForm.FP16),
    ],
)
def test_forms(product, tokens, form):
    assert plan.form_of(product, tokens) is form
    assert form.packed == (form in (OperandForm.INT8, OperandForm.SWIZZLED) or form.width > 0)
    assert not form.width or form.width >= min(tokens, 128)


SOME_FORMATS = st.lists(st.sampled_from(sorted(FORMATS)), min_size=1, max_size=9)
SOME_TOKENS, SOME_CARDS = st.sampled_from(TOKENS), st.sampled_from(sorted(TABLE))


@given(names=SOME_FORMATS, tokens=SOME_TOKENS, architecture=SOME_CARDS)
@settings(max_examples=300, deadline=None)
def test_launches(names, tokens, architecture):
    """Each weight is multiplied once, in order, by what it would be alone, and no two launches could have been one."""
    formats, tuned = tuple(FORMATS[name] for name in names), TABLE[architecture]
    runs = plan.launches(formats, tokens, tuned)
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(len(formats)))
    library = Product.GEMM_FP16, Product.GEMM_FLOAT32
    for run in runs:
        members = formats[run.start : run.stop]
        assert {plan.product_for(f, tokens, tuned) for f in members} == {run.product}
        assert run.form is plan.form_of(run.product, tokens)
        if run.product not in library:
            assert len(members) <= MAX_MATRICES and len({f.kernel for f in members[:-1]} | {members[0].kernel}) == 1
    for run, following in itertools.pairwise(runs):
        one = {f.kernel for f in formats[run.start : run.stop]}
        full = run.stop - run.start == MAX_MATRICES or len(one) > 1
        assert run.product is not following.product or (run.product not in library and full)


@given(names=SOME_FORMATS, tokens=SOME_TOKENS, architecture=SOME_CARDS)
@settings(max_examples=300, deadline=None)
def test_what_is_produced_is_what_is_taken(names, tokens, architecture):
    """The form for several weights is the one that all their launches take; else float32, which all can convert."""
    formats, tuned = tuple(FORMATS[name] for name in names), TABLE[architecture]
    form = plan.form_of_all(formats, tokens, tuned)
    taken = {launch.form for launch in plan.launches(formats, tokens, tuned)}
    assert taken == {form} or (form is OperandForm.FLOAT32 and len(taken) > 1)


@given(names=st.lists(st.sampled_from(sorted(FORMATS)), min_size=3, max_size=3), tokens=SOME_TOKENS, card=SOME_CARDS)
@settings(max_examples=500, deadline=None)
def test_gated_products(names, tokens, card):
    """One launch where gate and up are of one format that has a kernel; the result is as the next product takes it,
    or float32; and floats alone where nothing is known of that product."""
    (gate, up, consumer), tuned = (FORMATS[name] for name in names), TABLE[card]
    product, taken = plan.product_for(gate, tokens, tuned), plan.form_of_all((consumer,), tokens, tuned)
    one = gate.kernel == up.kernel and product not in (Product.GEMM_FP16, Product.GEMM_FLOAT32)
    found = plan.gated_plan(gate, up, consumer, tokens, tuned)
    assert found.product is (product if one else None)
    assert found.result in (taken, OperandForm.FLOAT32)
    if not one:
        assert not found.result.packed
        both = product is plan.product_for(up, tokens, tuned) is Product.GEMM_FP16
        assert found.rounded == (both and found.result is OperandForm.FP16)
    elif product in (Product.TILE, Product.WIDE):
        assert found.result in (found.form, OperandForm.FLOAT32)
    alone = plan.gated_plan(gate, up, None, tokens, tuned)
    assert alone == GatedPlan(found.product, found.form, OperandForm.FLOAT32)


@pytest.mark.parametrize(
    ("names", "tokens", "result"),
    [
        (("Q4_K", "Q4_K", "Q6_K"), 1, OperandForm.INT8),
        (("F16", "F16", "Q8_0"), 1, OperandForm.INT8),
        (("F16", "F16", "Q8_0"), 5, OperandForm.FLOAT32),
        (("F16", "F16", "BF16"), 5, OperandForm.FP16),
        (("F16", "BF16", "F16"), 5, OperandForm.FP16),
        (("Q4_K", "Q4_K", "F16"), 1, OperandForm.FLOAT32),
        (("Q4_K", "Q4_K", "Q6_K"), 20, OperandForm.FRAGMENTS_32),
        (("Q4_K", "Q4_K", "float16 array"), 20, OperandForm.FLOAT32),
        (("Q4_K", "Q5_K", "Q6_K"), 20, OperandForm.FLOAT32),
        (("Q4_K", "Q4_K", "Q6_K"), 65, OperandForm.FRAGMENTS_128),
        (("Q4_K", "Q5_K", "Q6_K"), 65, OperandForm.FLOAT32),
        (("Q4_K", "Q5_K", "Q6_K"), 129, OperandForm.FP16),
        (("Q4_K", "Q4_K", "float32 array"), 65, OperandForm.FLOAT32),
    ],
)
def test_results_of_gated_products(names, tokens, result):
    assert plan.gated_plan(*(FORMATS[name] for name in names), tokens, TABLE["gfx942"]).result is result


def test_norms():
    """Begun by the product for one token in int8, where its blocks keep the card busy; added for the BLAS library."""
    tuned, planar = TABLE["gfx942"], (FORMATS["Q4_K"], FORMATS["Q6_K"])
    norm = lambda formats, rows, tokens: plan.norm_plan(formats, rows, tokens, 100, tuned)  # noqa: E731
    assert norm(planar, 3200, 1) is NormPlan.IN_PRODUCT
    assert norm(planar, 3201, 1) is NormPlan.ALONE  # 101 blocks: in the second round 99 units would idle
    assert norm(planar, 6400, 1) is NormPlan.IN_PRODUCT
    assert norm(planar, 3200, 2) is norm(planar, 3200, 64) is NormPlan.ALONE
    assert norm(planar, 3200, 129) is norm((FORMATS["F16"], *planar), 32, 129) is NormPlan.WITH_SUM
    assert norm(planar, 3200, 65) is NormPlan.ALONE
    assert norm((FORMATS["F16"], *planar), 3200, 1) is NormPlan.ALONE
    assert norm((*planar, FORMATS["float32 array"]), 3200, 129) is NormPlan.ALONE
    hopper = [plan.norm_plan(planar, 3200, tokens, 132, TABLE[HOPPER]) for tokens in (32, 33, 129)]
    assert hopper == [NormPlan.ALONE, NormPlan.WITH_SUM, NormPlan.WITH_SUM]


@pytest.mark.parametrize(
    ("names", "few", "many"),
    [
        (("Q4_K", "Q4_K", "Q6_K"), Product.GEMV_INT8, Product.TILE),
        (("Q4_K", "Q4_K", "F16"), Product.GEMV_INT8, Product.GROUPED_GEMM),
        (("Q4_K", "Q5_K", "Q4_K"), Product.GEMV_FLOAT, Product.GROUPED_GEMM),
        (("F16", "F16", "F16"), Product.GEMV_FLOAT, Product.GROUPED_GEMM),
    ],
)
def test_experts(names, few, many):
    """A few tokens a GEMV a pair, some more, of packed weights, a GEMV a few pairs; many on the matrix unit, from
    packed weights or else unpacked."""

    def products(arch, *tokens):
        return {plan.experts_product(*(FORMATS[name] for name in names), n, TABLE[arch]) for n in tokens}

    tuned, packed = TABLE["gfx110"], many is Product.TILE
    most = tuned.experts_int8_tokens if packed else plan.MAX_GEMV_TOKENS
    some = tuned.experts_few_tokens if packed else most
    for arch, rest in ("gfx110", many), ("gfx103", Product.GROUPED_GEMM):
        assert products(arch, 1, most) == {few}
        assert products(arch, *range(most + 1, some + 1)) == ({Product.GEMV_FEW} if packed else set())
        assert products(arch, some + 1, 64, 2048) == {rest}
    assert products("sm_90", 2048) == {Product.WIDE if many is Product.TILE else many}


@pytest.mark.parametrize("arch", ["gfx110", "gfx103", HOPPER])
def test_heads(arch):
    """All tokens have each head's matrix: together on the matrix unit, or without one each alone."""
    tuned, planar = TABLE[arch], FORMATS["Q8_0"]
    found = [plan.heads_product(planar, tokens, tuned) for tokens in (1, tuned.experts_int8_tokens, 5, 8)]
    assert found[:2] == [Product.GEMV_INT8] * 2
    assert found[2:] == [Product.TILE if tuned.tile_tokens else Product.GEMV_INT8] * 2


def test_plans_are_kept():
    """Asked again, a plan is looked up."""
    asked = (FORMATS["Q4_K"], FORMATS["Q6_K"]), 7, TABLE["gfx110"]
    first = plan.launches(*asked)
    hits = plan.launches.cache_info().hits
    assert plan.launches(*asked) is first and plan.launches.cache_info().hits == hits + 1


BOUNDS = {"MAX_GEMV_TOKENS", "MAX_TILE_TOKENS", "int8_tokens", "tile_tokens", "tile_tokens_alone", "wide_from"}
BOUNDS |= {"wide_tokens", "float_gemv_tokens", "float_tile_tokens"}
COUNTS = ("tokens", "len(", "x.shape[0]", "math.prod(")


def names_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def decides(tree):
    """Bounds on the number of tokens, and comparisons of it, or of a length, with a number that may be one."""
    found = [name for name in names_in(tree) if name in BOUNDS]
    for node in ast.walk(tree):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        numbers = [side.value for side in sides if isinstance(side, ast.Constant) and type(side.value) is int]
        for least, kind in ((1, ast.Name), (4, (ast.Call, ast.Subscript))):
            counts = any(isinstance(side, kind) and ast.unparse(side).startswith(COUNTS) for side in sides)
            if counts and any(number >= least for number in numbers):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "path", sorted(p for part in ("ops", "nn") for p in (PACKAGE / part).rglob("*.py")), ids=lambda p: p.stem
)
def test_only_the_plan_goes_by_the_number_of_tokens(path):
    """Other ops, and layers, ask it: none has bounds of its own, or compares tokens with one."""
    tree = ast.parse(path.read_text())
    assert bool(decides(tree)) == (path.name == "plan.py"), decides(tree)


def test_it_would_be_seen():
    assert decides(ast.parse("if tokens <= 8: pass")) == ["tokens <= 8"]
    assert decides(ast.parse("from rocforge.ops.device.plan import MAX_GEMV_TOKENS")) == ["MAX_GEMV_TOKENS"]
    assert decides(ast.parse("if 8 < len(x): pass")) == ["8 < len(x)"]
    assert decides(ast.parse("x.shape[0] == 64")) == ["x.shape[0] == 64"]
    assert not decides(ast.parse("if tokens == 0 or len(weights) == 1 or tokens <= window: pass"))
