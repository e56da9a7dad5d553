"""Measures which numbers of rocforge.device.tuning are best on this card."""
