"""`rocforge selftest` where there is no GPU; tests/device/test_selftest.py has the rest."""

import json

import pytest

import rocforge as rf

pytestmark = pytest.mark.skipif(rf.device_info().reason is None, reason="there is a GPU")


def test_without_a_gpu(rocforge):
    """It says why not, also in what can be pasted, and the code is 2."""
    reason = rf.device_info().reason
    done = rocforge("selftest", check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: this machine cannot run on a GPU: {reason}"
    assert done.stdout.splitlines()[-1] == f"**NOT RUN: cannot run on a GPU: {reason}**"


def test_json_without_a_gpu(rocforge):
    done = rocforge("selftest", "--json", check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 2 and found["verdict"].startswith("NOT RUN") and found["passed"] is False
    assert found["about"]["rocforge"] == rf.__version__ and found["results"] == []


def test_an_unknown_group(rocforge):
    done = rocforge("selftest", "--only", "nothing", check=False)
    assert done.returncode == 2 and "'compilation'" in done.stderr
