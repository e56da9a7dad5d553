"""NormedEmbedding: what families share whose embedding goes through a layer norm."""

from typing import Any

from rocforge.nn import Transformer
from rocforge.nn.batch import Batch
from rocforge.nn.reader import Reader


class NormedEmbedding(Transformer):
    """The norm (token_embd_norm) is behind the embedding."""

    def add_parts(self, read: Reader) -> None:
        super().add_parts(read)
        self.token_embd_norm = read.layer_norm()

    def embed(self, tokens: Any, batch: Batch) -> Any:
        return self.token_embd_norm(super().embed(tokens, batch))
