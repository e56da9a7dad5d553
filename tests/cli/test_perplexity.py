"""`rocforge perplexity` and `rocforge compare`: the library's figures, and errors without a traceback."""

import json

import pytest
from golden import demo

import rocforge as rf

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file with the beginning of the held-out text."""
    path = tmp_path_factory.mktemp("text") / "heldout.txt"
    path.write_text(demo.heldout(3000))
    return path


def test_the_figures_are_the_librarys(rocforge, model, text):
    """In llama-perplexity's words; and as JSON."""
    options = ("-c", 128, "--chunks", 2, "--device", "cpu")
    expected = rf.perplexity(rf.load(model, device="cpu")[0], text.read_text(), 128, 2)
    assert rocforge("perplexity", model, text, *options).stdout == f"Final estimate: {expected}\n"
    compared = json.loads(rocforge("compare", model, model, text, *options, "--json").stdout)
    assert compared["kl_mean"] == 0 and compared["same_top"] == 1 and compared["tokens"] == 126
    assert compared["perplexity"] == compared["base"] == pytest.approx(expected.value)


def test_a_text_that_is_too_short(rocforge, model):
    done = rocforge("perplexity", model, "-", "--device", "cpu", input="def f(x):", check=False)
    assert done.returncode == 2 and "a window n_ctx=512" in done.stderr
