"""Trees of modules: a counter of all their changes, and snapshots by which one tree's are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from rocforge.nn.outline import Line, as_html, as_text, outline

_changes = itertools.count(1)
_last_change = 0


def tree_changed() -> None:
    """Note that a tree, of any model, has changed."""
    global _last_change
    _last_change = next(_changes)


def last_change() -> int:
    """A number that is another one after any tree, of any model, has changed."""
    return _last_change


def _changing(name: str) -> Callable[..., Any]:
    method = getattr(list, name)

    def changing(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        tree_changed()
        return result

    return changing


class _List(list[Any]):
    """A list in a module's tree, whose changes are noticed as those of attributes are."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return ModuleList(found) if isinstance(index, slice) else found

    def __repr__(self) -> str:
        return as_text(f"ModuleList of {len(self)}", self._outline())

    def _repr_html_(self) -> str:
        return as_html(f"ModuleList of {len(self)}", self._outline())

    def _outline(self) -> list[Line]:
        return outline((str(index), module) for index, module in enumerate(self))


ModuleList = _List
# A name that no class statement has: IPython's completion (Jedi) then looks at the items of a list, not at its class.
ModuleList.__name__ = ModuleList.__qualname__ = "ModuleList"


_IN_PLACE = "append clear extend insert pop remove reverse sort __setitem__ __delitem__ __iadd__ __imul__"
for _name in _IN_PLACE.split():
    setattr(ModuleList, _name, _changing(_name))


class Snapshot:
    """A module's tree at one time: its attributes, and every module below it, edits too, with its own.

    Attributes:
        edits: of the module and all below it.
    """

    def __init__(self, module: Any):
        self._tree = _tree_of(module)
        below = (child for _, child in module.named_modules())
        self.edits = [edit for each in (module, *below) for edit in each.edits]

    def same_as(self, other: Snapshot) -> bool:
        """Whether both are of the same modules, with the same objects as attributes."""
        return len(self._tree) == len(other._tree) and all(
            a is b and ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
            for (a, ours), (b, theirs) in zip(self._tree, other._tree, strict=True)
        )


def _tree_of(module: Any) -> Sequence[tuple[Any, dict[str, Any]]]:
    """Each module with its attributes; None in place of the one at the top, which may keep this."""
    children = [child for _, child in module.named_children()]
    children += [edit.change for edit in module.edits if hasattr(edit.change, "named_children")]
    kept = ("_version",)  # which says that an array was changed in place
    current = list(vars(module).items())  # another thread may set an attribute meanwhile
    attributes = {name: value for name, value in current if name in kept or not name.startswith("_")}
    below = ((child, _tree_of(child)) for child in children)
    return [(None, attributes), *((child if m is None else m, a) for child, tree in below for m, a in tree)]
