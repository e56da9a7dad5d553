"""Average the weights of two checkpoints of one run (model soups, Wortsman et al. 2022).

    python average.py FIRST/model.pt SECOND/model.pt OUT/model.pt --share 0.65

`--share` is the second's part. Here the second was trained on from the first for a short while on other documents; the
average keeps most of what was gained by that and loses most of what was forgotten.
"""

import argparse
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, required=True)
    arguments = parser.parse_args()
    first, second = (torch.load(path, weights_only=True) for path in (arguments.first, arguments.second))
    weights = {name: torch.lerp(w, second["weights"][name], arguments.share) for name, w in first["weights"].items()}
    torch.save({"config": first["config"], "weights": weights}, arguments.out)


if __name__ == "__main__":
    main()
