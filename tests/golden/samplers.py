"""Inputs of samplers, and what llama.cpp's own make of them: `samplers.json`, which `make_samplers.py` stores."""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "samplers.json"
VOCABULARY = 288
"""Of the model whose tokens break repetitions: `build(path, "llama", "F32")`."""

CHAINS = [
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    {"temperature": 1.3, "top_n_sigma": 1.2},
    {"temperature": 0.7, "typical_p": 0.6},
    {"temperature": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.08},
    {"temperature": 1.1, "top_n_sigma": 2.0, "top_k": 60, "typical_p": 0.9, "top_p": 0.9, "min_p": 0.1},
]
"""Parameters, in the order of rf.SamplingParams."""
MIROSTATS = [(version, tau, eta) for version in (1, 2) for tau, eta in ((5.0, 0.1), (3.0, 0.5), (1.0, 0.9))]
STEPS = 24
DRY = [
    {"dry_multiplier": 0.8},
    {"dry_multiplier": 1.5, "dry_base": 1.2, "dry_allowed_length": 1, "dry_penalty_last_n": 200},
    {"dry_multiplier": 0.5, "dry_allowed_length": 3, "dry_penalty_last_n": 400, "dry_sequence_breakers": ["ab", "e "]},
    {"dry_multiplier": 2.0, "dry_base": 1.0, "dry_penalty_last_n": 30, "dry_sequence_breakers": []},
]


def logits(seed):
    """float32 (VOCABULARY,)."""
    return np.random.default_rng(seed).standard_normal(VOCABULARY).astype(np.float32) * 3


def text(seed):
    """Token ids with repetitions, some of them broken."""
    rng = np.random.default_rng(seed)
    phrase = rng.integers(90, 112, 12).tolist()
    parts = [phrase[rng.integers(6) : rng.integers(6, 13)] + rng.integers(0, 284, 2).tolist() for _ in range(30)]
    return [token for part in parts for token in part] + phrase[: 4 + seed % 4]


def load():
    """What llama.cpp says."""
    return json.loads(FILE.read_text())
