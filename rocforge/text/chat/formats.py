"""ReplyFormat: how models of a family write thoughts, calls and content, by their chat template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rocforge.text.chat.calls import JSONCalls
from rocforge.text.chat.harmony import FINAL, HarmonyCalls
from rocforge.text.chat.reply import Parser, PlainParser
from rocforge.text.chat.thoughts import BEGIN, END, ThoughtParser
from rocforge.text.grammar import GrammarCompiler


@dataclass(frozen=True)
class ReplyFormat:
    """How a family's replies are written.

    Attributes:
        calls: the format of calls; None if the template knows no tools.
        thinks: whether a reply may begin with a thought in <think>.
    """

    calls: JSONCalls | HarmonyCalls | None
    thinks: bool = False

    def opens_thought(self, prompt: str) -> bool:
        """Whether a prompt ends within a thought."""
        return self.thinks and prompt.rstrip().endswith(BEGIN)

    def parser(self, names: Collection[str], opened: bool) -> Parser:
        """The parser of one reply.

        Args:
            names: of the functions that may be called.
            opened: whether the prompt ends within a thought.
        """
        harmony = isinstance(self.calls, HarmonyCalls)
        parser = self.calls.parser(names) if self.calls and (names or harmony) else PlainParser()
        return ThoughtParser(parser, opened) if self.thinks else parser

    def lark(
        self,
        compiler: GrammarCompiler,
        opened: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        content: str | None = None,
        parallel: bool = True,
    ) -> str:
        """A grammar of replies without a thought.

        Args:
            compiler: of the model's tokenizer.
            opened: whether the prompt ends within a thought, which the reply then ends first.
            tools: functions in OpenAI's shape; the reply may call these.
            content: the body of a rule; the reply may be this.
            parallel: whether several calls are allowed.
        """
        kinds, rules = [], ""
        if tools and self.calls:
            kinds.append("calls")
            rules += self.calls.lark(compiler, tools, parallel)
        if content is not None:
            kinds.append("content")
            header = compiler.literal(FINAL) if isinstance(self.calls, HarmonyCalls) else ""
            rules += f"content: {header} wanted\nwanted: {content}\n"
        begin = compiler.literal(f"{END}\n\n") if opened else ""
        return f"start: {begin} ({' | '.join(kinds)})\n{rules}"


HERMES = JSONCalls("<tool_call>", "</tool_call>")
MISTRAL = JSONCalls("[TOOL_CALLS]", listed=True)
LLAMA = JSONCalls("<|python_tag|>", key="parameters", bare=True)


def reply_format(template: str) -> ReplyFormat:
    """The format of models with this chat template."""
    if "<|channel|>" in template and "<|message|>" in template:
        return ReplyFormat(HarmonyCalls())
    return ReplyFormat(_calls(template), thinks=BEGIN in template or END in template)


def _calls(template: str) -> JSONCalls | None:
    if "tools" not in template:
        return None
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    return LLAMA if "<tool_call>" not in template and "parameters" in template else HERMES
