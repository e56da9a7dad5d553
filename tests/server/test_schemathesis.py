"""schemathesis makes requests of all kinds from the server's own OpenAPI description: none is answered with a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

pytestmark = pytest.mark.slow

OPERATIONS = [
    ("/v1/completions", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/v1/embeddings", "POST"),
    ("/infill", "POST"),
    ("/v1/rerank", "POST"),
    ("/v1/responses", "POST"),
    ("/v1/responses/input_tokens", "POST"),
    ("/v1/responses/{id}", "GET"),
    ("/v1/responses/{id}", "DELETE"),
    ("/v1/responses/{id}/cancel", "POST"),
    ("/v1/responses/{id}/input_items", "GET"),
    ("/v1/messages", "POST"),
    ("/v1/messages/count_tokens", "POST"),
    ("/props", "GET"),
    ("/version", "GET"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}", "GET"),
    ("/v1/requests", "GET"),
    ("/v1/requests/{id}", "GET"),
    ("/v1/requests/{id}", "DELETE"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/metrics", "GET"),
    ("/health", "GET"),
    ("/ready", "GET"),
]

GENERATION = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
"""Those with many fields, of which more requests are tried."""


@pytest.fixture(scope="module")
def api(server):
    """The server's description of itself."""
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_all_operations_are_tried(api):
    """None is missing from the list above."""
    described = {(found.ok().path, found.ok().method.upper()) for found in api.get_all_operations()}
    assert described == set(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path, method", OPERATIONS)
def test_no_server_errors(api, path, method, mode):
    """Whatever is sent, of the described shape or not."""
    operation = api[path][method]
    seen = set()

    @given(case=operation.as_strategy(generation_mode=mode), real_model=st.booleans())
    @settings(
        max_examples=8 if path in GENERATION else 3,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def send(case, real_model):
        if isinstance(case.body, dict):
            if real_model:
                case.body["model"] = "small"
            # right requests are made cheap, wrong ones stay wrong
            bounds = {"max_completion_tokens": 3, "n_predict": 3, "n": 2, "best_of": 2}
            length = "max_output_tokens" if "responses" in path else "max_tokens"
            for name, most in {**bounds, length: 3}.items():
                value = case.body.get(name)
                if (value is None and name == length) or (type(value) is int and (value > most or value == -1)):
                    case.body[name] = most
        response = case.call(timeout=60)
        seen.add(response.status_code)
        assert response.status_code < 500, response.text

    try:
        send()
    except schemathesis.errors.InvalidSchema as error:
        pytest.skip(f"nothing to generate: {error}")
    except Exception as error:
        if "Unsatisfiable" in type(error).__name__:
            pytest.skip("there is nothing wrong that could be sent")
        raise
    assert seen
