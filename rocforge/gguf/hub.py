"""Files on the Hugging Face Hub: "hf:owner/repo[:quant]" to a path in its cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
DEFAULT_QUANT = "Q4_K_M"
_SECONDS = 10.0  # until the Hub counts as unreachable


def resolve(path: str | os.PathLike[str]) -> Path:
    """The local file of a path, or of "hf:owner/repo[:quant]", which is downloaded into the Hub's cache if needed.

    If the Hub cannot be reached, its cache is used.

    Args:
        path: a path, or a Hub name; quant picks among the repository's files, Q4_K_M where it is left out and there
            is one.

    Raises:
        FileNotFoundError: no such file, or the repository has no GGUF file of that quantization (the message lists
            those it has).
        ConnectionError: the Hub cannot be reached, and its cache does not have the repository.
        ValueError: a Hub name that is not of the form "hf:owner/repo[:quant]".
    """
    text = os.fspath(path)
    if not text.startswith("hf:"):
        if not Path(path).is_file():
            hub = "" if text.endswith(".gguf") else '; a model on the Hugging Face Hub is "hf:owner/repo[:quant]"'
            raise FileNotFoundError(f"no such file: {text}{hub}")
        return Path(path)
    match = re.fullmatch(r"hf:(\w[\w.-]*/\w[\w.-]*)(?::([\w.-]+))?", text)
    if match is None:
        raise ValueError(f'model name is {text!r}; allowed is "hf:owner/repo[:quant]"')
    return _download(*match.groups())


def _download(repository: str, quant: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    files, offline = _files(repository)
    first = select_file(files, quant)
    if first is None:
        have = ", ".join(sorted(files)) or "no GGUF file"
        raise FileNotFoundError(f"{repository} has no {quant or DEFAULT_QUANT} GGUF file; it has {have}")
    split = _SPLIT.search(first)
    names = [first]
    if split:
        count = int(split[2])
        names = [f"{first[: split.start()]}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    paths = [hf_hub_download(repository, name, local_files_only=offline) for name in names]
    return Path(paths[0])


def _files(repository: str) -> tuple[list[str], bool]:
    """The GGUF files of a repository, and whether they are only those in the cache: the Hub cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = HfApi().model_info(repository, timeout=_SECONDS).siblings or []
        return [file.rfilename for file in files if file.rfilename.endswith(".gguf")], False
    except HfHubHTTPError:
        raise  # the Hub was reached, and refused
    except Exception as error:  # the client's HTTP library, and so its errors, differ by version
        try:
            folder = Path(snapshot_download(repository, local_files_only=True))
        except LocalEntryNotFoundError:
            problem = f"the Hugging Face Hub cannot be reached, and its cache has no {repository}: {error}"
            raise ConnectionError(problem) from error
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")], True


def select_file(files: list[str], quant: str | None) -> str | None:
    """The file of a quantization (of a split set, its first); None where there is none or more than one fits."""
    firsts = [name for name in files if (split := _SPLIT.search(name)) is None or int(split[1]) == 1]
    wanted = re.compile(rf"(?:^|[-._/]){re.escape(quant or DEFAULT_QUANT)}(?:[-./]|$)", re.IGNORECASE)
    matching = [name for name in firsts if wanted.search(name)]
    if matching:
        return min(matching, key=len)
    return firsts[0] if quant is None and len(firsts) == 1 else None
