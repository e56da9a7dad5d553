"""The history of a chat as a model's template takes it.

Templates take less than the API allows: one system message or none, turns that alternate, one call a message, ids of
nine characters. What a template would refuse or leave out is said in a way that it takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from rocforge.errors import ChatTemplateError
from rocforge.server.body import parse_json, parse_object
from rocforge.server.schema import Message

Turn = dict[str, Any]
Rendered = TypeVar("Rendered")
_SYSTEM = ("system", "developer")
_PROBES = ("a0z7q4", "b1y8w5")
"""Texts that no template has: whether they are shown says what the template takes."""


class History:
    """Renders the messages of requests by one template.

    Args:
        template: its source.
        render: gives the text of messages by it.
    """

    def __init__(self, template: str, render: Callable[[Sequence[Turn]], str]):
        self._template, self._render = template, render
        self._shows: dict[str, bool] = {}

    def render(self, messages: Sequence[Message], render: Callable[[list[Turn]], Rendered]) -> Rendered:
        """What `render` makes of the first form of the messages that the template does not refuse.

        Raises:
            ChatTemplateError: it refuses all; the error is that of the first.
        """
        turns = self._shown(_named([_turn(message) for message in messages]))
        tried: list[list[Turn]] = []
        first: ChatTemplateError | None = None
        for form in _forms(turns):
            if form in tried:
                continue
            tried.append(form)
            try:
                return render(form)
            except ChatTemplateError as error:
                first = first or error.with_traceback(None)
        assert first is not None, "there is a form"
        try:
            raise first
        finally:
            del first  # else it, its traceback and this frame would keep each other, and the messages

    def _shown(self, turns: list[Turn]) -> list[Turn]:
        """In place of roles and calls that the template leaves out, those that it shows."""
        if "developer" not in self._template:
            turns = [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in turns]
        turns = _one_system_message(turns)
        if "message.thinking" in self._template:  # gpt-oss's name
            turns = [_with_thinking(turn) for turn in turns]
        begins, later = turns[:1], turns[1:]
        if begins[0]["role"] in _SYSTEM and not self._does_show("system"):
            begins = _as_user(begins)
        if any(turn["role"] in _SYSTEM for turn in later) and not self._does_show("later system"):
            later = _as_user(later)
        turns = begins + later
        several = any(len(turn.get("tool_calls", ())) > 1 for turn in turns)
        return _one_call_each(turns) if several and not self._does_show("calls") else turns

    def _does_show(self, what: str) -> bool:
        """Whether the template shows all of the texts of a history that has `what`."""
        if what not in self._shows:
            probe = {"system": _SYSTEM_PROBE, "later system": _LATER_SYSTEM_PROBE, "calls": _CALLS_PROBE}[what]
            try:
                text = self._render(probe)
            except ChatTemplateError:
                text = ""
            wanted = [mark for mark in _PROBES if mark in str(probe)]
            self._shows[what] = all(mark in text for mark in wanted)
        return self._shows[what]


def _call(name: str, id: str) -> Turn:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": {}}}


_USER: Turn = {"role": "user", "content": "a"}
_SYSTEM_PROBE: list[Turn] = [{"role": "system", "content": _PROBES[0]}, _USER]
_LATER_SYSTEM_PROBE: list[Turn] = [  # where the last is taken for all, the first is not shown
    *_SYSTEM_PROBE,
    {"role": "assistant", "content": "b"},
    {"role": "system", "content": _PROBES[1]},
    _USER,
]
_CALLS_PROBE: list[Turn] = [
    _USER,
    {"role": "assistant", "content": "", "tool_calls": [_call(_PROBES[0], "a" * 9), _call(_PROBES[1], "b" * 9)]},
    {"role": "tool", "content": "c", "tool_call_id": "a" * 9},
    {"role": "tool", "content": "d", "tool_call_id": "b" * 9},
]


def _forms(turns: list[Turn]) -> Iterator[list[Turn]]:
    """The same history, the most faithful form first."""
    yield from _with_forms_of_arguments(turns)
    yield from _with_forms_of_arguments(_alternating(_one_call_each(_with_short_ids(turns))))


def _with_forms_of_arguments(turns: list[Turn]) -> Iterator[list[Turn]]:
    for arguments in (_object_or_text, str, parse_object):  # the last: some templates iterate over them
        yield [_with_arguments(turn, arguments) for turn in turns]


def _turn(message: Message) -> Turn:
    """A message in the form of templates: content as text, calls only where there are some."""
    turn = message.model_dump(exclude_none=True)
    content = turn.get("content") or turn.pop("refusal", "")
    if isinstance(content, list):
        content = "".join(part["text"] if part["type"] == "text" else part["refusal"] for part in content)
    turn["content"] = content
    if function := turn.pop("function_call", None):  # as calls were before tools
        turn["tool_calls"] = [{"id": function["name"], "type": "function", "function": function}]
    if turn["role"] == "function":
        turn |= {"role": "tool", "tool_call_id": turn.get("name", "")}
    if not turn.get("tool_calls"):
        turn.pop("tool_calls", None)
    return turn


def _named(turns: list[Turn]) -> list[Turn]:
    """Results of tools with the function's name, which some templates want and the API leaves out."""
    names = {call.get("id"): call["function"]["name"] for turn in turns for call in turn.get("tool_calls", ())}
    return [
        {"name": names[turn.get("tool_call_id")], **turn}
        if turn["role"] == "tool" and turn.get("tool_call_id") in names
        else turn
        for turn in turns
    ]


def _with_arguments(turn: Turn, form: Callable[[str], Any]) -> Turn:
    calls = [
        {**call, "function": {**call["function"], "arguments": form(call["function"]["arguments"])}}
        for call in turn.get("tool_calls", ())
    ]
    return {**turn, "tool_calls": calls} if calls else turn


def _object_or_text(arguments: str) -> Any:
    """Arguments as an object, {} for none; as text where they are none, such as those that a token limit cut off."""
    try:
        found = parse_json(arguments) if arguments.strip() else {}
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else {} if found is None else arguments


def _with_thinking(turn: Turn) -> Turn:
    """The reasoning under gpt-oss's name, whose template takes it or the content of a message with calls."""
    if "reasoning_content" not in turn or (turn["content"] and "tool_calls" in turn):
        return turn
    return {"thinking": turn["reasoning_content"], **turn}


def _one_system_message(turns: list[Turn]) -> list[Turn]:
    """Those that a history begins with, as one: templates look at the first."""
    count = next((i for i, turn in enumerate(turns) if turn["role"] not in _SYSTEM), len(turns))
    return [_joined(turns[:count]), *turns[count:]] if count > 1 else turns


def _as_user(turns: list[Turn]) -> list[Turn]:
    """Instructions as a user's, where there is no other way to say them."""
    return [{**turn, "role": "user"} if turn["role"] in _SYSTEM else turn for turn in turns]


def _one_call_each(turns: list[Turn]) -> list[Turn]:
    """Calls one after another, each with its result, where they were made together."""
    found: list[Turn] = []
    placed: set[int] = set()
    for index, turn in enumerate(turns):
        if index in placed:
            continue
        calls = turn.get("tool_calls", ())
        if len(calls) < 2:
            found.append(turn)
            continue
        end = next((i for i in range(index + 1, len(turns)) if turns[i]["role"] != "tool"), len(turns))
        for number, call in enumerate(calls):
            found.append({**(turn if number == 0 else {"role": "assistant", "content": ""}), "tool_calls": [call]})
            results = [i for i in range(index + 1, end) if turns[i].get("tool_call_id") == call.get("id")]
            found += [turns[i] for i in results if i not in placed]
            placed.update(results)
    return found


def _with_short_ids(turns: list[Turn]) -> list[Turn]:
    """Ids of nine letters and digits, on which Mistral's templates insist."""

    def short(id: str) -> str:
        return id if len(id) == 9 and id.isalnum() else hashlib.sha256(id.encode()).hexdigest()[:9]

    found = []
    for turn in turns:
        if "tool_calls" in turn:
            turn = {**turn, "tool_calls": [{**call, "id": short(call.get("id", ""))} for call in turn["tool_calls"]]}
        if "tool_call_id" in turn:
            turn = {**turn, "tool_call_id": short(turn["tool_call_id"])}
        found.append(turn)
    return found


def _alternating(turns: list[Turn]) -> list[Turn]:
    """Turns of a user and of the assistant in turn, beginning with a user's: neighbours of one role are joined."""
    found: list[Turn] = []
    for turn in turns:
        before = found[-1] if found else {"role": "system"}
        if turn["role"] == "assistant" and before["role"] in _SYSTEM:
            found.append({"role": "user", "content": ""})
        if turn["role"] == "user" and before["role"] == "tool":
            found.append({"role": "assistant", "content": ""})
        if turn["role"] in ("user", "assistant") and before["role"] == turn["role"] and "tool_calls" not in before:
            found[-1] = _joined([before, turn])
        else:
            found.append(turn)
    return found


def _joined(turns: Sequence[Turn]) -> Turn:
    """Turns of one role as one."""
    fields = {name: value for turn in reversed(turns) for name, value in turn.items()}
    return {**fields, "content": "\n\n".join(turn["content"] for turn in turns if turn["content"])}
