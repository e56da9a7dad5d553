"""Stores llama.cpp's embeddings for the encoders' models: from tests/, `python -m golden.make_encoders [NAME ...]`.

Needs llama-cpp-python, as make_references.py does.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from golden import encoders
from golden.make_references import embeddings


def main() -> None:
    stored = dict(np.load(encoders.PATH)) if encoders.PATH.exists() else {}
    stored = {name: vectors for name, vectors in stored.items() if name in encoders.ENCODERS}
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or encoders.ENCODERS:
            path = Path(folder) / f"{name}.gguf"
            encoders.build(path, name)
            stored[name] = embeddings(path, encoders.texts(name))
            path.unlink()
    np.savez_compressed(encoders.PATH, **stored)


if __name__ == "__main__":
    main()
