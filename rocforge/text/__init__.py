"""Between text and token ids: tokenizers, detokenizing, stop strings, grammars."""
