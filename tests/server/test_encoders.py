"""A server with an encoder, or with a reranker of BERT's kind: embeddings and scores; what generates is refused."""

import gguf
import numpy as np
from golden import families
from golden.encoders import ENCODERS

import rocforge as rf

BEGIN = ["a", "list", "of", "words", "more", "and", "what", "is", "short", "?"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"▁{word}" for word in BEGIN)]
QUERY, DOCUMENTS = "what is words?", ["a short one", "a list of [SEP] words", "a list of words and more of words"]


def with_wordpiece(path, name):
    """The file of an encoder with a WordPiece vocabulary in place of its own."""
    families.build(path, name, of=ENCODERS)
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(path.with_suffix(".new"), ENCODERS[name].arch)
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "tokenizer.")) and key != "general.architecture":
            value_type = field.types[0]
            kind = field.types[-1] if value_type is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), value_type, kind)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 4 + [1] * (len(WORDS) - 4))
    writer.add_token_type_count(2)
    for key, id in (("cls", 2), ("seperator", 3), ("unknown", 1), ("padding", 0)):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", id)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_suffix(".new").rename(path)


def test_embeddings(tmp_path, start):
    """Vectors of texts and of ids; one text as long as the context; a longer one, and generation, are refused."""
    path = with_wordpiece(tmp_path / "bert.gguf", "bert")
    model, tokenizer = rf.load(path, device="cpu")
    assert tokenizer.encode(DOCUMENTS[0]) == [2, 4, 12, 1, 3]
    with start(model_file=path, context=None) as server:
        found = server.post("/v1/embeddings", json={"model": "small", "input": DOCUMENTS}).json()
        vectors = np.array([one["embedding"] for one in found["data"]])
        np.testing.assert_allclose(vectors, rf.embed(model, DOCUMENTS), atol=1e-5)
        whole, longer = ({"model": "small", "input": [4] * count} for count in (128, 129))
        assert server.post("/v1/embeddings", json=whole).status_code == 200
        error = server.post("/v1/embeddings", json=longer).json()["error"]
        assert error["code"] == "context_length_exceeded"
        refused = {
            "/v1/completions": {"prompt": "a list", "max_tokens": 2},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
            "/v1/rerank": {"query": "a", "documents": ["b"]},
        }
        for route, body in refused.items():
            answer = server.post(route, json={"model": "small", **body})
            assert answer.status_code == 400, answer.text
        answer = server.post("/v1/completions", json={"model": "small", **refused["/v1/completions"]})
        assert "bert is an encoder: it has no logits, and generates nothing" in answer.json()["error"]["message"]
        assert server.get("/metrics").status_code == server.get("/props").status_code == 200
        assert server.get("/v1/models").json()["data"][0]["context_length"] == 128


def test_rerank(tmp_path, start):
    """[CLS] query [SEP] document [SEP], whatever a client's text spells; scores are of the first token."""
    path = with_wordpiece(tmp_path / "ranks.gguf", "bert-ranks")
    model, tokenizer = rf.load(path, device="cpu")
    plain = {"add_special_tokens": False, "parse_special_tokens": False}
    prompts = [[2, *tokenizer.encode(QUERY, **plain), 3, *tokenizer.encode(d, **plain), 3] for d in DOCUMENTS]
    assert prompts[0] == [2, 10, 11, 7, 13, 3, 4, 12, 1, 3]
    scores = rf.embed(model, prompts)[:, 0]
    np.testing.assert_allclose(scores, [model.scores(model.hidden(ids)[:1])[0, 0] for ids in prompts], atol=1e-5)
    with start(model_file=path, context=None) as server:
        found = server.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}).json()["results"]
        assert [result["index"] for result in found] == np.argsort(-scores).tolist()
        np.testing.assert_allclose([one["relevance_score"] for one in found], np.sort(scores)[::-1], atol=1e-5)
        refused = server.post("/v1/embeddings", json={"model": "small", "input": "a"}).json()["error"]
        assert "/v1/rerank" in refused["message"]
