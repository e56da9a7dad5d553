"""Prints the tables of docs/choosing.md: what models take in memory by format, and what fits.

python docs/make/memory.py
"""

from gguf.constants import GGMLQuantizationType as T

from rocforge.formats.blocks import block_elements, block_nbytes
from rocforge.selftest.synthetic import SHAPES, Shape, tensors_of, type_of

RECIPES = ["Q4_K_M", "Q8_0", "F16"]
MODELS = {
    "Llama 3.2 1B": SHAPES["llama-3.2-1b"],
    "Llama 3.2 3B": SHAPES["llama-3.2-3b"],
    "Llama 3.1 8B": SHAPES["llama-3.1-8b"],
    "Llama 3.1 70B": SHAPES["llama-3.1-70b"],
}
MEMORY = [8, 12, 16, 24, 48, 192]
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


def fitting(shape: Shape, memory: float) -> str:
    """The largest format that fits beside the cache; an eighth stays free for work and other programs."""
    room = memory * 7 / 8 - cache(shape, CONTEXT)
    return next((recipe for recipe in reversed(RECIPES) if weights(shape, recipe) <= room), "-")


def main() -> None:
    print(row("GPU memory", *MODELS), "|---" * (len(MODELS) + 1) + "|", sep="\n")
    for memory in MEMORY:
        print(row(f"{memory} GB", *(fitting(shape, memory * GB) for shape in MODELS.values())))
    print()
    heads = [f"{name}, GB" for name in RECIPES]
    print(row("model", *heads, f"KV cache of {CONTEXT:,} tokens, GB"), "|---" + "|---:" * 4 + "|", sep="\n")
    for name, shape in MODELS.items():
        sizes = [f"{weights(shape, recipe) / GB:.1f}" for recipe in RECIPES]
        print(row(name, *sizes, f"{cache(shape, CONTEXT) / GB:.2f}"))


if __name__ == "__main__":
    main()
