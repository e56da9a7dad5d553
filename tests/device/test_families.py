"""Families on a device: logits of a prompt, and of steps after it, against the CPU's."""

import os
from dataclasses import replace

import numpy as np
import pytest
from golden import families, relative_error
from golden.families import FAMILIES

import rocforge as rf
from rocforge.device import tuning
from rocforge.engine.scheduler import Scheduler
from rocforge.load import load_model
from rocforge.loading.warmup import record_kernels
from rocforge.nn.batch import Batch, Chunk

pytestmark = [pytest.mark.slow, pytest.mark.any_wave]

BOUND = 8e-3
"""Products round to float16."""
SHOWN = (
    "llama4",
    "cohere2",
    "gpt2",
    "granite",
    "qwen35",
    "nemotron_h",
    "jamba",
    "lfm2",
    "qwen35moe",
    "bailingmoe2",
    "deepseek2",
    "kimi-linear",
    "plamo2",
    "rwkv6",
    "rwkv6qwen2",
    "rwkv7",
    "gemma4-wide",
    "gemma4-experts",
    "gemma4-shared",
    "gemma3n-few",
    "bloom",
    "mimo2",
)
"""What others lack: chunks of the text, blocks side by side, learned positions, scaled residuals, fixed states, groups
of experts, latents, wide heads, experts beside a feed-forward, shared keys and values, several streams, mixtures of a
token with the one before, biases of distance, values shorter than keys."""


def test_values_of_the_first_layer(tmp_path):
    """Captured steps have them too: the tokens of llama.cpp, of a prompt in chunks."""
    path, tokens = tmp_path / "model.gguf", families.load("rwkv7")["tokens"].tolist()
    families.build(path, "rwkv7")
    prompt, expected = tokens[: families.PROMPT], tokens[families.PROMPT : families.PROMPT + 4]
    with rf.Engine(load_model(rf.open_gguf(path), "gpu"), cache_tokens=160, max_batch_tokens=32) as engine:
        request = engine.add(prompt, rf.SamplingParams(max_tokens=4, temperature=0))
        while engine.busy:
            engine.step()
    assert request.output == expected


@pytest.mark.parametrize("name", SHOWN if "HIPSIM_ARCH" in os.environ else FAMILIES)
def test_logits(tmp_path, name):
    """A prompt, and two tokens one by one."""
    path = tmp_path / "model.gguf"
    families.build(path, name)
    cpu, gpu = (load_model(rf.open_gguf(path), device) for device in ("cpu", "gpu"))
    tokens = families.prompt(name)[:28]
    expected, cache = cpu(tokens), gpu.new_cache(2)
    for start, stop in ((0, 26), (26, 27), (27, 28)):
        batch = Batch.of(cache, [Chunk(start, stop - start, [1, 0])], all_logits=True)
        assert relative_error(rf.asnumpy(gpu(tokens[start:stop], batch)), expected[start:stop]) < BOUND


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
@pytest.mark.parametrize("name", ["bloom"])
def test_captured_steps(tmp_path, name, monkeypatch):
    """Of a prompt in chunks and of decoding, bit for bit what the same kernels give one by one."""
    families.build(tmp_path / "model.gguf", name)
    model, prompt = load_model(rf.open_gguf(tmp_path / "model.gguf"), "gpu"), families.prompt(name)[:40].tolist()
    params, found = rf.SamplingParams(max_tokens=6, temperature=0, logprobs=1), []
    for graphs in ("1", "0"):
        monkeypatch.setenv("ROCFORGE_GRAPHS", graphs)
        with rf.Engine(model, cache_tokens=128, max_batch_tokens=32) as engine:
            request, tokens = engine.add(prompt, params), []
            while engine.busy:
                tokens += [(token.id, token.logprobs) for token in engine.step()]
        assert [id for id, _ in tokens] == request.output
        found.append(tokens)
    assert len(found[0]) == 6 and found[0] == found[1]


def latents_model(path):
    """A dense model with latents, on the device, whose heads have values of a length that kernels of prompts take."""
    family = FAMILIES["plm"]
    family = replace(family, metadata={**family.metadata, "attention.value_length": 32})
    families.build(path, "plm", of={"plm": family})
    return load_model(rf.open_gguf(path), "gpu")


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
def test_prompts_make_keys_and_values_of_latents(tmp_path, monkeypatch):
    """Chunks of prompts, one behind a prefix that is reused, beside requests that decode: as with latents alone, and
    captured bit for bit as one by one."""
    model, prompt = latents_model(tmp_path / "model.gguf"), families.prompt("plm").tolist()
    prompts = [prompt, prompt[:33] + prompt[5:30], prompt[:45]]
    params, found = rf.SamplingParams(max_tokens=4, temperature=0, logprobs=1), {}
    for queries, graphs in ((1 << 20, "1"), (2, "1"), (2, "0")):
        monkeypatch.setenv("ROCFORGE_GRAPHS", graphs)
        with tuning.trying(expanded_queries=queries), rf.Engine(model, cache_tokens=256, max_batch_tokens=32) as engine:
            requests = [engine.add(tokens, params) for tokens in prompts]
            likely: dict[int, list[float]] = {id(request): [] for request in requests}
            while engine.busy:
                for token in engine.step():
                    likely[id(token.request)].append(token.logprobs.token)
            expanded = {shape.fewest for shape in engine._runner._plans if shape.expanded}
            assert expanded == ({1, 2} if queries == 2 else set())
            found[queries, graphs] = [request.output for request in requests], [*likely.values()]
    assert found[2, "1"] == found[2, "0"]
    assert found[2, "1"][0] == found[1 << 20, "1"][0]
    np.testing.assert_allclose(found[2, "1"][1], found[1 << 20, "1"][1], atol=2e-2)


def test_warmup_has_the_kernels_of_expanded_prompts(tmp_path):
    """What prompts make keys and values with is compiled while weights load."""
    names: set[str] = set()
    record_kernels(latents_model(tmp_path / "model.gguf"), lambda kernel: names.add(kernel.name))
    assert {
        "latent_plan",
        "latent_turn",
        "latent_expand",
        "latent_alone",
        "attention_prefill",
        "latent_attention",
    } <= names


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
@pytest.mark.parametrize("name", ["qwen35moe", "granitehybrid", "kimi-linear", "rwkv7"])
def test_a_request_without_numbers_fails_alone(tmp_path, name):
    """The embedding of token 0 is NaN, which fills up steps, and which one prompt has. Its request fails; others beside
    it and after it, in its blocks and its slot, get the tokens that they get one by one without NaN."""
    families.build(tmp_path / "model.gguf", name)
    model, rng = load_model(rf.open_gguf(tmp_path / "model.gguf"), "gpu"), np.random.default_rng(3)
    prompts = [rng.integers(1, model.config.vocabulary, n).tolist() for n in (21, 30, 5, 40)]
    alone = tokens_of(model, prompts, at_a_time=1)
    model.token_embd.weight[0] = np.nan
    prompts[1][11] = 0
    found = tokens_of(model, prompts, at_a_time=2)
    assert "NonFiniteError" in found[1] and [found[0], *found[2:]] == [alone[0], *alone[2:]]


def tokens_of(model, prompts, at_a_time, count=3):
    """Of each request its tokens, or its error."""
    params, errors = rf.SamplingParams(max_tokens=count, temperature=0, ignore_eos=True), {}
    with rf.Engine(model, cache_tokens=256, max_batch_tokens=48, max_requests=at_a_time) as engine:
        requests = [engine.add(prompt, params) for prompt in prompts]
        while engine.busy:
            errors |= {id(token.request): repr(token.error) for token in engine.step() if token.error}
    return [errors.get(id(request), request.output) for request in requests]


@pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches")
@pytest.mark.parametrize("name", ["qwen35moe", "gemma4-experts", "deepseek2-lite"])
def test_under_load(tmp_path, name, monkeypatch):
    """Requests that come and go, begin alike, are cancelled, and preempted in a cache for few of them: each gets the
    tokens that it gets alone."""
    families.build(tmp_path / "model.gguf", name)
    model, rng, preempted = load_model(rf.open_gguf(tmp_path / "model.gguf"), "gpu"), np.random.default_rng(5), []
    prompts = [rng.integers(0, model.config.vocabulary, n).tolist() for n in rng.integers(1, 70, 8)]
    prompts[5] = prompts[0][:40] + prompts[5][:9]
    waiting, params = list(prompts), rf.SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    preempt = Scheduler.preempt
    monkeypatch.setattr(Scheduler, "preempt", lambda *args: preempted.append(args) or preempt(*args))
    with rf.Engine(model, cache_tokens=160, max_batch_tokens=48, max_requests=5) as engine:
        requests, left = [], engine.add(prompts[2], params)
        while waiting or engine.busy:
            while waiting and len(engine.scheduler) < 6:
                requests.append(engine.add(waiting.pop(0), params))
            engine.step()
            engine.cancel(left)
    assert [request.output for request in requests] == tokens_of(model, prompts, 1, count=20) and preempted
