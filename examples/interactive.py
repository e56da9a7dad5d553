"""A tour in the NumPy manner: open a file, look at tensors, multiply by packed weights, read a model layer by layer.

    python examples/interactive.py [model.gguf] [--plot attention.png]

Paste it line by line into a Python prompt, or run it whole.
"""

import argparse
from pathlib import Path

import numpy as np

import rocforge as rf

DEMO = Path(__file__).parent / "demo_model" / "demo-11M-Q8_0.gguf"
parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("model", nargs="?", default=DEMO, help="a GGUF file; the demo model where it is left out")
parser.add_argument("--plot", default="attention.png", help="where the plot goes (%(default)s)")
options = parser.parse_args()

print("# A GGUF file is a mapping of names to arrays, mapped from disk")
file = rf.open_gguf(options.model)
print(file, "\n")
print("architecture:", file.metadata["general.architecture"], "\n")

print("# A packed weight is an array: it slices, multiplies and unpacks")
w = file["blk.0.ffn_up.weight"]
print(w)
print("rows 2 to 4:", w[2:5])
print("its first values:", w[0].dequantize()[:6])
x = np.random.default_rng(0).standard_normal((3, w.shape[1])).astype(np.float32)
y = x @ w.T
print("x @ w.T:", y.shape, y.dtype, "\n")

print("# Packing another way costs accuracy; how much?")
exact = w.dequantize()
for qtype in ("Q8_0", "Q5_1", "Q4_0"):
    packed = rf.quantize(exact, qtype)
    error = np.linalg.norm(x @ packed.T - x @ exact.T) / np.linalg.norm(x @ exact.T)
    print(f"{qtype}: {packed.nbytes / 2**20:.2f} MiB, relative error of the product {error:.1e}")

print("\n# A model is a tree with GGUF's names")
model, tokenizer = rf.load(options.model, device="cpu")
print(model)
print("model.blk[0].attn_q.weight:", model.blk[0].attn_q.weight, "\n")

print("# The most likely next token, read off after every layer")
text = "def fibonacci(n):\n    if n < 2:\n        return"
tokens = tokenizer.encode(text)
with model.capture("blk.*") as seen:
    logits = model(tokens)
for path, hidden in seen.items():
    if path.count(".") == 1:
        guess = model.output(model.output_norm(hidden[-1:]))[0].argmax()
        print(f"{path}: {tokenizer.decode([guess])!r}")
print(f"at the end: {tokenizer.decode([logits[-1].argmax()])!r}\n")

print("# Where the last layer's heads look")
block = model.blk[-1]
layer = block.attn
with model.capture(f"blk.{len(model.blk) - 2}") as seen:
    model(tokens)
(hidden,) = seen.values()
x = block.attn_norm(hidden)
q, k, *_ = layer.split([projection(x) for projection in layer.projections])
q, k = (rf.rope(part, np.arange(len(tokens)), layer.rope) for part in (q, k))
k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
scores[:, ~np.tri(len(tokens), dtype=bool)] = -np.inf
weights = rf.softmax(scores)
labels = [tokenizer.decode([token]) for token in tokens]
for head in range(min(4, len(weights))):
    top = weights[head, -1].argsort()[::-1][:3]
    print(f"head {head}, from the last token:", ", ".join(f"{labels[i]!r} {weights[head, -1, i]:.2f}" for i in top))

try:
    import matplotlib
except ImportError:
    print("\nmatplotlib is not installed (pip install matplotlib), so there is no plot")
else:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(16, 8), squeeze=False)
    for head, axis in enumerate(axes.flat[: len(weights)]):
        axis.imshow(weights[head], cmap="viridis", vmin=0)
        axis.set_title(f"head {head}", fontsize=10)
        axis.set_xticks(range(len(labels)), [repr(t)[1:-1] for t in labels], rotation=90, fontsize=6)
        axis.set_yticks(range(len(labels)), [repr(t)[1:-1] for t in labels], fontsize=6)
    figure.suptitle(f"attention of {Path(options.model).name}, last layer")
    figure.tight_layout()
    figure.savefig(options.plot)
    print(f"\nattention plotted in {options.plot}")
