"""A server with a small random model, on a port of its own."""

import contextlib
import logging
import socket
import threading
from functools import partial
from types import SimpleNamespace

import httpx
import pytest
from golden import build

import rocforge as rf
from rocforge.engine.engine import Engine
from rocforge.server.app import create_app
from rocforge.server.backend import LocalBackend
from rocforge.server.http import HTTPServer
from rocforge.server.listeners import url_of
from rocforge.server.run import observed_service
from rocforge.server.settings import Settings

CONTEXT = 2048
TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }} in <tool_call>\n{% endif %}"
    "{% for message in messages %}<|user|>{{ message.role }}: {{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """A small random llama as a file."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    build(path, "llama-linear", "F32")
    return path


@contextlib.contextmanager
def running(model_file, endless=False, listener=None, context=CONTEXT, **settings):
    """A server in a thread: `url`, `service`, `engine`, and `get` and `post` to it. Nothing may be left at its end.

    `endless`: no token ends a reply, which a random model may give at any time.
    """
    engines = []

    def load():
        model, tokenizer = rf.load(model_file, device="cpu", context=context)
        ends = () if endless else tokenizer.eog_token_ids
        engines.append(Engine(model, ends, cache_tokens=4 * CONTEXT))
        return engines[0], tokenizer

    service, metrics = observed_service(load, max_queue=64)
    options = {"model_name": "small", "chat_template": TEMPLATE, **settings}
    backend = LocalBackend(service)
    server = HTTPServer(backend, partial(create_app, backend, metrics=metrics), Settings(**options), "warning")
    listener = listener or socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # so that a client that does not read is noticed
    uds = listener.getsockname() if listener.family == socket.AF_UNIX else None
    url = "http://any.example" if uds else url_of(listener)
    service.start()
    service.wait_until_ready(60)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=url, transport=httpx.HTTPTransport(uds=uds), timeout=60) as client:
            yield SimpleNamespace(
                url=url, service=service, engine=engines[0], client=client, get=client.get, post=client.post
            )
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive() and service.wait(10)
    assert engines[0].scheduler.state.idle and service.in_flight == 0


@pytest.fixture(scope="package")
def server(model_file):
    """One for all tests that change nothing about it."""
    with running(model_file) as server:
        yield server


@pytest.fixture(scope="session")
def start(model_file):
    """A server with settings of its own: `start(name=value)` as a context manager."""
    return lambda **settings: running(**{"model_file": model_file, **settings})


@pytest.fixture(scope="package")
def client(server):
    """OpenAI's client as anybody has it, with another base URL."""
    openai = pytest.importorskip("openai")
    with httpx.Client(trust_env=False) as http:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http, max_retries=0)


@pytest.fixture
def alive_afterwards(server):
    """Whatever a test sends, an honest request is served after it."""
    yield
    answer = server.post("/v1/completions", json={"model": "small", "prompt": "abc", "max_tokens": 2})
    assert answer.status_code == 200


@pytest.fixture
def faults(server):
    """What the server logs with a traceback meanwhile."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record) if record.exc_info else None
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio", "rocforge.server")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)
