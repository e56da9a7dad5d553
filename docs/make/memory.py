"""Prints the tables of docs/choosing.md: what models take in memory by format, and what fits.

python docs/make/memory.py
"""

from gguf.constants import GGMLQuantizationType as T

from rocforge.formats.blocks import block_elements, block_nbytes
from rocforge.selftest.synthetic import SHAPES, Shape, tensors_of, type_of

RECIPES = ["Q4_K_M", "Q8_0", "F16"]
MODELS = ["llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.1-70b"]
FORMATS = ["Q2_K", "Q3_K", "IQ4_XS", "Q4_0", "Q4_K", "MXFP4", "Q5_K", "Q6_K", "Q8_0", "F16"]
MEMORY = [8, 12, 16, 24, 32, 48, 192]
CONTEXT, GB = 8192, 1e9


def weights(shape: Shape, recipe: str) -> float:
    """Bytes of all tensors."""
    total = 0.0
    for name, layer, size in tensors_of(shape):
        qtype = T.F32 if len(size) == 1 else type_of(recipe, name, layer, shape)
        elements = size[0] * (size[1] if len(size) > 1 else 1)
        total += elements / block_elements(qtype) * block_nbytes(qtype)
    return total


def cache(shape: Shape, tokens: int) -> float:
    """Bytes of the float16 keys and values of so many tokens."""
    return 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


print(row("model", *(f"{name}, GB" for name in RECIPES), f"KV cache of {CONTEXT:,} tokens, GB"))
print(row("---", *["---:"] * (len(RECIPES) + 1)))
for name in MODELS:
    shape = SHAPES[name]
    sizes = [f"{weights(shape, recipe) / GB:.1f}" for recipe in RECIPES]
    print(row(name, *sizes, f"{cache(shape, CONTEXT) / GB:.2f}"))

print(f"\n{row('GPU memory', *MODELS)}\n{row('---', *['---'] * len(MODELS))}")
for memory in MEMORY:
    cells = []
    for name in MODELS:
        shape = SHAPES[name]
        room = memory * GB * 7 / 8 - cache(shape, CONTEXT)  # an eighth stays free for work and other programs
        cells.append(next((recipe for recipe in reversed(RECIPES) if weights(shape, recipe) <= room), "-"))
    print(row(f"{memory} GB", *cells))

print(f"\n{row('format', 'bits a weight')}\n{row('---', '---:')}")
for name in FORMATS:
    print(row(name, f"{8 * block_nbytes(T[name]) / block_elements(T[name]):g}"))
