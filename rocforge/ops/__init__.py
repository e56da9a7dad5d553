"""Operations on ordinary arrays: NumPy arrays run the NumPy code, CuPy arrays the kernels."""
