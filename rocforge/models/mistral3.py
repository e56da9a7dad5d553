"""mistral3: Ministral 3, whose queries are scaled up far into a text."""

from rocforge.models.llama import Llama
from rocforge.nn import Attention
from rocforge.nn.reader import LARGEST, Reader
from rocforge.ops.temperature import Temperature


class Mistral3(Llama):
    """Source: https://huggingface.co/mistralai/Ministral-3-8B-Instruct-2512."""

    architectures = ("mistral3",)
    models = "Ministral 3, Mistral Small 3.1 to 3.2"

    def attention(self, layer: int, read: Reader) -> Attention:
        scale = read.number("attention.temperature_scale", 0.0, LARGEST, default=0.0)
        temperature = Temperature(scale, read.original_context) if scale else None
        return Attention(**read.attention(layer), rope=read.rope(False), temperature=temperature)
