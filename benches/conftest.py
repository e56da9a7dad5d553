"""pytest-benchmark's records say which machine they are of; programs that are no tests are not imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import history

FILES = Path(__file__).parent.glob("bench_*.py")
collect_ignore = [path.name for path in FILES if "\ndef test_" not in path.read_text()]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["kind"] = history.machine()
    machine_info["versions"] = history.versions()
