"""What `rocforge selftest` does: kernels compiled and checked against NumPy on a card, its order, its speed."""
