"""Models cut for several cards give what they give on one."""

import numpy as np
import pytest
from golden import demo, families, models, relative_error
from golden.family_models import FAMILIES
from groups import run_together

import rocforge as rf
from rocforge.errors import UnsupportedModelError
from rocforge.load import load_model
from rocforge.models import build_model
from rocforge.nn.shard import shard
from rocforge.nn.split import layer_bounds

pytestmark = pytest.mark.filterwarnings("ignore:each of the")  # what stays whole
TOKENS = np.arange(2, 40)
BUILDERS = {
    "demo": lambda path: demo.build(path, "Q8_0"),  # heads that are more than keys', tied
    "gpt2": lambda path: families.build(path, "gpt2"),  # q, k and v in one weight, biases, positions
    "glm4": lambda path: families.build(path, "glm4"),  # gate and up in one weight, norms behind
    "qwen35": lambda path: families.build(path, "qwen35"),  # recurrent layers, which stay whole; gates in attn_q
    "deepseek": lambda path: families.build(path, "deepseek"),  # experts, and shared ones
    "minimax-m2": lambda path: families.build(path, "minimax-m2"),  # norms of whole rows, which stay whole
    "gpt-oss": lambda path: models.build(path, "gpt-oss", "F32"),  # sinks, biases of experts
    "llama": lambda path: models.build(path, "llama", "Q4_K_M"),  # blocks of 256
}

REFUSED = {
    **dict.fromkeys(["baichuan", "baichuan-13b", "deci", "exaone4-window"], "2 cards do not divide"),
    **dict.fromkeys(["bitnet", "mamba", "mamba-falcon", "mamba2"], "cannot be cut for several cards"),
    **dict.fromkeys(["gemma3n", "gemma3n-few"], "of several streams"),
}
"""Families whose reference models are not for two cards, and what is said of them."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An open file, and its logits on one card, by name."""
    folder, made = tmp_path_factory.mktemp("shards"), {}

    def get(name):
        if name not in made:
            BUILDERS[name](folder / f"{name}.gguf")
            file = rf.open_gguf(folder / f"{name}.gguf")
            made[name] = file, load_model(file, device="cpu")(TOKENS)
        return made[name]

    return get


def together(file, cards, work=lambda part: part, shares=None):
    """What `work(part)` gives on each of several cards."""
    return run_together(cards, lambda group: work(load_model(file, device="cpu", group=group, shares=shares)))


@pytest.mark.parametrize(
    ("name", "cards"),
    [("demo", 2), ("demo", 4), ("demo", 8), ("gpt2", 2), ("glm4", 2), ("qwen35", 2), ("deepseek", 2), ("minimax-m2", 4),
     ("gpt-oss", 2), ("llama", 2)],
)  # fmt: skip
def test_logits(files, name, cards):
    file, expected = files(name)
    results = together(file, cards, lambda part: part(TOKENS))
    assert all((logits == results[0]).all() for logits in results)
    assert relative_error(results[0], expected) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(tmp_path, name):
    """Each one gives on two cards what it gives on one, or is refused in a sentence."""

    def called(model):
        return model(TOKENS) if model.generates else model.hidden(TOKENS)

    families.build(tmp_path / "model.gguf", name)
    with rf.open_gguf(tmp_path / "model.gguf") as file:
        if name in REFUSED:
            with pytest.raises((ValueError, UnsupportedModelError), match=REFUSED[name]):
                together(file, 2)
            return
        results = together(file, 2, called)
        assert (results[0] == results[1]).all()
        assert relative_error(results[0], called(load_model(file, device="cpu"))) < 1e-5


@pytest.mark.parametrize(("name", "shares"), [("demo", [3, 1]), ("demo", [1, 1, 2]), ("qwen35", [24, 16])])
def test_logits_of_layers_dealt_out(files, name, shares):
    file, expected = files(name)
    results = together(file, len(shares), lambda part: part(TOKENS), shares)
    assert (results[0] == expected).all()


def test_each_card_has_its_part_alone(files):
    file, _ = files("demo")
    parts = together(file, 2)
    whole = load_model(file, device="cpu")
    for part in parts:
        block, of = part.blk[0], whole.blk[0]
        assert block.attn_q.weight.shape == (of.attn_q.weight.shape[0] // 2, of.attn_q.weight.shape[1])
        assert block.ffn_down.weight.shape == (of.ffn_down.weight.shape[0], of.ffn_down.weight.shape[1] // 2)
        assert part.token_embd.weight.shape[0] == whole.token_embd.weight.shape[0] // 2
        assert part.new_cache(2).nbytes == whole.new_cache(2).nbytes // 2
    down = parts[1].blk[0].ffn_down.weight
    assert (down == whole.blk[0].ffn_down.weight[:, -down.shape[1] :]).all()


def test_cards_that_do_not_divide_the_heads(files):
    file, _ = files("demo")
    with pytest.raises(ValueError, match=r"3 cards do not divide 8 heads and 2 .* allowed are 1, 2, 4, 8"):
        together(file, 3)


def test_nothing_to_cut(tmp_path):
    families.build(tmp_path / "mamba2.gguf", "mamba2")
    file = rf.open_gguf(tmp_path / "mamba2.gguf")
    with pytest.raises(UnsupportedModelError, match="mamba2 cannot be cut for several cards: it has Mamba2"):
        together(file, 2)


def test_layers_that_take_the_values_of_the_first_one(tmp_path):
    families.build(tmp_path / "rwkv7.gguf", "rwkv7")
    file = rf.open_gguf(tmp_path / "rwkv7.gguf")
    with pytest.raises(UnsupportedModelError, match="rwkv7 cannot be cut by layers: layers take more than what the"):
        together(file, 2, lambda part: part, [1, 1])


def test_what_stays_whole_is_said(files):
    file, _ = files("qwen35")
    with pytest.warns(UserWarning, match="each of the 2 cards has the whole of GatedDeltaNet, 3 layers from blk.0"):
        run_together(2, lambda group: shard(build_model(file), group, file))


def test_layer_bounds():
    assert layer_bounds(40, [24, 16], 2) == [0, 24, 40]
    assert layer_bounds(3, [1, 1], 2) == [0, 2, 3]
    with pytest.raises(ValueError, match="one number over 0 for each"):
        layer_bounds(40, [1, 0], 2)
    with pytest.raises(ValueError, match="leave a card without one"):
        layer_bounds(2, [1, 1, 1], 3)
