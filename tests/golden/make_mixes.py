"""Stores which types llama.cpp's quantizer gives the tensors of some models, from dry runs of it.

Run from tests/ as `python -m golden.make_mixes`. Needs llama-cpp-python, as make_references.py does.
"""

import ctypes
import json
import re
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from golden.mixes import CASES, PATH, in_runs
from rocforge.gguf.mixes import MIXES, Mix
from rocforge.gguf.writer import Planned, write_gguf

LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\S+),")
BECOMES = re.compile(r"\((\w+)\)\s*$")


def dry_run(path: Path, mix: str, imatrix: bool) -> dict[str, str]:
    """The type of each tensor by name, as llama.cpp's log has it; {} where it refuses."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def log(level: int, text: bytes, _: object) -> None:
        lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.dry_run = Mix(mix).file_type, True
    ended = (llama_cpp.llama_model_imatrix_data * 1)()
    if imatrix:
        parameters.imatrix = ctypes.cast(ended, type(parameters.imatrix))
    failed = llama_cpp.llama_model_quantize(bytes(path), b"", ctypes.byref(parameters))
    if failed and "no tensor type fallback" in "".join(lines):
        return {}
    assert not failed, "".join(lines)
    found = {}
    for line in re.split(r"(?=\[ *\d+/ *\d+\] )", "".join(lines)):
        if match := LINE.match(line):
            becomes = BECOMES.search(line.split("\n", 1)[0])
            found[match[1]] = (becomes[1] if becomes else match[2]).upper()
    return found


def main() -> None:
    recorded = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            path, tensors = Path(folder, f"{name}.gguf"), case.tensors()
            plan = {n: Planned(t.shape, t.qtype, lambda t=t: [np.zeros(t.shape, "<f4")]) for n, t in tensors.items()}
            write_gguf(path, case.metadata(), plan)
            for mix in MIXES:
                without, given = (dry_run(path, mix, imatrix) for imatrix in (False, True))
                if without:
                    assert without.keys() == given.keys() == tensors.keys()
                    recorded[f"{name} {mix}"] = in_runs(without[n] for n in tensors)
                if given != without:
                    recorded[f"{name} {mix} imatrix"] = in_runs(given[n] for n in tensors)
    PATH.write_text(json.dumps(recorded, indent=0) + "\n")


if __name__ == "__main__":
    main()
