"""rocforge: a CuPy-style array framework for transformers on AMD GPUs."""

__version__ = "0.1.0"


class RocforgeError(Exception):
    """Base of every error that rocforge raises about files, models and devices."""
