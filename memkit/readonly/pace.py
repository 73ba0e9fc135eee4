"""Pace: how much of a server's time an audit takes."""

import time

SLOWED_TIMES = 4
"""A batch is slow if a key takes more than this many times as long as usual, and the batch over ``NOTICED_S``."""
NOTICED_S = 0.02
"""A delay that other clients notice: the server works for the batch, and they wait."""
SLOW_BATCHES = 8
"""This many slow batches in a row end the audit: the server has other trouble."""
FEWEST_KEYS = 10
LONGEST_REST_S = 1.0


class Pace:
    """Takes a share (``duty``) of one server's time, in smaller batches if the server slows down.

    The server's time for a batch is what it reports itself: the difference of TIME before and after the batch. It
    includes the commands of other clients, so a busy server gets longer rests. It rests too while replies travel and
    are decoded. If the server does not report its time, the duration of a batch counts, without ``round_trip_s``.
    ``stopped`` is the reason to stop, if there is one.
    """

    def __init__(self, duty: float, *, batch: int, round_trip_s: float = 0.0) -> None:
        self._rest = 1 / duty - 1
        self.rests = self._rest > 0
        self.batch = self._full_batch = batch
        self._round_trip_s = round_trip_s
        self._usual_s = 0.0
        self._slow_batches = 0
        self.stopped: str | None = None

    def after(self, server_s: float | None, took_s: float, keys: int) -> None:
        """Adapt to a batch that took so long, of which the server worked ``server_s``, and rest."""
        waited_s = max(took_s - self._round_trip_s, 0.0)
        each_s = waited_s / max(keys, 1)
        slow = self._usual_s > 0 and each_s > SLOWED_TIMES * self._usual_s and waited_s > NOTICED_S
        self._usual_s = each_s if not self._usual_s else min(self._usual_s * 1.02, each_s * 0.1 + self._usual_s * 0.9)
        self._slow_batches = self._slow_batches + 1 if slow else 0
        if slow:
            self.batch = max(self.batch // 2, FEWEST_KEYS)
        elif self.batch < self._full_batch:
            self.batch = min(self.batch + max(self.batch // 8, 1), self._full_batch)
        if self._slow_batches >= SLOW_BATCHES:
            self.stopped = "the server answered many times slower than at the start"
        if self.rests:
            worked_s = waited_s if server_s is None else min(server_s, took_s)
            idle_s = took_s - worked_s
            time.sleep(min(max(worked_s * self._rest - idle_s, 0.0), LONGEST_REST_S))
