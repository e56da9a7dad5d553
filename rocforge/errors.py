"""The errors that rocforge raises. Bad arguments raise ValueError or TypeError instead."""


class RocforgeError(Exception):
    """Base of the errors below: catch it to catch everything that a file, model or device can cause."""


class GGUFError(RocforgeError):
    """A bad or truncated GGUF file; the message names the field and the byte offset."""


class UnsupportedModelError(RocforgeError):
    """An architecture, tokenizer, tensor type or card that rocforge does not know; the message lists those it does."""


class DeviceError(RocforgeError):
    """No such device, or too little memory on it; the message says what was asked for and what there was."""


class UnsupportedCardError(UnsupportedModelError, DeviceError):
    """A card that rocforge has no kernels for; the message names it and lists those it has them for."""


class OutOfMemoryError(DeviceError):
    """Too little memory on a device; the message says for what, how much was asked for and how much was free."""


class ChatTemplateError(RocforgeError):
    """There is no chat template, or it failed: it refused the messages, is wrong, or went past its bounds."""


class NonFiniteError(RocforgeError):
    """The highest logit is no finite number, as where weights hold NaN or infinity; no token is chosen then."""
