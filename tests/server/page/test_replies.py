"""What is sent, and how replies show: texts, thoughts, calls of tools, images, and what goes wrong."""

import base64
import json
import re

import pytest
from server.page.steps import PIXEL, ask, complete, expect, replies, say, sent

pytestmark = pytest.mark.slow


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
