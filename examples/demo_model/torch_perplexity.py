"""Perplexity of a GGUF file of the demo model on a held-out text, in PyTorch and float32.

    python torch_perplexity.py demo-11M-Q8_0.gguf [heldout.txt]

Precisely: the whole text is encoded at once, no special token added. Its ids are cut into consecutive pieces of 511,
the last one dropped if shorter. Each piece with <|endoftext|> (id 0) before it is one window of 512 tokens; the model
reads the window's first 511 tokens and is asked for the 511 that follow. Perplexity is the exponential of the mean of
-ln p over all tokens asked for; attention never crosses windows.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from loading import load_gguf
from model import Llama

WINDOW = 512


@torch.no_grad()
def perplexity(model: Llama, ids: list[int]) -> tuple[float, int]:
    """Perplexity and the number of tokens it is over."""
    count = len(ids) // (WINDOW - 1)
    pieces = torch.tensor(ids[: count * (WINDOW - 1)]).view(count, WINDOW - 1)
    windows = torch.cat([torch.zeros(count, 1, dtype=torch.long), pieces], dim=1)
    total = 0.0
    for window in windows:
        logits = model(window[None, :-1])[0]
        total += F.cross_entropy(logits.double(), window[1:], reduction="sum").item()
    return math.exp(total / pieces.numel()), pieces.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("text", type=Path, nargs="?", default=Path(__file__).with_name("heldout.txt"))
    arguments = parser.parse_args()
    model, tokenizer = load_gguf(arguments.gguf)
    text = arguments.text.read_bytes().decode("utf-8")
    value, count = perplexity(model, tokenizer.encode(text, add_special_tokens=False).ids)
    print(f"{arguments.gguf.name}: perplexity {value:.5f} over {count} tokens")


if __name__ == "__main__":
    main()
