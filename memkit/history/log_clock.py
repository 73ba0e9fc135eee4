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
DENSE_WITHIN = 0.01
"""A write that gave the expected TTL comes this soon, in parts of the TTL, after the one before it. With a shorter TTL
it would have come after a silence of just the difference."""


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
        self._latest_ms = self._look_ahead(commands)
        self.has_timestamps = False

    def _look_ahead(self, commands: Iterable[tuple[Sequence[bytes], int | None]]) -> "array[int]":
        """Return when each deadline was given at the latest, that of the last command first.

        Where the expected TTL, or one that is shorter by its usual jitter at most, is all that the bounds leave, this
        is the deadline minus the expected TTL. A write before one that is dated is bounded by that date, too.
        """
        deadlines_ms, ttls_of = array("q"), array("I")  # a log may have millions of deadlines
        numbers: dict[Sequence[int], int] = {}
        ends_ms = self._ends_ms
        for arguments, second in commands:
            if second is not None:
                ends_ms = min(ends_ms, second * 1_000 + 999)
                break
            for deadline_ms, key in _given(execute(arguments, 0).effects):
                deadlines_ms.append(deadline_ms)
                ttls_of.append(numbers.setdefault(self._expected_ttls_ms(key), len(numbers)))
        each_ttls, latest_ms = list(numbers), array("q")
        surely_ms = dated_ms = ends_ms
        for deadline_ms, number in zip(reversed(deadlines_ms), reversed(ttls_of), strict=True):
            ttls = each_ttls[number]
            surely_ms = min(surely_ms, deadline_ms)
            latest = min(surely_ms, dated_ms)
            for ttl in ttls:
                at = deadline_ms - ttl
                if latest - ttl * JITTER <= at <= latest + SLACK_MS and at >= (self.begins_ms or at) - SLACK_MS:
                    latest, dated_ms = at, min(dated_ms, at)
                    break
            else:
                if ttls and latest + SLACK_MS < deadline_ms - max(ttls) <= ends_ms:
                    # A longer TTL, or the server's clock was set back: then the order of the dates means nothing.
                    latest, dated_ms = surely_ms, ends_ms
            latest_ms.append(latest)
        return latest_ms

    def moment(self, second: int | None, effects: Sequence[Effect]) -> Moment:
        """Return when the next command was written.

        Args:
            second: The log's last timestamp.
            effects: What the command does.
        """
        if second is not None:
            if not self.has_timestamps and self.begins_ms is not None:
                self.begins_ms = min(self.begins_ms, second * 1_000)
            self.has_timestamps, self.earliest_ms = True, second * 1_000
            return Moment(second * 1_000, second * 1_000 + 999)  # it is rounded down
        latest = self._latest_ms[-1] if self._latest_ms else self._ends_ms
        for deadline_ms, key in _given(effects):
            self._latest_ms.pop()
            for ttl in self._expected_ttls_ms(key):
                at = deadline_ms - ttl
                after_ms = ttl if self.earliest_ms is None else at - self.earliest_ms
                if at == latest or (-SLACK_MS <= after_ms <= ttl * DENSE_WITHIN and at <= latest):
                    self.earliest_ms = at if after_ms < -SLACK_MS else at - min(after_ms, 0)
                    return Moment(at, at, stated=False)
        if self.earliest_ms is not None and latest < self.earliest_ms - SLACK_MS:
            self.begins_ms = self.earliest_ms = None  # the server's clock was set back
        return Moment(self.earliest_ms, max(self.earliest_ms or latest, latest), stated=False)


def _given(effects: Iterable[Effect]) -> list[tuple[int, bytes]]:
    """Return the deadline that a command gives, and one of its keys; nothing if it gives none."""
    return [(effect.deadline_ms, effect.key) for effect in effects if effect.deadline_ms is not None][:1]
