"""Module: a tree of named parameters that loads from a mapping, prints readably, and takes modules of anyone's."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeGuard, TypeVar

from rocforge.errors import UnsupportedModelError
from rocforge.nn.edit import Change, Edit, matching
from rocforge.nn.observe import Observer, show
from rocforge.nn.outline import as_html, as_text, outline
from rocforge.nn.parameter import Parameter, device_name
from rocforge.nn.tree import ModuleList, Snapshot, last_change, tree_changed

_functions_change = threading.Lock()


class Module:
    """State plus a call. Attributes that are modules, lists of modules, arrays or Parameters make up the tree.

    A subclass sets its attributes in `__init__` and computes in `forward`. Paths are GGUF's tensor names:
    `model.blk[0].attn_q.weight` is "blk.0.attn_q.weight". A module whose class sets `inline` adds no name of its own:
    its children count, by path and by attribute, as its parent's. Attributes that begin with `_` are not of the tree.

    A module may be replaced by any other, observed, or edited, at any time: it is called from the next step on. So may
    its arrays: what is assigned (NumPy's or CuPy's, packed, or lists) is checked and copied to where the model is.

    Attributes:
        edits: called with each output and the arguments that gave it; each returns the output to go on with.
        observers: called with each output, as the edits leave it.

    >>> model.blk[0].attn_q
    Linear(weight 512 x 512 Q8_0)
    >>> model.blk[0].attn_q(np.ones((3, 512), np.float32)).shape
    (3, 512)
    """

    inline = False
    observers: tuple[Observer, ...] = ()
    edits: tuple[Edit, ...] = ()
    _snapshot: Snapshot | None = None
    _change = 0
    _places: Mapping[str, Parameter] = MappingProxyType({})
    _path = ""
    _tied: tuple[Module, ...] = ()
    _version: object = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        for edit in self.edits:
            output = edit(output, *args)
        return self.observed(output)

    def observed(self, output: Any) -> Any:
        """Show an output to the observers, and return it."""
        for observer in self.observers:
            show(observer, output)
        return output

    @contextlib.contextmanager
    def observe(self, observer: Observer) -> Iterator[None]:
        """In this context, call `observer` with each output of this module.

        The outputs are the observer's own, on the device in stream order, also where steps are replayed graphs. An
        engine's decode steps have rows for a power of two of requests; those behind its requests mean nothing.

        >>> with model.blk[1].observe(lambda y: print(y.shape)):
        ...     logits = model([1, 2, 3])
        (3, 512)
        """
        self._add("observers", observer)
        try:
            yield
        finally:
            self._take_back("observers", observer)

    @contextlib.contextmanager
    def edit(self, changes: Mapping[str, Change]) -> Iterator[None]:
        """In this context, change what modules below this one give.

            with model.edit({"blk.3.attn_output": lambda y: y + direction, "blk.*.ffn_down": 0.5}):
                model(tokens)

        Args:
            changes: path, with shell wildcards -> change. A function is called with a copy of the output, and with the
                module's inputs if it takes more without a default; it returns an array of the same shape. A number
                multiplies the output. An array replaces it, broadcast. What matches a module more than once is applied
                in order, after the edits of contexts around this one.

        Raises:
            ValueError: a pattern matches no module. Where the model runs: a result is misshapen.
            TypeError: a change is of none of these kinds. Where the model runs: a result is none of the device's.

        >>> with model.edit({"blk.*.ffn_down": 0}):
        ...     ablated = model([1, 2, 3])
        >>> bool((ablated == model([1, 2, 3])).all())
        False
        """
        modules, device = dict(self.named_modules()), device_of(self)
        made = [
            (modules[path], Edit(path, change, device))
            for pattern, change in changes.items()
            for path in matching(modules, pattern, "edit")
        ]
        try:
            for module, edit in made:
                module._add("edits", edit)
            yield
        finally:
            for module, edit in made:
                module._take_back("edits", edit)

    def _add(self, name: str, function: Any) -> None:
        """Add one to the observers or edits; threads may do so at once."""
        with _functions_change:
            setattr(self, name, (*getattr(self, name), function))

    def _take_back(self, name: str, function: Any) -> None:
        """Take one of the observers or edits away, if it is still there: that very object, once."""
        with _functions_change:
            kept = list(getattr(self, name))
            index = next((i for i, other in enumerate(kept) if other is function), None)
            if index is not None:
                del kept[index]
            if kept:
                setattr(self, name, tuple(kept))
            elif name in vars(self):
                delattr(self, name)

    def snapshot(self) -> Snapshot:
        """The tree as it is: the same object until it changes."""
        change = last_change()
        if self._snapshot is None or self._change != change:
            snapshot = Snapshot(self)
            if self._snapshot is None or not self._snapshot.same_as(snapshot):
                self._snapshot = snapshot
            self._change = change
        return self._snapshot

    def reach(self) -> list[Any] | None:
        """What this module computes with beside its arguments: its tree, and what the functions that edit it reach.

        While these objects are the same (`rocforge.nn.reach.same_reach`) it gives the same for the same. None: a
        function that edits it may do more than compute, and must be called each time.
        """
        snapshot = self.snapshot()
        found = [edit.reached() for edit in snapshot.edits]
        if any(reached is None for reached in found):
            return None
        return [snapshot, *(value for reached in found for value in reached or ())]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            for child in self._inline_children():
                with contextlib.suppress(AttributeError):
                    return getattr(child, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}", name=name, obj=self)

    def __dir__(self) -> list[str]:
        """Its own attributes, and those of inline children, which count as its own."""
        inline = (name for child in self._inline_children() for name in dir(child) if not name.startswith("_"))
        return sorted({*super().__dir__(), *inline})

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        owner = self if name in vars(self) else self._owner_of(name) or self
        if isinstance(value, Parameter):
            owner._places = {**owner._places, name: value}
            owner._put(name, value)
        elif name in owner._places:
            owner._assign(name, value)
        else:
            owner._check_name(name, value)
            owner._put(name, ModuleList(value) if type(value) is list else value)

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        tree_changed()

    def _assign(self, name: str, value: Any) -> None:
        """Put an array where this module has one; what is the very same was changed in place."""
        current = vars(self)[name]
        if value is not current:
            value = self._places[name].assigned(value, current, device_of(self), self._path_of(name))
        self._version = object()
        for module in (self, *self._tied):
            module._put(name, value)

    def _path_of(self, name: str) -> str:
        return f"{self._path or type(self).__name__ + '.'}{name}"

    def _check_name(self, name: str, value: Any) -> None:
        """Raises where an array is assigned to what is no array, or a loaded layer has none of that name."""
        if not hasattr(value, "shape"):
            return
        current = vars(self).get(name)
        if isinstance(current, Module):
            raise TypeError(
                f"{self._path_of(name)} is a {type(current).__name__}, and an array is no module; its arrays are "
                f"{', '.join(f'{name}.{array}' for array in current._places) or 'those of its children'}"
            )
        if name not in vars(self) and self._places and self._path:
            names = ", ".join(self._places)
            raise AttributeError(
                f"{self._path_of(name)}: {type(self).__name__} has no array of that name; it has {names}"
            )

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        tree_changed()

    def _inline_children(self) -> list[Module]:
        return [child for child in list(vars(self).values()) if isinstance(child, Module) and child.inline]

    def _owner_of(self, name: str) -> Module | None:
        """The inline child, at whatever depth, that has a module or an array of that name, and uses it."""
        for child in self._inline_children():
            if _is_of_tree(vars(child).get(name)):
                return child
            if (owner := child._owner_of(name)) is not None:
                return owner
        return None

    # Lists of attributes, since another thread may set one meanwhile: an engine's looks at the tree at each step.

    def named_children(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(path, module) of each direct child; list items are children named by their index.

        >>> [path for path, _ in model.named_children()]
        ['token_embd', 'blk.0', 'blk.1', 'blk.2', 'blk.3', 'output_norm', 'output']
        """
        for name, value in list(vars(self).items()):
            if name.startswith("_"):
                continue
            if isinstance(value, Module):
                yield prefix + name, value
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{prefix}{name}.{index}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(path, module) of every module below this one, parents first.

        >>> [path for path, _ in model.blk[0].named_modules() if path.startswith("attn_")]
        ['attn_norm', 'attn_q', 'attn_k', 'attn_v', 'attn_pattern', 'attn_heads', 'attn_output']
        """
        for path, child in self.named_children(prefix):
            yield path, child
            yield from child.named_modules(prefix if child.inline else path + ".")

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """(path, array) of every parameter in the tree; a Parameter where it has not been loaded.

        >>> {path: array.shape for path, array in model.named_parameters() if path.startswith("blk.0.ffn_n")}
        {'blk.0.ffn_norm.weight': (512,)}
        """
        for name, value in list(vars(self).items()):
            if hasattr(value, "shape") and not name.startswith("_"):
                yield prefix + name, value
        for path, child in self.named_children(prefix):
            yield from child.named_parameters(prefix if child.inline else path + ".")

    def load_weights(self, weights: Mapping[str, Any], convert: Callable[[Any], Any] = lambda array: array) -> None:
        """Fill every Parameter from the array of its path; either all are filled, or none.

        Args:
            weights: path -> array, such as an open GGUF file. Optional parameters may be absent, and become None;
                what is no matrix becomes float32.
            convert: applied to each array, in the order of weights: a copy to a device, say.

        Raises:
            UnsupportedModelError: arrays are missing, misshapen, or have no place in this model; all are named.
        """
        wanted = {path: value for path, value in self.named_parameters() if isinstance(value, Parameter)}
        missing = [path for path, place in wanted.items() if path not in weights and not place.optional]
        extra = [path for path in weights if path not in wanted]
        found = {path: weights[path] for path in weights if path in wanted}
        misshapen = [
            f"{path} is {array.shape} and should be {wanted[path].shape}"
            for path, array in found.items()
            if array.shape != wanted[path].shape
        ]
        faults = [("missing", missing), ("without a place in this model", extra), ("misshapen", misshapen)]
        if any(names for _, names in faults):
            text = "; ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults if names)
            raise UnsupportedModelError(f"the weights do not fit {type(self).__name__}: {text}")
        filled = {path: convert(wanted[path].cast(array)) for path, array in found.items()}
        self._fill({path: filled.get(path) for path in wanted})

    def _fill(self, arrays: Mapping[str, Any], prefix: str = "") -> None:
        self._path = prefix
        for name, value in list(vars(self).items()):
            if isinstance(value, Parameter):
                self._put(name, arrays[prefix + name])
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
            ValueError: a pattern matches no module.

        >>> with model.capture("blk.*.ffn_down") as seen:
        ...     logits = model([1, 2, 3])
        >>> {path: output.shape for path, output in seen.items()}
        {'blk.0.ffn_down': (3, 512), 'blk.1.ffn_down': (3, 512), 'blk.2.ffn_down': (3, 512), 'blk.3.ffn_down': (3, 512)}
        """
        modules = dict(self.named_modules())
        seen: dict[str, Any] = {}
        wanted = dict.fromkeys(path for pattern in patterns for path in matching(modules, pattern, "capture"))
        with contextlib.ExitStack() as observed:
            for path in wanted:
                observed.enter_context(modules[path].observe(functools.partial(seen.__setitem__, path)))
            yield seen

    def describe(self) -> str:
        """What `repr` shows of this module in its line: parameters by shape and type."""
        arrays = [f"{name} {_describe(value)}" for name, value in list(vars(self).items()) if hasattr(value, "shape")]
        return f"{type(self).__name__}({', '.join(arrays)})"

    def __repr__(self) -> str:
        return as_text(self.describe(), outline(self.named_children()))

    def _repr_html_(self) -> str:
        return as_html(self.describe(), outline(self.named_children()))


Kind = TypeVar("Kind", bound=Module)


def _is_of_tree(value: Any) -> bool:
    return isinstance(value, (Module, ModuleList)) or hasattr(value, "shape")


def is_plain(module: Any, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether a module computes what `kind` computes, so that an op may do it; its output is there to be shown."""
    return type(module) is kind and not module.edits


def is_hidden(module: Any, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether a module is plain, and nobody sees its output: there need not be one."""
    return is_plain(module, kind) and not module.observers


def device_of(module: Module) -> str:
    """Where a module's arrays are: "cpu", also where it has none, or "gpu:N"."""
    arrays = (array for _, array in module.named_parameters())
    return device_name(next(arrays, None))


def _describe(array: Any) -> str:
    kind = array.qtype.name if hasattr(array, "qtype") else str(getattr(array, "dtype", "not loaded"))
    return f"{' x '.join(map(str, array.shape))} {kind}"


def _some(names: list[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
