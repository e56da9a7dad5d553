"""GGUF files: the header, the tensors as a mapping, metadata that is checked, split sets and the Hub."""
