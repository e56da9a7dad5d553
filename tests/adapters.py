"""Random LoRA adapters for tests, files of them, and models with them merged into their weights."""

import json

import gguf
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


def write_gguf(path, lora, architecture, alpha, dtype=np.float32, **metadata):
    """An adapter as llama.cpp's files have it; its scale is alpha over each matrix's rank, whatever `lora` says."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    for module, (a, b, _) in lora.items():
        writer.add_tensor(f"{module}.weight.lora_a", np.ascontiguousarray(a.T if module == "token_embd" else a, dtype))
        writer.add_tensor(f"{module}.weight.lora_b", b.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_peft(folder, tensors, **config):
    """A folder as PEFT saves adapters, of float32 arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([array.nbytes for array in tensors.values()]).tolist()
    header = {
        name: {"dtype": "F32", "shape": array.shape, "data_offsets": [end - array.nbytes, end]}
        for (name, array), end in zip(tensors.items(), ends, strict=True)
    }
    text, data = json.dumps(header).encode(), b"".join(array.astype(np.float32).tobytes() for array in tensors.values())
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
