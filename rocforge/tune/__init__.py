"""Measures the best values of rocforge.device.tuning on this card."""
