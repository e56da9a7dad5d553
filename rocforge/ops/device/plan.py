"""The plan of a product: which kernel multiplies, and in which form x comes.

It is decided here alone, by the weights' formats, the number of tokens and the card's tuning; what produces x asks
`form_for` once and writes that form.

| product      | what runs                                      | x                                     |
|--------------|------------------------------------------------|---------------------------------------|
| GEMV_INT8    | matvec.hip, experts.hip: dot instructions      | int8                                  |
| GEMV_FLOAT   | matvec.hip, experts.hip                        | float32                               |
| GEMV_FEW     | experts_few.hip: dot instructions              | int8                                  |
| TILE         | tiles.hip, experts_tiles.hip: the matrix unit  | fragments, for 8, 16, 32, 64 or 128s  |
| FLOAT_TILE   | float_tiles.hip: the same, of 16-bit floats    | float16                               |
| WIDE         | wide.hip, experts_wide.hip: Hopper's unit      | float16 tiles, swizzled               |
| GEMM_FP16    | the BLAS library, of weights unpacked to fp16  | float16                               |
| GEMM_FLOAT32 | the BLAS library                               | float32                               |
| GROUPED_GEMM | experts_prefill.hip: the matrix unit           | float16                               |

Plans are cached: a layer asks for them at each launch.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from typing import NamedTuple

from rocforge.device import tuning
from rocforge.device.cards import card_of
from rocforge.device.geometry import GEMV_RUN, STAGED_TOKENS
from rocforge.device.libraries import cupy_module
from rocforge.device.tuning import Tuning
from rocforge.ops.device.strided import blocks
from rocforge.ops.device.weights import WeightFormat, format_of
from rocforge.ops.types import ExpertMatrices, Weight

MAX_GEMV_TOKENS = 8
"""The most tokens that GEMV kernels multiply; `Tuning.int8_tokens` says up to how many they do, of planar weights, and
`Tuning.float_gemv_tokens` of 16-bit floats."""
MAX_MATRICES = 4
"""The most matrices that one launch of our own kernels multiplies."""
PLANS_KEPT = 4096
"""Of each kind: there is one for each number of tokens that a prompt's chunk may have, and few formats."""


class Product(enum.Enum):
    """What multiplies; see the table above."""

    GEMV_INT8 = enum.auto()
    GEMV_FLOAT = enum.auto()
    GEMV_FEW = enum.auto()
    TILE = enum.auto()
    FLOAT_TILE = enum.auto()
    WIDE = enum.auto()
    GEMM_FP16 = enum.auto()
    GEMM_FLOAT32 = enum.auto()
    GROUPED_GEMM = enum.auto()


class OperandForm(enum.Enum):
    """How x (tokens, size) lies in device memory.

    Attributes:
        packed: it is a PackedOperand, not an array.
        width: the tokens that fragments are laid out for; 0 for the other forms.
    """

    FLOAT32 = ("float32", False, 0)
    FP16 = ("float16", False, 0)
    INT8 = ("int8", True, 0)
    FRAGMENTS_8 = ("fragments", True, 8)
    FRAGMENTS_16 = ("fragments", True, 16)
    FRAGMENTS_32 = ("fragments", True, 32)
    FRAGMENTS_64 = ("fragments", True, 64)
    FRAGMENTS_128 = ("fragments", True, 128)
    SWIZZLED = ("swizzled", True, 0)

    def __init__(self, layout: str, packed: bool, width: int):
        self.packed, self.width = packed, width


_FORMS = {
    Product.GEMV_INT8: OperandForm.INT8,
    Product.GEMV_FLOAT: OperandForm.FLOAT32,
    Product.GEMV_FEW: OperandForm.INT8,
    Product.FLOAT_TILE: OperandForm.FP16,
    Product.WIDE: OperandForm.SWIZZLED,
    Product.GEMM_FP16: OperandForm.FP16,
    Product.GEMM_FLOAT32: OperandForm.FLOAT32,
    Product.GROUPED_GEMM: OperandForm.FP16,
}
_FRAGMENTS = {form.width: form for form in OperandForm if form.width}
MAX_TILE_TOKENS = 64
"""The most tokens that TILE kernels multiply as one; of more each 128."""


def fragments_for(tokens: int) -> OperandForm:
    """The narrowest fragments that hold so many tokens, or the widest, several times."""
    return next((form for width, form in _FRAGMENTS.items() if tokens <= width), OperandForm.FRAGMENTS_128)


def product_for(weight: WeightFormat, tokens: int, tuned: Tuning) -> Product:
    """What multiplies so many tokens with a weight."""
    if weight.planar and 0 < tokens <= tuned.int8_tokens:
        return Product.GEMV_INT8
    if weight.wide and tuned.wide_from <= tokens and (tokens <= tuned.wide_tokens or not weight.copied):
        return Product.WIDE
    most = tuned.tile_tokens if weight.copied else tuned.tile_tokens_alone
    if weight.planar and 0 < tokens <= min(most, STAGED_TOKENS):
        return Product.TILE
    if weight.kernel is not None and not weight.planar:
        if 0 < tokens <= (tuned.float_gemv_tokens if weight.half else MAX_GEMV_TOKENS):
            return Product.GEMV_FLOAT
        if weight.half and 0 < tokens <= tuned.float_tile_tokens:
            return Product.FLOAT_TILE
    return Product.GEMM_FLOAT32 if weight.float32 else Product.GEMM_FP16


def form_of(product: Product, tokens: int) -> OperandForm:
    """The form in which a product takes x."""
    return fragments_for(tokens) if product is Product.TILE else _FORMS[product]


def form_for(weights: Sequence[Weight] | ExpertMatrices, tokens: int) -> OperandForm:
    """The form in which products with these weights, on the current device, take an x of so many tokens.

    Where they take different ones it is float32, which each of them converts.
    """
    if isinstance(weights, ExpertMatrices):
        return experts_form(experts_product_for(weights, tokens), tokens)
    return form_of_all(tuple([format_of(weight) for weight in weights]), tokens, tuning.current())


@functools.lru_cache(PLANS_KEPT)
def form_of_all(weights: tuple[WeightFormat, ...], tokens: int, tuned: Tuning) -> OperandForm:
    """`form_for`, of formats."""
    forms = {form_of(product_for(weight, tokens, tuned), tokens) for weight in weights}
    return forms.pop() if len(forms) == 1 else OperandForm.FLOAT32


class Launch(NamedTuple):
    """Products of one x with weights[start:stop], and the form in which they take x."""

    product: Product
    form: OperandForm
    start: int
    stop: int


@functools.lru_cache(PLANS_KEPT)
def launches(weights: tuple[WeightFormat, ...], tokens: int, tuned: Tuning) -> tuple[Launch, ...]:
    """Runs of weights that are multiplied together.

    Our own kernels take up to MAX_MATRICES of one format, of which the last may differ; the BLAS library's functions
    take any.
    """
    products, runs, start = [product_for(weight, tokens, tuned) for weight in weights], [], 0
    for i in range(1, len(weights) + 1):
        if i == len(weights) or products[i] is not products[start] or not _fits(weights[start:i], products[start]):
            runs.append(Launch(products[start], form_of(products[start], tokens), start, i))
            start = i
    return tuple(runs)


def _fits(run: tuple[WeightFormat, ...], product: Product) -> bool:
    """Whether a launch of these has room for one more weight, of whatever format."""
    if product in (Product.GEMM_FP16, Product.GEMM_FLOAT32):
        return True
    return len(run) < MAX_MATRICES and all(weight.kernel == run[0].kernel for weight in run)


class GatedPlan(NamedTuple):
    """How a gated product runs.

    Attributes:
        product: what multiplies and gates in one launch; None: two products, and a launch for the gated unit.
        form: in which x is taken, where that is one launch.
        result: the form that is written.
        rounded: whether the results of two products are float16, where that is all that follows: half as much to write
            and to read.
    """

    product: Product | None
    form: OperandForm
    result: OperandForm
    rounded: bool = False


@functools.lru_cache(PLANS_KEPT)
def gated_plan(
    gate: WeightFormat, up: WeightFormat, consumer: WeightFormat | None, tokens: int, tuned: Tuning
) -> GatedPlan:
    """How gate and up are multiplied, for a result that the `consumer`, where it is known, multiplies next."""
    product = product_for(gate, tokens, tuned)
    form = form_of(product, tokens)
    wanted = OperandForm.FLOAT32 if consumer is None else form_of(product_for(consumer, tokens, tuned), tokens)
    if gate.kernel != up.kernel or product in (Product.GEMM_FP16, Product.GEMM_FLOAT32):
        rounded = wanted is OperandForm.FP16 and product is product_for(up, tokens, tuned) is Product.GEMM_FP16
        return GatedPlan(None, form, OperandForm.FLOAT32 if wanted.packed else wanted, rounded)
    writes_wanted = wanted is form or (wanted is OperandForm.INT8 and product is Product.GEMV_FLOAT)
    return GatedPlan(product, form, wanted if writes_wanted else OperandForm.FLOAT32)


class NormPlan(enum.Enum):
    """Where the norm that follows a product and a residual is computed."""

    ALONE = enum.auto()
    IN_PRODUCT = enum.auto()
    """A GEMV writes the normalized row in int8, and leaves the division by the root to the next product."""
    WITH_SUM = enum.auto()
    """A launch adds a product of float16, or the parts of wide.hip's, to the residual, and normalizes the sum."""


def norm_plan_for(weight: Weight, consumers: Sequence[Weight], tokens: int) -> NormPlan:
    """Where the norm between a product and the products with `consumers` is computed, on the current device."""
    device, formats = cupy_module().cuda.runtime.getDevice(), tuple([format_of(each) for each in (weight, *consumers)])
    return norm_plan(formats, len(weight), tokens, card_of(device).compute_units, tuning.of(device))


@functools.lru_cache(PLANS_KEPT)
def norm_plan(formats: tuple[WeightFormat, ...], rows: int, tokens: int, units: int, tuned: Tuning) -> NormPlan:
    """`norm_plan_for`, of the formats of the weight, which has so many rows, and of the consumers."""
    form = form_of_all(formats, tokens, tuned)
    if form is OperandForm.FP16 or form is OperandForm.SWIZZLED:
        return NormPlan.WITH_SUM
    if tokens == 1 and form is OperandForm.INT8 and fills_units(rows, units, tuned):
        return NormPlan.IN_PRODUCT
    return NormPlan.ALONE


def fills_units(rows: int, units: int, tuned: Tuning) -> bool:
    """Whether the blocks of a GEMV that begins a norm, one a compute unit, leave few units idle at the end: where most
    would be, a product in smaller blocks, and a launch for the norm, is faster."""
    count = blocks(rows, GEMV_RUN)
    return count <= units or count >= tuned.then_norm_fill * units * blocks(count, units)


@functools.lru_cache(PLANS_KEPT)
def experts_product(gate: WeightFormat, up: WeightFormat, down: WeightFormat, tokens: int, tuned: Tuning) -> Product:
    """What multiplies tokens with their experts' matrices; those of no kernel's format, and a gate and an up of two,
    are unpacked."""
    one = gate.kernel == up.kernel and gate.planar
    packed = one and down.planar
    if tokens <= (tuned.experts_int8_tokens if packed else MAX_GEMV_TOKENS):
        return Product.GEMV_INT8 if one else Product.GEMV_FLOAT
    if packed and tokens <= tuned.experts_few_tokens:
        return Product.GEMV_FEW
    if not packed or not tuned.tile_tokens:
        return Product.GROUPED_GEMM
    wide = gate.wide and down.wide and tokens >= tuned.experts_wide_from
    return Product.WIDE if wide else Product.TILE


def heads_product(weight: WeightFormat, tokens: int, tuned: Tuning) -> Product:
    """What multiplies each head's row with its own matrix, an expert that every token takes: it has them all."""
    product = experts_product(weight, weight, weight, tokens, tuned)
    if product is not Product.GEMV_FEW:
        return product
    return Product.TILE if tuned.tile_tokens else Product.GEMV_INT8


def experts_product_for(matrices: ExpertMatrices, tokens: int) -> Product:
    """`experts_product` of matrices on the current device."""
    gate, up, down = matrices
    formats = [format_of(each.weight) for each in (gate, gate if up is None else up, down)]
    return experts_product(*formats, tokens, tuning.current())


def experts_form(product: Product, tokens: int) -> OperandForm:
    """The form in which a product with experts takes x. On Hopper's matrix unit each token is laid out once its places
    are known."""
    return OperandForm.FLOAT32 if product is Product.WIDE else form_of(product, tokens)
