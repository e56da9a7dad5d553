"""TextStream: stop strings are found wherever token borders fall, and text is not held longer than needed."""

from hypothesis import given
from hypothesis import strategies as st

from rocforge.text.stream import TextStream


class Letters:
    """A tokenizer whose tokens are single characters."""

    def detokenizer(self, previous_id=None):
        return self

    def add(self, token):
        return chr(token)

    def finish(self):
        return ""


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_ends_before_the_first_stop(text, stops):
    """What comes out is the text up to where a stop string is first complete, or all of it."""
    stream, out = TextStream(Letters(), stops), ""
    for i, char in enumerate(text):
        out += stream.add(ord(char))
        if stream.stopped:
            assert any(stop in text[: i + 1] for stop in stops)
            break
    out += stream.finish()
    ends = [i for i in range(len(text) + 1) if any(text[:i].endswith(stop) for stop in stops)]
    if ends:
        whole = text[: ends[0]]
        assert stream.stopped and out == whole[: min(i for s in stops if (i := whole.find(s)) >= 0)]
        assert stream.stopped in stops and whole.startswith(out + stream.stopped)
    else:
        assert not stream.stopped and out == text


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_holds_only_what_may_become_a_stop(text, stops):
    """After each token, what is held back is the beginning of some stop string."""
    stream, out = TextStream(Letters(), stops), ""
    for i, char in enumerate(text):
        out += stream.add(ord(char))
        if stream.stopped:
            break
        held = text[len(out) : i + 1]
        assert held == "" or any(stop.startswith(held) for stop in stops)
