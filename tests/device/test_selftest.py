"""`rocforge selftest` on a device, quick: all passes; what is broken is found, and does not stop the rest."""

import json
import os
import signal
import subprocess
import sys

import pytest

from rocforge.selftest.groups import GROUPS
from rocforge.selftest.sizes import FULL, QUICK

pytestmark = [
    pytest.mark.skipif("HIPSIM_MACHINE_CODE" in os.environ, reason="the emulator runs no captured launches"),
    pytest.mark.slow,
    pytest.mark.any_wave,
]
COMMAND = [sys.executable, "-m", "rocforge", "selftest", "--quick"]


def selftest(*options, environment=None):
    """Its exit code, and the report."""
    done = subprocess.run(
        [*COMMAND, "--json", *options],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, **(environment or {})},
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def test_everything_passes():
    """Every group has run, with every one of its checks."""
    code, report, progress = selftest()
    assert [result for result in report["results"] if result["failure"]] == []
    assert (code, report["passed"]) == (0, True) and report["verdict"].startswith("PASSED: all")
    names = [(group, check.name) for group, checks in GROUPS.items() for check in checks(QUICK)]
    assert [(result["group"], result["name"]) for result in report["results"]] == names
    assert list(report["groups"]) == list(GROUPS) and len(progress.splitlines()) == len(GROUPS)


def test_names_are_unique():
    """A check's numbers go by its name, and so does a report."""
    for sizes in (FULL, QUICK):
        for checks in GROUPS.values():
            names = [check.name for check in checks(sizes)]
            assert len(set(names)) == len(names)


BREAK = """
import os
from rocforge.ops import activation, norm

def wrong(gate, up, right=activation.swiglu):
    y = right(gate, up)
    if type(y).__module__.startswith("cupy"):
        row = y.get()
        row[-1, -1] *= 1.01
        y.set(row)
    return y

def dies(x, *args, right=norm.layer_norm, **options):
    os.abort() if type(x).__module__.startswith("cupy") else None
    return right(x, *args, **options)

activation.swiglu, norm.layer_norm = wrong, dies
"""


def test_what_is_broken(tmp_path):
    """An element that is off by a hundredth, and a kernel that ends its process: both told, and all else passes."""
    (tmp_path / "sitecustomize.py").write_text(BREAK)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()])])
    code, report, _ = selftest("--only", "elementwise", "--only", "sampling", environment={"PYTHONPATH": path})
    failures = {result["name"]: result["failure"] for result in report["results"] if result["failure"]}
    assert code == 1 and list(failures) == ["layer_norm", "swiglu"]
    assert failures["swiglu"].startswith("error above tolerance") and "SIGABRT" in failures["layer_norm"]
    assert len(report["results"]) == sum(len(GROUPS[name](QUICK)) for name in ("elementwise", "sampling"))
    assert report["verdict"].startswith("FAILED: 2 of") and report["verdict"].endswith(": elementwise")


def test_ctrl_c():
    """Ends with code 130, and a report of what was found so far."""
    command = [*COMMAND, "--only", "sampling", "--only", "model"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert "1/2 sampling" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        report, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in rest
    last = report.strip().splitlines()[-1]
    assert last.startswith("**NOT DONE:") and last.endswith("ended by Ctrl-C**")
