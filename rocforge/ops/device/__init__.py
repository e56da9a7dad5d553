"""The launches of ops on CuPy arrays, and what they share."""
