"""The bundled demo model as a golden model: as it is, and in F32."""

import shutil
from pathlib import Path

import gguf
import numpy as np

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
    """Writes the demo model to `path`: "Q8_0" as it is bundled, "F32" with every tensor dequantized."""
    if recipe == "F32":
        dequantize(bundled(), path)
    else:
        shutil.copyfile(bundled(), path)


def dequantize(source, path) -> None:
    """Writes to `path` the GGUF file `source` with every tensor in F32."""
    reader = gguf.GGUFReader(source)
    w = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            value_type = field.types[0]
            element_type = field.types[-1] if value_type is gguf.GGUFValueType.ARRAY else None
            w.add_key_value(key, field.contents(), value_type, element_type)
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    for t in reader.tensors:
        w.add_tensor(t.name, gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
