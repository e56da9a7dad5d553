"""Devices: which cards are supported, and the compiler of their kernels."""
