"""benches/bench_frontend.py, tiny: clients get the rate that the engine is told, and CPU time is counted as it says."""

import json
import subprocess
import sys

import bench_frontend
import pytest
from bench_frontend import Clocks
from serving import synthetic
from serving.server import cpu_seconds
from serving.synthetic import SyntheticEngine

from rocforge.ops.sampling import SamplingParams


@pytest.fixture
def clock(monkeypatch):
    """A clock of the synthetic engine that sleeping alone moves."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    monkeypatch.setattr(synthetic, "time", Clock())
    return synthetic.time


def test_engine_keeps_its_rate(clock):
    """Four requests at 400 tokens a second: each gets its first token at once, and then one every 10 ms."""
    engine = SyntheticEngine(400, [7, 8, 9])
    requests = [engine.add([1, 2], SamplingParams(max_tokens=11)) for _ in range(4)]
    assert [token.id for token in engine.step()] == [7] * 4 and clock.now == 100.0
    tokens = []
    while engine.busy:
        tokens += [(clock.now, token) for token in engine.step()]
    assert len(tokens) == 4 * 10 and requests[0].output == [7, 8, 9] * 3 + [7, 8]
    assert clock.now == pytest.approx(100.0 + 10 * 0.01)
    assert {token.finish_reason for _, token in tokens[-4:]} == {"length"}


def test_engine_forgets_what_is_cancelled(clock):
    """Before its first token, or after it."""
    engine = SyntheticEngine(100, [7])
    early, late = (engine.add([1], SamplingParams(max_tokens=5)) for _ in range(2))
    engine.cancel(early)
    assert [token.request for token in engine.step()] == [late]
    engine.cancel(late)
    assert not engine.busy and engine.step() == []


def test_cpu_time_of_a_tree():
    """Of a process, and of its child, also after that has ended."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\n{burn}print(flush=True)\ninput()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    assert 0.55 <= cpu_seconds(process.pid) < 2
    process.communicate(b"\n")
    assert cpu_seconds(process.pid) == 0


def test_the_engines_process_is_not_the_front_ends(monkeypatch):
    """Its time is taken off what the tree has taken, and shown as a share of the window."""
    times = iter([10.0, 4.0, 18.0, 5.0])
    monkeypatch.setattr(bench_frontend, "cpu_seconds", lambda pid: next(times))
    clocks = Clocks(server=1, engine=2)
    assert (clocks.front_ends(), clocks.front_ends()) == (6.0, 13.0)
    assert clocks.engine_share({"seconds": 4.0}) == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 1])
def test_bench(processes, tmp_path, capsys):
    path = tmp_path / "json"
    words = ["--streams", "4", "--rates", "400", "--lengths", "16", "20", "--seconds", "2"]
    bench_frontend.main([*words, "--processes", str(processes), "--json", str(path)])
    (result,) = json.loads(path.read_text())
    figures = result["figures"]
    assert figures["errors"] == 0 and figures["output_tokens_per_second"] == pytest.approx(400, rel=0.3)
    assert figures["tokens_a_core"] > 400 and figures["gap_ms"]["p50"] == pytest.approx(10, rel=0.5)
    assert "| 4 | 400 |" in capsys.readouterr().out
