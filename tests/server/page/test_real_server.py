"""The page on the real server, with a model."""

import re
import time

import pytest
from server.page.steps import ask, complete, expect, open_page, replies, say

pytestmark = pytest.mark.slow


def test_with_the_real_server(context, start):
    """Chat against a model under a path: stream, stop, another turn, reload; a stopped reply frees the engine."""
    with start(endless=True, max_tokens=1500, root_path="/llm") as real:
        page, faults = open_page(context, f"{real.url}/llm")
        expect(page.locator("#model")).to_have_text("small")
        say(page, "Hello")
        expect(replies(page)).to_have_text(re.compile("..", re.DOTALL))
        page.keyboard.press("Escape")
        expect(page.get_by_role("status")).to_have_text("Stopped")
        deadline = time.monotonic() + 10
        while real.service.in_flight and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not real.service.in_flight
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Most tokens").fill("12")
        page.keyboard.press("Escape")
        ask(page, "Again")
        expect(page.locator("article.assistant .about").last).to_contain_text("12 tokens")
        page.reload()
        expect(page.locator("article")).to_have_count(4)
        say(page, "word " * 4000)
        expect(page.get_by_role("alert")).to_contain_text("maximum context length is 2048 tokens")
        assert not faults


def test_a_key_and_no_template_on_the_real_server(context, start):
    """Without the key the page says where it belongs; with it, it continues texts, and its seed repeats them."""
    with start(api_key="secret", chat_template=None) as real:
        page, _ = open_page(context, real.url)
        expect(page.locator("#state")).to_contain_text("API key")
        page.get_by_role("button", name="Settings").click()
        for label, value in {"API key": "secret", "Most tokens": "8", "Seed": "3"}.items():
            page.get_by_label(label).fill(value)
        page.keyboard.press("Escape")
        expect(page.locator("#model")).to_have_text("small")
        ask(page, "def f(")
        first = replies(page).inner_text()
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        complete(page)
        assert replies(page).inner_text() == first
