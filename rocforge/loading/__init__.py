"""Loads weights from a file to a device while kernels compile."""
