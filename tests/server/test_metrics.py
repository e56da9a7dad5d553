"""Metrics: the numbers of several processes in one table."""

import os
from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families

from rocforge.engine.reply import Progress
from rocforge.server.metrics import Metrics, ReplicaTables, Table


def values(metrics):
    """The samples, by name and labels."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def reply(tokens=1, submitted=0.0):
    return SimpleNamespace(
        completion_tokens=tokens,
        submitted=submitted,
        last_token_time=submitted,
        prompt_tokens=10,
        cached_tokens=4,
        progress=Progress.FINISHED,
    )


def write(metrics, monkeypatch, tokens):
    """A reply whose first token comes after 0.015 seconds, and the others 0.03 apart."""
    now, one = [0.0], reply()
    monkeypatch.setattr("rocforge.server.metrics.time.monotonic", lambda: now[0])
    for count in range(1, tokens + 1):
        now[0] += 0.015 if count == 1 else 0.03
        one.completion_tokens = count
        metrics.tokens([one])
    metrics.ended(one)


def test_sums_over_processes(monkeypatch):
    """Forks write their own rows; each reports all, and what one that has ended wrote stays."""
    table = Table(3)
    ours = Metrics(table, 0)
    for index in (1, 2):
        if (pid := os.fork()) == 0:
            write(Metrics(table, index), monkeypatch, 300)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    write(ours, monkeypatch, 5)
    table.note_engine(3, 5, (100, 40))
    found = values(ours)
    assert found["rocforge_generated_tokens_total",] == 605
    assert found["rocforge_prompt_tokens_total",] == 30 and found["rocforge_cached_prompt_tokens_total",] == 12
    assert found["rocforge_requests_total", "finished"] == 3 and found["rocforge_requests_total", "failed"] == 0
    assert found["rocforge_requests_waiting",] == 3 and found["rocforge_requests_running",] == 2
    assert found["rocforge_cache_blocks",] == 100 and found["rocforge_cache_blocks_used",] == 40
    assert found == values(Metrics(table, 1))


def test_histograms(monkeypatch):
    """Buckets are cumulative; their bounds belong to them."""
    metrics = Metrics(Table())
    write(metrics, monkeypatch, 11)
    found = values(metrics)
    first = {bound: found["rocforge_time_to_first_token_seconds_bucket", bound] for bound in ("0.01", "0.02", "+Inf")}
    between = {bound: found["rocforge_time_between_tokens_seconds_bucket", bound] for bound in ("0.02", "0.05", "+Inf")}
    assert first == {"0.01": 0, "0.02": 1, "+Inf": 1} and between == {"0.02": 0, "0.05": 10, "+Inf": 10}
    assert abs(found["rocforge_time_between_tokens_seconds_sum",] - 0.3) < 1e-9
    assert found["rocforge_request_duration_seconds_count",] == 1


def test_requests_in_progress():
    """Of all processes; those of one that died do not count once another is in its place."""
    table = Table(2)
    Metrics(table, 0).request(1)
    Metrics(table, 1).request(1)
    assert table.in_progress == 2
    Metrics(table, 1)
    assert table.in_progress == 1


def test_replicas_have_a_label(monkeypatch):
    """Their numbers, as they send them."""
    metrics = Metrics(Table(2), index=1)
    write(metrics, monkeypatch, tokens=3)
    metrics.table.note_engine(1, 3, (8, 5))
    found = values(ReplicaTables([("a", metrics.updated().numbers.copy(), 2), ("b", Table().numbers, 0)]))
    assert found["rocforge_generated_tokens_total", "a"] == 3 and found["rocforge_requests_running", "a"] == 2
    assert found["rocforge_requests_total", "finished", "a"] == 1
    assert found["rocforge_requests_retried_total", "a"] == 2 and found["rocforge_requests_retried_total", "b"] == 0
    assert ("rocforge_generated_tokens_total", "b") not in found
