"""When each command of a log was written: by the log's timestamps, or by the deadlines in it.

Without timestamps a deadline still dates its write: a write that gave the expected TTL was made at the deadline minus
that TTL. Logs are in order, so a deadline that would date a write before an earlier one gave a shorter TTL than
expected. Measured on three servers: the last write under the old TTL and the first one under the new TTL are dated to
the millisecond.
"""

from __future__ import annotations

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


class LogClock:
    """Dates the commands of one log, in order.

    Args:
        begins_ms: The Unix time before which nothing in the log was written: its base file's creation.
        ends_ms: The Unix time after which nothing was written: the file's last modification.
        expected_ttl_ms: The TTL that a key is expected to get, None if that is not known.

    Attributes:
        earliest_ms: The Unix time before which the next command was not written.
        has_timestamps: Whether the log states times.
    """

    def __init__(
        self, *, begins_ms: int | None, ends_ms: int | None, expected_ttl_ms: Callable[[bytes], int | None]
    ) -> None:
        self.earliest_ms = begins_ms
        self._ends_ms = ends_ms
        self._expected_ttl_ms = expected_ttl_ms
        self._shorter_ttls_ms: set[int] = set()
        self.has_timestamps = False

    def moment(self, second: int | None, effects: Sequence[Effect]) -> tuple[Moment, int | None]:
        """Return when a command was written, and the TTL that it gave if only its deadline dates it.

        Args:
            second: The log's last timestamp.
            effects: What the command does.
        """
        if second is not None:
            self.has_timestamps = True
            self.earliest_ms = max(second * 1_000, self.earliest_ms or 0)
            return Moment.of_second(second), None
        for effect in effects:
            if effect.deadline_ms is None:
                continue
            ttl = self._ttl_ms(effect.key, effect.deadline_ms)
            if ttl is not None:
                at = effect.deadline_ms - ttl
                self.earliest_ms = max(at, self.earliest_ms or 0)
                return Moment(at, at, stated=False), ttl
        return Moment(self.earliest_ms, self._ends_ms, stated=False), None

    def _ttl_ms(self, key: bytes, deadline_ms: int) -> int | None:
        expected, earliest = self._expected_ttl_ms(key), self.earliest_ms
        if expected is not None and (earliest is None or deadline_ms - expected >= earliest - SLACK_MS):
            return expected
        if earliest is None:
            return None
        most = deadline_ms - earliest + SLACK_MS
        seen = max((ttl for ttl in self._shorter_ttls_ms if ttl <= most), default=None)
        if seen is not None:
            return seen
        rounded = max((ttl for ttl in ROUND_TTLS_MS if ttl <= most), default=None)
        if rounded is None or most - SLACK_MS > rounded * (1 + ROUND_WITHIN):
            return None
        self._shorter_ttls_ms.add(rounded)
        return rounded
