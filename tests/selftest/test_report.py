"""The report: its verdict, and what it says of failures and figures."""

import json
import math

from rocforge.selftest.report import Report
from rocforge.selftest.run import Result

PASSED = Result("products", "linear Q4_K", 1.0, None, {"1 token": {"value": 2e-6, "bound": 1e-5}})
FAILED = Result("order", "a replayed graph", 1.0, "off by: elements", {"elements": {"value": 0.25, "bound": 0.0}})
DIED = Result("model", "text", 0.0, "its process ended with SIGABRT\nMemory access fault by GPU node-1")
MEASURED = Result(
    "figures",
    "read",
    figures={
        "read bandwidth": {"value": 768.0, "unit": "GB/s", "limit": 960.0, "of": "the memory's bandwidth"},
        "float16 products": {"value": 12.345, "unit": "TFLOP/s", "limit": None, "of": ""},
    },
)


def report(*results, stopped=None):
    return Report({"card": "a card", "seed": "7"}, "a card (gfx1100)", list(results), {"products": 12.3}, stopped)


def test_verdicts():
    """One line; what was stopped has not passed."""
    assert report(PASSED).verdict == "PASSED: all 1 checks passed on a card (gfx1100)"
    assert report(PASSED, FAILED, DIED).verdict == "FAILED: 2 of 3 checks failed on a card (gfx1100): order, model"
    stopped = report(PASSED, stopped="ended by Ctrl-C")
    assert stopped.verdict == "NOT DONE: 1 checks passed on a card (gfx1100); ended by Ctrl-C"
    assert report(stopped="no GPU").verdict == "NOT RUN: no GPU"
    assert report(FAILED, stopped="ended by Ctrl-C").verdict.startswith("FAILED: 1 of 1")
    passed = [
        r.as_json()["passed"] for r in (report(PASSED), report(PASSED, FAILED), stopped, report(stopped="no GPU"))
    ]
    assert passed == [True, False, False, False]


def test_markdown():
    """Tables, shares of limits that are known, each failure folded with its errors, and the verdict last."""
    text = report(PASSED, FAILED, DIED, MEASURED).as_markdown()
    assert "- card: a card" in text
    assert "| products | 1 of 1 | 2.0e-06 of 1e-05 (linear Q4_K, 1 token) | 12 s |" in text
    assert "| order | 0 of 1 |" in text
    assert "| read bandwidth | 768 GB/s | 80% of the memory's bandwidth |" in text
    assert "| float16 products | 12.3 TFLOP/s |  |" in text
    assert "<summary>order: a replayed graph</summary>" in text and "elements: 0.25, allowed 0" in text
    assert "Memory access fault by GPU node-1" in text
    assert text.splitlines()[-1].startswith("**FAILED: 2 of 4")


def test_json():
    """Strict JSON, also of an error that is no number."""
    nothing = Result("products", "NaN", 1.0, "off by: x", {"x": {"value": math.nan, "bound": 1.0}})
    text = json.dumps(report(PASSED, FAILED, MEASURED, nothing).as_json(), allow_nan=False)
    given = json.loads(text)
    assert [result["name"] for result in given["results"]] == ["linear Q4_K", "a replayed graph", "read", "NaN"]
    assert given["results"][3]["errors"] == {"x": {"value": None, "bound": 1.0}}
    assert "nan, allowed 1" in report(nothing).as_markdown()
    assert given["results"][2]["figures"]["read bandwidth"]["limit"] == 960


def test_many_failures_and_long_ones():
    """An issue takes no more than so many characters: the first failures of a group, of each its two ends."""
    log = "\n".join(f"line {i}: {'x' * 1000}" for i in range(1000))
    text = report(*(Result("compilation", f"kernel {i}", failure=log) for i in range(120)), PASSED).as_markdown()
    assert len(text) < 65536 and "line 0:" in text and "line 999:" in text and "line 500:" not in text
    assert text.count("<details>") == 5 and "kernel 119" in text and text.count("kernel 3<") == 1
