"""Settings and the choice of a model."""

import pytest
from server.page.steps import ask, complete, expect, say

pytestmark = pytest.mark.slow


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
