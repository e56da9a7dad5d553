"""hunyuan: dense, with experts, and Maincoder: llamas whose queries and keys are normalized behind the rope."""

from rocforge.models.llama import Llama
from rocforge.nn import Attention, Block, MoE
from rocforge.nn.reader import Reader
from rocforge.nn.shared_experts import with_shared


class Hunyuan(Llama):
    """Dense; of the vision models the text part. Source: https://huggingface.co/tencent/Hunyuan-7B-Instruct."""

    architectures: tuple[str, ...] = ("hunyuan-dense", "hunyuan_vl", "maincoder")
    models = "Hunyuan dense, and its vision models' text part; Maincoder"

    def attention(self, layer: int, read: Reader) -> Attention:
        neox = read.config.architecture != "maincoder"
        return Attention(**read.attention(layer), rope=read.rope(neox), norms="rotated head")


class HunyuanMoE(Hunyuan):
    """With experts beside a shared one. Source: https://arxiv.org/abs/2411.02265."""

    architectures = ("hunyuan-moe",)
    models = "Hunyuan A13B, Large"

    def block(self, layer: int, read: Reader) -> Block:
        sizes = read.shared_expert(layer) or read.mlp(layer)
        ffn = with_shared(MoE(**{**read.moe(layer), **read.mlp(layer)}), sizes)
        return Block(self.attention(layer, read), ffn, read.rms_norm)
