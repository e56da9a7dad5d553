"""benches/bench_serving.py, tiny: every target and every kind of load gives figures that fit each other."""

import json
import subprocess
import sys
from pathlib import Path

import bench_serving
import pytest
import random_gguf
import report
from simulated_program import RUN, needs_wheel
from threadpoolctl import threadpool_limits

from rocforge.selftest.synthetic import SHAPES

HEAD = bench_serving.HEAD
ROOT = Path(__file__).parents[2]
BENCH = ROOT / "benches" / "bench_serving.py"
DEMO = ROOT / "examples" / "demo_model" / "demo-11M-Q8_0.gguf"
SMALL = ["--lengths", "16/6", "--seconds", "2"]
slow = pytest.mark.slow


def bench(path, *arguments):
    """The results that it writes, for the demo model."""
    bench_serving.main([str(DEMO), *map(str, arguments), "--json", str(path)])
    return json.loads(path.read_text())


def check(figures):
    """That figures are of a run in which requests were served."""
    assert figures["finished"] > 0 and figures["errors"] == 0, figures
    assert 0 < figures["output_tokens_per_second"] < figures["total_tokens_per_second"]
    for name in ("ttft_ms", "gap_ms"):
        assert 0 <= figures[name]["p50"] <= figures[name]["p99"] <= figures[name]["max"]


@slow
def test_engine_alone(tmp_path, capsys):
    """All arrivals, with constrained requests and such as are cancelled; steps are timed, and a table shows it."""
    shares = ["--constrained", 0.3, "--cancelled", 0.3, "--shared-prefix", 32]
    arrivals = ["-c", 4, "--rate", 20, "--at-once", 9]
    with threadpool_limits(1):  # threads of BLAS wait for each other where other tests want the processors
        results = bench(tmp_path / "json", "--device", "cpu", *arrivals, *shares, *SMALL)
    for result in results:
        check(result["figures"])
        assert result["figures"]["step_ms"]["max"] >= result["figures"]["step_ms"]["p50"] > 0
    assert results[2]["figures"]["finished"] == 9
    assert sum(result["figures"]["cancelled"] for result in results) > 0
    assert [line.count("|") for line in capsys.readouterr().out.splitlines() if "shared" in line] == [
        HEAD.count("|")
    ] * 3


@slow
def test_through_http(tmp_path):
    """A server of its own, and clients in two processes."""
    arguments = ["-c", 4, "--constrained", 0.2, "--cancelled", 0.2, "--clients", 2]
    (result,) = bench(tmp_path / "json", "--serve", "--device", "cpu", *arguments, *SMALL)
    check(result["figures"])
    assert result["figures"]["server_cpu_seconds"] > 0 and 0 < result["figures"]["client_busy"] < 1


@slow
@needs_wheel
def test_on_a_simulated_device(tmp_path):
    """The engine on a GPU: the same figures."""
    path = tmp_path / "model.gguf"
    random_gguf.write(path, SHAPES["tiny"], "Q8_0")
    command = [sys.executable, RUN, "--arch", "gfx1100", "python", BENCH, path, "-c", "2", "--lengths", "8/4"]
    command += ["--seconds", "2", "--max-requests", "4", "--max-batch-tokens", "16", "--json", tmp_path / "json"]
    subprocess.run(command, check=True, timeout=200)
    (result,) = json.loads((tmp_path / "json").read_text())
    check(result["figures"])
    assert 0 < result["figures"]["host_share"] < 1


@pytest.mark.parametrize(
    "words, error",
    [
        ([], "give either a GGUF file or --url"),
        (["a.gguf", "--url", "http://x"], "give either a GGUF file or --url"),
        (["--url", "http://x"], "--url needs --model"),
        (["--url", "https://x", "--model", "m"], "the URL is https://x; allowed is http://HOST[:PORT]"),
        (["a.gguf"], "there is no file a.gguf"),
        (["a.gguf", "--lengths", "512"], "the lengths are '512'; allowed are TOKENS_IN/TOKENS_OUT and sharegpt"),
        (["a.gguf", "--lengths", "0/5"], "the lengths are '0/5'; allowed are TOKENS_IN/TOKENS_OUT and sharegpt"),
    ],
)
def test_wrong_arguments(words, error, capsys):
    with pytest.raises(SystemExit):
        bench_serving.arguments(words)
    assert error in capsys.readouterr().err


def test_loads_of_the_command_line():
    """Options change each load of a preset, or those that are listed; no two draw the same prompts."""
    loads = bench_serving.loads(bench_serving.arguments([str(DEMO), "--seconds", "3", "--lengths", "sharegpt"]))
    assert len(loads) == len(bench_serving.PRESETS["table"]) and {load.lengths for load in loads} == {"sharegpt"}
    assert {load.seconds for load in loads} == {3.0} and len({load.seed for load in loads}) == len(loads)
    (load,) = bench_serving.loads(bench_serving.arguments([str(DEMO), "--rate", "2.5", "--cancelled", "0.1"]))
    assert (load.rate, load.concurrency, load.cancelled) == (2.5, None, 0.1)


def test_a_row_says_what_was_seen():
    figures = {"output_tokens_per_second": 1234.5, "total_tokens_per_second": 6000.0, "requests_per_second": 9.6}
    figures |= {
        "ttft_ms": {"p50": 1, "p99": 2.25, "max": 3},
        "gap_ms": None,
        "step_ms": None,
        "finished": 7,
        "errors": 0,
    }
    figures |= {"finished": 7, "errors": 0, "error": None, "waiting": 4, "waiting_ms": 2000.0}
    (load,) = bench_serving.loads(bench_serving.arguments([str(DEMO), "-c", "8", "--lengths", "512/128"]))
    line = bench_serving.row(load, figures)
    assert line.startswith("| 8 in flight, 512/128 | 1,234 | 6,000 | 9.6 | 1.0 / 2.2 | - | - | - | 7 | 0 |")
    assert line.endswith("4 wait for their first token, the longest for 2.0 s")
    assert "busy for 90% of the time" in bench_serving.row(load, figures | {"client_busy": 0.9})


def test_plot(tmp_path):
    """A line a target, a point a closed loop; a small file."""
    pytest.importorskip("matplotlib")
    from serving.plot import curves, plot

    def result(target, concurrency, gap, rate):
        figures = {"gap_ms": {"p99": gap}, "output_tokens_per_second": rate}
        return {"target": target, "load": {"concurrency": concurrency}, "figures": figures}

    results = [result("a", 16, 8.0, 900), result("a", 4, 5.0, 400), result("b", 4, 6.0, 300), result("b", None, 9.0, 1)]
    assert curves(results) == {"a": [(4, 5.0, 400), (16, 8.0, 900)], "b": [(4, 6.0, 300)]}
    plot(results, tmp_path / "curve.svg")
    text = (tmp_path / "curve.svg").read_text()
    assert all(f">{word}<" in text for word in ("a", "b", "16")) and len(text) < 40_000


def test_report_draws_the_curve(tmp_path):
    """benches/report.py makes docs/scheduling.svg of what bench_serving.py wrote."""
    pytest.importorskip("matplotlib")
    result = {"target": "engine, 50 ms", "load": {"concurrency": 4}}
    result["figures"] = {"gap_ms": {"p99": 5.0}, "output_tokens_per_second": 400}
    (tmp_path / "curve.json").write_text(json.dumps([result]))
    report.main([str(tmp_path / "curve.json"), "--pages", str(tmp_path)])
    assert ">engine, 50 ms<" in (tmp_path / "scheduling.svg").read_text()
