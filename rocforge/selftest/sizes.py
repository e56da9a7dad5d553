"""The sizes of a selftest: in full, and quick, for the simulator."""

from __future__ import annotations

from rocforge.formats.blocks import QTYPES
from rocforge.selftest.check import Sizes

FULL = Sizes(
    every_variant=True,
    formats=tuple(QTYPES),
    tokens=(1, 2, 8, 64, 512),
    matrix=(1024, 4096),
    deep=(1024, 14336),
    width=4096,
    attention=((32, 8, 64), (32, 8, 128), (28, 4, 128), (64, 8, 64), (32, 32, 96), (16, 8, 256)),
    latents=(16, 512, 64),
    contexts=(1, 33, 128, 500, 1024, 4096),
    prompt=512,
    experts=(8, 2, 2048, 768),
    vocabulary=128256,
    rows=64,
    rounds=50,
    generated=64,
    measured=True,
)
"""Llama 3, Qwen and their like; 256 elements a head are Gemma's, 96 are Phi's."""

QUICK = Sizes(
    every_variant=False,
    formats=("Q4_K", "Q6_K", "Q8_0", "IQ3_S", "F16"),
    tokens=(1, 8, 70),
    matrix=(40, 512),
    deep=(40, 768),
    width=300,
    attention=((4, 2, 64),),
    latents=(6, 80, 16),
    contexts=(1, 33, 200),
    prompt=40,
    experts=(4, 2, 256, 256),
    vocabulary=3000,
    rows=4,
    rounds=3,
    generated=4,
    measured=False,
)
