"""rocforge: a CuPy-style array framework for transformers on AMD GPUs."""

__version__ = "0.1.0"
