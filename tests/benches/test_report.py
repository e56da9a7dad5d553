"""Runs of the benches: what is kept of them, what counts as a regression, and what pages and plots say."""

import json

import history
import pytest
import report


def record(test, median, iqr=0.0, file="bench_cpu", **extra):
    name = f"test_{test}"
    stats = {"median": median, "iqr": iqr}
    record = {"name": name, "fullname": f"benches/{file}.py::{name}", "stats": stats, "params": None}
    return record | {"extra_info": extra}


def written(path, *records, machine="A card", date="2026-01-02T03:04:05.6+00:00"):
    """A file as pytest-benchmark writes it."""
    about = {"machine_info": {"kind": machine, "versions": {"numpy": "2"}}, "commit_info": {"id": "0123456789"}}
    path.write_text(json.dumps({**about, "datetime": date, "benchmarks": records}))
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of kept runs."""
    monkeypatch.setattr(history, "FOLDER", tmp_path / "history")
    history.FOLDER.mkdir()
    return tmp_path


def test_what_is_kept(folder):
    """Medians in the units that they are compared in, one file for a machine, date and commit."""
    decode = record("decode", 0.5, 0.1, rate=["decode, 1 request", "demo", 256.123456, "tokens/s"])
    kernels = record("kernels[norms]", 9.0, rms_norm={"microseconds": 2.5})
    gemv = record("gemv[Q4_K-1-2]", 9.0, microseconds=3.5)
    path = written(folder / "run.json", decode, kernels, gemv, record("open", 0.002))
    assert report.main([path, "--save"]) == 0
    (run,) = history.runs("A card")
    assert run.path.name == "a-card-2026-01-02-0123456.json" and run.versions == {"numpy": "2"}
    assert run.figures["decode, 1 request"]["demo"] == {"value": 256.1, "unit": "tokens/s", "spread": 0.1}
    assert run.figures["norms"]["rms_norm"] == {"value": 2.5, "unit": "µs"}
    assert run.figures["gemv"]["Q4_K-1-2"]["value"] == 3.5
    assert run.figures["open"][""] == {"value": 2.0, "unit": "ms", "spread": 0.0}


@pytest.mark.parametrize(
    ("unit", "old", "new", "spread", "verdict"),
    [
        ("tokens/s", 100, 90, 0.0, "SLOWER"),
        ("tokens/s", 100, 112, 0.0, "faster"),
        ("ms", 10, 12, 0.0, "SLOWER"),
        ("ms", 10, 8, 0.0, "faster"),
        ("ms", 10, 10.2, 0.0, ""),
        ("tokens/s", 100, 90, 0.03, ""),
    ],
)
def test_beyond_the_noise(unit, old, new, spread, verdict):
    """Rates are better higher, times lower; what both runs' spreads explain is no change."""
    figures = [{"value": value, "unit": unit, "spread": spread} for value in (old, new)]
    assert history.Change("", "", "0123456", *figures).verdict == verdict


def test_a_regression_fails_the_report(folder, capsys):
    """A figure is compared with the newest one of the same machine alone."""
    runs = [
        ("old", "A card", "2026-01-01T00:00:00", 0.010),
        ("newer", "A card", "2026-01-02T00:00:00", 0.001),
        ("other", "Another", "2026-01-03T00:00:00", 0.010),
    ]
    for name, machine, date, seconds in runs:
        report.main([written(folder / name, record("open", seconds), machine=machine, date=date), "--save"])
    capsys.readouterr()
    report.main([written(folder / "newest", record("load", 0.002), date="2026-01-03T00:00:00"), "--save"])
    now = written(folder / "now", record("open", 0.002), date="2026-01-04T00:00:00")
    assert report.main([now]) == 1
    out = capsys.readouterr().out
    assert "A card" in out and "SLOWER" in out and "-50.0%" in out
    with pytest.raises(ValueError, match="Another"):
        history.compare(history.runs("Another"), history.runs("A card")[0])


def test_pages_name_the_machine_of_the_records(folder):
    """No page of one machine's figures has another's name; figures of the CPU are on neither page."""
    gemv = record("gemv[Q4_K]", 1.0, file="bench_ops", microseconds=3.5)
    path = written(folder / "run.json", gemv, record("open", 0.1), machine="AMD Radeon")
    report.main([path, "--pages", str(folder)])
    page = (folder / "ops.md").read_text()
    assert "AMD Radeon, 2026-01-02, commit 0123456" in page and "H200" not in page and "open" not in page
    report.main([written(folder / "cpu.json", record("open", 0.1)), "--pages", str(folder)])
    assert (folder / "ops.md").read_text() == page and not (folder / "models.md").exists()


def test_plots_of_what_is_kept(tmp_path):
    """Titles, units, plain numbers, the lines of other engines; and the kept files are all read."""
    pytest.importorskip("matplotlib")
    import plots

    runs = history.runs("NVIDIA H200")
    assert len(runs) >= 5 and [run.date for run in runs] == sorted(run.date for run in runs)
    plots.over_time(runs, tmp_path / "history.svg")
    plots.by_batch(runs[-1], tmp_path / "batch.svg")
    for name, words in (("history", ("Decode, one request", "2,500")), ("batch", ("Decode on NVIDIA H200", "10,000"))):
        text = (tmp_path / f"{name}.svg").read_text()
        assert all(word in text for word in (*words, "tokens a second", "llama.cpp"))
