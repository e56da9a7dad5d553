"""The bundled demo model as a golden model: as it is, and in F32."""

import shutil
import sys
from pathlib import Path

import gguf
import numpy as np

EXCERPT = 30_000  # characters of the held-out text
CASES = [("demo", "F32"), ("demo", "Q8_0")]
TEXT = '''"""Numbers that read well."""


def fibonacci(count):
    """Return the first `count` Fibonacci numbers as a list."""
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:count]


class Counter:
    def __init__(self, start=0):
        self.value = start

    def increment(self, step=1):
'''


def bundled() -> Path | None:
    """The GGUF file of examples/demo_model, if it is there."""
    return next((Path(__file__).parents[2] / "examples" / "demo_model").glob("*.gguf"), None)


def build(path, recipe: str) -> None:
    """Writes the demo model to `path`: "Q8_0" as it is bundled, "F32" and "F16" with every tensor dequantized.

    Norms stay F32, as they are in any file.
    """
    if recipe in ("F32", "F16"):
        dequantize(bundled(), path, np.float32 if recipe == "F32" else np.float16)
    else:
        shutil.copyfile(bundled(), path)


def heldout(characters: int) -> str:
    """The beginning of the text that the demo model was not trained on."""
    return (bundled().parent / "heldout.txt").read_bytes().decode()[:characters]


def dequantize(source, path, dtype) -> None:
    """Writes to `path` the GGUF file `source` with every matrix in float32 or float16."""
    reader = gguf.GGUFReader(source)
    w = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            value_type = field.types[0]
            element_type = field.types[-1] if value_type is gguf.GGUFValueType.ARRAY else None
            w.add_key_value(key, field.contents(), value_type, element_type)
    w.add_file_type(gguf.LlamaFileType.ALL_F32 if dtype is np.float32 else gguf.LlamaFileType.MOSTLY_F16)
    for t in reader.tensors:
        values = gguf.quants.dequantize(t.data, t.tensor_type)
        w.add_tensor(t.name, values.astype(dtype if values.ndim > 1 else np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":  # python -m golden.demo FOLDER: the files that test_evaluate.py's figure is of
    folder = Path(sys.argv[1])
    build(folder / "demo-F32.gguf", "F32")
    (folder / "excerpt.txt").write_bytes(heldout(EXCERPT).encode())
