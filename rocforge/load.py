"""load: a model and its tokenizer, from a GGUF file on disk or on the Hugging Face Hub, or from a checkpoint."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rocforge.device.arrays import available_memory, resolve_device
from rocforge.device.background import BackgroundCompilation
from rocforge.device.cards import card_of
from rocforge.device.distributed import ALONE, Group
from rocforge.device.memory import out_of_memory_explained
from rocforge.engine.capacity import CacheSizes
from rocforge.engine.cards import CardJob, Cards, Machines, ThisMachine
from rocforge.errors import GGUFError, UnsupportedModelError
from rocforge.gguf.file import Tensors
from rocforge.gguf.hub import resolve
from rocforge.gguf.metadata import Metadata
from rocforge.gguf.quantized import Quantized
from rocforge.loading.files import fingerprint, open_model, quantized
from rocforge.loading.fit import check_fit
from rocforge.loading.fp16_weights import keep_fp16_weights
from rocforge.loading.upload import Uploader, in_upload_order
from rocforge.loading.warmup import compile_for
from rocforge.models import build_model
from rocforge.names import LOADING, checked_names
from rocforge.nn.cache import check_types
from rocforge.nn.parameter import Parameter, cpu_form
from rocforge.nn.reader import ROPE_TENSORS
from rocforge.nn.shard import shard
from rocforge.nn.split import check_shares, split
from rocforge.nn.state import declare_types, kept_of, states_of
from rocforge.nn.transformer import Transformer
from rocforge.text.tokenizer import Tokenizer

Weights = dict[str, Any]
Progress = Callable[[int], Any]
CacheTypes = tuple[str | None, str | None]
BAR_AFTER = 0.5
"""Seconds until a bar is shown that nobody asked for."""


@checked_names(LOADING)
def load(
    path: str | os.PathLike[str],
    device: str | None = None,
    context: int | None = None,
    progress: bool | None = None,
    fp16_weights: bool | None = None,
    quantize: str | None = None,
    cache_type_k: str | None = None,
    cache_type_v: str | None = None,
    devices: int | Sequence[str] | None = None,
    shares: Sequence[float] | None = None,
) -> tuple[Transformer, Tokenizer]:
    """Load a model and its tokenizer.

    Args:
        path: a GGUF file, any member of a split set, "hf:owner/repo[:quant]" for one on the Hugging Face Hub, or a
            folder with a checkpoint of Hugging Face's: config.json, safetensors and tokenizer.json or tokenizer.model.
        device: None (the GPU if there is one, else the CPU), "cpu", "gpu" or "gpu:N".
        context: the longest sequence to serve, in tokens; None for the model's own. A longer one warns: the model was
            not trained on it.
        progress: show a bar on stderr while the weights load; None: on a terminal, where it takes more than a moment.
        fp16_weights: on a GPU, keep float16 copies of the weights beside the packed blocks, for faster prefill and
            large batches; None: if they take at most half of the memory left.
        quantize: Q4_K_M, Q8_0, ...: quantize on the way, one tensor after another, as `rocforge quantize` does. The
            tensors are to be in F32, F16 or BF16.
        cache_type_k, cache_type_v: the types of keys and of values in the KV cache: "f16", "q8_0", "q4_0" or
            "fp8_e4m3"; None: float16 on a GPU, float32 on a CPU.
        devices: in place of `device` several cards that compute together, each with a part of every layer and a process
            of its own: a number of them, from gpu:0 on, or their names. See docs/cards.md.
        shares: each of the cards has whole layers instead, in these shares, [24, 16] say; for cards that do not see
            each other, or of different sizes.

    Raises:
        ValueError: a context that is not positive, an unknown device, an unknown type to quantize to or of the cache,
            or a number of cards that does not divide the model's heads.
        FileNotFoundError: no such file.
        GGUFError, CheckpointError: a file is malformed, or its metadata is invalid.
        UnsupportedModelError: the architecture, the tokenizer or a tensor's type is not supported, or the cache's type
            is not for the model's heads or for the GPU.
        DeviceError: no such device, or too little memory on it.

    >>> model, tokenizer = rf.load("model.gguf", device="cpu")
    >>> model.config.layers, tokenizer.vocab_size
    (4, 4096)
    """
    if devices is not None and len(names := _cards(devices)) > 1:
        if device is not None or quantize is not None:
            raise ValueError(f"devices is {devices!r} beside a device or quantize; allowed is one of them")
        where = str(path if Path(path).is_dir() else resolve(path))
        options: dict[str, Any] = {"context": context, "fp16_weights": fp16_weights, "shares": shares}
        options |= {"cache_type_k": cache_type_k, "cache_type_v": cache_type_v}
        return load_on_cards(where, ThisMachine(names), progress, options)
    device = resolve_device(device if devices is None else names[0])
    with open_model(path) as opened:
        file = quantized(opened, quantize, device)
        if isinstance(file, Quantized):
            _make(file, progress)
        types = cache_type_k, cache_type_v
        with _loading(file, device, context, progress, fp16_weights, types) as model:
            model.tokenizer = tokenizer = Tokenizer(file, model.config.vocabulary)
    return model, tokenizer


def _cards(devices: int | Sequence[str]) -> tuple[str, ...]:
    """The names of several devices, checked.

    Raises:
        TypeError, ValueError: no number or names. DeviceError: no such card.
    """
    if isinstance(devices, int) and not isinstance(devices, bool):
        devices = [f"gpu:{index}" for index in range(devices)]
    if isinstance(devices, (str, bool)) or not isinstance(devices, Sequence):
        raise TypeError(f'devices is {devices!r}; allowed are a number of cards, or names: ["gpu:0", "gpu:1"]')
    names = tuple(map(resolve_device, devices))
    kinds = {name.partition(":")[0] for name in names}
    if len(kinds) != 1 or (kinds == {"gpu"} and len(set(names)) < len(names)):
        raise ValueError(f"devices are {', '.join(names) or 'none'}; allowed are different GPUs, or the CPU each time")
    return names


def load_on_cards(
    path: str, machines: Machines, progress: bool | None, loading: dict[str, Any]
) -> tuple[Transformer, Tokenizer]:
    """The first card's part of a model, whose other parts are in processes of their own, and the tokenizer.

    Args:
        path, progress: as in `load`; every machine finds the same model under the path.
        machines: where the cards are.
        loading: other arguments of `load_model`.

    Raises:
        CardFailedError: a card has not loaded its part, by its name.
    """
    if loading["shares"] is not None:
        check_shares(loading["shares"], len(machines.devices))
    with open_model(path) as file:
        job = CardJob(path, machines.devices, machines.hosts, loading, fingerprint(file.paths))
        cards = Cards(job, machines)
        try:
            model = load_model(file, job.device, progress=progress, group=cards.group, **loading)
            model.tokenizer = tokenizer = Tokenizer(file, model.config.vocabulary)
        except BaseException:
            cards.close()
            raise
    cards.connect()
    model.cards = cards
    cards.snapshot = model.snapshot()
    return model, tokenizer


def load_model(
    file: Tensors,
    device: str | None = None,
    context: int | None = None,
    progress: bool | None = None,
    fp16_weights: bool | None = None,
    cache_type_k: str | None = None,
    cache_type_v: str | None = None,
    group: Group = ALONE,
    shares: Sequence[float] | None = None,
) -> Transformer:
    """The model of an open GGUF file, or of what stands for one, without a tokenizer; otherwise as `load`.

    Args:
        group: the part that this member of a group has, instead of the whole.
    """
    types = cache_type_k, cache_type_v
    with _loading(file, resolve_device(device), context, progress, fp16_weights, types, group, shares) as model:
        return model


@contextlib.contextmanager
def _loading(
    file: Tensors,
    device: str,
    context: int | None,
    progress: bool | None,
    fp16_weights: bool | None,
    cache_types: CacheTypes,
    group: Group = ALONE,
    shares: Sequence[float] | None = None,
) -> Iterator[Transformer]:
    """A model, or the part of it that a group's member has, whose weights are complete when the context has been left;
    on a GPU they load in the background."""
    if context is not None:
        _check_context(context, file)
    model = build_model(file, context)
    if group.size > 1 and shares is not None:
        split(model, group, file, shares)
    elif group.size > 1:
        shard(model, group, file)
    declare_types(model, *cache_types)
    check_types(states_of(model).values(), device)
    weights = _weights(model, file)
    if device != "cpu":
        sizes = CacheSizes(kept_of(model).values(), device)
        check_fit(sizes, weights.values(), context, model.config.context)
    with _bar(sum(weight.nbytes for weight in weights.values()), progress) as advance:
        if device == "cpu":
            _fill_on_cpu(model, weights, advance)
            yield model
        else:
            with _filling_on_gpu(model, weights, device, fp16_weights, advance, _shown(progress)):
                yield model


def _check_context(context: Any, file: Tensors) -> None:
    """Warn of one that is longer than what the file says that the model was trained on."""
    if not isinstance(context, (int, np.integer)) or isinstance(context, bool):
        raise TypeError(f"context is {context!r}; allowed are integers")
    if context < 1:
        raise ValueError(f"context is {context}; allowed is 1 or more")
    architecture = Metadata(file.metadata).string("general.architecture", default=None)
    trained = Metadata(file.metadata).integer(f"{architecture}.context_length", default=None)
    if trained is not None and context > trained:
        problem = f"context is {context}, but the model was trained on {trained} tokens: what follows them may be poor"
        warnings.warn(problem, stacklevel=6)  # in the code that calls `load`


def _make(file: Quantized, progress: bool | None) -> None:
    """Quantize all tensors, one after another."""
    with _bar(sum(form.nbytes for form in file.before.values()), progress, "quantizing") as advance:
        for name, form in file.before.items():
            file[name]
            advance(form.nbytes)


def _weights(model: Transformer, file: Tensors) -> Weights:
    """The tensors of a model, as its parameters take them."""
    parameters = dict(model.named_parameters())
    return {
        name: _weight(array, name, parameters.get(name))
        for tensor in file
        if tensor not in ROPE_TENSORS.values() and model.is_read(tensor)
        for name, array in model.arrays_of(tensor, file[tensor]).items()
    }


def _weight(weight: Any, name: str, parameter: Parameter | None) -> Any:
    if parameter is None:
        return weight  # the model refuses it, and says why
    if weight.shape != parameter.whole:
        if weight.shape == parameter.shape:
            raise UnsupportedModelError(f"{name} is {weight.shape} and should be {parameter.whole}")
        return weight
    weight = parameter.cast(parameter.part_of(weight))
    if not parameter.matrix and np.isnan(weight).any():
        raise GGUFError(f"tensor {name} contains NaN")
    return weight


def _fill_on_cpu(model: Transformer, weights: Weights, progress: Progress) -> None:
    keep = _fits_unpacked(weights)

    def place(weight: Any) -> Any:
        placed = cpu_form(weight, keep)
        progress(weight.nbytes)
        return placed

    model.load_weights(weights, place)


@contextlib.contextmanager
def _filling_on_gpu(
    model: Transformer, weights: Weights, device: str, fp16_weights: bool | None, progress: Progress, show: bool
) -> Iterator[None]:
    """Fills the model while its kernels compile, or load from the cache."""
    with out_of_memory_explained(device, "loading"), _emptied_on_error(model), contextlib.ExitStack() as undo:
        weights = in_upload_order(weights)
        with Uploader(weights.values(), device, progress) as uploader:
            model.load_weights(weights, uploader.place)
            model.device = device
            compilation = compile_for(model)
            undo.callback(compilation.cancel)
            yield
        keep_fp16_weights(model, fp16_weights)
        if show:
            _wait_for_kernels(compilation, device)
        undo.pop_all()


def _wait_for_kernels(compilation: BackgroundCompilation, device: str) -> None:
    """Show a bar until the kernels are compiled; without a bar, their first use waits."""
    total = compilation.missing
    if not total:
        return
    from tqdm import tqdm

    description = f"compiling kernels for {card_of(int(device[4:])).family}, the first time only"
    with tqdm(total=total, desc=description, unit="kernel", leave=False) as bar:
        compilation.wait(lambda missing: bar.update(total - missing - bar.n))


@contextlib.contextmanager
def _emptied_on_error(model: Transformer) -> Iterator[None]:
    """Free the model's device memory after an error, whose traceback keeps the model alive."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        vars(model).clear()
        raise


def _fits_unpacked(weights: Weights) -> bool:
    """Whether float32 values of all weights take no more than half of the free memory."""
    return 4 * sum(weight.size for weight in weights.values()) < available_memory() // 2


def _shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


@contextlib.contextmanager
def _bar(total: int, progress: bool | None, description: str = "loading") -> Iterator[Progress]:
    """A function to call with the number of bytes loaded."""
    if not _shown(progress):
        yield lambda nbytes: None
        return
    from tqdm import tqdm

    delay = BAR_AFTER if progress is None else 0.0
    with tqdm(
        total=total, desc=description, unit="B", unit_scale=True, unit_divisor=1024, delay=delay, leave=False
    ) as bar:
        yield bar.update
