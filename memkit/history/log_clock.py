"""When each command of a log was written: by the log's timestamps, or by the deadlines in it.

Without timestamps a deadline still dates its write: a write that gave the expected TTL was made at the deadline minus
that TTL. Logs are in order, so a deadline that would date a write before an earlier one gave a shorter TTL than
expected. Measured on three servers: the last write under the old TTL and the first one under the new TTL are dated to
the millisecond.
"""

from collections.abc import Callable, Sequence

from memkit.history.commands import Effect
from memkit.history.states import Moment

SLACK_MS = 1_000
"""Clients' pipelines and scripts write deadlines out of order by milliseconds; a second is far below any TTL here."""
ROUND_TTLS_MS = tuple(
    unit * count
    for unit, counts in (
        (1_000, (1, 2, 5, 10, 15, 20, 30, 45)),
        (60_000, (1, 2, 3, 4, 5, 10, 15, 20, 30, 45)),
        (3_600_000, (1, 2, 3, 4, 6, 8, 12)),
        (86_400_000, (1, 2, 3, 5, 7, 10, 14, 21, 28, 30, 60, 90, 180, 365)),
    )
    for count in counts
)
"""TTLs that people configure."""
ROUND_WITHIN = 0.25
"""How far above a round TTL the distance to the last dated write may be: that much time has passed in between. Beyond
it the next larger round TTL explains the distance as well."""
CLOSE_WITHIN = 0.02
"""If less time has passed, in parts of the TTL, the round TTL dates its write."""


class LogClock:
    """Dates the commands of one log, in order.

    Args:
        begins_ms: The Unix time before which nothing in the log was written: its base file's creation.
        ends_ms: The Unix time after which nothing was written: the file's last modification.
        expected_ttl_ms: The TTL that a key is expected to get, None if that is not known.

    Attributes:
        begins_ms: The same as given, or earlier: the server's clock may have been set back after the base was made.
        earliest_ms: The Unix time before which the next command was not written.
        has_timestamps: Whether the log states times.
    """

    def __init__(self, *, begins_ms: int | None, ends_ms: int, expected_ttl_ms: Callable[[bytes], int | None]) -> None:
        self.begins_ms = self.earliest_ms = begins_ms
        self._ends_ms = ends_ms
        self._expected_ttl_ms = expected_ttl_ms
        self._dated_ms: int | None = None
        self._shorter_ttls_ms: set[int] = set()
        self.has_timestamps = False

    def moment(self, second: int | None, effects: Sequence[Effect]) -> tuple[Moment, int | None]:
        """Return when a command was written, and the TTL that it gave if only its deadline dates it.

        Args:
            second: The log's last timestamp.
            effects: What the command does.
        """
        if second is not None:
            if not self.has_timestamps and self.begins_ms is not None:
                self.begins_ms = min(self.begins_ms, second * 1_000)
            self.has_timestamps, self.earliest_ms = True, second * 1_000
            return Moment(second * 1_000, second * 1_000 + 999), None  # it is rounded down
        effect = next((effect for effect in effects if effect.deadline_ms is not None), None)
        if effect is None or effect.deadline_ms is None:
            return Moment(self.earliest_ms, self._ends_ms, stated=False), None
        deadline_ms, ttl = effect.deadline_ms, self._expected_ttl_ms(effect.key)
        if self.earliest_ms is not None and deadline_ms < self.earliest_ms:
            self.begins_ms = self.earliest_ms = None  # the server's clock was set back after the base was made
        if ttl is not None:
            at = deadline_ms - ttl
            earliest_ms = at if self.earliest_ms is None else self.earliest_ms
            if earliest_ms - SLACK_MS <= at <= self._ends_ms + SLACK_MS:
                self.earliest_ms = self._dated_ms = max(at, earliest_ms)
                return Moment(at, at, stated=False), ttl
        ttl = self._round_ttl_ms(deadline_ms)
        if ttl is not None and self._dated_ms is not None:
            at = deadline_ms - ttl
            is_close = at - self._dated_ms <= ttl * CLOSE_WITHIN
            self._dated_ms = max(at, self._dated_ms)
            if is_close:
                return Moment(at, at, stated=False), ttl
        return Moment(self.earliest_ms, max(self.earliest_ms or 0, min(deadline_ms, self._ends_ms)), stated=False), ttl

    def _round_ttl_ms(self, deadline_ms: int) -> int | None:
        """Return the round TTL that explains a deadline after the last dated write, the one seen before if it fits."""
        if self._dated_ms is None:
            return None
        most = deadline_ms - self._dated_ms + SLACK_MS
        seen = max((ttl for ttl in self._shorter_ttls_ms if ttl <= most), default=0)
        rounded = max((ttl for ttl in ROUND_TTLS_MS if ttl <= most), default=0)
        for ttl in (seen, rounded):
            if ttl and most - SLACK_MS <= ttl * (1 + ROUND_WITHIN) and deadline_ms - ttl <= self._ends_ms + SLACK_MS:
                self._shorter_ttls_ms.add(ttl)
                return ttl
        return None
