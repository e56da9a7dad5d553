"""Checkpoints of Hugging Face's: folders of safetensors, a config and a tokenizer, as GGUF has them."""
