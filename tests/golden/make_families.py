"""Stores llama.cpp's logits for the families' models: from tests/, `python -m golden.make_families [NAME ...]`.

Needs llama-cpp-python, as make_references.py does.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from golden import FOLDER, families
from golden.make_references import record

PATH = FOLDER / "families.npz"


def main() -> None:
    stored = dict(np.load(PATH)) if PATH.exists() else {}
    stored = {key: value for key, value in stored.items() if key.split("/")[0] in families.FAMILIES}
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or families.FAMILIES:
            path = Path(folder) / f"{name}.gguf"
            families.build(path, name)
            found = record(path, families.prompt(name), families.GREEDY, families.ROWS)
            stored |= {f"{name}/{key}": value for key, value in found.items()}
            path.unlink()
    np.savez_compressed(PATH, **stored)


if __name__ == "__main__":
    main()
