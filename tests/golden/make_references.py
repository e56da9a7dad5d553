"""Stores llama.cpp's logits for the golden models, and says how far they lie from float64 arithmetic.

Run from tests/ as `python -m golden.make_references [VARIANT-RECIPE ...]`; the demo model counts as demo-F32 and
demo-Q8_0. Needs llama-cpp-python built from source (README.md says how). Everything runs on the CPU in two threads,
with flash attention off and a float32 KV cache, so that nothing but llama.cpp's own arithmetic rounds.
"""

import contextlib
import ctypes
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from golden import BOUNDS, CASES, FOLDER, build, demo, reference, relative_error
from golden.models import PROMPT, prompt

GREEDY, DEMO_GREEDY = 16, 64
CONTEXT = 256


@llama_cpp.llama_log_callback
def _errors_only(level, text, _):
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode())


def load(path, embeds=False):
    """llama.cpp's model of a file, and a context of it."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp does not load {path}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
    params.n_threads = params.n_threads_batch = 2
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.no_perf, params.embeddings = True, embeds
    return model, llama_cpp.llama_init_from_model(model, params)


def embeddings(path, texts) -> np.ndarray:
    """Vectors of texts of token ids, pooled as the file says: float32 (texts, dim), or scores (texts, labels)."""
    model, ctx = load(path, embeds=True)
    ranks = llama_cpp.llama_pooling_type(ctx) == llama_cpp.LLAMA_POOLING_TYPE_RANK
    size = llama_cpp.llama_model_n_cls_out(model) if ranks else llama_cpp.llama_model_n_embd(model)
    found = []
    for text in texts:
        batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)
        batch.n_tokens = len(text)
        for i, token in enumerate(text):
            batch.token[i], batch.pos[i], batch.logits[i] = int(token), i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(ctx), True)
        if llama_cpp.llama_decode(ctx, batch) != 0:
            raise RuntimeError(f"llama.cpp does not decode {path}")
        pointer = llama_cpp.llama_get_embeddings_seq(ctx, 0)
        found.append(np.ctypeslib.as_array(pointer, (size,)).copy())
        llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(ctx)
    llama_cpp.llama_model_free(model)
    return np.stack(found)


@contextlib.contextmanager
def llama(path):
    """Yields a function from token ids to logits, float32 (tokens, vocab), that continues one sequence."""
    model, ctx = load(path)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)
    position = 0

    def feed(tokens) -> np.ndarray:
        nonlocal position
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = int(token), position + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if llama_cpp.llama_decode(ctx, batch) != 0:
            raise RuntimeError(f"llama.cpp does not decode {path}")
        position += len(tokens)
        pointer = ctypes.cast(llama_cpp.llama_get_logits(ctx), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (len(tokens), vocab)).copy()

    try:
        yield feed
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(ctx)
        llama_cpp.llama_model_free(model)


def record(path, ids: np.ndarray, greedy: int, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
    """Runs a prompt and then `greedy` steps; returns tokens, the rows kept, and the logits of those rows."""
    with llama(path) as feed:
        tokens, logits = list(ids), feed(ids)
        for _ in range(greedy):
            tokens.append(int(logits[-1].argmax()))
            logits = np.concatenate([logits, feed(tokens[-1:])])
    kept = np.arange(len(tokens))[rows]
    return {"tokens": np.array(tokens, np.int32), "rows": kept.astype(np.int32), "logits": logits[kept]}


def tokenize(path, text: str) -> np.ndarray:
    """The first 64 tokens of a text, special tokens added."""
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    data, ids = text.encode(), (llama_cpp.llama_token * 1024)()
    vocab = llama_cpp.llama_model_get_vocab(model)
    count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), True, False)
    llama_cpp.llama_model_free(model)
    if count < PROMPT:
        raise RuntimeError(f"the demo model's prompt has {count} tokens; {PROMPT} are needed")
    return np.array(ids[:PROMPT], np.int32)


def store(name: str, recipe: str, path, golden: dict[str, np.ndarray]) -> None:
    """Keeps a record if float64 arithmetic bears it out; prints a row of the table either way."""
    exact = reference.logits(path, golden["tokens"])[golden["rows"]]
    error = relative_error(golden["logits"], exact)
    stored = error <= BOUNDS[recipe]
    if stored:
        np.savez_compressed(FOLDER / f"{name}-{recipe}.npz", **golden)
    print(f"| {name} | {recipe} | {error:.1e} |" + ("" if stored else " beyond the bound, not stored"))


def main() -> None:
    wanted = sys.argv[1:] or [f"{variant}-{recipe}" for variant, recipe in [*CASES, *demo.CASES]]
    llama_cpp.llama_log_set(_errors_only, ctypes.c_void_p(0))
    some = np.array([*range(7, PROMPT, 8), *range(PROMPT, PROMPT + GREEDY)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        for variant, recipe in CASES:
            if f"{variant}-{recipe}" in wanted:
                build(path, variant, recipe)
                rows = slice(None) if recipe == "F32" else some
                store(variant, recipe, path, record(path, prompt(variant), GREEDY, rows))
        for _, recipe in demo.CASES:
            if f"demo-{recipe}" in wanted:
                demo.build(path, recipe)
                store("demo", recipe, path, record(path, tokenize(path, demo.TEXT), DEMO_GREEDY, slice(7, None, 8)))


if __name__ == "__main__":
    main()
