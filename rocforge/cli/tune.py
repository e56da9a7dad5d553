"""`rocforge tune`: measure the fastest kernel settings for this card and save them for later runs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import numpy as np
import typer

from rocforge.cli.options import Json
from rocforge.cli.output import note, table, write_json
from rocforge.device import tuned, tuning
from rocforge.device.arrays import device_info, on_device
from rocforge.device.cards import card_of
from rocforge.errors import DeviceError
from rocforge.tune.search import Setting, search
from rocforge.tune.work import FULL, QUICK


def tune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and show, but save nothing.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, for a simulated card.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the fastest kernel settings for this card and save them for later runs.

    Takes some minutes. The file applies to every card with this architecture and number of compute units; delete it to
    return to the shipped settings. Measures gpu:0; HIP_VISIBLE_DEVICES (NVIDIA: CUDA_VISIBLE_DEVICES) selects the card.
    """
    about = device_info()
    if about.reason is not None:
        raise DeviceError(f"cannot run on a GPU: {about.reason}")
    card = card_of(0)
    with on_device("gpu:0"):
        found = list(search(tuning.shipped(card.arch), QUICK if quick else FULL, np.random.default_rng(), _begun))
    values = {setting.name: setting.best for setting in found if setting.best != setting.shipped}
    path = None if dry_run else tuned.store(card, values)
    if as_json:
        settings = [asdict(setting) | {"saved": setting.saved} for setting in found]
        write_json({"arch": card.family, "compute_units": card.compute_units, "file": path, "settings": settings})
    else:
        table(map(_row, found), ["setting", ">shipped", ">best", ">saved", "tried"])
        note("nothing saved" if path is None else f"saved to {path}")


def _begun(name: str) -> None:
    if sys.stderr.isatty():
        note(f"{name} ...")


def _row(setting: Setting) -> tuple[str, int, int, str, str]:
    tried = [f"{value}: {seconds * 1e6:.1f} us" for value, seconds in setting.seconds.items()]
    tried += [f"{value}: wrong" for value in setting.wrong]
    return setting.name, setting.shipped, setting.best, f"{setting.saved:.1%}", ", ".join(tried)


COMMANDS = [tune]
