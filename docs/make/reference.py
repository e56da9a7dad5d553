"""The pages of the reference, made as the site is built: every public name, by what it is for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import rocforge as rf
from rocforge import nn

PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "arrays": (
        "Arrays and ops",
        "Functions of NumPy and CuPy arrays, and the packed array.",
        ("quant", "ops"),
    ),
    "models": (
        "Files and models",
        "GGUF files, loading, the module tree, and what models are measured by.",
        ("gguf", "load", "loading", "nn", "models", "checkpoints", "imatrix", "lora", "evaluate"),
    ),
    "generation": ("Generation", "From a prompt to text.", ("generate", "engine", "text")),
    "devices": ("Devices and errors", "GPUs, streams, kernels of your own, and what is raised.", ("device", "errors")),
}
"""Page -> its title, what it holds, and the parts of the package that its names come from."""
MODULES = [nn.Module, nn.Transformer]
"""Not names of `rf` themselves, but what `rf.load` gives."""


def page_of(thing: Any) -> str:
    """The page that a name belongs to; those of no part that is listed, to that of models."""
    if thing is rf.SamplingParams:
        return "generation"
    part = thing.__module__.split(".")[1]
    return next((page for page, (*_, parts) in PAGES.items() if part in parts), "models")


def things() -> list[Any]:
    named = [getattr(rf, name) for name in sorted(rf.__all__, key=str.casefold)]
    return [thing for thing in named if not isinstance(thing, ModuleType)] + MODULES


def link(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def reference() -> dict[str, str]:
    """Markdown by path."""
    pages = {
        f"reference/{page}.md": "\n\n".join(
            [f"# {title}", about, *(f"::: {link(thing)}" for thing in things() if page_of(thing) == page)]
        )
        for page, (title, about, _) in PAGES.items()
    }
    index = [
        "# Reference",
        "`import rocforge as rf` gives these names; `Module` and `Transformer` are in `rf.nn`.",
        "| | |\n|---|---|",
    ]
    rows = [f"| [`{thing.__name__}`][{link(thing)}] | {summary(thing)} |" for thing in things()]
    return {**pages, "reference/index.md": "\n\n".join(index) + "\n" + "\n".join(rows) + "\n"}


def summary(thing: Any) -> str:
    """The first line of its docstring."""
    return (thing.__doc__ or "").strip().split("\n")[0].replace("|", "\\|")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs calls this when it has listed the files of docs/."""
    for path, text in reference().items():
        files.append(File.generated(config, path, content=text))
    return files
