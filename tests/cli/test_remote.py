"""`rocforge status` and `rocforge cancel` against a server with scripted answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rocforge.cli.remote import metrics

pytestmark = pytest.mark.slow

METRICS = """\
# HELP rocforge_generated_tokens_total Tokens of replies.
# TYPE rocforge_generated_tokens_total counter
rocforge_generated_tokens_total 1234.0
rocforge_generated_tokens_created 1.79e+09
rocforge_requests_total{outcome="finished"} 7.0
rocforge_requests_total{outcome="odd \\" label}"} 1.0
rocforge_time_to_first_token_seconds_bucket{le="0.5"} 3.0
rocforge_time_to_first_token_seconds_bucket{le="+Inf"} 4.0
rocforge_time_to_first_token_seconds_count 4.0
rocforge_time_to_first_token_seconds_sum 2.0
rocforge_cache_blocks_used 0.0
python_info{version="3"} 1.0
"""


@pytest.fixture
def server():
    """(URL, what was asked)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            """Says nothing: a test's output is its own."""

        def do_GET(self):
            asked.append((self.command, self.path, self.headers.get("Authorization")))
            if self.path == "/health":
                self._answer(200, '{"status": "ok", "state": "ready"}')
            elif self.path == "/metrics":
                self._answer(200, METRICS)
            elif self.path == "/v1/requests/cmpl-1":
                self._answer(200, '{"id": "cmpl-1", "status": "running", "choices": [1]}')
            elif self.path == "/v1/requests/broken":
                self._answer(502, "no JSON")
            else:
                self._answer(404, '{"error": {"message": "there is no such request"}}')

        do_DELETE = do_GET

        def _answer(self, status, text):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_status_of_the_server(rocforge, server):
    """Health and metrics; the URL and the key from options or variables."""
    url, asked = server
    variables = {"ROCFORGE_URL": url, "ROCFORGE_API_KEY": "secret"}
    lines = dict(line.split(maxsplit=1) for line in rocforge("status", environment=variables).stdout.splitlines())
    assert lines["state"] == "ready" and lines["generated_tokens_total"] == "1234"
    assert lines["time_to_first_token_seconds_mean"] == "0.5"
    found = json.loads(rocforge("status", "--json", "--url", url + "/").stdout)
    assert found["status"] == "ok" and found["generated_tokens_total"] == 1234
    assert asked == [("GET", p, k) for k in ("Bearer secret", None) for p in ("/health", "/metrics")]


def test_status_and_cancel_of_a_request(rocforge, server):
    """A request by its id, which is quoted in the URL; cancel deletes it."""
    url, asked = server
    assert "running" in rocforge("status", "cmpl-1", "--url", url).stdout
    done = rocforge("cancel", "cmpl-1", "--url", url)
    assert done.stdout == "" and done.stderr == "cancelled cmpl-1\n"
    assert [a[:2] for a in asked] == [("GET", "/v1/requests/cmpl-1"), ("DELETE", "/v1/requests/cmpl-1")]
    assert rocforge("status", "../../health", "--url", url, check=False).returncode == 1
    assert asked[-1][1] == "/v1/requests/..%2F..%2Fhealth"


def test_what_the_server_refuses(rocforge, server):
    """The server's own words, with code 1; its status line where it has none."""
    url, _ = server
    done = rocforge("cancel", "nothing", "--url", url, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"error: the server at {url} answered 404: there is no such request"
    done = rocforge("status", "broken", "--url", url, check=False)
    assert "answered 502: Bad Gateway" in done.stderr


def test_metrics():
    """Counters and gauges as they are, histograms as count and mean, labels kept, other programs' left out."""
    assert metrics(METRICS) == {
        "generated_tokens_total": 1234.0,
        'requests_total{outcome="finished"}': 7.0,
        'requests_total{outcome="odd \\" label}"}': 1.0,
        "time_to_first_token_seconds_count": 4.0,
        "time_to_first_token_seconds_mean": 0.5,
        "cache_blocks_used": 0.0,
    }
