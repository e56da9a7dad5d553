"""Clients of Node.js: `openai`, and the AI SDK with its default provider, chats and Anthropic's messages.

Skipped without Node.js and what `npm install --prefix tests/server/node` installs.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = Path(__file__).parent / "node"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js"),
    pytest.mark.skipif(not (NODE / "node_modules").exists(), reason="npm install --prefix tests/server/node"),
]


def test_clients_of_node(server):
    """Texts and streams, an agent whose tool takes a nested model, a typed output: clients.mjs says what it expects."""
    ran = subprocess.run(["node", NODE / "clients.mjs", server.url], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "done\n", ran.stderr
