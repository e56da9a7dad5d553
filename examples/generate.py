"""Continue a prompt, or answer it, with a GGUF model.

    python examples/generate.py "def binary_search(items, target):" --temperature 0
    python examples/generate.py --model hf:Qwen/Qwen3-4B-GGUF:Q4_K_M --chat "Who was Ada Lovelace?"
    cat prompt.txt | python examples/generate.py --model model.gguf

Without --model it is the small model of examples/demo_model, which completes Python code and knows no algorithms.
"""

import argparse
import sys
from pathlib import Path

import rocforge as rf

DEMO = Path(__file__).parent / "demo_model" / "demo-11M-Q8_0.gguf"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", help="text to continue; standard input where it is left out")
    parser.add_argument("--model", default=DEMO, help="a GGUF file, or hf:owner/repo[:quant] on the Hub (demo model)")
    parser.add_argument("--device", help="cpu, gpu or gpu:N; the GPU if there is one")
    parser.add_argument("--chat", action="store_true", help="put the prompt through the model's chat template")
    parser.add_argument("--system", help="with --chat: the system message")
    parser.add_argument("--context", type=int, help="longest sequence in tokens")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens to generate at most (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the most likely token (%(default)s)")
    parser.add_argument("--top-k", type=int, default=0, help="keep that many of the likeliest tokens; 0 for all")
    parser.add_argument("--top-p", type=float, default=0.95, help="keep tokens up to this probability (%(default)s)")
    parser.add_argument("--min-p", type=float, default=0.0, help="keep tokens this likely against the likeliest")
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--presence-penalty", type=float, default=0.0)
    parser.add_argument("--frequency-penalty", type=float, default=0.0)
    parser.add_argument("--seed", type=int, help="the same seed gives the same text")
    parser.add_argument("--stop", action="append", default=[], help="stop before this text; repeatable")
    parser.add_argument("--quiet", action="store_true", help="no load bar and no statistics")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    prompt = sys.stdin.read() if options.prompt is None else options.prompt
    model, tokenizer = rf.load(
        options.model, options.device, options.context, progress=False if options.quiet else None
    )
    if options.chat:
        system = [{"role": "system", "content": options.system}] if options.system else []
        prompt = tokenizer.apply_chat_template([*system, {"role": "user", "content": prompt}])
    else:
        print(prompt, end="", flush=True)
    last = None
    for response in rf.stream_generate(
        model,
        tokenizer,
        prompt,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        seed=options.seed,
        stop=options.stop,
    ):
        print(response.text, end="", flush=True)
        last = response
    print(flush=True)
    if not options.quiet:
        if options.model == DEMO:
            print("A completion of code by the demo model; --model names one that answers.", file=sys.stderr)
        if last.finish_reason == "length":
            print("Cut off by --max-tokens or the context.", file=sys.stderr)
        reason = rf.device_info(model.device).reason
        print(f"{last.stats}" + (f" (no GPU: {reason})" if reason else ""), file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    try:
        run(parse(argv))
    except (rf.RocforgeError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
