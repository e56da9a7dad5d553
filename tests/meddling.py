"""What users do to a model's tree: replace a module, observe it, edit it."""

import numpy as np

from rocforge.device.arrays import get_array_module
from rocforge.nn import Module


class Wrapped(Module):
    """A module of a user's: calls another one, counts the calls, and changes what it gives."""

    def __init__(self, inner, change=lambda output: output):
        self.inner, self.change, self._calls = inner, change, 0

    @property
    def calls(self):
        return self._calls

    def forward(self, *args):
        self._calls += 1
        return self.change(self.inner(*args))


def waves(output):
    """An output with its elements changed by up to a half, each by another share: no norm takes that back."""
    xp = get_array_module(output)
    return output * (1 + xp.cos(xp.arange(output.shape[-1], dtype=np.float32)) / 2)


def replace(model, path, module):
    """Put a module in the place of another, as a user does: `model.blk[1].attn_q = module`."""
    parent, _, name = path.rpartition(".")
    owner = model
    for part in parent.split(".") if parent else []:
        owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
    if name.isdigit():
        owner[int(name)] = module
    else:
        setattr(owner, name, module)


def modules_of(model, block=1):
    """Paths of the modules of one block, of the block, and of those outside of blocks."""
    prefix = f"blk.{block}"
    return [path for path, _ in model.named_modules() if path.split(".")[0] != "blk" or path.startswith(prefix)]
