"""Small models whose vectors (norms, biases, sinks, rope factors) are in a type of the caller's choice."""

import numpy as np

import rocforge as rf
from rocforge.formats.blocks import as_qtype, block_elements

TYPES = ("F16", "BF16", "Q8_0", "float64")


class Tensors(dict):
    """What load_model takes for an open file."""

    def __init__(self, tensors, metadata):
        super().__init__(tensors)
        self.metadata = metadata


def with_vectors_in(file, kind):
    """The model of a file with its vectors in a type, and one with the same values in float32.

    Vectors whose length is no whole number of the type's blocks stay as they are.
    """
    elements = 1 if kind == "float64" else block_elements(as_qtype(kind))
    packed, plain = Tensors(file, file.metadata), Tensors(file, file.metadata)
    vectors = {name for name in file if file[name].ndim == 1 or name.endswith(".bias")}
    fitting = {name for name in vectors if file[name].shape[-1] % elements == 0}
    assert fitting
    for name in fitting:
        values = np.asarray(file[name], np.float32)
        packed[name] = values.astype(kind) if kind == "float64" else rf.quantize(values, kind)
        plain[name] = np.asarray(packed[name], np.float32)
    return packed, plain
