"""The chat page in headless Chromium: what is sent, shown, kept and copied, what goes wrong, and that no text runs."""

import base64
import json
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
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@pytest.fixture(scope="module")
def browser():
    """Chromium, with a profile of its own, for which plain.example is this machine, by HTTP."""
    with playwright.sync_playwright() as instance:
        options = [*OPTIONS.split(), "--host-resolver-rules=MAP plain.example 127.0.0.1"]
        chromium = instance.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def server():
    """(URL, Script) of a scripted server, which shows the page under the real one's policy."""
    from rocforge.server.page import document, policy

    with serving(document(), policy()) as served:
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
    page.wait_for_timeout(200)
    assert replies(page).inner_text() == partial and script.gone == 1
    script.pieces, script.pause = ["Done."], 0
    ask(page, "Go on")
    assert [role for role, _ in sent(script)] == ["user", "assistant", "user"]
    assert sent(script)[1][1].strip() == partial.strip()


def test_conversations(page, context, script):
    """Several are kept, each with its messages, also through a reload in the middle of a reply; they are renamed and
    deleted by hand, and deleted only when that is confirmed; the API key is not stored for good.
    """
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Done").click()
    ask(page, "First")
    script.pieces, script.pause = ["one ", "two ", "three "] + ["more "] * 200, 0.02
    say(page, "Second")
    expect(replies(page).last).to_contain_text("three")
    page.reload()
    expect(page.locator("article .body")).to_have_count(4)
    expect(replies(page).first).to_have_text("Hello, world.")
    expect(replies(page).last).to_contain_text("one two three")
    expect(page.locator(".about").last).to_contain_text("left while it was written")
    assert "secret" not in str(context.storage_state())
    script.pieces, script.pause = ["ok"], 0
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_text("Ask something")).to_be_visible()
    ask(page, "Another subject")
    _, body, headers = script.requests[-1]
    assert body["temperature"] == 0.3 and headers["Authorization"] == "Bearer secret"
    assert sent(script) == [("system", "Be brief."), ("user", "Another subject")]
    titles = page.locator("#chats .title")
    expect(titles).to_have_text(["Another subject", "First"])
    page.get_by_role("button", name="First", exact=True).click()
    expect(page.locator("article")).to_have_count(4)
    ask(page, "Third")
    assert [content for _, content in sent(script)[:4]] == ["Be brief.", "First", "Hello, world.", "Second"]
    page.get_by_role("button", name="Rename First").click()
    page.get_by_label("Name", exact=True).fill("Renamed")
    page.keyboard.press("Enter")
    expect(titles).to_have_text(["Renamed", "Another subject"])
    page.get_by_role("button", name="Delete Renamed").click()
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("article")).to_have_count(6)
    page.get_by_role("button", name="Delete Renamed").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.reload()
    expect(titles).to_have_text(["Another subject"])
    expect(page.locator("article .body")).to_have_text(["Another subject", "ok"])


def test_two_replies_at_a_time(page, script):
    """A reply goes on while another conversation is seen, and lands in its own."""
    script.pieces, script.pause = [f"slow{i} " for i in range(30)], 0.05
    say(page, "Slow")
    expect(replies(page)).to_contain_text("slow1")
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    script.pieces, script.pause = ["quick"], 0
    ask(page, "Quick")
    expect(replies(page)).to_have_text("quick")
    page.get_by_role("button", name="Slow", exact=True).click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(replies(page)).to_contain_text("slow29")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_full_storage(page, script):
    """What the browser does not keep is said, and the conversation goes on; nothing else is lost."""
    ask(page, "Kept")
    page.get_by_role("button", name="New conversation").click()
    page.evaluate("""() => {
        for (let size = 1 << 22; size >= 1; size >>= 1)
            for (let n = 0; ; n++) try { localStorage.setItem(`full-${size}-${n}`, "x".repeat(size)); } catch { break; }
    }""")
    ask(page, "Too much")
    expect(page.locator("#notice")).to_contain_text("This browser keeps no more")
    ask(page, "Still there?")
    assert [content for _, content in sent(script)] == ["Too much", "Hello, world.", "Still there?"]
    page.get_by_role("button", name="Kept", exact=True).click()
    page.get_by_role("button", name="Too much", exact=True).click()
    expect(page.locator("article")).to_have_count(4)
    page.evaluate(
        "Object.keys(localStorage).filter((k) => k.startsWith('full')).forEach((k) => localStorage.removeItem(k))"
    )
    ask(page, "Now?")
    expect(page.locator("#notice")).to_be_hidden()
    page.reload()
    expect(page.locator("#chats .title")).to_have_text(["Too much", "Kept"])


def test_edit_and_try_again(page, script):
    """What is edited is asked anew, without what followed; every version stays, and can be seen and continued."""
    ask(page, "Question")
    script.pieces = ["Another."]
    page.get_by_role("button", name="Try again").click()
    expect(replies(page)).to_have_text("Another.")
    assert sent(script) == [("user", "Question")]
    page.get_by_role("button", name="Previous version").click()
    expect(replies(page)).to_have_text("Hello, world.")
    script.pieces = ["Third."]
    ask(page, "More")
    assert [content for _, content in sent(script)] == ["Question", "Hello, world.", "More"]
    first = page.get_by_role("article", name="You").first
    first.get_by_role("button", name="Edit").click()
    page.get_by_label("Edited message").fill("Better question")
    page.keyboard.press("Control+Enter")
    expect(page.locator("article .body")).to_have_text(["Better question", "Third."])
    complete(page)
    assert sent(script) == [("user", "Better question")]
    page.reload()
    expect(first).to_contain_text("2 of 2")
    first.get_by_role("button", name="Previous version").click()
    expect(page.locator("article .body")).to_have_text(["Question", "Hello, world.", "More", "Third."])
    page.locator("#text").focus()
    page.keyboard.press("ArrowUp")  # edits the last message
    expect(page.get_by_label("Edited message")).to_have_value("More")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Edited message")).to_have_count(0)
    last = page.get_by_role("article", name="Model").last
    last.get_by_role("button", name="Edit").click()
    page.get_by_label("Edited message").fill("As I say.")
    page.get_by_role("button", name="Save").click()
    ask(page, "So?")
    assert sent(script)[3:] == [("assistant", "As I say."), ("user", "So?")]


def test_settings_reach_the_server(page, script):
    """Each setting is a field of the request; empty ones are left out, but where nobody recommends a sampling the page
    does. Defaults empties all.
    """
    page.get_by_role("button", name="Settings").click()
    given = {"Top p": "0.5", "Top k": "9", "Min p": "0.1", "Presence penalty": "1", "Frequency penalty": "-1"}
    given |= {"Most tokens": "7", "Seed": "42"}
    for label, value in {**given, "Stop before": "END"}.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("Reasoning effort").select_option("low")
    page.get_by_label("Colours").select_option("dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"
    page.keyboard.press("Escape")
    ask(page, "x")
    body = script.requests[-1][1]
    wanted = {"top_p": 0.5, "top_k": 9, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1, "max_tokens": 7}
    assert {**wanted, "seed": 42, "stop": "END", "reasoning_effort": "low"}.items() <= body.items()
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Defaults").click()
    page.get_by_role("button", name="Done").click()
    ask(page, "y")
    assert not {"max_tokens", "seed", "stop", "reasoning_effort", "tools"} & script.requests[-1][1].keys()
    assert {"temperature": 0.7, "top_p": 0.95}.items() <= script.requests[-1][1].items()
    assert page.get_by_label("Top p").get_attribute("placeholder") == "0.95"
    script.sampling = {"temperature": 0.6, "top_p": 1, "top_k": 20}  # as a file recommends it
    page.reload()
    ask(page, "z")
    assert not {"temperature", "top_p", "top_k"} & script.requests[-1][1].keys()
    assert page.get_by_label("Top k").get_attribute("placeholder") == "20"


FAULTS = [
    ((503, "the queue is full"), "the queue is full"),
    ((401, "wrong key"), r"wrong key \(Settings has a field for the API key\.\)"),
    ("error", "the engine failed"),
    ("cut", "The connection (ended before the reply did|broke)"),
]


def test_errors_show_plainly(page, context, script):
    """An error is shown in words, as an alert; the page goes on, and the question can be asked again."""
    for fault, message in FAULTS:
        script.fault = fault
        page.get_by_role("button", name="New conversation").click()
        say(page, "Question")
        expect(page.get_by_role("alert")).to_have_text(re.compile(message))
        script.fault = None
        page.get_by_role("button", name="Try again").click()
        complete(page)
        expect(replies(page)).to_have_text("Hello, world.")
        expect(page.get_by_role("alert")).to_have_count(0)
    context.set_offline(True)
    say(page, "Anyone?")
    expect(page.get_by_role("alert")).to_have_text("The server does not answer.")


def test_nothing_that_is_written_runs(page, script):
    """HTML in questions, replies, thoughts, model names, titles and errors shows as the text it is."""
    script.models[0]["id"] = HOSTILE
    page.reload()
    expect(page.locator("#model")).to_have_text(HOSTILE)
    texts = [HOSTILE, f"```html\n{HOSTILE}\n```", f"`{HOSTILE}`", f"**{HOSTILE}**"]
    for text in texts:
        script.pieces = re.findall(r".{1,5}", text, re.DOTALL) + [{"reasoning_content": text}]
        ask(page, text)
    script.fault = (400, HOSTILE)
    say(page, "and now an error")
    expect(page.get_by_role("alert")).to_have_text(HOSTILE)
    page.reload()
    for body in page.locator("article .body").all()[: 2 * len(texts)]:
        assert HOSTILE in body.inner_text()
    assert page.locator(":is(article, #chats) :is(img, script, b)").count() == 0
    assert page.evaluate("typeof hacked") == "undefined"


def test_hostile_markdown(context, server, script):
    """Links that run something are none; images of other places are links, so that showing a reply asks nobody; names
    of elements and code fences break out of nothing. The page asks its own server, and nobody else, for anything.
    """
    asked = []
    context.on("request", lambda request: asked.append(request.url))
    page, faults = open_page(context, server[0])
    bad = ["javascript:hacked=1", "JaVaScRiPt:hacked=1", "data:text/html,<script>hacked=1</script>", "vbscript:x",
           "java&#115;cript:hacked=1", "//tracker.example/x", "file:///etc/passwd"]  # fmt: skip
    text = "\n\n".join(f"[click {i}]({url}) ![i{i}]({url}) <{url}>" for i, url in enumerate(bad))
    text += (
        f"\n\n![seen](https://tracker.example/pixel.png?q=1)\n\n![own]({PIXEL})\n\n[ok](https://fine.example 'title')"
    )
    text += '\n\n```"><img src=x onerror=hacked=1>\ncode\n```\n\n[ref][x]\n\n[x]: javascript:hacked=1'
    text += "\n\n| <svg onload=hacked=1> | b |\n|---|--:|\n| [x](javascript:hacked=1) | `</code></pre><script>` |\n"
    script.pieces = [text]
    ask(page, "Go")
    links = page.locator("article a[href]")
    assert {*links.evaluate_all("(all) => all.map((a) => new URL(a.href).protocol)")} == {"https:"}
    assert {*links.evaluate_all("(all) => all.map((a) => `${a.target} ${a.rel}`)")} == {"_blank noopener noreferrer"}
    expect(page.get_by_role("link", name="seen")).to_have_attribute("href", "https://tracker.example/pixel.png?q=1")
    expect(page.locator("article img")).to_have_count(1)
    assert page.locator("article :is(script, svg, style, iframe, [onerror], [onload], [style])").count() == 0
    assert page.evaluate("typeof hacked") == "undefined"
    assert len(asked) >= 3 and all(url.startswith((server[0], "data:")) for url in asked)
    assert not faults
    said = page.evaluate(
        "(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.message; } })()"
    )
    assert "TrustedHTML" in said, "the policy lets text become elements through DOMPurify only"


MARKDOWN = """# Title

Some **bold**, *slanted*, ~~struck~~ and `code`, <https://a.example> and https://b.example/x.

1. one
   - nested
     1. deeper
2. two

> quoted
>
> - in it

| left | right |
|:-----|------:|
| a    | 1     |

5. five

---

```python
def f():

    return '<b>'
```

- item

  ```
  plain
  ```

After
"""


def test_markdown(page, script):
    """Headings, lists within lists, quotes, tables, rules, links and code, streamed by the character: as it is in
    the end, and without a block being made again that had its end.
    """
    script.pieces, script.pause = re.findall(".{1,3}", MARKDOWN, re.DOTALL), 0.002
    say(page, "Markdown")
    expect(replies(page).locator("h1")).to_have_text("Title")
    heading = replies(page).locator("h1").element_handle()
    complete(page)
    body = replies(page)
    assert heading.evaluate("(element) => element.isConnected")
    for selector, texts in {
        "h1": ["Title"], "strong": ["bold"], "em": ["slanted"], "s": ["struck"], "p > code": ["code"],
        "ol > li > ul > li > ol > li": ["deeper"], "blockquote li": ["in it"], "th": ["left", "right"],
        "td": ["a", "1"], "td[align=right]": ["1"], "ol[start='5'] li": ["five"],
        "a": ["https://a.example", "https://b.example/x"], "pre": ["def f():\n\n    return '<b>'\n", "plain\n"],
        "li pre": ["plain\n"], ".bar span": ["python", ""], ".hljs-keyword": ["def", "return"],
    }.items():  # fmt: skip
        assert body.locator(selector).all_text_contents() == texts, selector
    assert body.locator("hr").count() == 1


@pytest.mark.parametrize("plain", [False, True])
def test_copy(context, server, script, plain):
    """Each block of code, and each message, has a button that copies it and says so; by HTTP too."""
    url = server[0].replace("127.0.0.1", "plain.example") if plain else server[0]
    page, faults = open_page(context, url)
    assert page.evaluate("isSecureContext") is not plain
    script.pieces = ["```python\nx = 1\n```\n\n```\ny\n  z\n```"]
    ask(page, "Code")
    if not plain:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy code").last.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("Copied")
    page.locator("#text").fill("")
    page.locator("#text").focus()
    page.keyboard.press("Control+V")
    expect(page.locator("#text")).to_have_value("y\n  z")
    expect(page.get_by_role("button", name="Copy code")).to_have_count(2)
    assert not faults


def test_thoughts_are_folded(page, script):
    """Reasoning is out of sight until it is asked for, and not sent back."""
    script.pieces = [{"reasoning_content": "First **think**"}, {"reasoning_content": " hard."}, "So."]
    ask(page, "Why?")
    expect(replies(page)).to_have_text("So.")
    thought = page.locator(".assistant details")
    expect(thought.locator("summary")).to_have_text(re.compile(r"Thought for [\d.]+ s"))
    expect(thought.get_by_text("hard.")).to_be_hidden()
    thought.locator("summary").click()
    expect(thought.locator(".text")).to_have_text("First think hard.")
    ask(page, "And?")
    assert sent(script)[1] == ("assistant", "So.")


def test_tool_calls(page, script):
    """Tools of the settings are sent; calls, streamed in parts, are shown, and the results that are typed go back."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools").fill("[{")
    page.keyboard.press("Escape")
    say(page, "Weather?")
    expect(page.get_by_role("alert")).to_contain_text("Tools, in Settings, are not JSON")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools").fill(json.dumps(tools))
    page.keyboard.press("Escape")

    def part(index, id, name, text):
        return {"tool_calls": [{"index": index, "id": id, "function": {"name": name, "arguments": text}}]}

    script.pieces = [
        part(0, "c1", "weather", '{"city":'),
        part(0, None, "", ' "Rome"}'),
        part(1, "c2", "weather", "{}"),
    ]
    page.get_by_role("button", name="Try again").click()
    complete(page)
    assert script.requests[-1][1]["tools"] == tools
    expect(page.get_by_text("Calls weather")).to_have_count(2)
    expect(page.get_by_label("Arguments of weather").first).to_have_text('{\n  "city": "Rome"\n}')
    page.get_by_label("Result of weather").first.fill("sunny")
    page.get_by_label("Result of weather").last.fill("rain")
    script.pieces = ["Both."]
    page.get_by_role("button", name="Send results").click()
    complete(page)
    user, asked, *results = script.requests[-1][1]["messages"]
    assert user["content"] == "Weather?" and [call["id"] for call in asked["tool_calls"]] == ["c1", "c2"]
    assert asked["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert [(r["role"], r["tool_call_id"], r["content"]) for r in results] == [
        ("tool", "c1", "sunny"),
        ("tool", "c2", "rain"),
    ]
    expect(replies(page).last).to_have_text("Both.")


def test_images(page, script):
    """Are sent to a model that takes them, and refused in words for one that does not."""
    picture = {"name": "a.gif", "mimeType": "image/gif", "buffer": base64.b64decode(PIXEL.split(",")[1])}
    page.locator("#file").set_input_files(picture)
    expect(page.locator("#notice")).to_have_text("scripted takes no images.")
    expect(page.get_by_role("button", name="Image", exact=True)).to_be_hidden()
    script.models[0]["architecture"] = {"input_modalities": ["text", "image"]}
    page.reload()
    expect(page.get_by_role("button", name="Image", exact=True)).to_be_visible()
    page.locator("#file").set_input_files([picture, picture])
    page.get_by_role("button", name="Remove this image").first.click()
    ask(page, "What is it?")
    content = sent(script)[0][1]
    assert content == [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    page.reload()
    expect(page.locator("article.user img")).to_have_attribute("src", PIXEL)


def test_a_text_is_continued(page, script):
    """Where the model has no chat template, the page continues a text, word for word; Enter alone goes on."""
    script.models[0]["chat_template"] = False
    page.reload()
    script.pieces = ["\n    ", "return ", "`1` ```\n"]
    expect(page.get_by_text("Begin a text")).to_be_visible()
    ask(page, "def f():")
    path, body, _ = script.requests[-1]
    assert path == "/v1/completions" and body["prompt"] == "def f():" and "messages" not in body
    assert body["max_tokens"] == 4096 - len("def f():")  # as they fit, and not the API's 16
    assert script.counted == [{"model": "scripted", "content": "def f():", "add_special": True}]
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


def test_models(page, script):
    """The model that is chosen is asked, and stays chosen; while one is loaded the page says so, and looks again."""
    script.models[0]["context_length"] = None
    page.reload()
    expect(page.locator("#state")).to_have_text("is loading …")
    script.models[0]["context_length"] = 4096
    expect(page.locator("#state")).to_have_text("")
    expect(page.get_by_label("Model", exact=True)).to_be_disabled()
    script.models.append({"id": "other", "context_length": None, "status": {"value": "unloaded"}})
    page.reload()
    page.get_by_label("Model", exact=True).select_option("other")
    expect(page.locator("#state")).to_have_text("not loaded yet")
    page.reload()
    script.pause = 0.3
    say(page, "Hello")
    script.models[1]["status"]["value"] = "loading"
    expect(page.locator("#state")).to_have_text("is loading …")
    script.models[1] = {"id": "other", "context_length": 512, "status": {"value": "loaded"}}
    complete(page)
    expect(page.locator("#state")).to_have_text("")
    assert script.requests[-1][1]["model"] == "other"


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
