"""`rocforge chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from rocforge.cli.conversation import Conversation
from rocforge.cli.interrupts import Interrupts
from rocforge.cli.options import (
    CacheTypeK,
    CacheTypeV,
    Context,
    Device,
    Fp16Weights,
    Lora,
    Model,
    Quiet,
    Sampling,
    Switch,
    System,
    Template,
    cache_types,
    load_adapter,
    set_sampling,
    takes_sampling,
)
from rocforge.cli.output import note, write_text
from rocforge.errors import RocforgeError

HELP = """\
/system [TEXT]     set or remove the system message; starts over
/set [NAME VALUE]  show the sampling settings, or change one: /set temperature 0.2
/retry             another reply to the last message
/reset             start over
/save FILE         write the messages as JSON
/exit              quit, like Ctrl-D
A line that ends in \\ continues on the next. Ctrl-C stops a reply; twice, it quits."""


@takes_sampling
def chat(
    model: Model,
    system: System = None,
    chat_template: Template = None,
    device: Device = None,
    context: Context = None,
    fp16_weights: Fp16Weights = Switch.auto,
    cache_type_k: CacheTypeK = None,
    cache_type_v: CacheTypeV = None,
    lora: Lora = None,
    quiet: Quiet = False,
    *,
    sampling: Sampling,
) -> None:
    """Chat with a model; the conversation stays in the KV cache."""
    import rocforge as rf

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() then edits lines and remembers them

    progress = False if quiet else None
    types = cache_types(cache_type_k, cache_type_v)
    loaded, tokenizer = rf.load(model, device, context, progress, fp16_weights.enabled, **types)
    adapter = load_adapter(loaded, lora)
    template = chat_template.read() if chat_template else None
    tokenizer.apply_chat_template([{"role": "user", "content": ""}], chat_template=template)
    with rf.Engine(loaded, tokenizer.eog_token_ids, max_requests=1) as engine:
        conversation = Conversation(engine, tokenizer, template, system, adapter)
        Chat(conversation, sampling.of(tokenizer), quiet).run()


class Chat:
    """Reads lines: runs commands, sends the rest to the model.

    Args:
        conversation: where messages go.
        sampling: arguments of SamplingParams; /set changes them.
        quiet: leave the statistics out.
    """

    def __init__(self, conversation: Conversation, sampling: dict[str, Any], quiet: bool):
        self._conversation, self._sampling, self._quiet = conversation, sampling, quiet
        self._commands = {
            "help": lambda _: print(HELP),
            "system": lambda text: conversation.set_system(text or None),
            "set": self._set,
            "retry": self._retry,
            "reset": lambda _: conversation.reset(),
            "save": self._save,
        }

    def run(self) -> None:
        """Until /exit or the end of the input."""
        if sys.stdin.isatty():
            note("/help lists the commands; Ctrl-C stops a reply, Ctrl-D quits")
        Interrupts.current.deferred = True
        while (text := _read()) is not None:
            try:
                if text.startswith("/"):
                    name, _, argument = text[1:].partition(" ")
                    if name in ("exit", "quit"):
                        return
                    self._command(name)(argument.strip())
                elif text:
                    self._say(text)
            except (RocforgeError, ValueError, OSError) as error:
                note(f"{error}; /help lists the commands" if text.startswith("/") else f"{error}; /reset starts over")

    def _command(self, name: str) -> Any:
        if name not in self._commands:
            raise ValueError(f"unknown command /{name}")
        return self._commands[name]

    def _say(self, text: str) -> None:
        interrupts, stats = Interrupts.current, None
        for response in self._conversation.reply(text, self._sampling, lambda: interrupts.requested):
            write_text(response.text)
            stats = response.stats
        stopped = interrupts.requested
        interrupts.answered()
        print(flush=True)
        if stopped:
            note("stopped")
        if stats and not self._quiet:
            note(str(stats))

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if argument:
            self._sampling = set_sampling(self._sampling, name, value.strip())
        for key in [name] if argument else self._sampling:
            note(f"{key} {self._sampling[key]}")

    def _retry(self, _: str) -> None:
        text = self._conversation.forget_reply()
        if text is None:
            raise ValueError("there is no message to retry")
        self._say(text)

    def _save(self, path: str) -> None:
        if not path:
            raise ValueError("/save needs a file name")
        text = json.dumps({"messages": self._conversation.messages}, indent=2, ensure_ascii=False)
        Path(path).expanduser().write_text(text + "\n", encoding="utf-8")
        note(f"wrote {path}")


def _read() -> str | None:
    """The next line, without surrounding space; None where the input ends."""
    interrupts = Interrupts.current
    lines: list[str] = []
    while True:
        interrupts.deferred = False
        try:
            line = input((">>> " if not lines else "... ") if sys.stdin.isatty() else "")
            interrupts.answered()
        except EOFError:
            return "\n".join(lines).strip() or None
        except KeyboardInterrupt:
            lines = []
            note("\nCtrl-C again, Ctrl-D or /exit quits")
            continue
        finally:
            interrupts.deferred = True
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines).strip()


COMMANDS = [chat]
