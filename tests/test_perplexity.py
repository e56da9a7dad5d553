"""The demo model's perplexity on text that it was not trained on is PyTorch's."""

import sys
from pathlib import Path

import pytest
from golden import demo

import rocforge as rf

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from perplexity import perplexity

pytestmark = pytest.mark.slow

# From tests/: python -m golden.demo FOLDER; then in FOLDER: .../torch_perplexity.py demo-F16.gguf excerpt.txt
PYTORCH, TOKENS = 9.36246, 9198


def test_equals_pytorch_in_f16(tmp_path):
    """In F16, over the beginning of the held-out text, within 0.1 %."""
    demo.build(tmp_path / "demo.gguf", "F16")
    value, count = perplexity(*rf.load(tmp_path / "demo.gguf", device="cpu"), demo.heldout(demo.EXCERPT))
    assert count == TOKENS
    assert value == pytest.approx(PYTORCH, rel=1e-3)
