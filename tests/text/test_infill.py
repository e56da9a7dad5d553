"""Which tokens fill in the middle, and prompts of them within a room."""

import pytest

from rocforge.gguf.metadata import Metadata
from rocforge.text.infill import infill_prompt
from rocforge.text.vocabulary import FillInTokens, Vocabulary

TOKENS = FillInTokens(90, 91, 92, 93, 94)


def tokens_of(*texts, **ids):
    keys = {f"tokenizer.ggml.{name}_token_id": id for name, id in ids.items()}
    return Vocabulary(Metadata({"tokenizer.ggml.tokens": list(texts), **keys}, "tokenizer.ggml.")).fill_in_tokens


def test_which_tokens():
    """By the metadata, by its older names, else by their texts; without one of the three there are none."""
    letters = ["a", "b", "c", "d", "e"]
    named = tokens_of(*letters, fim_pre=4, fim_suf=3, fim_mid=2, fim_rep=1, fim_sep=0)
    assert named == FillInTokens(4, 3, 2, 1, 0)
    assert tokens_of(*letters, prefix=4, suffix=3, middle=2) == FillInTokens(4, 3, 2, None, None)
    qwen = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>")
    assert tokens_of(*qwen) == FillInTokens(0, 1, 2, 3, 4)
    assert tokens_of(*qwen, "x", fim_pre=5).prefix == 5, "the metadata counts"
    assert tokens_of(*qwen[:2], "c") is None and tokens_of(*letters, fim_pre=4, fim_suf=3, fim_mid=99) is None


@pytest.mark.parametrize(
    "prefix, suffix, room, kept",
    [
        (100, 100, 43, (30, 10)),  # three quarters and a quarter of what is left beside three tokens
        (10, 100, 43, (10, 30)),  # what one does not need the other has
        (100, 5, 43, (35, 5)),
        (10, 10, 43, (10, 10)),
        (10, 10, 2, (0, 0)),
    ],
)
def test_room(prefix, suffix, room, kept):
    """What is nearest to the gap stays, and files before it where there is room."""
    before, after = list(range(1000, 1000 + prefix)), list(range(2000, 2000 + suffix))
    files = list(range(3000, 3060))
    prompt = infill_prompt(TOKENS, before, after, before=files, room=room)
    gap = [90, *before[prefix - kept[0] :], 91, *after[: kept[1]], 92]
    free = max(0, room - len(gap))
    assert prompt == [*files[60 - free :], *gap]
    whole = infill_prompt(TOKENS, before, after, before=files, begin=[7])
    assert whole == [7, *files, 90, *before, 91, *after, 92]
