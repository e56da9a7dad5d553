"""The errors that rocforge raises. Bad arguments raise ValueError or TypeError instead."""


class RocforgeError(Exception):
    """Base of all errors that a file, model or device can cause."""


class GGUFError(RocforgeError):
    """A bad or truncated GGUF file; the message names the field and the byte offset."""


class CheckpointError(RocforgeError):
    """A bad or incomplete folder of safetensors; the message names the file and what is wrong in it."""


class UnsupportedModelError(RocforgeError):
    """An architecture, tokenizer, tensor type or card that rocforge does not know; the message lists those it does."""


class DeviceError(RocforgeError):
    """No such device, or too little memory on it; the message says what was asked for and what there was."""


class UnsupportedCardError(UnsupportedModelError, DeviceError):
    """A card that rocforge has no kernels for; the message names it and lists those it has them for."""


class OutOfMemoryError(DeviceError):
    """Too little memory on a device; the message says for what, how much was asked for and how much was free."""


class ChatTemplateError(RocforgeError):
    """There is no chat template, or it is wrong, refused the messages, or exceeded a limit."""


class NonFiniteError(RocforgeError):
    """The highest logit is not finite, as where weights have NaN or infinity; no token is sampled."""
