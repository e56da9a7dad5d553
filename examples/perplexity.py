"""Perplexity of a model on a text: exp of the mean of -ln p over its tokens.

    python examples/perplexity.py --model model.gguf text.txt

The text is encoded at once, without special tokens, and cut into pieces of --window - 1 tokens, the last one dropped if
shorter. Each piece, with the begin token before it, is a sequence of its own, of which all tokens but the first count.
Without --model and text it is the demo model and its held-out text.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import rocforge as rf

DEMO = Path(__file__).parent / "demo_model"


def windows(ids: list[int], begin: int, length: int) -> Iterator[np.ndarray]:
    """The sequences of a text's ids: int32, `length` tokens each."""
    for start in range(0, len(ids) - length + 2, length - 1):
        yield np.array([begin, *ids[start : start + length - 1]], np.int32)


def negative_log_likelihood(model, tokens: np.ndarray) -> float:
    """Sum of -ln p over all tokens of a sequence but the first."""
    logits = rf.asnumpy(model(tokens[:-1])).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[1:, None].astype(np.int64), axis=1)[:, 0]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())


def perplexity(model, tokenizer, text: str, length: int = 512) -> tuple[float, int]:
    """The perplexity, and the number of tokens that it is over."""
    begin = tokenizer.bos_token_id
    if begin is None:
        begin = tokenizer.eos_token_id
    total = count = 0
    for tokens in windows(tokenizer.encode(text, add_special_tokens=False), begin, length):
        total += negative_log_likelihood(model, tokens)
        count += len(tokens) - 1
    if not count:
        raise ValueError(f"the text is shorter than a window of {length} tokens")
    return math.exp(total / count), count


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", type=Path, default=DEMO / "heldout.txt")
    parser.add_argument("--model", default=DEMO / "demo-11M-Q8_0.gguf", help="a GGUF file, or hf:owner/repo[:quant]")
    parser.add_argument("--device", help="cpu, gpu or gpu:N; the GPU if there is one")
    parser.add_argument("--window", type=int, default=512, help="tokens in a sequence (%(default)s)")
    options = parser.parse_args(argv)
    try:
        model, tokenizer = rf.load(options.model, options.device)
        value, count = perplexity(model, tokenizer, options.text.read_bytes().decode("utf-8"), options.window)
    except (rf.RocforgeError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{Path(str(options.model)).name}: perplexity {value:.5f} over {count} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
