"""Text to token ids and back: tokenizers, detokenizers, stop strings, grammars, chat templates."""
