"""A server with scripted replies, for tests of the chat page: what comes, how fast, and what goes wrong."""

import json
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Script:
    """What the server does, to be changed at any time, and what it saw.

    Attributes:
        pieces: of each reply: texts, or deltas of a chat.
        pause: seconds before each; both as they are when the reply begins.
        fault: None, "error" (in the stream), "cut" (the connection ends half way), or a status with a message.
        models: what /v1/models says of the models.
        sampling: what /props says of it.
        counted: the bodies of each POST of /tokenize, which counts a token for each character.
        requests: (path, body, headers) of each POST.
        gone: how many clients left before their reply's end.
    """

    def __init__(self):
        self.pieces: Sequence[str | dict] = ("Hello", ", ", "world", ".")
        self.pause = 0.0
        self.fault: str | tuple[int, str] | None = None
        self.models = [{"id": "scripted", "object": "model", "context_length": 4096}]
        self.sampling = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0}
        self.counted: list[dict] = []
        self.requests: list[tuple[str, dict, dict]] = []
        self.gone = 0


@contextmanager
def serving(document, policy):
    """(URL, Script) of a server that gives the page's document under its policy."""
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            """Says nothing: a test's output is its own."""

        def do_GET(self):
            if self.path == "/":
                headers = {"Content-Security-Policy": policy}
                self._answer(200, "text/html; charset=utf-8", document.encode(), headers)
            elif self.path.startswith("/props?model="):
                self._json(200, {"default_generation_settings": {"params": script.sampling}})
            elif self.path == "/v1/models":
                self._json(200, {"object": "list", "data": script.models})
            else:
                self._json(404, {"error": {"message": f"no {self.path}"}})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                script.counted.append(body)
                self._json(200, {"count": len(body["content"])})
                return
            script.requests.append((self.path, body, dict(self.headers)))
            if isinstance(script.fault, tuple):
                self._json(script.fault[0], {"error": {"message": script.fault[1]}})
                return
            try:
                self._stream(self.path == "/v1/chat/completions")
            except (BrokenPipeError, ConnectionResetError):
                script.gone += 1
            self.close_connection = True

        def _stream(self, chat):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            pieces, pause = script.pieces, script.pause
            for index, piece in enumerate(pieces):
                time.sleep(pause)
                if script.fault and index == len(pieces) // 2:
                    if script.fault == "error":
                        self._event({"error": {"message": "the engine failed"}})
                    return
                delta = {"content": piece} if isinstance(piece, str) else piece
                content = {"delta": delta} if chat else {"text": piece}
                self._event({"choices": [{"index": 0, "finish_reason": None, **content}]})
            self._event({"choices": [{"index": 0, "finish_reason": "stop", "delta": {}}]})
            self._event({"choices": [], "usage": {"completion_tokens": len(pieces)}})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, event):
            # in two writes, so that events do not arrive whole
            text = f"data: {json.dumps(event)}\r\n\r\n".encode()
            self.wfile.write(text[:9])
            self.wfile.flush()
            self.wfile.write(text[9:])
            self.wfile.flush()

        def _json(self, status, value):
            self._answer(status, "application/json", json.dumps(value).encode(), {})

        def _answer(self, status, kind, body, more):
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", script
    finally:
        server.shutdown()
        server.server_close()
