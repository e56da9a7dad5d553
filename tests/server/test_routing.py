"""Which replica a request goes to, without Ray."""

import pytest

from rocforge.server.routing import BEGINNING, REMEMBERED, Placement, prefix_of

CHAT = "/v1/chat/completions"


def turns(*texts, system="Be brief."):
    """The body of a chat whose user and assistant say these in turn."""
    said = [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)]
    return {"messages": [{"role": "system", "content": system}, *said]}


def test_all_turns_of_a_conversation_have_one_prefix():
    first = prefix_of(CHAT, turns("a"))
    assert first and first == prefix_of(CHAT, turns("a", "b", "c")) == prefix_of(CHAT, turns("a", "x"))
    assert first != prefix_of(CHAT, turns("b"))
    assert first != prefix_of(CHAT, turns("a", system="Be long."))


def test_conversations_under_one_long_system_prompt_differ():
    long = "rule " * BEGINNING
    assert prefix_of(CHAT, turns("a", system=long)) != prefix_of(CHAT, turns("b", system=long))


@pytest.mark.parametrize(
    "path, name", [("/v1/completions", "prompt"), ("/v1/responses", "input"), ("/infill", "input_prefix")]
)
def test_prompts_that_begin_alike_have_one_prefix(path, name):
    text = "document " * BEGINNING
    assert prefix_of(path, {name: text + "one?"}) == prefix_of(path, {name: text + "two?"}) != ""
    assert prefix_of(path, {name: text}) != prefix_of(path, {name: "other " + text})
    assert prefix_of(path, {name: [5] * 2000 + [1]}) == prefix_of(path, {name: [5] * 2000 + [2]})
    assert prefix_of(path, {name: text}) != prefix_of(path, {name: text, "lora": "adapter"})


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/embeddings", {"input": "a"}),
        (CHAT, {}),
        (CHAT, None),
        (CHAT, [1]),
        (CHAT, {"messages": []}),
        ("/v1/models", None),
    ],
)
def test_what_has_no_prompt_has_no_prefix(path, body):
    assert prefix_of(path, body) == ""


@pytest.mark.parametrize("prompt", [5, {"role": 3}, [[1], None], ["a", {"role": ["user"]}], "\ud800"])
def test_invalid_prompts_are_no_error(prompt):
    """The replica refuses them."""
    assert prefix_of(CHAT, {"messages": prompt})


def test_a_prefix_stays_with_its_replica():
    placement = Placement()
    placement.begun("p", "b", "1")
    assert [placement.choose("p", ["a", "b", "c"]) for _ in range(5)] == ["b"] * 5
    placement.ended("b", "1")
    assert placement.choose("p", ["c", "b", "a"]) == "b"


def test_a_crowded_replica_is_left_and_one_that_has_ended_too():
    placement = Placement()
    for request in range(5):
        placement.begun("p", "b", str(request))
    assert placement.choose("p", ["a", "b"]) == "a"
    placement.ended("b", "0")
    placement.begun("q", "a", "0")
    assert placement.choose("p", ["a", "b"]) == "b"
    assert placement.choose("p", ["a"]) == "a"


def test_new_prefixes_are_spread():
    """No replica gets a quarter more than its share."""
    placement = Placement()
    for request in range(120):
        prefix = f"p{request}"
        placement.begun(prefix, placement.choose(prefix, ["a", "b", "c"]), str(request))
    assert all(28 <= len(placement._running[name]) <= 52 for name in "abc")


def test_what_has_no_prefix_goes_where_there_is_the_least_to_do():
    placement = Placement()
    for request in range(40):
        placement.begun("", placement.choose("", ["a", "b"]), str(request))
    assert len(placement._running["a"]) == len(placement._running["b"]) == 20


def test_several_that_choose_agree():
    """Though each knows its own requests only."""
    one, other = Placement(), Placement()
    for request in range(8):
        one.begun("", "ab"[request % 2], str(request))
    chosen = [(one.choose(f"p{number}", ["a", "b"]), other.choose(f"p{number}", ["a", "b"])) for number in range(100)]
    assert all(first == second for first, second in chosen) and {*chosen} == {("a", "a"), ("b", "b")}


def test_idle_replicas_share_prefixes():
    chosen = [Placement().choose(f"p{number}", ["a", "b", "c"]) for number in range(300)]
    assert all(70 <= chosen.count(name) <= 130 for name in "abc")


def test_it_remembers_a_bounded_number_of_prefixes_and_no_ended_request():
    placement = Placement()
    for number in range(REMEMBERED + 5):
        placement.begun(f"p{number}", "a", "1")
        placement.ended("a", "1")
    assert len(placement._homes) == REMEMBERED and not placement._running
    placement.ended("a", "1")
