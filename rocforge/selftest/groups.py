"""The groups of checks, in the order in which they run: each in a process of its own, on the kernels of the first."""

from __future__ import annotations

from collections.abc import Callable

from rocforge.selftest import (
    attention,
    compilation,
    elementwise,
    experts,
    figures,
    formats,
    model,
    order,
    products,
    sampling,
)
from rocforge.selftest.check import Check, Sizes

GROUPS: dict[str, Callable[[Sizes], list[Check]]] = {
    "compilation": compilation.checks,
    "formats": formats.checks,
    "products": products.checks,
    "elementwise": elementwise.checks,
    "attention": attention.checks,
    "experts": experts.checks,
    "sampling": sampling.checks,
    "order": order.checks,
    "model": model.checks,
    "figures": figures.checks,
}
