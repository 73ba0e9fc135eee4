"""When each command of a log was written: by the log's timestamps, or by the deadlines in it.

Without timestamps a deadline still dates its write: a write that gave the expected TTL was made at the deadline minus
that TTL. Whether it gave that follows from bounds: a log is in order, and nothing in it was written after the log's
end, nor after a deadline that a later command gives. What these bounds leave open is left open.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence

from memkit.history.commands import Effect, execute
from memkit.history.states import Moment
from memkit.policy import JITTER

SLACK_MS = 1_000
"""Clients' pipelines and scripts write deadlines out of order by milliseconds; a second is far below any TTL here."""
DENSE_WITHIN = 0.02
"""Writes are dense if this much time, in parts of the TTL, is between two."""
TIMES_THE_GAP = 10
"""A write that is followed by others with a shorter TTL comes before their first deadline by that TTL. One with twice
the expected TTL, followed by others with that, would seem to come before it by just the gap between two writes."""


class LogClock:
    """Dates the commands of one log, in order.

    Args:
        commands: The log's commands, each with the log's last timestamp; they are read up to the first timestamp.
        begins_ms: The Unix time before which nothing in the log was written: its base file's creation.
        ends_ms: The Unix time after which nothing was written: the file's last modification.
        expected_ttls_ms: The TTLs that a key is expected to get; none if they are not known.

    Attributes:
        begins_ms: The same as given, or earlier: the server's clock may have been set back after the base was made.
        earliest_ms: The Unix time before which the next command was not written.
        has_timestamps: Whether the log states times.
    """

    def __init__(
        self,
        commands: Iterable[tuple[Sequence[bytes], int | None]],
        *,
        begins_ms: int | None,
        ends_ms: int,
        expected_ttls_ms: Callable[[bytes], Sequence[int]],
    ) -> None:
        self.begins_ms = self.earliest_ms = begins_ms
        self._ends_ms = ends_ms
        self._expected_ttls_ms = expected_ttls_ms
        self._deadlines_ms, self._expected = array("q"), array("I")  # a log may have millions of deadlines
        self._look_back(self._look_ahead(commands))
        self.has_timestamps = False

    def _look_ahead(self, commands: Iterable[tuple[Sequence[bytes], int | None]]) -> list[Sequence[int]]:
        """Keep the deadlines that commands give before the first timestamp; return the TTLs that their keys may get."""
        numbers: dict[Sequence[int], int] = {}
        for arguments, second in commands:
            if second is not None:
                self._ends_ms = min(self._ends_ms, second * 1_000 + 999)
                break
            for deadline_ms, key in _given(execute(arguments, 0).effects):
                self._deadlines_ms.append(deadline_ms)
                self._expected.append(numbers.setdefault(self._expected_ttls_ms(key), len(numbers)))
        return list(numbers)

    def _look_back(self, each_ttls: Sequence[Sequence[int]]) -> None:
        """Find until when each deadline was given, and the TTL if that is an expected one, in reverse order.

        It is if the bounds leave only this TTL, or one that is shorter by the usual jitter; otherwise 0 is kept. Dates
        that are out of order may be of a longer TTL, of jitter, or of a server's clock that was set back: then no
        deadline dates its write.
        """
        self._latest_ms, self._ttls_ms = array("q"), array("q")
        surely_ms = dated_ms = ends_ms = self._ends_ms
        undated, first_ms, last_ms = 0, ends_ms, 0  # the writes after this one without a date: their deadlines
        for deadline_ms, number in zip(reversed(self._deadlines_ms), reversed(self._expected), strict=True):
            ttls = each_ttls[number]
            surely_ms = min(surely_ms, deadline_ms)
            latest_ms, found = min(surely_ms, dated_ms), 0
            gap_ms = (last_ms - first_ms) / (undated - 1) if undated > 1 else ends_ms
            shorter_ttl_ms = max(TIMES_THE_GAP * gap_ms, last_ms - ends_ms)
            for ttl in ttls:
                at, dense_ms, close_ms = deadline_ms - ttl, ttl * DENSE_WITHIN, ttl * JITTER
                before_the_end = ends_ms - at <= dense_ms
                before_a_dated_write = dated_ms < ends_ms and dated_ms - at <= close_ms
                before_shorter_ttls = shorter_ttl_ms <= surely_ms - at <= close_ms
                in_order = (self.begins_ms or at) - dense_ms <= at <= latest_ms + dense_ms
                if in_order and (before_the_end or before_a_dated_write or before_shorter_ttls):
                    latest_ms, dated_ms, found = max(latest_ms, at), min(dated_ms, at), ttl
            if ttls and not found and latest_ms + max(ttls) * DENSE_WITHIN < deadline_ms - max(ttls) <= ends_ms:
                return self._look_back([()] * len(each_ttls))
            undated = 0 if found else undated + 1
            first_ms = deadline_ms if undated < 2 else min(first_ms, deadline_ms)
            last_ms = deadline_ms if undated < 2 else max(last_ms, deadline_ms)
            self._latest_ms.append(latest_ms)
            self._ttls_ms.append(found)
        return None

    def moment(self, second: int | None, effects: Sequence[Effect]) -> tuple[Moment, int | None]:
        """Return when the next command was written, and the TTL that it gave if that is an expected one.

        Args:
            second: The log's last timestamp.
            effects: What the command does.
        """
        if second is not None:
            if not self.has_timestamps and self.begins_ms is not None:
                self.begins_ms = min(self.begins_ms, second * 1_000)
            self.has_timestamps, self.earliest_ms = True, second * 1_000
            return Moment(second * 1_000, second * 1_000 + 999), None  # it is rounded down
        earliest_ms = self.earliest_ms
        latest_ms = self._latest_ms[-1] if self._latest_ms else self._ends_ms
        for deadline_ms, _ in _given(effects):
            self._latest_ms.pop()
            if not (ttl := self._ttls_ms.pop()):
                break
            self.earliest_ms = at = deadline_ms - ttl
            earliest_ms = earliest_ms and min(at, earliest_ms)
            is_dense = latest_ms - at <= ttl * DENSE_WITHIN or (earliest_ms and at - earliest_ms <= ttl * DENSE_WITHIN)
            return Moment(*((at, at) if is_dense else (earliest_ms, latest_ms)), stated=False), ttl
        if earliest_ms is not None and latest_ms < earliest_ms - SLACK_MS:
            self.begins_ms = self.earliest_ms = earliest_ms = None  # the server's clock was set back
        return Moment(earliest_ms, max(earliest_ms or latest_ms, latest_ms), stated=False), None


def _given(effects: Iterable[Effect]) -> list[tuple[int, bytes]]:
    """Return the deadline that a command gives, and one of its keys; nothing if it gives none."""
    return [(effect.deadline_ms, effect.key) for effect in effects if effect.deadline_ms is not None][:1]
