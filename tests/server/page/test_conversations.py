"""What is kept, edited, asked again and lost of several conversations."""

import pytest
from server.page.steps import ask, complete, expect, replies, say, sent

pytestmark = pytest.mark.slow


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
