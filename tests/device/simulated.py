"""Programs on a simulated device of their own, with the memory and the orders that a test wants."""

import os
import subprocess
import sys

import pytest

from rocforge.device.blas import workspace_nbytes
from rocforge.device.cards import card_of


def _multiplies_by_mma() -> bool:
    card, simulated = card_of(0), "HIPSIM_ARCH" in os.environ and "HIPSIM_MACHINE_CODE" not in os.environ
    return simulated and card.wave == 32 if card.is_amd else int(card.arch.removeprefix("sm_")) >= 80


needs_mma = pytest.mark.skipif(
    not _multiplies_by_mma(), reason="needs sm_80's matrix unit, which the simulator has with 32 lanes"
)
only_simulated = pytest.mark.skipif("HIPSIM_ARCH" not in os.environ, reason="a real device has the memory it has")


def on_the_simulator(code, path, **variables):
    """What a program prints that is given `path`; the variables are HIPSIM's."""
    environment = {**os.environ, **{f"HIPSIM_{name}": str(value) for name, value in variables.items()}}
    environment.pop("HIPSIM_REPORT", None)
    command = [sys.executable, "-c", f"import rocforge as rf, sys; path = {str(path)!r}\n{code}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def little_memory(nbytes):
    """Of a device that has so many bytes beside the workspace that the BLAS library is given."""
    return nbytes + workspace_nbytes(card_of(0))
