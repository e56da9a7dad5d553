"""The chat page in headless Chromium: type, stream, stop, reload, errors, keyboard, phone; no text can run."""

import re
import shutil
import time

import pytest
from server.page_server import serving

pytestmark = pytest.mark.slow

pytest.importorskip("fastapi", reason="the extra server is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = playwright.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)", allow_module_level=True)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
HOSTILE = "<img src=x onerror=hacked=1><script>hacked=1</script><b>bold</b>"


@pytest.fixture(scope="module")
def browser():
    """Chromium, with a profile of its own."""
    with playwright.sync_playwright() as instance:
        chromium = instance.chromium.launch(executable_path=CHROMIUM, args=OPTIONS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def server():
    """(URL, Script) of a scripted server, which shows the page under the real one's policy."""
    from rocforge.server.page import policy

    with serving({"Content-Security-Policy": policy()}) as served:
        yield served


@pytest.fixture
def script(server):
    """What the server does and saw."""
    return server[1]


@pytest.fixture
def context(browser):
    """An empty profile."""
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    context.set_default_timeout(15000)
    yield context
    context.close()


@pytest.fixture
def page(context, server):
    """The page, opened; a script error or a violation of the policy fails the test."""
    opened, faults = open_page(context, server[0])
    yield opened
    assert not faults


def open_page(context, url):
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "Security Policy" in message.text else None)
    page.goto(url)
    expect(page.locator("#model")).not_to_be_empty()
    return page, faults


def say(page, text):
    page.get_by_label(re.compile("Message|Text to continue")).fill(text)
    page.keyboard.press("Enter")


def replies(page):
    return page.locator("article.assistant .body")


def complete(page):
    expect(page.get_by_role("status")).to_have_text("Reply complete")


def test_type_and_stream(page, script):
    """What is typed is asked; the reply shows piece by piece, with its tokens per second at the end."""
    script.pieces, script.pause = [f"word{i} " for i in range(20)], 0.05
    page.keyboard.type("Hello there")  # the field has the focus from the start
    page.keyboard.press("Enter")
    expect(replies(page)).to_contain_text("word0")
    assert "word19" not in replies(page).inner_text()
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "true")
    complete(page)
    expect(replies(page)).to_have_text("".join(script.pieces).strip())
    expect(page.locator("article.user .body")).to_have_text("Hello there")
    about = page.locator("article.assistant .about").inner_text()
    count, rate, first = re.match(r"(\d+) tokens · ([\d.]+) tokens/s · first after ([\d.]+) s", about).groups()
    assert int(count) == 20 and 5 < float(rate) < 21 and 0.04 < float(first) < 5
    ((path, body, _),) = script.requests
    assert path == "/v1/chat/completions" and body["model"] == "scripted" and body["stream"] is True
    assert body["messages"] == [{"role": "user", "content": "Hello there"}]


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop(page, script, how):
    """The button and Esc end a reply at once, the server sees the client leave, and what came stays and counts."""
    script.pieces, script.pause = [f"word{i} " for i in range(500)], 0.02
    say(page, "Count")
    expect(replies(page)).to_contain_text("word2")
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_have_class(re.compile("stop"))  # and looks unlike Send
    if how == "button":
        stop.click()
    else:
        page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped")
    expect(page.locator("article.assistant .about")).to_contain_text("stopped")
    partial = replies(page).inner_text()
    page.wait_for_timeout(300)
    assert replies(page).inner_text() == partial and script.gone == 1
    script.pieces, script.pause = ["Done."], 0
    say(page, "Go on")
    complete(page)
    messages = script.requests[-1][1]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"].strip() == partial.strip()


def test_reload_keeps_the_conversation(page, context, script):
    """Messages and settings outlive a reload, also in the middle of a reply; the API key is not stored for good."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Done").click()
    say(page, "First")
    complete(page)
    script.pieces, script.pause = ["one ", "two ", "three "] + ["more "] * 200, 0.02
    say(page, "Second")
    expect(replies(page).last).to_contain_text("three")
    page.reload()
    expect(page.locator("article .body")).to_have_count(4)
    expect(replies(page).first).to_have_text("Hello, world.")
    expect(replies(page).last).to_contain_text("one two three")
    assert "secret" not in str(context.storage_state())
    script.pieces, script.pause = ["ok"], 0
    say(page, "Third")
    complete(page)
    _, body, headers = script.requests[-1]
    assert body["temperature"] == 0.3 and headers["Authorization"] == "Bearer secret"
    assert [m["content"] for m in body["messages"][:4]] == ["Be brief.", "First", "Hello, world.", "Second"]
    page.get_by_role("button", name="New").click()
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("article")).to_have_count(6)
    page.get_by_role("button", name="New").click()
    page.get_by_role("button", name="Delete").click()
    page.reload()
    expect(page.locator("article")).to_have_count(0)
    expect(page.get_by_text("Ask something")).to_be_visible()


def test_try_again(page, script):
    """The last question is asked again, without the reply it had."""
    say(page, "Question")
    complete(page)
    script.pieces = ["Another."]
    page.get_by_role("button", name="Try again").click()
    expect(replies(page)).to_have_text("Another.")
    assert [m["content"] for m in script.requests[-1][1]["messages"]] == ["Question"]


def test_settings_reach_the_server(page, script):
    """Each setting is a field of the request; empty ones are left out; Defaults brings the defaults back."""
    page.get_by_role("button", name="Settings").click()
    given = {"Top p": "0.5", "Top k": "9", "Min p": "0.1", "Presence penalty": "1", "Frequency penalty": "-1"}
    given |= {"Most tokens": "7", "Seed": "42"}
    for label, value in {**given, "Stop before": "END"}.items():
        page.get_by_label(label).fill(value)
    page.keyboard.press("Escape")
    say(page, "x")
    complete(page)
    body = script.requests[-1][1]
    wanted = {"top_p": 0.5, "top_k": 9, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1, "max_tokens": 7}
    assert {**wanted, "seed": 42, "stop": "END"}.items() <= body.items()
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Defaults").click()
    page.get_by_role("button", name="Done").click()
    say(page, "y")
    complete(page)
    assert not {"max_tokens", "seed", "stop"} & script.requests[-1][1].keys()
    assert script.requests[-1][1]["top_p"] == 0.95


FAULTS = [
    ((503, "the queue is full"), "the queue is full"),
    ((401, "wrong key"), r"wrong key \(Settings has a field for the API key\.\)"),
    ("error", "the engine failed"),
    ("cut", "The connection (ended before the reply did|broke)"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_errors_show_plainly(page, script, fault, message):
    """An error is shown in words, as an alert; the page goes on, and the question can be asked again."""
    script.fault = fault
    say(page, "Question")
    expect(page.get_by_role("alert")).to_have_text(re.compile(message))
    script.fault = None
    page.get_by_role("button", name="Try again").click()
    complete(page)
    expect(replies(page)).to_have_text("Hello, world.")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_no_server(page, context):
    """A server that cannot be reached is named as the error."""
    context.set_offline(True)
    say(page, "Anyone?")
    expect(page.get_by_role("alert")).to_have_text("The server does not answer.")


@pytest.mark.parametrize("text", [HOSTILE, f"```html\n{HOSTILE}\n```", f"`{HOSTILE}`", f"**{HOSTILE}**"])
def test_nothing_that_is_written_runs(page, script, text):
    """HTML in questions, replies, model names and errors shows as the text it is."""
    script.pieces = re.findall(r".{1,5}", text, re.DOTALL)
    script.model["id"] = HOSTILE
    page.reload()
    expect(page.locator("#model")).to_have_text(HOSTILE)
    say(page, text)
    complete(page)
    script.fault = (400, HOSTILE)
    say(page, "and now an error")
    expect(page.get_by_role("alert")).to_have_text(HOSTILE)
    page.reload()
    for body in page.locator("article .body").all()[:2]:
        assert HOSTILE in body.inner_text()
    assert page.locator("article :is(img, script, b)").count() == 0
    assert page.evaluate("typeof hacked") == "undefined"


def test_code_is_set_apart(page, context, script):
    """Fenced code with a copy button, inline code and bold text; an open fence while it streams."""
    text = "Before `x` and **y**:\n\n```python\ndef f():\n\n    return '<b>'\n```\n\nAfter\n```\nopen"
    script.pieces = list(text)
    say(page, "Code")
    complete(page)
    expect(replies(page).locator("pre")).to_have_text(["def f():\n\n    return '<b>'", "open"])
    expect(replies(page).locator("p")).to_have_text(["Before x and y:", "After"])
    expect(replies(page).locator("code")).to_have_text("x")
    expect(replies(page).locator("strong")).to_have_text("y")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy code").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "def f():\n\n    return '<b>'"
    expect(page.get_by_role("button", name="Copy code")).to_have_count(2)


def test_a_text_is_continued(page, script):
    """Where the model has no chat template, the page continues a text, word for word; Enter alone goes on."""
    script.model["chat_template"] = False
    page.reload()
    script.pieces = ["\n    ", "return ", "`1` ```\n"]
    expect(page.get_by_text("Begin a text")).to_be_visible()
    say(page, "def f():")
    complete(page)
    path, body, _ = script.requests[-1]
    assert path == "/v1/completions" and body["prompt"] == "def f():" and "messages" not in body
    assert body["max_tokens"] == 4096 - len("def f():")  # as they fit, and not the API's 16
    assert script.counted == [{"content": "def f():", "add_special": True}]
    assert page.get_by_role("log").locator(".body").all_inner_texts() == ["def f():", "\n    return `1` ```\n"]
    page.keyboard.press("Enter")
    expect(replies(page)).to_have_count(2)
    complete(page)
    assert script.requests[-1][1]["prompt"] == "def f():\n    return `1` ```\n"
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Most tokens").fill("5")
    page.keyboard.press("Escape")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.press("Enter")
    expect(replies(page)).to_have_count(3)
    complete(page)
    assert script.requests[-1][1]["max_tokens"] == 5


def test_waits_for_the_model(page, script):
    """While the model is loaded the page says so, and looks again."""
    script.model["context_length"] = None
    page.reload()
    expect(page.locator("#model")).to_have_text("scripted is loading …")
    script.model["context_length"] = 4096
    expect(page.locator("#model")).to_have_text("scripted")


def test_keyboard(page, script):
    """Shift+Enter breaks the line; Tab goes through the controls in order; Esc closes the settings only."""
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    complete(page)
    assert script.requests[-1][1]["messages"][0]["content"] == "one\ntwo"
    page.keyboard.press("Enter")  # nothing was typed
    assert len(script.requests) == 1
    seen = []
    page.locator("#fresh").focus()
    for _ in range(7):
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        page.keyboard.press("Tab")
    assert [name for name in seen if name != "scroll"][:6] == ["fresh", "open", "Copy", "Try again", "text", "send"]
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
    say(page, "Hello")
    complete(page)
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(320, 568), (390, 760), (1100, 760)])
def test_fits_screens(browser, server, script, size, scheme, tmp_path):
    """From a small phone to a desktop nothing is cut off, buttons are large enough, and text stands out."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=width < 800, is_mobile=width < 800
    )
    page, faults = open_page(context, server[0])
    script.pieces = ["word " * 80, "\n```\n" + "x" * 300 + "\n```\n", "averyverylongword" * 20]
    say(page, "A question " * 12)
    complete(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("New", "Settings", "Send"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= height
        assert box["height"] >= (44 if width < 800 else 32)
    ratio = contrast(
        *page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    )
    assert ratio > 7
    page.get_by_role("button", name="Settings").click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    page.screenshot(path=tmp_path / "page.png")
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


def test_nothing_from_outside(context, server):
    """The page asks its own server, and nobody else, for anything."""
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server[0])
    say(page, "Hello")
    complete(page)
    assert len(asked) >= 3 and all(url.startswith((server[0], "data:")) for url in asked)


def test_with_the_real_server(context, start):
    """Chat against a model: stream, stop, another turn, reload; a reply that is stopped frees the engine."""
    with start(endless=True, max_tokens=1500) as real:
        page, faults = open_page(context, real.url)
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
        say(page, "Again")
        expect(page.get_by_role("status")).to_have_text(re.compile("complete"))
        expect(page.locator("article.assistant .about").last).to_contain_text("12 tokens")
        page.reload()
        expect(page.locator("article")).to_have_count(4)
        say(page, "word " * 4000)
        expect(page.get_by_role("alert")).to_contain_text("maximum context length is 2048 tokens")
        assert not faults


def test_the_key_of_the_real_server(context, start):
    """Without the key the page says where it belongs; with it, it works."""
    with start(api_key="secret", max_tokens=4) as real:
        page, _ = open_page(context, real.url)
        expect(page.locator("#model")).to_contain_text("API key")
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("API key").fill("secret")
        page.keyboard.press("Escape")
        expect(page.locator("#model")).to_have_text("small")
        say(page, "Hello")
        complete(page)


def test_a_model_without_template_on_the_real_server(context, start):
    """The page continues texts, and its seed repeats them."""
    with start(chat_template=None) as real:
        page, _ = open_page(context, real.url)
        page.get_by_role("button", name="Settings").click()
        for label, value in {"Most tokens": "8", "Seed": "3"}.items():
            page.get_by_label(label).fill(value)
        page.keyboard.press("Escape")
        say(page, "def f(")
        complete(page)
        first = replies(page).inner_text()
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        complete(page)
        assert replies(page).inner_text() == first
