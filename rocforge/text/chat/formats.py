"""ReplyFormat: how models of a family write thoughts, calls and content, by their chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rocforge.text.chat.frame import FRAMES, FrameParser
from rocforge.text.chat.harmony import ANALYSIS, FINAL, HarmonyCalls
from rocforge.text.chat.reply import CallFormat, Functions, Parser, PlainParser
from rocforge.text.chat.thoughts import THOUGHTS, ThoughtMarks, ThoughtParser
from rocforge.text.chat.tool_parsers import TOOL_PARSERS, calls_of
from rocforge.text.grammar import GrammarCompiler


@dataclass(frozen=True)
class ReplyFormat:
    """How a family's replies are written.

    Attributes:
        calls: the format of calls; None if the template knows no tools.
        thought: the marks of a thought that a reply may begin with, or None.
        frame: the marks around content.
    """

    calls: CallFormat | None
    thought: ThoughtMarks | None = None
    frame: tuple[str, ...] = ()

    def opens_thought(self, prompt: str) -> bool:
        """Whether a prompt ends within a thought."""
        return self.thought is not None and prompt.rstrip().endswith(self.thought.begin)

    def parser(self, functions: Functions, opened: bool) -> Parser:
        """The parser of one reply.

        Args:
            functions: that may be called.
            opened: whether the prompt ends within a thought.
        """
        if isinstance(self.calls, HarmonyCalls):  # it knows thoughts, and text without calls
            return self.calls.parser(functions)
        parser = self.calls.parser(functions) if self.calls and functions else PlainParser()
        parser = FrameParser(parser, self.frame) if self.frame else parser
        return ThoughtParser(parser, self.thought, opened) if self.thought else parser

    def thinking(self, tokens: int, opened: bool) -> dict[str, Any] | None:
        """The arguments of a ThinkingBudget for replies, but the tokenizer; None where there are no thoughts.

        Args:
            tokens: the most that a thought may have.
            opened: whether the prompt ends within one.
        """
        if self.thought is None:
            return None
        marks = self.thought._asdict() | {"forced": self.thought.forced or (self.thought.end,)}
        return {"tokens": tokens, "opened": opened, **marks}

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
        begin = compiler.literal(f"{self.thought.end}\n\n") if self.thought and opened else ""
        return f"start: {begin} ({' | '.join(kinds)})\n{rules}"


@lru_cache(16)
def reply_format(template: str, tool_parser: str | None = None) -> ReplyFormat:
    """The format of models with this chat template.

    Args:
        template: its source.
        tool_parser: the name of the format of calls, one of TOOL_PARSERS; None: by the template.
    """
    calls = TOOL_PARSERS[tool_parser] if tool_parser else calls_of(template)
    if isinstance(calls, HarmonyCalls):
        return ReplyFormat(calls, ANALYSIS)
    thought = next((marks for marks in THOUGHTS if marks.shown_in(template)), None)
    return ReplyFormat(calls, thought, next((marks for marks in FRAMES if marks[0] in template), ()))
