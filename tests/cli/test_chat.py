"""`rocforge chat`: turns, what the cache saves, and the slash commands."""

import json
from pathlib import Path

import pytest
from golden import demo

import rocforge as rf
from rocforge.cli.conversation import Conversation

pytestmark = pytest.mark.slow

TURNS = ["Tell me about lists. " * 20, "And dictionaries? " * 5, "Thanks."]
GREEDY = {"max_tokens": 8, "temperature": 0.0}


@pytest.fixture(scope="module")
def loaded(model):
    """The demo model and its tokenizer, on the CPU."""
    return rf.load(demo.bundled(), device="cpu")


@pytest.fixture
def computed(loaded, monkeypatch):
    """How many tokens the model computed, a number a step."""
    counts = []
    forward = type(loaded[0]).forward
    counting = lambda m, t, *args, **kwargs: (counts.append(len(t)), forward(m, t, *args, **kwargs))[1]  # noqa: E731
    monkeypatch.setattr(type(loaded[0]), "forward", counting)
    return counts


def say(conversation, text, **options):
    return "".join(piece.text for piece in conversation.reply(text, GREEDY, **options))


def test_turns_share_the_cache_and_it_changes_nothing(loaded, template, computed):
    """Each turn computes only what is new, but for a part of a block; replies are those of an engine without a past."""
    model, tokenizer = loaded
    source = Path(template).read_text()
    with rf.Engine(model, tokenizer.eog_token_ids) as engine:
        conversation = Conversation(engine, tokenizer, source, "Be brief.")
        previous = 0
        for text in TURNS:
            ids = tokenizer.apply_chat_template(
                [*conversation.messages, {"role": "user", "content": text}], chat_template=source
            )
            computed.clear()
            reply = say(conversation, text)
            steps = list(computed)
            assert sum(steps) - (len(steps) - 1) <= len(ids) - previous + 32
            assert reply == rf.generate(model, tokenizer, ids, **GREEDY)
            previous = len(ids)
    assert [m["role"] for m in conversation.messages] == ["system"] + ["user", "assistant"] * 3


def test_a_stopped_reply_frees_its_blocks_and_counts(loaded, template):
    """A reply ends between two steps when it is told to; what there is of it is in the conversation."""
    model, tokenizer = loaded
    with rf.Engine(model, tokenizer.eog_token_ids) as engine:
        conversation = Conversation(engine, tokenizer, Path(template).read_text())
        pieces = []
        for piece in conversation.reply("Hello", {"temperature": 0.0}, lambda: len(pieces) == 3):
            pieces.append(piece.text)
        assert len(pieces) == 3 and conversation.messages[-1]["content"] == "".join(pieces)
        assert engine.scheduler.state.idle and not engine.busy
        conversation.reply("again", GREEDY).close()
        assert not engine.busy
        assert list(conversation.reply("before its first token", GREEDY, lambda: True)) == [] and not engine.busy


def test_a_refused_turn_changes_nothing(loaded, template):
    """A message that does not fit the context is refused, and the conversation is as it was."""
    model, tokenizer = loaded
    with rf.Engine(model, tokenizer.eog_token_ids) as engine:
        conversation = Conversation(engine, tokenizer, Path(template).read_text())
        say(conversation, "Hello")
        before = conversation.messages
        with pytest.raises(ValueError, match="tokens"):
            say(conversation, "word " * 5000)
        assert conversation.messages == before


def test_commands_in_a_pipe(rocforge, model, template, tmp_path):
    """Lines through a pipe: replies on stdout, the rest on stderr; every command does what its help says."""
    lines = [
        "/set temperature 0",
        "/set max_tokens 4",
        "Hello",
        "/retry",
        "/save " + str(tmp_path / "one.json"),
        "/system Be kind.",
        "two\\",
        "lines",
        "/save " + str(tmp_path / "two.json"),
        "/reset",
        "/save " + str(tmp_path / "three.json"),
        "/set temperature 9",
        "/set warmth 1",
        "/set top_k some",
        "/save /nowhere/x.json",
        "/retry",
        "/dance",
        "/set max_tokens none",
        "/exit",
        "never said",
    ]
    done = rocforge("chat", model, "--chat-template", template, "--quiet", input="\n".join(lines))
    one, two, three = (json.loads((tmp_path / f"{n}.json").read_text())["messages"] for n in ("one", "two", "three"))
    assert [m["role"] for m in one] == ["user", "assistant"] and one[0]["content"] == "Hello"
    assert [m["content"] for m in two[:2]] == ["Be kind.", "two\nlines"] and two[2]["role"] == "assistant"
    assert three == [{"role": "system", "content": "Be kind."}]
    assert done.stdout == f"{one[1]['content']}\n" * 2 + f"{two[2]['content']}\n"
    for remark in (
        "temperature is 9.0; allowed is from 0 to 2",
        "unknown setting 'warmth'",
        "top_k is 'some'; allowed are integers",
        "/nowhere/x.json",
        "there is no message to retry",
        "unknown command /dance",
        "max_tokens None",
    ):
        assert remark in done.stderr
    assert "loading" not in done.stderr


def test_the_input_ends(rocforge, model, template):
    """An input that ends without /exit is code 0; so is an empty one."""
    options = ("--chat-template", template, "--max-tokens", 2, "--quiet")
    assert rocforge("chat", model, *options, input="").stdout == ""
    assert rocforge("chat", model, *options, input="Hello").stdout.endswith("\n")
