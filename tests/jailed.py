"""What cells hold in the tests of jails."""

import ctypes
import os


class Program:
    """Does what it is told, good or bad."""

    def __init__(self, name):
        self.said = name

    def say(self, word):
        self.said += f" {word}"
        return self.said.encode()

    def pid(self):
        return b"%d %d" % (os.getpid(), os.getppid())

    def fail(self, message):
        raise ValueError(message)

    def spin(self):
        while True:
            pass

    def hold_the_lock(self):
        return b"%d" % (3 ** (10**8) % 10)

    def fill(self, size):
        kept = [bytes(1 << 20) for _ in range(size >> 20)]
        return b"%d" % len(kept)

    def answer(self, size):
        return bytes(size)

    def crash(self):
        ctypes.string_at(0)
