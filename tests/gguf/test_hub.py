"""Names on the Hub: which file is meant, and a download through the real client from a server on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from rocforge.gguf.hub import resolve, select_file

FILES = [
    "m-Q4_K_M.gguf",
    "m-Q8_0.gguf",
    "m-Q4_K_S.gguf",
    "big/m-F16-00001-of-00002.gguf",
    "big/m-F16-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    "quant, expected",
    [
        (None, "m-Q4_K_M.gguf"),
        ("q8_0", "m-Q8_0.gguf"),
        ("Q4_K", None),
        ("F16", "big/m-F16-00001-of-00002.gguf"),
        ("Q6_K", None),
    ],
)
def test_choose(quant, expected):
    """By quantization, whole words, case aside; the first of a set; Q4_K_M where none is said."""
    assert select_file(FILES, quant) == expected


def test_choose_the_only_one():
    """A repository with one file needs no quantization said; with two of which none is the default it does."""
    assert select_file(["model.gguf"], None) == "model.gguf"
    assert select_file(["a-Q8_0.gguf", "b-Q6_K.gguf"], None) is None


@pytest.mark.parametrize(
    "files, quant, expected",
    [
        (["mmproj-F16.gguf", "mmproj-BF16.gguf", "m-it-F16.gguf", "m-it-Q4_K_M.gguf"], "F16", "m-it-F16.gguf"),
        (["a-long-name-Q4_K_M.gguf", "mmproj-Q4_K_M.gguf"], None, "a-long-name-Q4_K_M.gguf"),
        (["m-Q8_0.gguf", "m-mmproj-f16.gguf"], None, "m-Q8_0.gguf"),
        (["long-Q8_0.gguf", "MTP/x-Q8_0.gguf", "x-draft-Q8_0.gguf", "imatrix.gguf"], "Q8_0", "long-Q8_0.gguf"),
        (["x-draft-Q8_0.gguf", "x-draft-Q4_K_M.gguf"], "Q8_0", "x-draft-Q8_0.gguf"),
        (["mmproj-F16.gguf", "m-F16.gguf"], "mmproj-F16.gguf", "mmproj-F16.gguf"),
        (["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"], None, "m-Q4_K_M.gguf"),
        (["a-1B-Q4_K_M.gguf", "a-13B-Q4_K_M.gguf"], None, None),
        (["a-1B-Q4_K_M.gguf", "a-13B-Q4_K_M.gguf"], "a-13B-Q4_K_M.gguf", "a-13B-Q4_K_M.gguf"),
        (["Q4_K_M/m-00001-of-00002.gguf", "Q4_K_M/m-00002-of-00002.gguf"], None, "Q4_K_M/m-00001-of-00002.gguf"),
    ],
)
def test_choose_the_model(files, quant, expected):
    """Not what lies beside it, unless that is named or all there is; none is guessed among several models."""
    assert select_file(files, quant) == expected


@pytest.mark.parametrize("name", ["hf:owner", "hf:a/b/c", "hf:../x", "hf:a/b:c:d"])
def test_bad_names(name):
    """What is not owner/repo[:quant] says what it should be."""
    with pytest.raises(ValueError, match="hf:owner/repo"):
        resolve(name)


def test_missing_file(tmp_path):
    """A path that is not there is named; one that may be meant as a name on the Hub is told how these are written."""
    with pytest.raises(FileNotFoundError, match=r"nothing\.gguf$"):
        resolve(tmp_path / "nothing.gguf")
    with pytest.raises(FileNotFoundError, match=r'gpt2; a model on the Hugging Face Hub is "hf:owner/repo\[:quant\]"'):
        resolve("gpt2")


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as its client asks for: the file list, and files with their ETag."""

    content: ClassVar = {"m-Q8_0.gguf": b"GGUF one", "m-Q4_K_M.gguf": b"GGUF two"}
    commit = "a" * 40
    requests = 0
    is_down = False
    faults: ClassVar = {
        "limited": (429, "Retry-After", "7"),
        "gated": (403, "X-Error-Code", "GatedRepo"),
        "private": (401, "X-Error-Code", "RepoNotFound"),
        "token": (401, "X-Error-Message", "Invalid credentials"),
        "down": (503, "X-Error-Message", "Unavailable"),
    }

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head):
        type(self).requests += 1
        path = self.path.split("?")[0]
        name = "down" if self.is_down else path.rpartition("/")[2]
        if name in self.faults:
            status, *header = self.faults[name]
            self.reply(status, b"no", head, header)
        elif path.startswith("/api/models/owner/repo"):
            siblings = [{"rfilename": name} for name in self.content]
            body = json.dumps({"id": "owner/repo", "sha": self.commit, "siblings": siblings}).encode()
            if "/tree/" in path:
                body = json.dumps(
                    [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in self.content.items()]
                ).encode()
            self.reply(200, body, head)
        elif path.rpartition("/")[2] in self.content:
            self.reply(200, self.content[path.rpartition("/")[2]], head)
        else:
            self.reply(404, b"", head)

    def reply(self, status, body, head, more=()):
        self.send_response(status)
        if more:
            self.send_header(*more)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def log_message(self, *args):
        return


DOWNLOAD = """
import sys
from rocforge.gguf.hub import resolve
for name in sys.argv[1].split():
    try:
        print(resolve(name))
    except OSError as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def hub(tmp_path):
    """A function that resolves a name in a fresh process whose HF_ENDPOINT is a server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)

    def run(name, **variables):
        command = [sys.executable, "-c", DOWNLOAD, name]
        done = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    yield run
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(hub, monkeypatch):
    """The chosen file lands in the Hub's cache with its content, and loads from there with the Hub down."""
    first = hub("hf:owner/repo:Q8_0")
    assert Path(first).read_bytes() == b"GGUF one"
    assert Path(hub("hf:owner/repo")).read_bytes() == b"GGUF two"
    monkeypatch.setattr(Hub, "is_down", True)
    assert hub("hf:owner/repo:Q8_0") == first


def test_errors_by_what_they_mean(hub):
    """A Hub that is down, limits, or refuses: what is wrong, and what helps."""
    errors = dict(zip(Hub.faults, hub(" ".join(f"hf:owner/{fault}" for fault in Hub.faults)).splitlines(), strict=True))
    assert errors == {
        "limited": "ConnectionError: the Hugging Face Hub limits requests (429): try again in 7 seconds, or with a "
        "token; the cache has no owner/limited",
        "gated": "PermissionError: owner/gated is gated: accept its terms on the Hugging Face Hub's page of it, and "
        "log in: hf auth login, or HF_TOKEN; the cache has no owner/gated",
        "private": "FileNotFoundError: the Hugging Face Hub has no owner/private; for a private one log in: hf auth "
        "login, or HF_TOKEN; the cache has no owner/private",
        "token": "PermissionError: the Hugging Face Hub refuses the list of owner/token (401): check the token, hf "
        "auth whoami; the cache has no owner/token",
        "down": "ConnectionError: the Hugging Face Hub answers 503 for the list of owner/down: try again later; the "
        "cache has no owner/down",
    }


def test_a_quantization_that_is_not_there(hub):
    """The error names those that are."""
    assert hub("hf:owner/repo:Q2_K") == (
        "FileNotFoundError: owner/repo has no Q2_K GGUF file; it has m-Q4_K_M.gguf, m-Q8_0.gguf"
    )


@pytest.mark.slow
@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}])
def test_without_the_hub(hub, offline):
    """Told to stay offline, or with nobody there: the cache serves what it has, and the error says what it has not."""
    before = hub("hf:owner/repo:Q8_0")
    assert hub("hf:owner/repo:Q8_0", **offline) == before
    assert hub("hf:owner/repo", **offline) == before  # the only one there is, so no quantization need be said
    assert "has no Q4_K_M GGUF file; it has m-Q8_0.gguf" in hub("hf:owner/repo:Q4_K_M", **offline)
    missing = hub("hf:other/repo", **offline)
    assert "Hub cannot be reached" in missing and "; the cache has no other/repo" in missing
