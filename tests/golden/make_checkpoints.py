"""Stores the logits that Hugging Face's transformers gives for small checkpoints.

Run from tests/ as `python -m golden.make_checkpoints`. Needs torch and transformers; everything is float32, on the CPU.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from checkpoint_files import CONFIGS, PROMPT, write

PATH = Path(__file__).with_name("checkpoints.npz")


def main() -> None:
    logits = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in CONFIGS:
            path = write(Path(folder, name), name)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager"
            )
            with torch.no_grad():
                logits[name] = model(torch.tensor(PROMPT)[None]).logits[0, ::4].numpy()
    np.savez_compressed(PATH, **logits)


if __name__ == "__main__":
    main()
