"""A user's script, which a type checker reads and nobody runs: tests/typing/test_user_script.py."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import assert_type

import rocforge as rf
from rocforge.nn.transformer import Transformer

path = Path("model.gguf")
loaded = rf.load(path, device="cpu", context=2048)
assert_type(loaded, tuple[Transformer, rf.Tokenizer])
model, tokenizer = loaded

ids = tokenizer.encode("def f(")
assert_type(ids, list[int])
assert_type(tokenizer.decode(ids), str)
assert_type(tokenizer.eog_token_ids, frozenset[int])
assert_type(tokenizer.bos_token, str | None)
assert_type(tokenizer("def f(")["input_ids"], Any)
assert_type(tokenizer.tokenize("def f("), list[str])
assert_type(tokenizer.to_str_tokens(ids), list[str])
assert_type(tokenizer.batch_decode([ids]), list[str])
assert_type(tokenizer.convert_ids_to_tokens(5), str)
assert_type(tokenizer.convert_ids_to_tokens(ids), list[str])
assert_type(tokenizer.convert_tokens_to_ids("def"), int)
assert_type(tokenizer.convert_tokens_to_ids(["def", "f"]), list[int])
messages = [{"role": "user", "content": "hello"}]
assert_type(tokenizer.apply_chat_template(messages), list[int])
assert_type(tokenizer.apply_chat_template(messages, tokenize=False), str)

assert_type(rf.generate(model, tokenizer, "def f(", max_tokens=4), str)
assert_type(rf.generate(model, tokenizer, [1, 2, 3], temperature=0, stop="\n"), str)
assert_type(rf.generate(model, tokenizer, ["a", "b"]), list[str])
assert_type(rf.generate(model, tokenizer, [[1], [2]]), list[str])
assert_type(model.adapters.load("pirate", path, scale=0.5), rf.LoRA)
model.adapters["half"] = 0.5 * model.adapters["pirate"]
assert_type(rf.generate(model, tokenizer, "def f(", lora="pirate"), str)
assert_type(rf.generate(model, tokenizer, ["a", "b"], lora=["half", None]), list[str])
stream = rf.stream_generate(model, tokenizer, "import os")
assert_type(stream, Generator[rf.GenerationResponse, None, None])
for response in stream:
    assert_type(response.text, str)
    assert_type(response.token, int)

found = rf.perplexity(model, "def f(x):", n_ctx=64)
assert_type(float(found), float)
assert_type(found.nll, np.ndarray)
assert_type(rf.compare(model, model, ids).kl_mean, float)
assert_type(rf.embed(model, ["a", "b"]), np.ndarray)
assert_type(rf.embed(model, ids, "last"), np.ndarray)
with model.edit({"blk.*.ffn_down": 0.5, "blk.0": lambda y, x: y + x}), model.capture("blk.1") as seen:
    model(ids)
    assert_type(seen, dict[str, Any])
model.blk[0].attn_norm.weight *= 2
model.blk[0].attn_q.weight = np.ones((4, 4))

weight = rf.quantize(np.ones((4, 32), np.float32), "Q8_0")
assert_type(weight, rf.QuantizedArray)
assert_type(weight.shape, tuple[int, ...])
assert_type(weight[1:3], Any)  # packed rows, or values where a part of the last axis is taken
assert_type(rf.rms_norm(np.ones((2, 4), np.float32), np.ones(4, np.float32)), Any)

file = rf.open_gguf(path)
assert_type(file, rf.GGUFFile)
assert_type(file.metadata, dict[str, Any])

params = rf.SamplingParams(max_tokens=8, temperature=0, stop=["\n"])
with rf.Engine(model, tokenizer.eog_token_ids, max_requests=4) as engine:
    assert_type(engine, rf.Engine)
    request = engine.add(ids, params)
    assert_type(request.output, list[int])
    assert_type(engine.busy, bool)

try:
    rf.device_info("gpu:9")
except rf.RocforgeError as error:
    assert_type(error, rf.RocforgeError)
assert_type(rf.device_info().memory_free, int)

rf.SamplingParams(max_tokens="8")  # type: ignore[arg-type]
rf.load(path, contxt=2048)  # type: ignore[call-arg]
rf.generate(model, tokenizer, "x", max_new_tokens=8)  # type: ignore[call-overload]
rf.stream_generate(model, tokenizer, "x", temp=0)  # type: ignore[call-arg]
print(rf.no_such_name)  # type: ignore[attr-defined]
