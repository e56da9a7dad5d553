"""Random LoRA adapters for tests, and models with them merged into their weights."""

import numpy as np

import rocforge as rf


def random_lora(rng, model, paths, rank=8, size=0.4, scale=0.5):
    """An adapter of the modules whose paths end in one of `paths`, as strong as it has to be to show in the logits."""
    updates = {}
    for path, module in model.named_modules():
        if path in paths or path.rpartition(".")[2] in paths:
            rows, columns = module.weight.shape
            if path == "token_embd":
                rows, columns = columns, rows
            a = rng.standard_normal((rank, columns)) * size / np.sqrt(columns if path != "token_embd" else rank)
            updates[path] = a.astype(np.float32), (rng.standard_normal((rows, rank)) * size).astype(np.float32)
    assert updates
    return rf.LoRA(updates, scale)


def merge(model, lora):
    """Add an adapter to the weights of a model on the CPU, which keeps them in float32; computed in float64."""
    modules = dict(model.named_modules())
    for path, (a, b, scale) in lora.items():
        weight, change = modules[path].weight, scale * (b.astype(np.float64) @ a.astype(np.float64))
        change = change.T if path == "token_embd" else change
        modules[path].weight = (rf.asnumpy(weight).astype(np.float64) + change).astype(np.float32)
    return model
