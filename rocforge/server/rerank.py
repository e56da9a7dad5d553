"""/v1/rerank: a query and documents in, the documents' scores out, highest first.

Sources: https://api.jina.ai/docs#/Rerank and https://docs.cohere.com/reference/rerank
"""

from __future__ import annotations

import re
import secrets
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from rocforge.server.errors import APIError, JSONResponse, refusing
from rocforge.server.generation import Generator
from rocforge.server.jobs import client_closed, unless_gone
from rocforge.server.schema import RerankRequest

_PLACES = re.compile(r"\{(query|document)\}")


class Rerank:
    """Answers requests to rank documents."""

    def __init__(self, generator: Generator):
        self._generator = generator

    async def __call__(self, body: RerankRequest, request: Request) -> Response:
        generator = self._generator
        name = body.model or generator.settings.model_name
        generator.check_model(name)
        if generator.backend.pooling != "rank":
            message = "this model is no reranker: its file has no cls.output.weight, or another pooling_type than rank"
            raise APIError(message, param="model", code="unsupported_parameter")
        documents = [document if isinstance(document, str) else document.text for document in body.documents]
        with generator.deadline(None), refusing("documents"):
            prompts = await self._prompts(body.query, documents)
            for ids in prompts:
                generator.check_length(len(ids), "query and a document", reply=0)
            scores = await unless_gone(generator.backend.embed(prompts, generator.models[name]), request)
        if scores is None:
            return client_closed()
        tokens = sum(map(len, prompts))
        return JSONResponse(
            {
                "id": f"rerank-{secrets.token_hex(12)}",
                "object": "list",
                "model": name,
                "results": _results(scores[:, 0], documents, body),
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    async def _prompts(self, query: str, documents: list[str]) -> list[list[int]]:
        """The tokens of the query with each document: by the file's template, else one text after the other."""
        generator, tokenizer = self._generator, self._generator.tokenizer
        template = tokenizer.rerank_template
        if template is not None:
            return [await self._filled(template, query, document) for document in documents]
        begin = generator.begin
        ends = tokenizer.encode("")[len(begin) :]
        before = [*begin, *await generator.encode_plain(query), *tokenizer.separator_ids]
        return [[*before, *await generator.encode_plain(document), *ends] for document in documents]

    async def _filled(self, template: str, query: str, document: str) -> list[int]:
        """The tokens of a template with its places filled in; what is there is text, whatever it spells."""
        written, literal = "", []
        for number, part in enumerate(_PLACES.split(template)):
            if number % 2:
                part = query if part == "query" else document
                literal.append((len(written), len(written) + len(part)))
            written += part
        return await self._generator.encode(written, add_special_tokens=False, literal=literal)


def _results(scores: np.ndarray, documents: list[str], body: RerankRequest) -> list[dict[str, Any]]:
    """The best documents, best first."""
    order = np.argsort(-scores, kind="stable")[: body.top_n].tolist()
    return [
        {
            "index": index,
            "relevance_score": float(scores[index]),
            **({"document": {"text": documents[index]}} if body.return_documents else {}),
        }
        for index in order
    ]
