"""Write completions of the demo model in PyTorch and count how many of them Python's parser accepts.

    python samples.py demo-11M-Q8_0.gguf --temperature 0.7 --count 4 [--show]

A completion ends at <|endoftext|> or after --tokens tokens. One that was cut off is judged up to its last complete
top-level statement, that is up to the last line break before a line that begins a new statement in the first column;
one that has no such place counts as a failure.
"""

import argparse
import ast
import re
import warnings
from pathlib import Path

import torch
from loading import load_gguf
from model import Llama
from tokenizers import Tokenizer

PROMPTS = [
    "def fibonacci(n):",
    "def factorial(n):",
    "def is_prime(n):",
    "def gcd(a, b):",
    "def binary_search(items, target):",
    "def quicksort(items):",
    "def reverse_string(s):",
    "def flatten(nested):",
    "def count_words(text):",
    "def read_json(path):",
    "def parse_arguments():",
    'def main():\n    """Entry point."""\n',
    "class Stack:",
    "class Point:\n    def __init__(self, x, y):",
    "class Node(object):\n",
    "import os\nimport sys\n",
    "from dataclasses import dataclass\n\n\n@dataclass\nclass",
    "def softmax(x, axis=-1):",
    "def mean(values):\n    ",
    "def test_",
]


@torch.no_grad()
def complete(model: Llama, prompt: list[int], count: int, tokens: int, temperature: float) -> list[list[int]]:
    """`count` continuations of a prompt, each of up to `tokens` ids; <|endoftext|> (id 0) ends one and is kept."""
    cache = [[] for _ in model.blk]
    inputs = torch.tensor([prompt] * count)
    outputs = torch.zeros(count, 0, dtype=torch.long)
    while outputs.shape[1] < tokens and not (outputs == 0).any(dim=1).all():
        logits = model(inputs, cache)[:, -1]
        if temperature > 0:
            inputs = torch.multinomial((logits / temperature).softmax(-1), 1)
        else:
            inputs = logits.argmax(-1, keepdim=True)
        outputs = torch.cat((outputs, inputs), dim=1)
    return [row[: row.index(0) + 1] if 0 in row else row for row in outputs.tolist()]


def complete_part(text: str, ended: bool) -> str:
    """The text up to its last complete top-level statement; all of it where the model ended it itself."""
    if ended:
        return text
    openings = [match.start() for match in re.finditer(r"(?<=\n)[A-Za-z_@]", text)]
    return text[: openings[-1]] if openings else ""


def parses(text: str) -> bool:
    """Whether Python's parser takes the text, which must hold a statement."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bool(ast.parse(text).body)
        except (SyntaxError, ValueError):
            return False


def judge(tokenizer: Tokenizer, prompt: str, output: list[int], show: bool) -> bool:
    """Whether a prompt with its completion parses, printed on request."""
    ended = output[-1] == 0
    text = prompt + tokenizer.decode(output[: len(output) - ended], skip_special_tokens=False)
    verdict = parses(complete_part(text, ended))
    if show:
        print(f"--- {'parses' if verdict else 'FAILS'}{'' if ended else ', cut off'}\n{text}", flush=True)
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--count", type=int, default=1, help="completions of each prompt")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model, tokenizer = load_gguf(arguments.gguf)
    verdicts = []
    for prompt in PROMPTS:
        ids = [0, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        outputs = complete(model, ids, arguments.count, arguments.tokens, arguments.temperature)
        verdicts += [judge(tokenizer, prompt, output, arguments.show) for output in outputs]
    print(f"temperature {arguments.temperature}: {sum(verdicts)} of {len(verdicts)} completions parse")


if __name__ == "__main__":
    main()
