"""Which models a server has, by what a user says; and which of them are loaded, without processes."""

import asyncio
import gc
import weakref
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="the extra server is not installed")

import rocforge as rf
from rocforge.engine.capacity import CacheSizes
from rocforge.engine.reply import ServiceError
from rocforge.errors import OutOfMemoryError
from rocforge.server.engine_options import EngineOptions
from rocforge.server.model_clients import IN_USE, ModelClient
from rocforge.server.model_pool import ModelPool, ModelState
from rocforge.server.models import find_models
from rocforge.server.run_models import check_host_memory

UNLOADED, LOADING, LOADED, UNLOADING = ModelState


def test_names_and_sizes(tmp_path):
    """Files and Hub names by their last part; of a folder all models, split sets once, and nothing beside a model."""
    for name, size in {
        "a.gguf": 3, "sub/b.gguf": 5, "c-00001-of-00002.gguf": 7, "c-00002-of-00002.gguf": 11, "mmproj-a.gguf": 1,
        "notes.txt": 1,
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(bytes(13))

    def found(*places):
        return [(model.name, model.nbytes) for model in find_models([str(place) for place in places])]

    assert found(tmp_path) == [("a", 3), ("c", 18), ("sub/b", 5)]
    assert found(tmp_path / "sub" / "b.gguf", "hf:owner/repo:Q8_0", checkpoint) == [
        ("b", 5), ("repo:Q8_0", 0), ("checkpoint", 13)
    ]  # fmt: skip
    assert found(tmp_path / "c-00001-of-00002.gguf") == [("c-00001-of-00002", 18)]
    with pytest.raises(ValueError, match=r"two models are named 'a': .*a.gguf and .*a.gguf"):
        found(tmp_path / "a.gguf", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no model in .*empty: no \.gguf file, and no config.json"):
        found(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no such file: nowhere\.gguf"):
        found(tmp_path / "a.gguf", "nowhere.gguf")


def test_caches_share_a_gpu(model_file, monkeypatch):
    """Without a size each takes its part of what fits, but a whole context where that fits; one alone takes all."""
    model, _ = rf.load(model_file, device="cpu")
    context = model.config.context
    monkeypatch.setattr(model, "device", "gpu:0")
    for fits, expected in ((40 * context, 10 * context), (2 * context, context), (context // 2, context // 2)):
        monkeypatch.setattr(CacheSizes, "tokens_that_fit", lambda self, context, requests, fits=fits: fits)
        assert EngineOptions(models=4, max_requests=64).cache_tokens_of(model) == expected
    assert EngineOptions(models=4, cache_tokens=96).cache_tokens_of(model) == 96
    assert EngineOptions().cache_tokens_of(model) is None


class Actions:
    """Notes what a pool has done; `wrong`: models whose files are."""

    def __init__(self):
        self.done, self.errors, self.wrong = [], {}, set()

    def check(self, name):
        if name in self.wrong:
            raise ValueError(f"{name} is no model")

    def start(self, name):
        self.done.append(f"start {name}")

    def tell(self, name, state, error):
        self.errors[name] = error
        if state is UNLOADING:
            self.done.append(f"drain {name}")

    def end(self, name):
        self.done.append(f"end {name}")

    def take(self):
        done, self.done = self.done, []
        return done


@pytest.fixture
def actions():
    return Actions()


def pool_of(actions, most, uses="abcd"):
    """A pool of a, b, c, d, that were used last in the order of `uses`."""
    return ModelPool("abcd", most, uses.index, actions)


def load(pool, *names):
    for name in names:
        pool.want(name)
        pool.has_loaded(name)


def test_one_after_another(actions):
    """What is wanted while another model is loaded waits for that, and what is wanted twice is loaded once."""
    pool = pool_of(actions, 4)
    for name in "abab":
        pool.want(name)
    assert actions.take() == ["start a"] and pool.states["a"] is LOADING and pool.states["b"] is UNLOADED
    pool.has_loaded("a")
    pool.want("a")
    assert actions.take() == ["start b"] and pool.loaded == ["a"]


def test_the_least_recently_used_makes_room(actions):
    """It ends once its requests have, and only then is the next one started; it may be wanted again meanwhile."""
    pool = pool_of(actions, 2, uses="bacd")
    load(pool, "a", "b")
    actions.take()
    pool.want("c")
    assert actions.take() == ["drain b"] and pool.states["b"] is UNLOADING
    pool.want("b")
    pool.drained("b")
    assert actions.take() == ["end b"]
    pool.ended("b", RuntimeError("terminated"))
    assert actions.take() == ["start c"] and actions.errors["b"] is None
    pool.has_loaded("c")
    assert actions.take() == ["drain a"]
    pool.drained("a")
    pool.ended("a", RuntimeError("terminated"))
    assert actions.take() == ["end a", "start b"]


def test_memory(actions):
    """A model that lacks memory is tried again with fewer others, at last alone, and then fails."""
    pool = pool_of(actions, 0)
    load(pool, "a", "b")
    pool.want("c")
    actions.take()
    for name in "ab":
        pool.ended("c", OutOfMemoryError("too large"))
        assert actions.take() == [f"drain {name}"] and actions.errors["c"] is None
        pool.drained(name)
        pool.ended(name, RuntimeError("terminated"))
        assert actions.take() == [f"end {name}", "start c"]
    pool.ended("c", OutOfMemoryError("too large"))
    assert actions.take() == [] and actions.errors["c"] == "too large" and pool.states["c"] is UNLOADED
    pool.want("c")
    assert actions.take() == ["start c"], "the next request tries again"


def test_failures_harm_no_other(actions):
    """A file that is no model costs no other its place; an engine that dies is loaded again when it is wanted."""
    pool = pool_of(actions, 1)
    load(pool, "a")
    actions.take()
    actions.wrong.add("b")
    pool.want("b")
    assert actions.take() == [] and actions.errors["b"] == "b is no model" and pool.loaded == ["a"]
    pool.ended("a", RuntimeError("killed"))
    assert actions.errors["a"] == "killed" and pool.loaded == []
    pool.want("a")
    assert actions.take() == ["start a"]


def test_nothing_is_left_of_an_unloaded_model():
    """Whoever waits gets the endpoints; when it is unloaded its tokenizer is freed, though it is in frozen circles."""

    class Circle:
        def __init__(self):
            self.itself = self

    class Client:
        def __init__(self, on_ready):
            self.on_ready = on_ready

        async def start(self):
            self.tokenizer = Circle()
            gc.collect()
            gc.freeze()
            self.on_ready()

        def close(self):
            del self.tokenizer
            said.append("closed")

    def endpoints(client):
        generator = SimpleNamespace(forget=lambda: said.append("forgotten"))
        return SimpleNamespace(client=client, state=SimpleNamespace(generator=generator))

    async def run():
        model = ModelClient(lambda: said.append("want"), lambda: said.append("drained"), uses.append, Client, endpoints)

        async def use():
            async with model.use() as endpoints:
                return weakref.ref(endpoints.client.tokenizer)

        using = asyncio.ensure_future(use())
        await asyncio.sleep(0)
        assert said == ["want"] and uses == [IN_USE]
        for state in (LOADING, LOADED):
            model.change(state, None)
        left = await using
        assert left() is not None and uses[-1] < IN_USE
        model.change(UNLOADING, None)
        assert said == ["want", "drained"]
        again = asyncio.ensure_future(use())
        await asyncio.sleep(0)
        assert said == ["want", "drained"], "it waits until the model is gone"
        model.change(UNLOADED, None)
        await asyncio.sleep(0.01)
        assert left() is None and said[2:] == ["closed", "forgotten", "want"]
        model.change(UNLOADED, "too large")
        with pytest.raises(ServiceError, match="the model does not load: too large"):
            await again

    said, uses = [], []
    asyncio.run(run())


def test_host_memory(tmp_path):
    """On a CPU a model's file has to fit beside those of others; alone it is always tried."""
    (tmp_path / "a.gguf").write_bytes(bytes(1000))
    (model,) = find_models([str(tmp_path / "a.gguf")])
    check_host_memory(model, 0, 500)
    check_host_memory(model, 500, 1500)
    with pytest.raises(
        OutOfMemoryError, match=r"a takes .*1,000 bytes.*, other loaded models .*501 bytes.*, of .*1,500"
    ):
        check_host_memory(model, 501, 1500)
