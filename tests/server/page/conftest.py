"""A browser, the page in it, and the server with scripted replies that it asks."""

import pytest
from server.page_server import serving


@pytest.fixture(scope="module")
def browser():
    """Chromium, with a profile of its own, for which plain.example is this machine, by HTTP."""
    from server.page.steps import CHROMIUM, OPTIONS, playwright

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
    from server.page.steps import open_page

    opened, faults = open_page(context, server[0])
    yield opened
    assert not faults
