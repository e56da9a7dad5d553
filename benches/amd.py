"""What AMD cards should reach, computed: python benches/amd.py > docs/amd.md

Needs AMD's compiler (python tests/hipsim/amd_compiler.py fetches it) and llvm-mca-19. The H200's machine code was
counted with nvcc and nvdisasm (the wheel nvidia-cuda-nvdisasm): `python benches/amd.py --count-nvidia` does that again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator

from amd_cards import CARDS, H200, SOURCES, Card
from amd_code import MATRIX, NVIDIA_COUNTS, Defines, counted, kernels, key_of
from amd_model import Step, bytes_in_flight, code_of, predict, waves_a_simd
from amd_steps import CONTEXT, MODELS, RECIPES, Launch, step

MEASURED = {
    ("Llama 3.2 1B", "Q4_K_M"): 2509,
    ("Llama 3.2 1B", "Q8_0"): 2128,
    ("Llama 3.1 8B", "Q4_K_M"): 665,
    ("Llama 3.1 8B", "Q8_0"): 469,
}
"""Tokens a second on the H200, of docs/models.md."""

KERNELS = {"matvec": ("q, k and v", 4.1), "matvec_gated": ("gate and up", 18.3), "attention_decode": ("attention", 5.8)}
"""Of 8B in Q4_K_M, microseconds on the H200, of docs/performance.md and docs/kernels.md."""

PROMPT_SHARE, LIBRARY_SHARE = 0.67, 0.62
"""What prompts of 2,048 tokens reach of the library's rate, as on the H200; and that of the matrix peak."""

HALF_RATE = {"gfx950": 2}
"""How much slower than the peak the instruction of 16 x 16 x 16 is."""

BEFORE = {"MI300X": (396, 332), "MI355X": (437, 410), "RX 7900 XTX": (159.4, 96.3), "RX 6800 XT": (97.2, 57.7)}
"""Tokens a second of 8B in both recipes that this model gave for the kernels before they were mended."""

PUBLISHED = [
    ("RX 7900 XTX", "Llama 3.1 8B", "Q4_K_M", "105.8", "llama.cpp, HIP", 26284),
    ("8060S", "Qwen3 30B-A3B", "Q4_K_M", "66", "llama.cpp, Vulkan, after 7,624 tokens", None),
]
STRIX_HALO_URL = "https://fromthematrix.dev/posts/local-llm-speed-benchmark-strix-halo"


def decode(card: Card, model: str, recipe: str) -> Step:
    return predict(card, step(MODELS[model], recipe, card))


def error(model: str, recipe: str) -> float:
    """Of the prediction for the H200, as a share of what was measured."""
    return 1 / decode(H200, model, recipe).seconds / MEASURED[model, recipe] - 1


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    names = [name.strip() for name in head.split("|")]
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def rate(tokens: float) -> str:
    return f"{tokens:,.0f}" if tokens >= 100 else f"{tokens:.1f}"


def cards() -> str:
    head = "card | target | units | GHz | TB/s | reads reach | launch, µs | fp16 matrix, TFLOP/s | vector, T/s"
    return table(
        head,
        (
            (c.name, c.target, c.units, f"{c.clock / 1e9:.2f}", f"{c.bandwidth / 1e12:.3g}", f"{c.share:.0%}",
             f"{c.launch * 1e6:.3g}", f"{c.matrix / 1e12:,.4g}", f"{c.issue_rate / 1e12:.1f}")
            for c in [*CARDS, H200]
        ),
    )  # fmt: skip


def predictions() -> Iterator[tuple[Card, str, str, Step]]:
    for model in MODELS:
        for recipe in RECIPES:
            yield from ((card, model, recipe, decode(card, model, recipe)) for card in CARDS)


def decode_rows(steps: Iterable[tuple[Card, str, str, Step]]) -> str:
    rows = []
    for card, model, recipe, predicted in steps:
        parts = predicted.parts()
        bound, _ = max(parts.items(), key=lambda part: part[1])
        of_peak = predicted.nbytes / predicted.seconds / card.bandwidth
        milliseconds = [f"{1e3 * seconds:.2f}" for seconds in parts.values()]
        rows.append((card.name, model, recipe, rate(1 / predicted.seconds), f"{of_peak:.0%}", *milliseconds, bound))
    return table(
        "card | model | recipe | tokens/s | of the peak | bytes, ms | + instructions | + latency | + around | "
        "+ launches | most",
        rows,
    )


def h200_rows() -> str:
    rows = []
    for (model, recipe), measured in MEASURED.items():
        predicted = rate(1 / decode(H200, model, recipe).seconds)
        rows.append((f"{model} {recipe}, tokens/s", predicted, rate(measured), f"{error(model, recipe):+.1%}"))
    step_of_8b = decode(H200, "Llama 3.1 8B", "Q4_K_M").launches
    for kernel, (name, measured) in KERNELS.items():
        predicted = 1e6 * next(times.total for launch, times in step_of_8b if launch.kernel == kernel)
        cells = f"{predicted:.1f}", measured, f"{predicted / measured - 1:+.1%}"
        rows.append((f"{name} of a layer of 8B Q4_K_M, µs", *cells))
    return table("H200 | predicted | measured | error", rows)


def products(card: Card) -> dict[tuple[str, str], Launch]:
    """The largest launch of each kernel and format in 8B's steps."""
    found: dict[tuple[str, str], Launch] = {}
    for recipe in RECIPES:
        for launch in step(MODELS["Llama 3.1 8B"], recipe, card):
            key = launch.kernel, dict(launch.defines).get("RF_QTYPE", "")
            if launch.weights and (key not in found or launch.nbytes > found[key].nbytes):
                found[key] = launch
    return found


def instruction_rows() -> str:
    chosen = [next(c for c in [*CARDS, H200] if c.target == t) for t in targets()]
    rows = []
    for key in sorted(products(chosen[0])):
        codes = [(card, code_of(launch, card)) for card in chosen if (launch := products(card).get(key))]
        cells = [f"{code.vector / code.weights:.2f} / {share_of_issue(card, key):.0%}" for card, code in codes]
        rows.append((f"`{key[0]}` {key[1]}", *cells))
    return table(" | ".join(["kernel", *(card.target for card in chosen)]), rows)


def share_of_issue(card: Card, key: tuple[str, str]) -> float:
    """Of the vector units' time, while a kernel reads as fast as reads go."""
    launch = products(card)[key]
    code = code_of(launch, card)
    return launch.weights * code.vector / code.weights / card.issue_rate / (launch.nbytes / card.read_rate)


def targets() -> list[str]:
    return list(dict.fromkeys(card.target for card in [*CARDS, H200]))


SHOWN = ("matvec_gated", "Q4_K"), ("matvec_then_norm", "Q6_K"), ("matvec_gated", "Q8_0")


def occupancy_rows() -> str:
    rows = []
    for card in CARDS:
        for (kernel, qtype), launch in sorted(products(card).items()):
            if (kernel, qtype) not in SHOWN:
                continue
            code = code_of(launch, card)
            waves = waves_a_simd(card, code, launch.threads)
            flight, needed = bytes_in_flight(card, launch), card.bandwidth * card.family.latency
            rows.append(
                (card.name, f"`{kernel}` {qtype}", code.registers, f"{waves:g}", code.waits,
                 f"{flight / 1e6:.1f}", f"{needed / 1e6:.2f}", f"{flight / needed:.1f}")
            )  # fmt: skip
    return table("card | kernel | VGPRs | waves a SIMD | waits a cell | MB in flight | MB needed | times", rows)


def slow_rows(steps: Iterable[tuple[Card, str, str, Step]]) -> str:
    """Products whose bytes take less than 85 % of their time, the launch apart."""
    rows = {}
    for card, model, recipe, predicted in steps:
        for launch, times in predicted.launches:
            if launch.weights and times.nbytes < 0.85 * times.work:
                matrix = f"`{launch.kernel}` {dict(launch.defines)['RF_QTYPE']}, {launch.nbytes / 1e6:.1f} MB"
                numbers = f"{times.nbytes * 1e6:.1f}", f"{times.work * 1e6:.1f}", times.bound
                rows[card.name, model, recipe, matrix] = (card.name, f"{model} {recipe}", matrix, *numbers)
    return table("card | model | product | bytes, µs | takes, µs | bound by", rows.values())


def prompt_rows() -> str:
    shape = MODELS["Llama 3.1 8B"].shape
    width = shape.heads * shape.head_dim + 2 * shape.kv_heads * shape.head_dim
    weights = shape.layers * shape.dim * (width + shape.heads * shape.head_dim + 3 * shape.ffn)
    rows = []
    for card in CARDS:
        tokens = card.matrix * LIBRARY_SHARE * PROMPT_SHARE / 2 / weights
        cells = [matrix_cell(card, *kernel) for kernel in MATRIX_KERNELS]
        rows.append((card.name, rate(tokens), *cells))
    return table("card | 8B, 2,048 tokens: tokens/s | tiles Q4_K, 64 rows | tiles Q8_0, 64 rows", rows)


TILES = (("RF_QTYPE", "Q4_K"), ("RF_ROW_WAVES", "2"), ("RF_TOKENS", "64"))
MATRIX_KERNELS: list[tuple[str, Defines, str]] = [
    ("tiles.hip", TILES, "tile_products"),
    ("tiles.hip", (("RF_QTYPE", "Q8_0"), *TILES[1:]), "tile_products"),
]


def matrix_cell(card: Card, source: str, defines: Defines, kernel: str) -> str:
    """Of the matrix peak what a loop allows where nothing is waited for, with its instructions."""
    if card.target.startswith("gfx10"):
        return "no unit"
    loop = kernels(source, defines, card.target)[kernel].loop(MATRIX)
    matrix = loop.count(MATRIX)
    at_peak = matrix * 2 * 16**3 * card.simds * card.clock / card.matrix
    cycles = at_peak * HALF_RATE.get(card.target, 1)
    vector = (loop.vector - matrix) * card.family.wave / card.family.simd_lanes
    # CDNA's matrix unit works beside the vector unit; RDNA's is part of it
    taken = max(cycles, vector) if card.target.startswith("gfx9") else cycles + vector
    return f"{at_peak / taken:.0%} ({matrix} + {loop.vector - matrix})"


def published_rows() -> str:
    rows = []
    for card, model, recipe, theirs, how, pull in PUBLISHED:
        url = f"https://github.com/ggml-org/llama.cpp/pull/{pull}" if pull else STRIX_HALO_URL
        ours = decode(next(c for c in CARDS if c.name == card), model, recipe)
        rows.append((card, f"{model} {recipe}", theirs, f"[{how}]({url})", rate(1 / ours.seconds)))
    return table("card | model | published, tokens/s | by | predicted here", rows)


def before_rows() -> str:
    rows = []
    for name, befores in BEFORE.items():
        card = next(c for c in CARDS if c.name == name)
        now = [1 / decode(card, "Llama 3.1 8B", recipe).seconds for recipe in RECIPES]
        pairs = [f"{rate(b)} to {rate(n)}" for b, n in zip(befores, now, strict=True)]
        rows.append((name, *pairs))
    return table("card | 8B Q4_K_M, tokens/s | 8B Q8_0", rows)


PAGE = """# What AMD cards should reach

Nothing on this page was measured on an AMD card. `python benches/amd.py > docs/amd.md` predicts how fast a decode step
of one sequence is, from the machine code that AMD's own compiler (hiprtc of ROCm 7.14) makes of the kernels, from the
shapes of a step's launches, and from what is published of the cards. The same method says of the H200, where steps were
measured:

{h200}

So the error of a step is {least:+.1%} to {most:+.1%} there. On AMD it is larger: launches, latencies and the share of
bandwidth that reads reach are other people's figures or assumed.

## Cards

{cards}

`vector` is lanes times vector instructions a second: units, vector units, lanes and clock multiplied.

{sources}

## Decode, one sequence, {context} tokens of context

{decode}

Tokens a second; the share of the peak bandwidth that the step's bytes then are; and what a step's milliseconds are:
bytes at the rate that reads reach; what issuing vector instructions, or waiting for one load after another, takes
beyond these; instructions before and behind the loops; launches.

A launch takes the launch's own time, the instructions around its loop, and the longest of three: its bytes; its
loop's vector instructions over the card's rate; the iterations of a lane, one after another, each a wait for memory, a
wait for a cache for each further time that it waits, and the instructions of a lone wave as llvm-mca 19 schedules them
(that of gfx942 for gfx950), or of all waves that share the vector unit. Kernels that multiply no weights (attention,
norms, sampling) are taken for one wave that waits two or three times and runs each of its instructions once.

Each microsecond that a launch takes more or less is 0.17 ms of a step of 8B, 0.09 of 1B and 0.44 of the mixture. On
MI300X and MI355X launches are a quarter to a half of a step, and are the figure known least.

## Instructions a weight

{instructions}

Vector instructions in the innermost loop for each weight, four to a dot instruction, and the share of the vector units'
time that they take while the kernel reads as fast as the card reads: nowhere are instructions what products wait for.

## Waves and loads in flight

{occupancy}

Waves a vector unit (SIMD) by registers and LDS, the bytes of weights that all of them have asked for, and bandwidth
times latency, which is what has to be on the way for the peak. A kernel has one load of each plane of its cells on the
way, all before its first wait.

## Where bytes are not what a product waits for

Products of which bytes take less than 85 % of the time, the launch apart:

{slow}

These are matrices of a few megabytes, of which a lane has one cell or two: to load it takes longer than their bytes
do. (Where instructions are named, the blocks are fewer than the units.) Only fewer, larger launches would change that.

Two things were mended for what this page said before:

- Products of one column waited for weights before they had asked for all of x, up to six times a cell on CDNA and nine
  on RDNA 2, since the compiler had moved the unpacking of a word before the next load. Now x is asked for before the
  first wait (`used_from_here` in `rawkernels/target/platform.h`): one wait a cell in every format, by as many vector
  instructions, and on CDNA by fewer registers: 104 in place of 140 for gate and up in Q4_K, so that four waves share a
  vector unit and not three. NVIDIA's code is what it was but for Q3_K and IQ4_XS, whose scales were taken apart while
  they were loaded.
- A product with the norm behind it has a block for 32 rows: 128 for a width of 4,096, where MI300X has 304 units. There
  32 lanes take a row instead of 16 (`then_norm_log_lanes` in `rocforge/device/geometry.py`).

{before}

## Prompts

{prompts}

Tokens a second of a prompt are the matrix peak times {library:.0%}, what hipBLASLt reached [on an 8060S], times
{prompt:.0%}, what a prompt of 2,048 tokens reaches of the library's rate [on the H200](models.md). What the library
does on other cards is not known here: of the 9070 XT with ROCm 7.1 [low rates were reported].

The other columns are of products of batches of 64 with packed weights: which share of the matrix peak their loop
allows where nothing is waited for, and its instructions, the matrix unit's and other vector instructions. On CDNA both
units work at a time, on RDNA one after the other. On gfx950 the instruction of 16 x 16 x 16 is taken for half as fast
as that of 16 x 16 x 32, which has the peak.

[on an 8060S]: https://llm-tracker.info/_TOORG/Strix-Halo
[low rates were reported]: https://github.com/ROCm/legacy-rocm-build/issues/5861

## Beside what others published

{published}

llama.cpp's prompt of 2,048 tokens on the 7900 XTX is 3,391 tokens/s, of the same source.
"""


def page() -> str:
    steps, errors = list(predictions()), [error(*key) for key in MEASURED]
    return PAGE.format(
        h200=h200_rows(), least=min(errors), most=max(errors), cards=cards(), sources=SOURCES, context=CONTEXT,
        decode=decode_rows(steps), instructions=instruction_rows(), occupancy=occupancy_rows(), slow=slow_rows(steps),
        before=before_rows(), prompts=prompt_rows(), library=LIBRARY_SHARE, prompt=PROMPT_SHARE,
        published=published_rows(),
    )  # fmt: skip


def count_nvidia() -> None:
    """Compile the H200's kernels and write down what a prediction needs of them."""
    found = {}
    for model in MODELS.values():
        for recipe in RECIPES:
            for launch in step(model, recipe, H200):
                for defines in {launch.defines, tuple(d for d in launch.defines if d[0] != "RF_QTYPE_LAST")}:
                    key = key_of(launch.source, defines, launch.kernel)
                    found[key] = found.get(key) or counted(launch.source, defines, H200.target, launch.kernel)
    lines = [f"  {json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(found)]
    NVIDIA_COUNTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count-nvidia", action="store_true", help="count the H200's machine code again")
    if parser.parse_args().count_nvidia:
        count_nvidia()
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
