"""docs/cards.md says what benches/cards.py computes."""

from pathlib import Path

import cards


def test_docs_have_the_table():
    docs = Path(__file__).parents[2] / "docs" / "cards.md"
    assert cards.table() in docs.read_text(), "python benches/cards.py"


def test_more_cards_are_faster_until_latency_decides():
    card = cards.H200
    assert cards.step(card, 8, 1) < cards.step(card, 4, 1) < cards.step(card, 2, 1) < cards.step(card, 1, 1)
    assert cards.step(card, 8, 1) > cards.step(card, 1, 1) / 8
    assert cards.layers_step(card, 4, 1) > cards.step(card, 1, 1)
