"""Running groups of checks in processes: what ends, hangs or never starts is one failure, and the rest goes on."""

import sys

import pytest

from rocforge.selftest import run
from rocforge.selftest.run import Job, results

CHILD = """
import json, os, sys, time
job = json.loads(sys.argv[3])
names = ["first", "second", "third", "fourth"]
faults = json.loads({faults!r})
print(json.dumps({{"checks": names}}), flush=True) if "starting" not in faults else sys.exit("no such library")
for name in names[job["first"]:]:
    print(json.dumps({{"begin": name}}), flush=True)
    if faults.get(name) == "abort":
        print("Memory access fault by GPU node-1", file=sys.stderr, flush=True)
        os.abort()
    if faults.get(name) == "hang":
        time.sleep(60)
    print(json.dumps({{"result": {{"name": name, "seconds": 0.1, "failure": faults.get(name)}}}}), flush=True)
sys.exit(3 * faults.get("ending", 0))
"""


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Results of a group of four checks, some of which have faults, by name; and the counts that were told."""

    def run_with(faults):
        (tmp_path / "child.py").write_text(CHILD.format(faults=faults))
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "child.py"} "$@"\n')
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        counts = []
        failures = {result.name: result.failure for result in results(Job("order", True, 0), counts.append)}
        return failures, counts

    return run_with


def test_all_pass(found):
    assert found("{}") == (dict.fromkeys(["first", "second", "third", "fourth"]), [4])


def test_a_failure_is_one(found):
    failures, _ = found('{"second": "error above tolerance"}')
    assert failures == {"first": None, "second": "error above tolerance", "third": None, "fourth": None}


def test_an_end_is_the_failure_of_what_ran(found):
    """A fault of the GPU ends its process: the signal and what was said are told, and a new one does what is left."""
    failures, counts = found('{"second": "abort"}')
    assert list(failures) == ["first", "second", "third", "fourth"] and counts == [4]
    assert failures["second"].splitlines() == [
        "its process ended with SIGABRT",
        "Memory access fault by GPU node-1",
    ]
    assert [name for name, failure in failures.items() if failure] == ["second"]


def test_ends_again_and_again(found):
    """The third is the last."""
    failures, _ = found('{"first": "abort", "second": "abort", "third": "abort"}')
    assert failures["the rest"] == "1 left out after that" and len(failures) == 4
    assert "SIGABRT" in failures["third"]


def test_a_hang(found, monkeypatch):
    """What is silent for too long is ended, and what is left of the group not begun: the GPU may hang for good."""
    monkeypatch.setattr(run, "SILENCE", 3.0)
    failures, _ = found('{"third": "hang"}')
    assert failures["third"] == "no answer within 3 seconds"
    assert failures["the rest"] == "1 left out after that" and failures["second"] is None


def test_an_end_after_the_last_check(found):
    """Nothing of what passed has failed with it."""
    failures, _ = found('{"ending": 1}')
    assert failures == {"first": None, "second": None, "third": None, "fourth": None, "ending": failures["ending"]}
    assert failures["ending"] == "its process ended with status 3"


def test_no_start(found):
    failures, counts = found('{"starting": 1}')
    assert failures == {"starting": "its process ended with status 1\nno such library"} and counts == []
