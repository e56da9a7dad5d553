"""Write a trained checkpoint and its tokenizer as a GGUF file.

    python export.py OUT/model.pt CORPUS/tokenizer.json demo-11M-Q8_0.gguf --type Q8_0

Matrices take the type asked for (F32, F16 or Q8_0), norms stay F32. The weights' names and layout are GGUF's already.
"""

import argparse
import json
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType, LlamaFileType, TokenType

TYPES = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def add_config(writer: gguf.GGUFWriter, config: dict) -> None:
    """The model's sizes, under the keys of the `llama` architecture."""
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["context_length"])
    writer.add_embedding_length(config["embedding_length"])
    writer.add_block_count(config["block_count"])
    writer.add_feed_forward_length(config["feed_forward_length"])
    writer.add_head_count(config["head_count"])
    writer.add_head_count_kv(config["head_count_kv"])
    writer.add_rope_dimension_count(config["embedding_length"] // config["head_count"])
    writer.add_rope_freq_base(config["rope_freq_base"])
    writer.add_layer_norm_rms_eps(config["rms_epsilon"])


def add_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    """The byte-level BPE of a tokenizer.json; its one special token is both beginning and end of text."""
    data = json.loads(path.read_text(encoding="utf-8"))
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    (special,) = data["added_tokens"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t == special["content"] else TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(merge) for merge in data["model"]["merges"]])
    writer.add_bos_token_id(special["id"])
    writer.add_eos_token_id(special["id"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--type", choices=TYPES, default="Q8_0")
    arguments = parser.parse_args()
    checkpoint = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    qtype, file_type = TYPES[arguments.type]

    writer = gguf.GGUFWriter(arguments.gguf, "llama")
    writer.add_name("rocforge demo 11M")
    writer.add_description(
        "A small model of Python source code, trained from scratch for rocforge's examples and tests"
    )
    writer.add_license("mit")
    writer.add_size_label("11M")
    writer.add_languages(["code"])
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_config(writer, checkpoint["config"])
    add_tokenizer(writer, arguments.tokenizer)
    for name, weight in checkpoint["weights"].items():
        stored = qtype if weight.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(weight.float().numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{arguments.gguf}: {arguments.gguf.stat().st_size} bytes")


if __name__ == "__main__":
    main()
