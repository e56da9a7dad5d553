"""The chat page in headless Chromium, and what a user does there. Without Playwright or Chromium its tests skip."""

import re
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytest.importorskip("fastapi", reason="the extra server is not installed")
expect = playwright.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)", allow_module_level=True)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def open_page(context, url):
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "Security Policy" in message.text else None)
    page.goto(url)
    expect(page.locator("header")).not_to_have_text("ConversationsSettings")  # a model, or what is wrong
    return page, faults


def say(page, text):
    page.get_by_label(re.compile("^(Message|Text to continue)$")).fill(text)
    page.keyboard.press("Enter")


def replies(page):
    return page.locator("article.assistant .body")


def complete(page):
    expect(page.get_by_role("status")).to_have_text("Reply complete")


def ask(page, text):
    say(page, text)
    complete(page)


def sent(script):
    """The messages of the last request, as (role, content)."""
    return [(m["role"], m["content"]) for m in script.requests[-1][1]["messages"]]
