"""What processes say to each other arrives as it was said."""

import pytest

from rocforge.engine.core import Event
from rocforge.engine.reply import QueueFullError, StepError
from rocforge.ops.sampling import Logprobs, SamplingParams
from rocforge.server import wire
from rocforge.server.grammars import GrammarSource
from rocforge.text.grammar import GrammarError


def sent(message):
    """The messages of these bytes, which come in two parts."""
    unpacker = wire.unpacker()
    unpacker.feed(message[: len(message) // 2])
    found = list(unpacker)
    unpacker.feed(message[len(message) // 2 :])
    return found + list(unpacker)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"seed": 0},
        {"seed": -(1 << 63)},
        {"seed": (1 << 64) + 100, "max_tokens": 10**30},
        {"temperature": 0.1, "top_p": 0.1 + 0.2, "top_k": 10**20, "logit_bias": {0: -100, 31999: 0.5}},
        {"temperature": 0, "logprobs": 0, "ignore_eos": True, "stop": ("a",)},
        {"lora": "pirate", "stop_token_ids": [7, 8], "min_tokens": 3},
        {"repetition_penalty": 1.1, "presence_penalty": -2, "frequency_penalty": 2, "min_p": 1},
        {"top_n_sigma": 1.5, "typical_p": 0.1, "xtc_probability": 0.3, "xtc_threshold": 0.7},
    ],
)
def test_params(given):
    """Whatever their values, and a random seed too, but for what ends the text: that is not the engine's to know."""
    params = SamplingParams(**given)
    (found,) = wire.unpack_params(wire.pack_params([params]))
    assert found == SamplingParams(**{**vars(params), "stop": ()})


def test_events():
    """Tokens, what few of them have, and errors, in order; messages follow each other without a break."""
    step = [
        Event(7, 300),
        Event(8, 301, None, None, 64),
        Event(9, 302, "stop", Logprobs(-0.5, {302: -0.5, 4: -1.25})),
        Event(10),
        Event(11, error=GrammarError("lone \ud800")),
        Event(12, 303, "length"),
    ]
    message = wire.pack_events(1 << 40, [(event.key + 100, event) for event in step])
    first, second = sent(message + message)
    assert first == second and first[:2] == ["tokens", 1 << 40]
    found = wire.unpack_events(*first[2:])
    assert [event.key for event in found] == [event.key + 100 for event in step]
    assert [event[1:5] for event in found] == [event[1:5] for event in step]
    assert [type(event.error) for event in found] == [type(event.error) for event in step]
    assert str(found[4].error) == "lone \ud800"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("a"), ValueError),
        (UnicodeError("b"), ValueError),
        (GrammarError("c"), GrammarError),
        (QueueFullError("d"), QueueFullError),
        (StepError("e"), StepError),
        (ZeroDivisionError("f"), RuntimeError),
    ],
)
def test_errors(error, kind):
    """As what they are, or are derived from; of others, which are the server's own, nothing is expected."""
    found = wire.unpack_error(*wire.pack_error(error))
    assert type(found) is kind and str(error) in str(found)


def test_grammars():
    """A schema may hold numbers and text that msgpack has no form for."""
    grammar = GrammarSource("json_schema", {"const": 10**40, "title": "\ud800", "enum": [1.5, None, {"a": []}]})
    (message,) = sent(wire.pack("submit", wire.pack_grammar(grammar)))
    assert wire.unpack_grammar(message[1]) == grammar
    assert wire.unpack_grammar(wire.pack_grammar(None)) is None
