"""Whether every kernel compiles for the card and loads: each source with each set of defines that models use."""

from __future__ import annotations

import functools

import numpy as np

from rocforge.device.background import BackgroundCompilation
from rocforge.device.cards import card_of
from rocforge.device.kernels import Kernel, is_for, source_folder, variants
from rocforge.selftest.check import Check, Outcome, Sizes


def checks(sizes: Sizes) -> list[Check]:
    compilation = functools.cache(lambda: _begun(kernels))
    kernels, target = {}, card_of(0).family
    for path in sorted(source_folder().glob("*.hip")):
        if not is_for(path.name, target):
            continue
        for defines in variants(path.name)[: None if sizes.every_variant else 1]:
            name = " ".join([path.name, *(f"{key}={value}" for key, value in defines.items())])
            kernels[name] = Kernel(path.name, path.stem, "", **defines)

    def compiled(kernel: Kernel, rng: np.random.Generator) -> Outcome:
        compilation()
        kernel.module(0).load()
        return Outcome()

    return [Check(name, functools.partial(compiled, kernel)) for name, kernel in kernels.items()]


def _begun(kernels: dict[str, Kernel]) -> BackgroundCompilation:
    """All of them on their way, on as many threads as there are cores; a check waits for its own."""
    compilation = BackgroundCompilation()
    for kernel in kernels.values():
        compilation.add(kernel)
    return compilation
