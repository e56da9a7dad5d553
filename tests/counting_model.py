"""CountingModel: a model without weights, for tests of what runs around one."""

import threading
import time
from types import SimpleNamespace

import numpy as np

from rocforge.nn.cache import KVCache
from rocforge.nn.module import Module
from rocforge.nn.state import PagedKV, states_of
from rocforge.ops.sampling import SamplingParams

VOCABULARY = 16
GREEDY = SamplingParams(max_tokens=8, temperature=0)


class Layer(Module):
    def __init__(self):
        self.state = PagedKV(1, 1, 1)


class CountingModel(Module):
    """A model that is fast: after token t comes t + 1. It can be told to fail, and to take its time; it can be held."""

    device, generates = "cpu", True

    def __init__(self, context=512):
        self.layer = Layer()
        self.config = SimpleNamespace(context=context, vocabulary=VOCABULARY)
        self.failures, self.seconds, self.threads = 0, 0.0, set()
        self.held, self.waiting = threading.Lock(), threading.Event()

    def new_cache(self, blocks, slots):
        return KVCache(states_of(self), blocks, slots=slots)

    def __call__(self, tokens, batch):
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if not self.held.acquire(blocking=False):
            self.waiting.set()
            self.held.acquire()
        self.held.release()
        if self.failures:
            self.failures -= 1
            raise MemoryError("no room on the device")
        return np.eye(VOCABULARY, dtype=np.float32)[(tokens[batch.logits_rows] + 1) % VOCABULARY]
