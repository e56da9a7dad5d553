"""rocforge: a CuPy-style array framework for transformers on AMD GPUs.

>>> import rocforge as rf
>>> model, tokenizer = rf.load("model.gguf")
>>> rf.generate(model, tokenizer, "import numpy as", max_tokens=2, temperature=0, stop="\\n")
' np'
"""

from rocforge.device.arrays import DeviceInfo, asnumpy, device_info, get_array_module, to_device
from rocforge.device.source_kernel import Kernel
from rocforge.device.streams import Stream
from rocforge.embed import embed
from rocforge.engine.engine import Engine
from rocforge.engine.response import GenerationResponse
from rocforge.errors import (
    CheckpointError,
    DeviceError,
    GGUFError,
    OutOfMemoryError,
    RocforgeError,
    UnsupportedModelError,
)
from rocforge.evaluate import Comparison, Perplexity, compare, perplexity
from rocforge.generate import generate, stream_generate
from rocforge.gguf.file import GGUFFile, open_gguf
from rocforge.load import load
from rocforge.lora.adapter import LoRA
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.ops.activation import add, geglu, gelu, relu_squared, scale, silu, softcap, softmax, swiglu, swiglu_oai
from rocforge.ops.attention import attention
from rocforge.ops.embedding import embedding
from rocforge.ops.linear import linear
from rocforge.ops.norm import layer_norm, rms_norm
from rocforge.ops.quantize import quantize
from rocforge.ops.rope import rope, rope_frequencies
from rocforge.ops.sampling import SamplingParams
from rocforge.quant import QuantizedArray
from rocforge.text.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "CheckpointError",
    "Chunk",
    "Comparison",
    "DeviceError",
    "DeviceInfo",
    "Engine",
    "GGUFError",
    "GGUFFile",
    "GenerationResponse",
    "KVCache",
    "Kernel",
    "LoRA",
    "OutOfMemoryError",
    "Perplexity",
    "QuantizedArray",
    "RocforgeError",
    "SamplingParams",
    "Stream",
    "Tokenizer",
    "UnsupportedModelError",
    "add",
    "asnumpy",
    "attention",
    "compare",
    "device_info",
    "embed",
    "embedding",
    "geglu",
    "gelu",
    "generate",
    "get_array_module",
    "layer_norm",
    "linear",
    "load",
    "open_gguf",
    "perplexity",
    "quantize",
    "relu_squared",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "scale",
    "silu",
    "softcap",
    "softmax",
    "stream_generate",
    "swiglu",
    "swiglu_oai",
    "to_device",
]
