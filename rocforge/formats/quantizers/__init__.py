"""Quantizers: float blocks packed in GGUF's formats, a family of formats a module.

Each function takes x, float32 (blocks, elements of a block), of magnitudes that the format's scales can hold, and
importance, positive weights of the same shape or None, and gives uint8 (blocks, bytes of a block).

Source: ggml's quantizers (https://github.com/ggml-org/ggml, src/ggml-quants.c): the same layouts, weights and
objectives; the search is over whole arrays here, and no bits are promised to be equal.
"""
