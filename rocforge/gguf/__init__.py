"""GGUF files: the header, the tensors as a mapping, metadata that is checked, split sets, the Hub; and writing."""
