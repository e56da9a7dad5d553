"""Writes docs/models-supported.md: the architectures, and how far their small models are from llama.cpp's logits.

python docs/make/models_supported.py > docs/models-supported.md
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from golden import build, encoders, families, load, relative_error
from golden.models import UNRECORDED, VARIANTS

import rocforge as rf
from rocforge.load import load_model
from rocforge.models import ARCHITECTURES

HEAD = """# Models that run

What a GGUF file's `general.architecture` may be. `rocforge models --supported` lists the same. Each runs in any
quantization, on the CPU and on a device, with prefix reuse and captured steps. A model of another architecture is
refused by its name, with what it would take where that is known: diffusion (dream, llada, rnd1), an encoder beside the
decoder (t5). Of vision models' files the text part runs.

Each architecture is checked by small models with random weights: logits in F32 beside llama.cpp's (0.3.36 of
llama-cpp-python; of newer ones, October 2026), over a prompt and 16 tokens that it chose, which are equal; the table
has the relative error of the logits. Where a feed-forward has a GELU llama.cpp rounds to float16, which is most of the
error. Packed weights are held to their values to 1e-5, chunks and batches to the whole to 1e-5, and a device to the CPU
(`tests/test_models.py`, `tests/test_families.py`, `tests/device/`).

Families with latent attention are beside llama.cpp of October 2026. Sparse attention (deepseek32, glm-dsa) is computed
as plain attention: it is the same up to as many tokens as the indexer chooses, `rf.load` warns of longer contexts, and
`model.save` leaves the indexer out. Files with `attn_kv_b` (deepseek2 of before April 2025, minicpm3, plm) are saved
in the form that files have today, with `attn_k_b` and `attn_v_b`, which llama.cpp reads of deepseek2 alone.

Of plamo2 the small model's file gives heads to all layers: with none in the first one, as the converter writes,
llama.cpp of October 2026 does not come to an end.

Encoders (bert, modern-bert and others, and any file with `attention.causal` false) give
[embeddings](serving.md#embeddings) or [rank](serving.md#reranking), and generate nothing: each text takes one pass, in
which a token sees all others, with nothing cached. Their error is that of pooled vectors (`tests/test_encoders.py`);
single scores of rerankers are held to 3e-4. all-MiniLM-L6-v2 as published lies within a cosine distance of 1e-5 of
float64 arithmetic, which has GELU by the error function (`tests/checkpoints/test_bert.py`). Decoders give embeddings
and rank by their file's `pooling_type`.

| architecture | models | error |
|---|---|---|"""


def main() -> None:
    errors: dict[str, float] = {}
    of_vectors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        for name, family in families.FAMILIES.items():
            families.build(path, name)
            golden = families.load(name)
            logits = load_model(rf.open_gguf(path), "cpu")(golden["tokens"])[families.ROWS]
            errors[family.arch] = max(errors.get(family.arch, 0), relative_error(logits, golden["logits"]))
        for name, family in encoders.ENCODERS.items():
            expected = encoders.load(name)
            if expected.shape[1] > len(encoders.TEXTS):  # vectors, and no scores
                encoders.build(path, name)
                vectors = rf.embed(load_model(rf.open_gguf(path), "cpu"), encoders.texts(name), normalize=False)
                of_vectors[family.arch] = max(of_vectors.get(family.arch, 0), relative_error(vectors, expected))
        for name, variant in VARIANTS.items():
            if name in (*UNRECORDED, "llama-types"):
                continue
            build(path, name, "F32")
            golden = load(name, "F32")
            logits = load_model(rf.open_gguf(path), "cpu")(golden["tokens"])[golden["rows"]]
            errors[variant.arch] = max(errors.get(variant.arch, 0), relative_error(logits, golden["logits"]))
    errors = {**of_vectors, **errors}
    print(HEAD)
    for name, model in sorted(ARCHITECTURES.items()):
        print(f"| {name} | {model.models} | {f'{errors[name]:.1e}' if name in errors else 'by float64 alone'} |")


if __name__ == "__main__":
    main()
