"""/v1/embeddings: texts or token ids in, a vector of each out."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from rocforge.server.errors import APIError, JSONResponse, refusing
from rocforge.server.generation import Generator
from rocforge.server.jobs import client_closed, unless_gone
from rocforge.server.schema import EmbeddingRequest


class Embeddings:
    """Answers requests for embeddings."""

    def __init__(self, generator: Generator):
        self._generator = generator

    async def __call__(self, body: EmbeddingRequest, request: Request) -> Response:
        generator = self._generator
        generator.check_model(body.model)
        if generator.backend.pooling == "rank":
            message = "this model ranks documents and gives no embeddings; use /v1/rerank"
            raise APIError(message, param="model", code="unsupported_parameter")
        with generator.deadline(None), refusing("input"):
            inputs = await generator.prompts(body.input)
            for ids in inputs:
                generator.check_length(len(ids), "input", reply=0)
            vectors = await unless_gone(generator.backend.embed(inputs, generator.models[body.model]), request)
        if vectors is None:
            return client_closed()
        if body.dimensions not in (None, vectors.shape[1]):
            message = f"dimensions is {body.dimensions}; this model's vectors have {vectors.shape[1]}"
            raise APIError(message, param="dimensions")
        return await run_in_threadpool(self._answer, body, vectors, sum(map(len, inputs)))

    def _answer(self, body: EmbeddingRequest, vectors: np.ndarray, tokens: int) -> Response:
        packed = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector.tolist()}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer: dict[str, Any] = {"object": "list", "data": data, "model": body.model, "usage": usage}
        return JSONResponse(answer)


def _packed(vector: np.ndarray) -> str:
    """Base64 of little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
