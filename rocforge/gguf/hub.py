"""Files on the Hugging Face Hub: "hf:owner/repo[:quant]" to a path in its cache."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

_NAME = re.compile(r"hf:(\w[\w.-]*/\w[\w.-]*)(?::(\w[\w./-]*))?")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_BESIDE = re.compile(r"(?:^|[-._/])(?:mmproj|mtp|draft|eagle\d?|imatrix|vocab|lora)(?:[-._/]|$)", re.IGNORECASE)
"""What is in the name of a file beside a model: a vision encoder, a draft head, an importance matrix, ...."""
DEFAULT_QUANT = "Q4_K_M"
_SECONDS = 10.0  # until the Hub counts as unreachable


def is_on_hub(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a name of the Hub, "hf:...", and no file of this machine."""
    return os.fspath(path).startswith("hf:")


def resolve(path: str | os.PathLike[str]) -> Path:
    """The local file of a path, or of "hf:owner/repo[:quant]", which is downloaded into the Hub's cache if needed.

    If the Hub does not answer, or refuses, its cache is used.

    Args:
        path: a path, or a Hub name; quant picks among the repository's models, Q4_K_M where it is left out and there
            is one. It may be a file's whole name.

    Raises:
        FileNotFoundError: no such file or repository, or the repository has no GGUF file of that quantization, or those
            of several models (the message lists those it has).
        PermissionError: the Hub gives the repository to those only who have accepted its terms, or have a token.
        ConnectionError: the Hub cannot be reached, answers with an error, or breaks off, and its cache does not have
            the file.
        ValueError: a Hub name that is not of the form "hf:owner/repo[:quant]".
    """
    text = os.fspath(path)
    if not is_on_hub(text):
        if not Path(path).is_file():
            hub = "" if text.endswith(".gguf") else '; a model on the Hugging Face Hub is "hf:owner/repo[:quant]"'
            raise FileNotFoundError(f"no such file: {text}{hub}")
        return Path(path)
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f'model name is {text!r}; allowed is "hf:owner/repo[:quant]"')
    return _download(*match.groups())


def _download(repository: str, quant: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    files, problem = _files(repository)
    fitting = _fitting(files, quant)
    if len(fitting) != 1:
        count, have = ("several", fitting) if fitting else ("no", files)
        listed = ", ".join(sorted(have)) or "no GGUF file"
        place = repository if problem is None else f"the cache of {repository}"
        reason = "" if problem is None else f"; {problem}"
        wanted = f"{quant or DEFAULT_QUANT} GGUF file{'s' if fitting else ''}"
        raise FileNotFoundError(f"{place} has {count} {wanted}; it has {listed}{reason}")
    try:
        paths = [hf_hub_download(repository, name, local_files_only=bool(problem)) for name in members(fitting[0])]
    except Exception as error:  # as in _files
        raise problem or _meaning(error, repository, f"the download of {fitting[0]}") from error
    return Path(paths[0])


def members(first: str) -> list[str]:
    """The files of a set, by its first; a file alone is one."""
    split = _SPLIT.search(first)
    if split is None:
        return [first]
    count = int(split[2])
    return [f"{first[: split.start()]}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]


def _files(repository: str) -> tuple[list[str], OSError | None]:
    """The GGUF files of a repository. Where the Hub does not say, those in its cache, and what the Hub's problem is."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        files = HfApi().model_info(repository, timeout=_SECONDS).siblings or []
        return [file.rfilename for file in files if file.rfilename.endswith(".gguf")], None
    except Exception as error:  # the client's HTTP library, and so its errors, differ by version
        problem = _meaning(error, repository, f"the list of {repository}")
        try:
            folder = Path(snapshot_download(repository, local_files_only=True))
        except LocalEntryNotFoundError:
            raise type(problem)(f"{problem}; the cache has no {repository}") from error
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")], problem


def _meaning(error: Exception, repository: str, what: str) -> OSError:
    """An error of the Hub's client by what it means for `what`, and what helps."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    hub = "the Hugging Face Hub"
    if isinstance(error, GatedRepoError):
        terms = f"accept its terms on {hub}'s page of it, and log in: hf auth login, or HF_TOKEN"
        return PermissionError(f"{repository} is gated: {terms}")
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(f"{hub} has no {repository}; for a private one log in: hf auth login, or HF_TOKEN")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return PermissionError(f"{hub} refuses {what} ({status}): check the token, hf auth whoami")
        if status == 429:
            seconds = error.response.headers.get("Retry-After")
            wait = f"in {seconds} seconds" if seconds else "later"
            return ConnectionError(f"{hub} limits requests (429): try again {wait}, or with a token")
        return ConnectionError(f"{hub} answers {status} for {what}: try again later")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return error
    return ConnectionError(f"{hub} cannot be reached, or has broken off {what}: {error}")


def select_file(files: list[str], quant: str | None) -> str | None:
    """The file of a quantization (of a split set, its first); None where there is none or more than one fits."""
    fitting = _fitting(files, quant)
    return fitting[0] if len(fitting) == 1 else None


def model_files(files: list[str]) -> list[str]:
    """Those of some GGUF files that are models: of a split set its first, and nothing that lies beside a model."""
    firsts = _firsts(files)
    return [name for name in firsts if not _BESIDE.search(name)] or firsts


def _firsts(files: list[str]) -> list[str]:
    return [name for name in files if (split := _SPLIT.search(name)) is None or int(split[1]) == 1]


def _fitting(files: list[str], quant: str | None) -> list[str]:
    """The files that a quantization, or a name, can mean; of one model's the one with the shortest name."""
    if quant in _firsts(files):
        return [quant]
    models = model_files(files)
    wanted = re.compile(rf"(?:^|[-._/]){re.escape(quant or DEFAULT_QUANT)}(?:[-./]|$)", re.IGNORECASE)
    matching = sorted((name for name in models if wanted.search(name)), key=len)
    if not matching:
        return models if quant is None and len(models) == 1 else []

    def model(name: str) -> str:
        file = name.rpartition("/")[2]
        return file[: found.start()] if (found := wanted.search(file)) else _SPLIT.sub("", file)

    first = model(matching[0])
    return matching[:1] if all(model(name).startswith(first) for name in matching) else matching
