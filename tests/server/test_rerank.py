"""/v1/rerank: the scores of a reranker, as its hidden states and its classifier give them; other models refuse."""

import gguf
import numpy as np
import pytest
from golden import build

import rocforge as rf

TEMPLATE = "<|user|>Judge.\n<Query>: {query}\n<Document>: {document}<|end|>"
QUERY, DOCUMENTS = "what is {document}?", ["a short one", "a<|end|>b", "a list of words, and more of them"]

LLAMA_CPP = [0.002803, 0.003851, 0.273583]
"""What libllama 0.5.0 says of these documents, by pooling RANK, for the file with the template."""


def reranker(path, base, template, labels):
    """A file of a random qwen3 with a classifier, and that classifier."""
    reader, writer = gguf.GGUFReader(base), gguf.GGUFWriter(path, "qwen3")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "tokenizer.chat_template"):
            value_type = field.types[0]
            kind = field.types[-1] if value_type is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), value_type, kind)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_classifier_output_labels(labels)
    if template:
        writer.add_string("tokenizer.chat_template.rerank", template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    dim = reader.fields["qwen3.embedding_length"].contents()
    head = np.random.default_rng(0).standard_normal((len(labels), dim)).astype(np.float32) / 4
    writer.add_tensor("cls.output.weight", head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return head


@pytest.fixture(scope="module", params=[True, False], ids=["template", "pair"])
def ranking(request, tmp_path_factory):
    """A model's file, its classifier and what it should say of a prompt's tokens."""
    folder = tmp_path_factory.mktemp("reranker")
    build(folder / "base.gguf", "qwen3", "F32")
    labels = ["yes", "no"] if request.param else ["score"]
    head = reranker(folder / "ranks.gguf", folder / "base.gguf", TEMPLATE if request.param else None, labels)
    return folder / "ranks.gguf", head, request.param


def expected(model, head, ids):
    logits = head.astype(np.float64) @ model.hidden(np.array(ids))[-1].astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum() if len(head) > 1 else logits


def prompt(tokenizer, document, by_template):
    """Text of a client is text, whatever it spells."""
    plain = {"add_special_tokens": False, "parse_special_tokens": False}
    if not by_template:
        return tokenizer.encode(QUERY, **plain) + tokenizer.encode(document, **plain)
    user, end = tokenizer.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    return [user, *tokenizer.encode(f"Judge.\n<Query>: {QUERY}\n<Document>: {document}", **plain), end]


def test_scores(ranking, start):
    """By the file's template or without one, probabilities of labels or one score; sorted, and as many as wanted."""
    path, head, by_template = ranking
    model, tokenizer = rf.load(path, device="cpu")
    prompts = [prompt(tokenizer, document, by_template) for document in DOCUMENTS]
    scores = np.array([expected(model, head, ids) for ids in prompts])
    np.testing.assert_allclose(rf.embed(model, prompts, "rank"), scores, atol=1e-4)
    if by_template:
        np.testing.assert_allclose(scores[:, 0], LLAMA_CPP, atol=2e-3)
    order = np.argsort(-scores[:, 0]).tolist()
    with start(model_file=path) as server:
        body = {"model": "small", "query": QUERY, "documents": DOCUMENTS, "return_documents": True}
        found = server.post("/v1/rerank", json=body).json()
        assert [result["index"] for result in found["results"]] == order
        np.testing.assert_allclose([r["relevance_score"] for r in found["results"]], scores[order, 0], atol=1e-4)
        assert [result["document"]["text"] for result in found["results"]] == [DOCUMENTS[index] for index in order]
        assert found["usage"]["total_tokens"] == sum(map(len, prompts))
        cohere = {"query": QUERY, "documents": [{"text": text} for text in DOCUMENTS], "top_n": 1}
        for path in ("/v2/rerank", "/reranking"):
            (best,) = server.post(path, json=cohere).json()["results"]
            assert best["index"] == order[0] and "document" not in best
        refused = server.post("/v1/embeddings", json={"model": "small", "input": "a"}).json()["error"]
        assert refused["param"] == "model" and "/v1/rerank" in refused["message"]
        long = server.post("/v1/rerank", json={**body, "documents": ["a" * 3000]}).json()["error"]
        assert long["code"] == "context_length_exceeded"


def test_other_models(server):
    """What is no reranker says so, in the API and in Python."""
    answer = server.post("/v1/rerank", json={"model": "small", "query": "a", "documents": ["b"]})
    assert answer.status_code == 400 and "no reranker" in answer.json()["error"]["message"]
    assert server.post("/v1/rerank", json={"model": "x", "query": "a", "documents": ["b"]}).status_code == 404
    with pytest.raises(ValueError, match="pooling is 'rank'; the model's file has no cls"):
        rf.embed(server.engine.model, "a", "rank")
