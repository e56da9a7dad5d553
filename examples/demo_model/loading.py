"""Read a GGUF file of the demo model back into PyTorch and `tokenizers`, through the `gguf` package alone."""

from pathlib import Path

import gguf
import torch
from model import Config, Llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def load_gguf(path: Path) -> tuple[Llama, Tokenizer]:
    """The model in float32, its weights dequantized, and its tokenizer. The beginning-of-text token has id 0."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> object:
        return reader.fields[key].contents()

    tokens = value("tokenizer.ggml.tokens")
    config = Config(
        vocab_size=len(tokens),
        context_length=value("llama.context_length"),
        embedding_length=value("llama.embedding_length"),
        block_count=value("llama.block_count"),
        feed_forward_length=value("llama.feed_forward_length"),
        head_count=value("llama.attention.head_count"),
        head_count_kv=value("llama.attention.head_count_kv"),
        rope_freq_base=value("llama.rope.freq_base"),
        rms_epsilon=value("llama.attention.layer_norm_rms_epsilon"),
    )
    model = Llama(config)
    model.load_state_dict(
        {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    )
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return model.eval(), tokenizer
