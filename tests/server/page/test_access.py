"""The page by keyboard, for screen readers, and on screens of any size."""

import re

import pytest
from server.page.steps import ask, complete, expect, open_page, say, sent

pytestmark = pytest.mark.slow


def test_keyboard(page, script):
    """Shift+Enter breaks the line; Tab goes through the controls in order; Esc closes the settings only."""
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    complete(page)
    assert sent(script)[0][1] == "one\ntwo"
    page.keyboard.press("Enter")  # nothing was typed
    assert len(script.requests) == 1
    seen = []
    page.locator("#fresh").focus()
    for _ in range(15):
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        page.keyboard.press("Tab")
    in_order = [
        "fresh",
        "one two",
        "Rename",
        "Delete",
        "open",
        "Copy",
        "Edit",
        "Copy",
        "Edit",
        "Try again",
        "text",
        "send",
    ]
    assert [name for name in seen if name not in ("scroll", "chats", "model")][: len(in_order)] == in_order
    script.pieces, script.pause = ["word "] * 100, 0.02
    say(page, "go")
    page.get_by_role("button", name="Settings").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped")


def test_for_screen_readers(page, script):
    """Every control has a name, messages say whose they are, and replies are announced."""
    ask(page, "Hello")
    page.get_by_role("button", name="Settings").click()
    unnamed = "[...document.querySelectorAll('button, input, textarea, select')].filter((e) => !(e.ariaLabel || "
    unnamed += "e.textContent.trim() && e.tagName === 'BUTTON' || e.labels?.length)).map((e) => e.outerHTML)"
    assert page.evaluate(unnamed) == []
    page.keyboard.press("Escape")
    log = page.get_by_role("log", name="Conversation")
    expect(log).to_have_attribute("aria-live", "polite")
    expect(log).to_have_attribute("aria-busy", "false")
    expect(log.get_by_role("article", name="You")).to_have_text(re.compile("Hello"))
    expect(log.get_by_role("article", name="Model")).to_have_text(re.compile("Hello, world."))


@pytest.mark.parametrize(("size", "scheme"), [((320, 568), "dark"), ((390, 760), "light"), ((1100, 760), "dark")])
def test_fits_screens(browser, server, script, size, scheme):
    """From a small phone to a desktop nothing is cut off, buttons are large enough, and text stands out."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=width < 800, is_mobile=width < 800
    )
    script.models[0]["id"] = "a-model-with-a-rather-long-name-Q4_K_M"
    page, faults = open_page(context, server[0])
    script.pieces = ["word " * 80, "\n```\n" + "x" * 300 + "\n```\n", "averyverylongword" * 20]
    script.pieces += ["\n\n|" + "wide|" * 30 + "\n|" + "-|" * 30]
    ask(page, "A question " * 12)
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    def fits(name):
        box = page.get_by_role("button", name=name, exact=True).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= height
        assert box["height"] >= (44 if width < 800 else 32)

    fits("Settings")
    fits("Send")
    if width < 800:
        fits("Conversations")
        page.get_by_role("button", name="Conversations").click()
    fits("New conversation")
    if width < 800:
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="New conversation")).to_be_hidden()
    ratio = contrast(
        *page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    )
    assert ratio > 7
    page.get_by_role("button", name="Settings").click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    assert not faults
    context.close()


def contrast(one, other):
    """WCAG's contrast ratio of two colours, `rgb(...)`."""

    def luminance(colour):
        parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
