"""What a notebook shows of a model, a file and an array: well-formed, harmless, and in the page's own colours."""

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from golden import demo

import rocforge as rf
from rocforge import html
from rocforge.nn.module import Module

HOSTILE = "<script>x</script>&\udcff"


class Reader(HTMLParser):
    """Checks that each tag is closed in order, and keeps the text."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def loaded():
    """The demo model and its open file."""
    return rf.load(demo.bundled(), device="cpu")[0], rf.open_gguf(demo.bundled())


def test_all_are_well_formed_and_take_the_pages_colours(loaded):
    """Text and background are the page's, so that dark pages show them as light ones do; and they can be saved."""
    model, file = loaded
    weight = model.blk[0].attn_q.weight
    for shown in (model, model.blk, file, weight, weight.T, weight[0], rf.quantize(np.ones((2, 3, 32)), "Q8_0")):
        source = shown._repr_html_()
        assert Reader(source).tags and source.encode()
        assert not re.search(r"#[0-9a-f]{3}|rgb|black|white(?!-space)|background: (?!none)", source)


def test_a_model_is_a_tree_that_unfolds(loaded):
    """A line a module, equal blocks in one; the blocks closed at first."""
    source = loaded[0]._repr_html_()
    reader = Reader(source)
    assert [text.strip() for text in reader.text] == [line.strip() for line in repr(loaded[0]).splitlines()]
    assert source.startswith("<details open>") and source.count("<details>") == 1


def test_a_file_has_its_tensors_and_metadata(loaded):
    """All of them, long values shortened."""
    _, file = loaded
    text = Reader(file._repr_html_()).text
    assert {*file, *file.metadata} <= set(text)
    assert "(4,096)" in " ".join(text) and max(map(len, text)) <= 120


def test_the_corner_of_an_array(loaded):
    """Values of its first rows and columns, with dots for what is left out."""
    weight = loaded[0].blk[0].attn_q.weight
    values = weight.dequantize()[: html.CORNER, : html.CORNER]
    for array, corner in ((weight, values), (weight.T, values.T)):
        text = Reader(array._repr_html_()).text
        expected = [[*(f"{value:.4g}" for value in row), "..."] for row in corner]
        assert text[1:] == [cell for row in expected for cell in row] + ["..."] * (html.CORNER + 1)
    assert Reader(weight[:0]._repr_html_()).text == [repr(weight[:0])]
    small = rf.quantize(np.zeros((1, 32), np.float32), "Q8_0")
    assert Reader(small._repr_html_()).text[1:] == ["0"] * html.CORNER + ["..."]


def test_what_names_hold_is_text():
    """Names and texts out of a file, tags in them and what is no UTF-8."""

    class Named(Module):
        def describe(self):
            return HOSTILE

    tree = Named()
    setattr(tree, "<b>", Named())
    for source in (html.text(HOSTILE), html.table([[HOSTILE]], [HOSTILE]), tree._repr_html_()):
        reader = Reader(source)
        assert not {"script", "b"} & set(reader.tags) and "<script>x</script>&?" in "".join(reader.text)
        assert source.encode()


def test_completion(loaded):
    """IPython completes modules behind an index, children of inline modules, tensors' names, and keyword arguments."""
    completer = pytest.importorskip("IPython.core.completer")
    names = {"model": loaded[0], "file": loaded[1], "rf": rf}
    shell = completer.IPCompleter(namespace=names, global_namespace=names)

    def completed(text):
        with completer.provisionalcompleter():
            return [found.text for found in shell.completions(text, len(text))]

    assert {"attn_q", "attn_output"} <= set(completed("model.blk[0].attn_"))
    assert completed("model.blk[-1].ffn_down.we") == ["weight"]
    assert "blk.3.ffn_up.weight" in completed("file['blk.3.")
    assert completed("rf.generate(model, tokenizer, 'x', max_") == ["max_tokens="]


def test_dir_has_the_children_of_inline_modules(loaded):
    """Which are attributes of the module that they are in."""
    names = dir(loaded[0].blk[0])
    assert {"attn_q", "ffn_down", "attn_norm", "attn"} <= set(names) and names == sorted(names)
    assert all(hasattr(loaded[0].blk[0], name) for name in names)


def test_a_misspelt_module_or_tensor(loaded):
    """Python's own suggestion, and the tensor's name."""
    model, file = loaded
    with pytest.raises(AttributeError) as error:
        model.blk[0].attn_kk  # noqa: B018
    assert error.value.name == "attn_kk" and error.value.obj is model.blk[0]
    with pytest.raises(KeyError, match=re.escape("did you mean 'blk.0.attn_q.weight'?")):
        file["blk.0.attn_q"]
    with pytest.raises(KeyError, match=r"no tensor 'zzz' in .*gguf'$|no tensor 'zzz'"):
        file["zzz"]


def test_outline_of_lists():
    """Neighbours that are equal share a line; others, and those in other lists, do not."""

    class Leaf(Module):
        def __init__(self, size):
            self.weight = SimpleNamespace(shape=(size,), dtype="float32")

    class Tree(Module):
        def __init__(self):
            self.a = [Leaf(1), Leaf(1), Leaf(2), Leaf(1), Leaf(1)]
            self.b = [Leaf(1)]

    lines = repr(Tree()).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["a.0-1", "a.2", "a.3-4", "b.0"]
    assert repr(Tree().a).splitlines()[0] == "ModuleList of 5" and len(repr(Tree().a).splitlines()) == 4
    assert repr(Tree().a[:2]).splitlines() == ["ModuleList of 2", "  0-1: Leaf(weight 1 float32)"]


def test_reprs_are_a_line(loaded):
    """Of what holds arrays and numbers by the thousand."""
    model, file = loaded
    with rf.Engine(model, max_requests=1) as engine:
        for value in (engine, model.new_cache(2), model.trivial_batch(3)):
            assert len(repr(value)) < 120 and repr(value).startswith(f"{type(value).__name__}(")
    assert repr(file.keys()).startswith("dict_keys(['token_embd.weight'")


def test_objects_that_are_no_arrays(loaded):
    """Are named, with what is allowed."""
    model, _ = loaded
    for call, message in (
        (lambda: rf.asnumpy(model), "array is of type Llama; allowed are arrays"),
        (lambda: rf.to_device(model, "cpu"), "array is of type Llama"),
        (lambda: rf.Engine(model, model), "eog_token_ids is of type Llama; .*tokenizer.eog_token_ids"),
        (lambda: model("hello"), r"tokens is 'hello'; .*tokenizer.encode\(text\)"),
        (lambda: model.hidden("hello"), r"tokenizer.encode\(text\)"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
