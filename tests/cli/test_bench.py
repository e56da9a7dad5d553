"""`rocforge bench`: the tests run as they are named, and the numbers are what was measured."""

import csv
import json

import numpy as np
import pytest
from golden import demo
from threadpoolctl import threadpool_limits

import rocforge as rf
from rocforge.cli import bench
from rocforge.cli.bench_results import Form, Measurement, aligned
from rocforge.cli.errors import UsageError

pytestmark = pytest.mark.slow


def test_json(rocforge, model):
    """Every repetition under llama-bench's names, and nothing on stderr; a test a size."""
    options = ("-p", "8,16", "-n", 3, "-pg", "8,3", "-r", 2, "--device", "cpu", "-o", "json")
    done = rocforge("bench", model, *options, environment={"OPENBLAS_NUM_THREADS": "1"})
    results = json.loads(done.stdout)
    assert done.stderr == ""
    assert [(r["n_prompt"], r["n_gen"]) for r in results] == [(8, 0), (16, 0), (0, 3), (8, 3)]
    for result in results:
        tokens, rates = result["n_prompt"] + result["n_gen"], result["samples_ts"]
        assert np.allclose(rates, [tokens / ns * 1e9 for ns in result["samples_ns"]], rtol=1e-6) and len(rates) == 2
        assert np.isclose(result["avg_ts"], np.mean(rates)) and np.isclose(result["stddev_ts"], np.std(rates, ddof=1))
        assert result["backends"] == "CPU" and result["n_gpu_layers"] == 0 and result["model_n_params"] > 1e6


@pytest.fixture
def run(capsys, model):
    """Runs the command in this process, and gives what it wrote to stdout."""

    def run(*models, prompts="8", generations="0", form=None, compare=None):
        with threadpool_limits(1):  # other tests have the other cores
            bench.bench(
                [model, *models], [prompts], [generations], repetitions=1, form=form, compare=compare, device="cpu"
            )
        return capsys.readouterr().out

    return run


def test_an_earlier_run(run, tmp_path):
    """llama-bench's columns, and beside them those of JSON that was written before, and the ratio to it."""
    path = tmp_path / "before.json"
    path.write_text(run(prompts="8,16", generations="3", form=Form.json))
    before = json.loads(path.read_text())
    text = run(prompts="8,16", generations="3", compare=str(path))
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert head == ["model", "size", "params", "backend", "threads", "test", "t/s", "compared", "ratio"]
    assert [line[5] for line in lines] == ["pp8", "pp16", "tg3"]
    for line, result in zip(lines, before, strict=True):
        assert line[7] == f"{result['avg_ts']:.2f} ± 0.00"
        assert abs(float(line[8].split()[-1]) - float(line[6].split()[0]) / result["avg_ts"]) < 0.01


def test_another_model(run, model):
    """CSV and JSON lines; a model that is compared with is measured first."""
    (row,) = csv.DictReader(run(form=Form.csv, compare=model).splitlines())
    assert float(row["ratio"]) == pytest.approx(float(row["avg_ts"]) / float(row["compared_ts"]))
    assert row["compared_filename"] == model and "samples_ns" not in row
    assert [json.loads(line)["n_prompt"] for line in run(model, form=Form.jsonl).splitlines()] == [8, 8]


def test_terminal(terminal, model):
    """A table whose columns are aligned, without Markdown; progress is drawn meanwhile."""
    process = terminal("bench", model, "-p", 8, "-n", 0, "-r", 1, "--device", "cpu")
    process.expect_exact("pp8:")
    process.expect(r"model +size +params +backend +threads +test +t/s\r\n[─ ]+\r\n(llama Q8_0.*)\r\n")
    assert "|" not in process.match[1] and " pp8 " in process.match[1]


def test_aligned():
    """Numbers to the right, names to the left, as Markdown or as text."""
    rows, columns = [["a", "1.00"], ["long", "22.00"]], ["name", ">t/s"]
    assert aligned(rows, columns, True).splitlines() == [
        "| name |   t/s |",
        "| ---- | ----: |",
        "| a    |  1.00 |",
        "| long | 22.00 |",
    ]
    assert aligned(rows, columns, False).splitlines()[2:] == ["a      1.00", "long  22.00"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": ["x"]}, "-p is 'x'"),
        ({"prompts": ["0"], "generations": ["0"]}, "nothing to measure"),
        ({"pairs": ["5"]}, "two numbers"),
    ],
)
def test_sizes_that_are_not(options, said):
    with pytest.raises(UsageError, match=said):
        bench._tests(options.get("prompts"), options.get("generations"), options.get("pairs"))


def test_earlier_results_that_are_not(tmp_path):
    (tmp_path / "some.json").write_text('{"a": 1}')
    with pytest.raises(UsageError, match="no results of rocforge bench or llama-bench"):
        bench.earlier_results(tmp_path / "some.json")


def test_what_is_measured_is_computed(monkeypatch):
    """pp computes all of its prompt each time, in batches of the given size; tg one token a step."""
    model, tokenizer = rf.load(demo.bundled(), device="cpu")
    counts, forward = [], type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda m, t, b=None, **options: (counts.append(len(t)), forward(m, t, b, **options))[1]
    )
    limits = {"cache_tokens": 128, "max_batch_tokens": 64}
    with threadpool_limits(1), rf.Engine(model, tokenizer.eog_token_ids, **limits) as engine:
        list(bench._measured(engine, [(100, 0)], 2))
        assert sum(counts) == 3 * 100 and max(counts) == 64
        counts.clear()
        list(bench._measured(engine, [(0, 7)], 2))
        assert counts == [1] * (3 * 7)
        counts.clear()
        list(bench._measured(engine, [(10, 3)], 1))
        assert counts == [10, 1, 1, 1] * 2
        assert engine.scheduler.state.idle


def test_rates():
    """Tokens of the prompt and generated ones count alike; names are llama-bench's."""
    result = Measurement(100, 20, (1.0, 2.0))
    assert result.rates == [120.0, 60.0] and result.name == "pp100+tg20"
    assert Measurement(0, 128, ()).name == "tg128"
