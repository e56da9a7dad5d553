"""ChatPrompts: messages as the text of a prompt, in which what they spell stays text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rocforge.text.chat.templates import ChatTemplates
from rocforge.text.marks import Marks, searched_texts
from rocforge.text.special_tokens import Span, SpecialTokens
from rocforge.text.vocabulary import USER_DEFINED, Vocabulary


class ChatPrompts:
    """The chat templates of a file, with the special tokens that they may write.

    Args:
        metadata: of the file.
        vocabulary: its tokens.
        special_tokens: variables of each template: "bos_token" and the like, with their texts.
        leading_space: whether a special token swallows white space after it.
    """

    def __init__(
        self,
        metadata: Mapping[str, Any],
        vocabulary: Vocabulary,
        special_tokens: Mapping[str, str],
        leading_space: bool,
    ):
        self.templates = ChatTemplates(metadata)
        self._vocabulary, self._special_tokens, self._leading_space = vocabulary, special_tokens, leading_space
        self._markup = SpecialTokens(vocabulary.markup)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        template: str | None,
        variables: Mapping[str, Any],
    ) -> tuple[str, list[Span]]:
        """The text, and the spans of special tokens that messages spell; arguments as in `apply_chat_template`."""
        if isinstance(messages, (str, Mapping)) or not all(isinstance(message, Mapping) for message in messages):
            allowed = 'a list of messages, {"role": "user", "content": "..."}'
            raise TypeError(f"messages is {messages!r:.80}; allowed is {allowed}")
        marks = Marks(self._markup, self._leading_space)
        searched = searched_texts(self.templates.source(template, with_tools=bool(tools)))
        kept = {text for text in searched if self._vocabulary.kind_of(text) == USER_DEFINED}
        text = self.templates.render(
            template,
            messages=[_hidden(message, marks, kept) for message in messages],
            tools=marks.hide(tools),
            add_generation_prompt=add_generation_prompt,
            **{**self._special_tokens, **marks.hide(variables)},
        )
        return marks.show(text)


def _hidden(message: Mapping[str, Any], marks: Marks, kept: Collection[str]) -> Any:
    """A message without special tokens; the assistant's content keeps those in `kept`, such as </think>, which the
    template searches for."""
    hidden = marks.hide(message)
    if message.get("role") == "assistant" and "content" in message:
        hidden["content"] = marks.hide(message["content"], kept)
    return hidden
