"""Pace: how much of a server's time an audit takes."""

from __future__ import annotations

import time

SLOWED_TIMES = 4
"""A batch is slow if it takes several times as long a key as usual …"""
NOTICED_S = 0.02
"""… and so long that other clients notice."""
SLOW_BATCHES = 8
"""So many slow batches in a row end the audit: the server has other trouble."""
FEWEST_KEYS = 10


class Pace:
    """Works a share of the time (``duty``), in smaller batches if the server slows down.

    ``stopped`` is the reason to stop, if there is one.
    """

    def __init__(self, duty: float, *, batch: int) -> None:
        self._rest = 1 / duty - 1
        self.rests = self._rest > 0
        self.batch = self._full_batch = batch
        self._usual_s = 0.0
        self._slow_batches = 0
        self.stopped: str | None = None

    def after(self, took_s: float, keys: int) -> None:
        """Rest after a batch, and adapt to its duration."""
        each_s = took_s / max(keys, 1)
        self._adapt(each_s, took_s)
        self._usual_s = each_s if not self._usual_s else min(self._usual_s * 1.02, each_s * 0.1 + self._usual_s * 0.9)
        if self.rests:
            time.sleep(min(took_s * self._rest, 1.0))

    def _adapt(self, each_s: float, took_s: float) -> None:
        slow = self._usual_s > 0 and each_s > SLOWED_TIMES * self._usual_s and took_s > NOTICED_S
        self._slow_batches = self._slow_batches + 1 if slow else 0
        if slow:
            self.batch = max(self.batch // 2, FEWEST_KEYS)
        elif self.batch < self._full_batch:
            self.batch = min(self.batch + max(self.batch // 8, 1), self._full_batch)
        if self._slow_batches >= SLOW_BATCHES:
            self.stopped = "the server answered many times slower than at the start"
