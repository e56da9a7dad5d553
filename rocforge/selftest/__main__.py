"""The process in which a group of checks runs: `python -m rocforge.selftest JOB`, with a Job as JSON.

It writes a JSON object a line: the names of the group's checks; then for each check, that it begins, and its result.
Whoever reads them (rocforge.selftest.run) so knows what was running where a process ends, as a fault of the GPU has it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
import zlib
from typing import Any

import numpy as np

from rocforge.selftest.check import Check
from rocforge.selftest.groups import GROUPS
from rocforge.selftest.run import Job
from rocforge.selftest.sizes import FULL, QUICK

FRAMES = 4
"""Of a traceback, the last ones."""


def main(job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever started this reports; a GPU that hangs holds no one up
    faulthandler.enable()
    with os.fdopen(os.dup(1), "w") as pipe:
        os.dup2(2, 1)  # what libraries print is no message

        def tell(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=pipe, flush=True)

        checks = GROUPS[job.group](QUICK if job.quick else FULL)
        tell({"checks": [check.name for check in checks]})
        for check in checks[job.first :]:
            tell({"begin": check.name})
            tell({"result": run(check, job)})


def run(check: Check, job: Job) -> dict[str, Any]:
    """What a check gives, as JSON has it; an exception is its failure."""
    rng = np.random.default_rng([job.seed, zlib.crc32(f"{job.group} {check.name}".encode())])
    start = time.perf_counter()
    try:
        outcome = check.run(rng)
        failure = None
        if wrong := [name for name, error in outcome.errors.items() if not error.passes]:
            failure = "error above tolerance: " + ", ".join(wrong)
        found = {
            "errors": {name: error._asdict() for name, error in outcome.errors.items()},
            "figures": {name: figure._asdict() for name, figure in outcome.figures.items()},
            "note": outcome.note,
        }
    except Exception as error:
        trace = traceback.format_exception(type(error), error, error.__traceback__, limit=-FRAMES)
        failure, found = "".join(trace).strip(), {}
    return {"name": check.name, "seconds": time.perf_counter() - start, "failure": failure, **found}


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
