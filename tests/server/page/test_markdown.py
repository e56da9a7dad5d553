"""Markdown as it shows and is copied, and that no text runs or asks other servers."""

import re

import pytest
from server.page.steps import PIXEL, ask, complete, expect, open_page, replies, say

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=hacked=1><script>hacked=1</script><b>bold</b>"


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
