"""Module: a tree of named parameters that loads from a mapping, prints readably and can be watched."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from rocforge.errors import UnsupportedModelError
from rocforge.quant import QuantizedArray


class Parameter:
    """The place of an array that has not been loaded.

    Args:
        shape: the array's.
        optional: whether a model can do without it.
        matrix: whether ops multiply with it or gather its rows, in any format; all else is float32 in a model, whatever
            a file has it in. None: where it has more than one axis.
    """

    def __init__(self, *shape: int, optional: bool = False, matrix: bool | None = None):
        self.shape, self.optional = shape, optional
        self.matrix = len(shape) > 1 if matrix is None else matrix

    def cast(self, array: Any) -> Any:
        """An array, packed or not, as ops take it from here: of the values that it has."""
        if isinstance(array, QuantizedArray):
            return array if self.matrix else array.dequantize()
        kept = self.matrix and array.dtype in (np.float16, np.float32)
        return array if kept else array.astype(np.float32, copy=False)

    def __repr__(self) -> str:
        return f"Parameter{self.shape}"


class Module:
    """State plus a call. Attributes that are modules, lists of modules, arrays or Parameters make up the tree.

    A subclass sets its attributes in `__init__` and computes in `forward`. Paths are GGUF's tensor names:
    `model.blk[0].attn_q.weight` is "blk.0.attn_q.weight". A module whose class sets `inline` adds no name of its own:
    its children count, by path and by attribute, as its parent's.
    """

    inline = False
    captures = 0
    """How many `capture` contexts there are, of all modules."""
    observers: tuple[Callable[[Any], None], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.observed(self.forward(*args, **kwargs))

    def observed(self, output: Any) -> Any:
        """Show an output to whoever captures this module, and return it."""
        for hook in self.observers:
            hook(output)
        return output

    def __getattr__(self, name: str) -> Any:
        for child in vars(self).values():
            if isinstance(child, Module) and child.inline:
                with contextlib.suppress(AttributeError):
                    return getattr(child, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def named_children(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(path, module) of each direct child; list items are children named by their index."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield prefix + name, value
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{prefix}{name}.{index}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(path, module) of every module below this one, parents first."""
        for path, child in self.named_children(prefix):
            yield path, child
            yield from child.named_modules(prefix if child.inline else path + ".")

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """(path, array) of every parameter in the tree; a Parameter where it has not been loaded."""
        for name, value in vars(self).items():
            if hasattr(value, "shape"):
                yield prefix + name, value
        for path, child in self.named_children(prefix):
            yield from child.named_parameters(prefix if child.inline else path + ".")

    def load_weights(self, weights: Mapping[str, Any], convert: Callable[[Any], Any] = lambda array: array) -> None:
        """Fill every Parameter from the array of its path; either all are filled, or none.

        Args:
            weights: path -> array, such as an open GGUF file. Optional parameters may be absent, and become None.
            convert: applied to each array: a copy to a device, say.

        Raises:
            UnsupportedModelError: arrays are missing, misshapen, or have no place in this model; all are named.
        """
        wanted = {path: value for path, value in self.named_parameters() if isinstance(value, Parameter)}
        missing = [path for path, place in wanted.items() if path not in weights and not place.optional]
        extra = [path for path in weights if path not in wanted]
        found = {path: weights[path] for path in wanted if path in weights}
        misshapen = [
            f"{path} is {array.shape} and should be {wanted[path].shape}"
            for path, array in found.items()
            if array.shape != wanted[path].shape
        ]
        faults = [("missing", missing), ("without a place in this model", extra), ("misshapen", misshapen)]
        if any(names for _, names in faults):
            text = "; ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults if names)
            raise UnsupportedModelError(f"the weights do not fit {type(self).__name__}: {text}")
        self._fill(
            {path: convert(place.cast(found[path])) if path in found else None for path, place in wanted.items()}
        )

    def _fill(self, arrays: Mapping[str, Any], prefix: str = "") -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, Parameter):
                setattr(self, name, arrays[prefix + name])
        for path, child in self.named_children(prefix):
            child._fill(arrays, prefix if child.inline else path + ".")

    @contextlib.contextmanager
    def capture(self, *patterns: str) -> Iterator[dict[str, Any]]:
        """Keep the outputs of modules while the context lasts: `with model.capture("blk.*.ffn_down") as seen: ...`.

        Args:
            patterns: paths, with shell wildcards.

        Returns:
            A dict that fills as the model runs: path -> its latest output.

        Raises:
            ValueError: a pattern matches no module, or none with an output: some only hold what others compute with.
        """
        every = dict(self.named_modules())
        modules = {path: module for path, module in every.items() if hasattr(type(module), "forward")}
        for pattern in patterns:
            if not (named := fnmatch.filter(every, pattern)):
                raise ValueError(f"capture: no module's path matches {pattern!r}; see named_modules()")
            if not fnmatch.filter(modules, pattern):
                raise ValueError(f"capture: {named[0]} has no output of its own, it only holds {every[named[0]]}")
        seen: dict[str, Any] = {}
        watched = {path: m for path, m in modules.items() if any(fnmatch.fnmatchcase(path, p) for p in patterns)}
        hooks = {path: functools.partial(seen.__setitem__, path) for path in watched}
        for path, module in watched.items():
            module.observers = (*module.observers, hooks[path])
        Module.captures += 1
        try:
            yield seen
        finally:
            Module.captures -= 1
            for path, module in watched.items():
                module.observers = tuple(hook for hook in module.observers if hook is not hooks[path])

    def describe(self) -> str:
        """What `repr` shows of this module in its line: parameters by shape and type."""
        arrays = [f"{name} {_describe(value)}" for name, value in vars(self).items() if hasattr(value, "shape")]
        return f"{type(self).__name__}({', '.join(arrays)})"

    def __repr__(self) -> str:
        return "\n".join([self.describe(), *self._tree_lines("  ")])

    def _tree_lines(self, indent: str) -> list[str]:
        """A line a child; equal neighbours in a list share one."""
        lines, previous, start = [], None, 0
        for path, child in self.named_children():
            below = child._tree_lines(indent if child.inline else indent + "  ")
            head = [] if child.inline else [f"{indent}{path}: {child.describe()}"]
            shape = (path.rpartition(".")[0], child.describe(), below)
            if "." in path and shape == previous:
                first = lines[start].split(":", 1)
                lines[start] = f"{first[0].split('-')[0]}-{path.rpartition('.')[2]}:{first[1]}"
                continue
            previous, start = shape, len(lines)
            lines += head + below
        return lines


def _describe(array: Any) -> str:
    kind = array.qtype.name if hasattr(array, "qtype") else str(getattr(array, "dtype", "not loaded"))
    return f"{' x '.join(map(str, array.shape))} {kind}"


def _some(names: list[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
