"""LoRA adapters, as arrays and as files of llama.cpp's and of PEFT's."""
