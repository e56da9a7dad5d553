"""Mirostat: keeps as many tokens as give the text a surprise of tau bits a token.

Source: Basu et al., https://arxiv.org/abs/2007.14966, in the form of llama.cpp's samplers.
"""

from __future__ import annotations

import numpy as np

from rocforge.ops.types import HostArray

_ESTIMATED = 100
"""Of so many of the likeliest tokens version 1 estimates the exponent of Zipf's law."""


class Mirostat:
    """The state of one text.

    Args:
        version: 1 or 2.
        tau: the surprise of a token that is aimed at, in bits.
        eta: how fast mu follows.

    Attributes:
        mu: the largest surprise that version 2 keeps, in bits; 2 tau at first.
    """

    def __init__(self, version: int, tau: float, eta: float):
        self._version, self._tau, self._eta = version, tau, eta
        self.mu = 2 * tau
        self._step, self._mu_before = -1, self.mu

    def kept(self, gaps: HostArray, step: int) -> HostArray:
        """Ids of the tokens that may be drawn, the likeliest first.

        Args:
            gaps: float32 (vocabulary,): how far each logit over the temperature is below the highest.
            step: how many tokens the text has; that of the call before where a step is repeated.
        """
        if step == self._step:
            self.mu = self._mu_before
        self._step, self._mu_before = step, self.mu
        order = np.argsort(gaps, kind="stable")
        sorted_gaps = gaps[order].astype(np.float64)
        finite = int(np.searchsorted(sorted_gaps, np.inf))
        if self._version == 1:
            return order[: min(self._count(sorted_gaps[:finite], len(gaps)), finite)]
        surprise = (sorted_gaps + np.log(np.exp(-sorted_gaps).sum())) / np.log(2)
        return order[: max(int(np.searchsorted(surprise, self.mu, side="right")), 1)]

    def observe(self, probability: float) -> None:
        """Note the probability, among the kept tokens, of the one that was drawn."""
        self.mu -= self._eta * (-np.log2(probability) - self._tau)

    def _count(self, gaps: HostArray, vocabulary: int) -> int:
        """How many tokens version 1 keeps."""
        differences = np.diff(gaps[:_ESTIMATED])
        if not differences.any():
            return len(gaps)  # all are equally likely
        ranks = np.log(np.arange(2, len(differences) + 2) / np.arange(1, len(differences) + 1))
        exponent = ranks @ differences / (ranks @ ranks)
        epsilon = exponent - 1 or 1e-9  # where it is 0, the fraction below has a limit
        with np.errstate(all="ignore"):
            count = (epsilon * np.exp2(self.mu) / (1 - float(vocabulary) ** -epsilon)) ** (1 / exponent)
        return max(int(count), 1) if np.isfinite(count) else len(gaps)
