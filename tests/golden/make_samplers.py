"""Stores what llama.cpp's samplers make of the inputs in `samplers.py`.

Run from tests/ as `python -m golden.make_samplers`. Needs llama-cpp-python built from source (README.md says how).
"""

import ctypes
import json
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from golden import build, samplers
from golden.make_references import _errors_only


def candidates(logits):
    """llama.cpp's array of tokens, which a sampler changes; and its memory, to be kept."""
    data = (llama_cpp.llama_token_data * len(logits))(*((id, float(x), 0.0) for id, x in enumerate(logits)))
    return llama_cpp.llama_token_data_array(data, len(logits), -1, False), data


def applied(sampler, logits):
    """The kept tokens with their logits and probabilities, and the index of the selected one."""
    array, _data = candidates(logits)  # which has to be alive
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    kept = [array.data[i] for i in range(array.size)]
    return [(one.id, one.logit, one.p) for one in kept], array.selected


def chain(options):
    """The tokens that a chain keeps, with their probabilities, in the order of their ids."""
    make = {
        "temperature": llama_cpp.llama_sampler_init_temp,
        "top_n_sigma": llama_cpp.llama_sampler_init_top_n_sigma,
        "top_k": llama_cpp.llama_sampler_init_top_k,
        "typical_p": lambda p: llama_cpp.llama_sampler_init_typical(p, 1),
        "top_p": lambda p: llama_cpp.llama_sampler_init_top_p(p, 1),
        "min_p": lambda p: llama_cpp.llama_sampler_init_min_p(p, 1),
    }
    found = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for name, init in make.items():
        if name in options:
            llama_cpp.llama_sampler_chain_add(found, init(options[name]))
    if "xtc_probability" in options:
        xtc = llama_cpp.llama_sampler_init_xtc(options["xtc_probability"], options["xtc_threshold"], 1, 0)
        llama_cpp.llama_sampler_chain_add(found, xtc)
    llama_cpp.llama_sampler_chain_add(found, llama_cpp.llama_sampler_init_dist(0))
    results = []
    for seed in range(4):
        kept = sorted((id, logit) for id, logit, _ in applied(found, samplers.logits(seed))[0])
        weights = np.exp(np.array([logit for _, logit in kept]) - max(logit for _, logit in kept))
        shares = weights / weights.sum()
        results.append({id: round(float(p), 7) for (id, _), p in zip(kept, shares, strict=True) if p > 1e-7})
    llama_cpp.llama_sampler_free(found)
    return results


def mirostat(version, tau, eta):
    """The number of kept tokens, the token that was drawn, and its probability, of each step."""
    if version == 1:
        found = llama_cpp.llama_sampler_init_mirostat(samplers.VOCABULARY, 1, tau, eta, 100)
    else:
        found = llama_cpp.llama_sampler_init_mirostat_v2(1, tau, eta)
    steps = []
    for seed in range(samplers.STEPS):
        kept, selected = applied(found, samplers.logits(seed))
        steps.append([len(kept), kept[selected][0], round(kept[selected][2], 7)])
    llama_cpp.llama_sampler_free(found)
    return steps


def dry(vocabulary, options):
    """The penalties of tokens, for each of some texts."""
    values = {"dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 64, **options}
    breakers = [one.encode() for one in values.get("dry_sequence_breakers", ["\n", ":", '"', "*"])]
    numbers = [values[name] for name in ("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n")]
    texts = (ctypes.c_char_p * max(len(breakers), 1))(*breakers)
    results = []
    for seed in range(8):
        found = llama_cpp.llama_sampler_init_dry(vocabulary, *numbers, texts, len(breakers))
        for token in samplers.text(seed):
            llama_cpp.llama_sampler_accept(found, token)
        kept, _ = applied(found, np.zeros(samplers.VOCABULARY))
        results.append({id: round(-logit, 6) for id, logit, _ in sorted(kept) if logit})
        llama_cpp.llama_sampler_free(found)
    return results


def main():
    llama_cpp.llama_log_set(_errors_only, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        build(path, "llama", "F32")
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        found = {
            "chains": [chain(options) for options in samplers.CHAINS],
            "mirostats": [mirostat(*options) for options in samplers.MIROSTATS],
            "dry": [dry(vocabulary, options) for options in samplers.DRY],
        }
        llama_cpp.llama_model_free(model)
    samplers.FILE.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
