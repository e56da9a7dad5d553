"""Train the demo model on an encoded corpus, within a budget of wall-clock seconds.

    python train.py CORPUS OUT --seconds 470 [--start EARLIER/model.pt]

reads `train.bin` and `heldout.bin` and writes `OUT/model.pt` (float32 weights, the configuration, the figures reached)
and `OUT/log.txt`. The learning rate depends on the share of the budget that is spent: a short warm-up, a plateau, and a
linear fall to zero. Matrices of the layers are trained with Muon (orthogonalized momentum), the rest with AdamW.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import Config, Llama
from torch import Tensor

WARMUP, DECAY_FROM = 0.01, 0.35
WEIGHT_DECAY = 0.1


def schedule(progress: float) -> float:
    """The factor on the learning rate after a share `progress` of the budget."""
    if progress < WARMUP:
        return progress / WARMUP
    return min(1.0, max(0.0, (1 - progress) / (1 - DECAY_FROM)))


def rows_of(stream: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each (len(starts), length), read from the token stream at `starts`."""
    index = starts[:, None] + torch.arange(length + 1, device=stream.device)
    rows = stream[index].long()
    return rows[:, :-1], rows[:, 1:]


def batches(stream: Tensor, count: int, length: int, generator: torch.Generator) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that draws `count` rows: half begin anywhere, half where a document begins."""
    last = len(stream) - length - 1
    openings = torch.nonzero(stream[:last] == 0).flatten()

    def draw() -> tuple[Tensor, Tensor]:
        anywhere = torch.randint(last, (count,), generator=generator, device=stream.device)
        opening = torch.randint(len(openings), (count,), generator=generator, device=stream.device)
        starts = torch.where(torch.arange(count, device=stream.device) % 2 == 0, anywhere, openings[opening])
        return rows_of(stream, starts, length)

    return draw


def optimizers(model: Llama, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for the embedding and the norms, which are not decayed."""
    matrices = [w for w in model.blk.parameters() if w.ndim == 2]
    rest = [w for w in model.parameters() if not any(w is m for m in matrices)]
    fused = rest[0].is_cuda
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=fused),
    ]


@torch.no_grad()
def heldout_loss(loss_of: Callable[[Tensor, Tensor], Tensor], stream: Tensor, count: int, length: int) -> float:
    """Mean loss in nats a token over whole batches of consecutive rows of the held-out stream."""
    starts = torch.arange(0, len(stream) - length - 1, length, device=stream.device)
    groups = starts[: len(starts) // count * count].view(-1, count)
    return float(torch.stack([loss_of(*rows_of(stream, group, length)) for group in groups]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="a checkpoint to go on from")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rows", type=int, default=128, help="rows of a batch")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--rate", type=float, default=8e-3, help="peak learning rate")
    parser.add_argument("--every", type=int, default=100, help="steps between reports; checkpoints are rarer")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = (arguments.out / "log.txt").open("w", buffering=1)

    def say(line: str) -> None:
        print(line, flush=True)
        log.write(line + "\n")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    generator = torch.Generator(device).manual_seed(0)
    train, heldout = (
        torch.from_numpy(np.fromfile(arguments.corpus / f"{name}.bin", dtype=np.uint16).astype(np.int16)).to(device)
        for name in ("train", "heldout")
    )
    config = Config()
    model = Llama(config).to(device)
    model.initialize()
    if arguments.start:
        model.load_state_dict(torch.load(arguments.start, map_location=device, weights_only=True)["weights"])
    optimizer_list = optimizers(model, arguments.rate)
    draw = batches(train, arguments.rows, arguments.length, generator)

    @torch.compile(disable=device == "cpu", dynamic=False)
    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = model(inputs)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def evaluate() -> float:
        return heldout_loss(loss_of, heldout, min(arguments.rows, 32), arguments.length)

    def save(figures: dict) -> None:
        weights = {name: weight.detach().cpu() for name, weight in model.state_dict().items()}
        torch.save({"config": config.as_dict(), "weights": weights, "figures": figures}, arguments.out / "model.pt")

    say(f"parameters {sum(w.numel() for w in model.parameters())}, train {len(train)}, heldout {len(heldout)} tokens")
    before = time.perf_counter()
    loss_of(*draw()).backward()
    model.zero_grad()
    say(f"start: held-out loss {evaluate():.4f}, compiled in {time.perf_counter() - before:.1f} s")

    begin, step, spent = time.perf_counter(), 0, 0.0
    batch_tokens = arguments.rows * arguments.length
    checkpoint_at = 0.5
    while spent < arguments.seconds:
        factor = schedule(spent / arguments.seconds)
        for optimizer in optimizer_list:
            for group in optimizer.param_groups:
                group["lr"] = arguments.rate * factor
        loss = loss_of(*draw())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizer_list:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step % 10 == 0:
            value = loss.item()
            spent = time.perf_counter() - begin
            if not math.isfinite(value):
                raise SystemExit(f"loss is {value} at step {step}: lower --rate")
            if step % arguments.every == 0:
                speed = step * batch_tokens / spent
                say(f"step {step} {spent:.0f} s, {speed / 1e6:.2f} Mtok/s, rate {factor:.3f}, loss {value:.4f}")
            if spent > checkpoint_at * arguments.seconds:
                say(f"step {step}: held-out loss {evaluate():.4f}")
                save({"steps": step, "tokens": step * batch_tokens, "seconds": spent})
                checkpoint_at += 0.15
    final = evaluate()
    tokens = step * batch_tokens
    save({"steps": step, "tokens": tokens, "seconds": spent, "heldout_loss": final, "arguments": str(arguments)})
    say(f"end: {step} steps, {tokens} tokens, {tokens / len(train):.2f} epochs, {spent:.1f} s, held-out {final:.4f}")


if __name__ == "__main__":
    main()
