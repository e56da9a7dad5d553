"""Runs the tests of tests/device/ on the simulator from a pytest process that has no device.

The wheel binds to ROCm's libraries when it is imported, so the tests run in child processes that `run` starts, one for
each wave size. A child writes its collection and its reports, one JSON object a line, to the file named by
HIPSIM_REPORT; here each of its tests is an item, and its reports are passed on as that item's own. The children run
beside this process's own tests, at a lower priority, and their tests come last.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent / "run"
DEVICE_TESTS = Path(__file__).resolve().parents[1] / "device"
ARCHS = ("gfx942", "gfx1100")  # wave 64 and wave 32
EVERY_TARGET = bool(os.environ.get("EVERY_TARGET"))
"""Whether what depends on no wave size runs with both, as each night."""


class Child:
    """A pytest process on the simulator, and what it has reported so far."""

    def __init__(self, arch: str, arguments: list[str], config: pytest.Config) -> None:
        self.arch = arch
        self._folder = folder = Path(tempfile.mkdtemp(prefix=f"hipsim-{arch}-"))
        self.log_path, self.report_path = folder / "log", folder / "reports"
        self.report_path.touch()
        (folder / "arguments").write_text("\n".join(arguments))
        command = [sys.executable, str(RUN), "--arch", arch, "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--seed={config.option.seed}", f"@{folder / 'arguments'}"]
        environment = {"HIPSIM_DEVICES": "2", **os.environ, "HIPSIM_REPORT": str(self.report_path)}
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(command, cwd=config.rootpath, env=environment, stdout=log, stderr=log)
        os.setpriority(os.PRIO_PROCESS, self.process.pid, 10)  # tests beside it may look at the clock
        self._reports = open(self.report_path)  # noqa: SIM115 - read for as long as the child writes
        self._partial = ""

    def new_records(self) -> list[dict]:
        """The records written since the last call."""
        text = self._partial + self._reports.read()
        *lines, self._partial = text.split("\n")
        return [json.loads(line) for line in lines]

    def log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reports.close()
        shutil.rmtree(self._folder)


class Simulation:
    """The children of one session: those that collect, then those that run what was selected."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.wanted = _device_paths(config)
        self._collected: dict[str, list[tuple[str, dict]]] | None = None
        self._running: dict[str, Child] = {}
        self._reports: dict[tuple[str, str], list[dict]] = {}

    def collected(self, path: Path) -> list[tuple[str, dict]]:
        """(arch, record) for what the children collected from one file."""
        if self._collected is None:
            self._collected = {}
            children = [Child(arch, ["--collect-only", *self.wanted], self.config) for arch in ARCHS]
            for child in children:
                child.process.wait()
                records = child.new_records()
                if not records and child.process.returncode != 5:
                    raise pytest.UsageError(f"collecting on the simulator failed:\n{child.log_tail()}")
                for record in records:
                    self._collected.setdefault(record["nodeid"].split("::")[0], []).append((child.arch, record))
                child.stop()
        return self._collected.get(path.relative_to(self.config.rootpath).as_posix(), [])

    def start(self, chosen: list[SimulatedTest]) -> None:
        """Starts a child for each arch. Each begins elsewhere in the list, and finds the other's kernels compiled."""
        for number, arch in enumerate(ARCHS):
            if nodeids := [item.child_nodeid for item in chosen if item.arch == arch]:
                middle = number * len(nodeids) // len(ARCHS)
                self._running[arch] = Child(arch, nodeids[middle:] + nodeids[:middle], self.config)

    def reports(self, item: SimulatedTest) -> Iterator[dict]:
        """The child's reports on a test, waited for."""
        child, done = self._running[item.arch], self._reports
        key = (item.arch, item.child_nodeid)
        while not any(report["when"] == "teardown" for report in done.get(key, [])):
            alive = child.process.poll() is None
            records = child.new_records()
            for record in records:
                if record["kind"] == "report":
                    done.setdefault((item.arch, record["nodeid"]), []).append(record["data"])
            if not alive and not records:
                raise RuntimeError(
                    f"the simulator's process ended (status {child.process.returncode}):\n{child.log_tail()}"
                )
            if not records:
                time.sleep(0.05)
        yield from done[key]

    def stop(self) -> None:
        for child in self._running.values():
            child.stop()


class SimulatedModule(pytest.File):
    """A file of tests/device/, with each of its tests once for each wave size, or once for any."""

    def collect(self) -> Iterator[pytest.Item]:
        simulation = self.config.stash.setdefault(SIMULATION, Simulation(self.config))
        one = ARCHS[sorted(self.path.parent.glob("test_*.py")).index(self.path) % len(ARCHS)]
        for arch, record in simulation.collected(self.path):
            if record["kind"] == "item" and "any_wave" in record["markers"] and arch != one and not EVERY_TARGET:
                continue
            if record["kind"] == "error":
                raise self.CollectError(f"on the simulated {arch}:\n{record['text']}")
            item = SimulatedTest.from_parent(self, name=_with_arch(record["nodeid"], arch))
            item.arch, item.child_nodeid = arch, record["nodeid"]
            for marker in record["markers"]:
                item.add_marker(marker)
            yield item


class SimulatedTest(pytest.Item):
    """One test on one simulated architecture."""

    arch: str
    child_nodeid: str

    def runtest(self) -> None:
        raise NotImplementedError("run by pytest_runtest_protocol")

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name


SIMULATION = pytest.StashKey[Simulation]()


def _device_paths(config: pytest.Config) -> list[str]:
    """What of tests/device/ the command line asks for, without the names of tests."""
    paths = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    if any(DEVICE_TESTS.is_relative_to(path) for path in paths):
        return [str(DEVICE_TESTS)]
    return [str(path) for path in paths if path.is_relative_to(DEVICE_TESTS)]


def _with_arch(nodeid: str, arch: str) -> str:
    name = nodeid.split("::", 1)[1]
    return name[:-1] + f"-{arch}]" if name.endswith("]") else f"{name}[{arch}]"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: isinstance(item, SimulatedTest))


def pytest_collection_finish(session: pytest.Session) -> None:
    simulation = session.config.stash.get(SIMULATION, None)
    if simulation and not session.config.option.collectonly:
        simulation.start([item for item in session.items if isinstance(item, SimulatedTest)])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if not isinstance(item, SimulatedTest):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    try:
        for data in item.config.stash[SIMULATION].reports(item):
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            report.nodeid, report.location = item.nodeid, item.location
            if isinstance(report.longrepr, list):  # a skip's place, which JSON has no tuple for
                report.longrepr = tuple(report.longrepr)
            item.ihook.pytest_runtest_logreport(report=report)
    except RuntimeError as error:
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", str(error), "call")
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    if simulation := session.config.stash.get(SIMULATION, None):
        simulation.stop()


class Reporter:
    """In a child: writes the collection and the reports for the parent."""

    def __init__(self, path: str, config: pytest.Config) -> None:
        self.path, self.config = path, config

    def write(self, **record: object) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if not self.config.option.collectonly:
            return
        for item in session.items:
            markers = sorted({marker.name for marker in item.iter_markers()} - {"parametrize", "usefixtures"})
            self.write(kind="item", nodeid=item.nodeid, markers=markers)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and report.nodeid:
            self.write(kind="error", nodeid=report.nodeid, text=report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.write(kind="report", nodeid=report.nodeid, data=data)
