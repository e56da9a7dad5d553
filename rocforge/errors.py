"""The errors that rocforge raises. Bad arguments raise ValueError or TypeError instead."""


class RocforgeError(Exception):
    """Base of all errors that a file, model or device can cause.

    >>> try:
    ...     rf.load("nowhere.gguf")
    ... except (rf.RocforgeError, OSError) as error:
    ...     print(error)
    no such file: nowhere.gguf
    """


class GGUFError(RocforgeError):
    """A bad or truncated GGUF file; the message names the field and the byte offset.

    >>> with open("broken.gguf", "wb") as file:
    ...     _ = file.write(b"no GGUF")
    >>> try:
    ...     rf.open_gguf("broken.gguf")
    ... except rf.GGUFError as error:
    ...     print(error)
    broken.gguf: magic at byte 0: 6e 6f 20 47 is not 47 47 55 46, GGUF: not a GGUF file
    """


class CheckpointError(RocforgeError):
    """A bad or incomplete folder of safetensors; the message names the file and what is wrong in it.

    >>> try:
    ...     rf.load(".")
    ... except rf.CheckpointError as error:
    ...     print(error)
    . has no config.json, so it is no checkpoint; of its GGUF files name one: model.gguf
    """


class UnsupportedModelError(RocforgeError):
    """An architecture, tokenizer, tensor type or card that rocforge does not know; the message lists those it does.

    >>> try:
    ...     rf.Tokenizer(SimpleNamespace(metadata={"tokenizer.ggml.model": "hybriddna"}))
    ... except rf.UnsupportedModelError as error:
    ...     print(error)
    tokenizer.ggml.model is 'hybriddna'; supported are bert, gemma4, gpt2, llama, plamo2, rwkv, t5
    """


class DeviceError(RocforgeError):
    """No such device, or too little memory on it; the message says what was asked for and what there was.

    >>> try:
    ...     rf.load("model.gguf", device="gpu:99")
    ... except rf.DeviceError:
    ...     print("no such GPU")
    no such GPU
    """


class CardFailedError(DeviceError):
    """One of several cards that compute a model together has failed, and so the model is of no more use; the message
    names the card and what it failed with."""


class UnsupportedCardError(UnsupportedModelError, DeviceError):
    """A card that rocforge has no kernels for; the message names it and lists those it has them for."""


class OutOfMemoryError(DeviceError):
    """Too little memory on a device; the message says for what, how much was asked for and how much was free.

    >>> issubclass(rf.OutOfMemoryError, rf.DeviceError)
    True
    """


class ChatTemplateError(RocforgeError):
    """There is no chat template, or it is wrong, refused the messages, or exceeded a limit."""


class NonFiniteError(RocforgeError):
    """The highest logit is not finite, as where weights have NaN or infinity; no token is sampled."""
