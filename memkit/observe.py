"""When keys really expired: intervals [last seen, first gone] on the server's own clock.

The ``expired`` event is no expiry time: Redis sends it when it frees the memory, at a sweep or at the first access,
which may be long after the deadline. It is kept as what it is, an upper bound.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from posixpath import commonprefix
from secrets import token_hex
from ssl import SSLWantReadError
from typing import Any, Final, cast

import hiredis
import redis

from memkit.clock import ServerClock, escape_glob, knows
from memkit.connect import guard_write, started_by_memkit
from memkit.errors import PolicyError
from memkit.expiry_log import ENDS, NEVER, NONE, UNHEARD, DeadlineChange, End, ExpiryLog, Hearing, Sweep, at
from memkit.policy import UNIT_MS, Duration, human, ttl_ms

EVENTS: Final[Mapping[bytes, End]] = {b"expired": "expired", b"evicted": "evicted", b"del": "deleted"}
GROUP = 100
"""Keys between two readings of TIME: 0.2 ms of looking (measured), which every interval is wide at least."""
NEAR_US = 40_000
BEFORE_THE_SWEEP_US = 500_000
ROUND_US = 300_000
"""What the first round of looks after a jump may take; later ones go by the last."""
BLUR_US = 1_500
SAME_US = 5_000
WAIT_LIMIT_MS = 3_600_000
SWEEP_WITHIN_S = PONG_WITHIN_S = PROBE_WITHIN_S = 60.0
"""Each decides that a server hangs or sends no event."""
MAX_CHANGES = 1_000
ALIVE: Final = ENDS.index("alive")
GONE: Final = -2
"""Beside NONE, a deadline that is none: the key is not there."""
Names = Iterable[str] | Iterable[bytes]
"""Keys as an application or redis-py names them: ``["a"]``, ``client.scan_iter("chat:*")``."""


def observe_expiry(
    client: redis.Redis,
    *,
    ttls: Iterable[Duration] = (),
    keys_per_ttl: int = 1,
    keys: Names | Mapping[str, Duration | None] | Mapping[bytes, Duration | None] = (),
    prefix: str = "memkit-observe:",
    resolution_ms: float = 5.0,
    clock: ServerClock | None = None,
    wait_s: float | None = None,
    leave_to_sweep: bool = False,
) -> ExpiryLog:
    """Observe when keys become unreadable, as intervals on the server's clock.

    ``ttls``: write ``keys_per_ttl`` keys of each (under ``prefix`` and a random token; removed if any is left), which
    needs the production guard's leave. ``keys``: follow existing ones instead, read-only, named by text or, as redis-py
    gives them, by bytes; a mapping says what TTL each was meant to have, None, as everywhere: that it never expires (a
    key that has its TTL still, but for 1 %, counts as written then; any other, as written now). With
    ``clock`` time jumps to shortly before each deadline; without, it is waited for, ``wait_s`` at most.
    ``resolution_ms``: the step with which a deadline is crossed. ``leave_to_sweep``: look at no key between its
    deadline and its event, to see how late the server's own sweep is (a look would make it expire at once).

    Events are heard where the server sends them (notify-keyspace-events; switched on for the while on a server that
    memkit started); ``log.events`` says whether they were.

    Raises PolicyError for what cannot be meant, ProductionGuardError.
    """
    wanted, meant = list(ttls), _meant(keys)
    _check(wanted, meant, keys_per_ttl, resolution_ms, clock, wait_s)
    sandbox = getattr(client, "_test_prefix", "")
    if wanted and not sandbox:
        guard_write(client)
    prefix = prefix if prefix.startswith(sandbox) else sandbox + prefix
    log = ExpiryLog(_server_name(client), "by jumps" if clock else "in real time", resolution_ms)
    with ExitStack() as stack:
        run = _Run(client, log, clock, wait_s, stack.enter_context(_progress()))
        if wanted:
            run.name(f"{prefix}{token_hex(4)}:", wanted, keys_per_ttl)
            stack.callback(run.remove_leftovers)
        else:
            run.take(meant)
        run.subscribe(stack)
        if leave_to_sweep:
            run.refuse_to_wait_in_vain(may_write=bool(wanted))
        if wanted:
            run.write()
        (run.leave_to_sweep if leave_to_sweep else run.follow)()
    return log


def watch(client: redis.Redis, keys: Names, *, for_s: float, every_s: float = 1.0) -> Iterator[DeadlineChange]:
    """Yield deadlines that move on live sessions from now on, for some time. Read-only: PEXPIRETIME, or PTTL on 6.2."""
    return _watch(Watch(client, keys), time.monotonic() + for_s, every_s)


def _watch(looker: Watch, until: float, every_s: float) -> Iterator[DeadlineChange]:
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(every_s, left))  # a sampling interval: nothing here waits for an expiry
        yield from looker.look()


class Watch:
    """The deadlines of some keys as last seen; ``look()`` returns what moved since. Read-only.

    Moves of less than 5 ms are not told apart from the clock's own.
    """

    def __init__(self, client: redis.Redis, keys: Names, *, clock: ServerClock | None = None) -> None:
        self._look = _Look(client, clock)
        self._names = list(_named(keys))
        self.keys = [shown(name) for name in self._names]
        self._seen = list(self._look.deadlines(self._names))

    def look(self) -> list[DeadlineChange]:
        """Look again; return the changes, in the order of the keys."""
        seen = list(self._look.deadlines(self._names))
        pairs = zip(self.keys, self._seen, seen, strict=True)
        changes = [change for key, was, now in pairs if (change := _change(key, was, now))]
        self._seen = seen
        return changes


def _meant(keys: Names | Mapping[str, Duration | None] | Mapping[bytes, Duration | None]) -> dict[bytes, int]:
    """Return what TTL each key is meant to have, ms: NEVER where that is none, NONE where it is not said."""
    if not isinstance(keys, Mapping):
        return dict.fromkeys(_named(keys), NONE)
    ttls = [NEVER if ttl is None else ttl_ms(ttl) for ttl in keys.values()]
    return dict(zip(_named(keys, unique=False), ttls, strict=True))


def _named(keys: Iterable[Any], *, unique: bool = True) -> list[bytes]:
    """Return the names of keys as the server has them."""
    if isinstance(keys, str | bytes):
        raise PolicyError(f"keys={keys!r} is one text; expected several names, such as keys=[{keys!r}] or scan_iter()")
    names = list(keys)
    for name in names:
        if not isinstance(name, str | bytes):
            raise PolicyError(f"{name!r} names no key; expected text or bytes")
    # As redis-py sends text through hiredis (8.1): in UTF-8, whatever the client's encoding.
    encoded = [name if isinstance(name, bytes) else name.encode() for name in names]
    return list(dict.fromkeys(encoded)) if unique else encoded


def shown(name: bytes) -> str:
    """Return a key's name as text; bytes that are none are escaped."""
    return name.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A key at one look: between two times of the server; its deadline, NONE (no TTL) or GONE."""

    from_us: int
    to_us: int
    deadline_us: int

    @property
    def width_us(self) -> int:
        return self.to_us - self.from_us


def _change(key: str, was: _Seen, now: _Seen) -> DeadlineChange | None:
    moved = now.deadline_us - was.deadline_us
    if GONE in (was.deadline_us, now.deadline_us):
        kind = None if not moved else "gone" if now.deadline_us == GONE else "appeared"
    elif NONE in (was.deadline_us, now.deadline_us):
        kind = None if not moved else "dropped" if now.deadline_us == NONE else "given"
    else:
        kind = None if abs(moved) < SAME_US else "renewed" if moved > 0 else "shortened"
    if not kind:
        return None
    left = [round((d - now.to_us) / 1000) if d >= 0 else None for d in (was.deadline_us, now.deadline_us)]
    return DeadlineChange(key, cast("Any", kind), at(was.from_us), at(now.to_us), left[0], left[1])


def _begun_us(seen: _Seen, ttl: int) -> int:
    """When the life of an existing key began: with the observation, or with its TTL where that was set just before."""
    age_us = ttl * 1000 - (seen.deadline_us - seen.from_us)
    fresh = ttl > 0 and seen.deadline_us > 0 and 0 <= age_us <= ttl * 10
    return seen.from_us - age_us if fresh else seen.from_us


class _Look:
    """Looks at keys without touching them: deadlines one by one, or how many of a group are there."""

    def __init__(self, client: redis.Redis, clock: ServerClock | None) -> None:
        if isinstance(client, redis.RedisCluster):
            raise PolicyError("a cluster has no one clock; give the client of one node: get_redis_connection(node)")
        self._client = client
        # Under a deadline shift the server's TIME stays; what has been shifted is what it would have moved.
        self._virtual = clock if clock and clock.rung != "preload" else None
        self._exact = knows(client, "pexpiretime")

    def now_us(self) -> int:
        return self.us(self._client.time())

    def deadlines(self, keys: Sequence[bytes]) -> Iterator[_Seen]:
        """Yield each key's deadline; 6.2 has no PEXPIRETIME, there it is TIME and PTTL side by side."""
        for start in range(0, len(keys), GROUP * 10):
            part = keys[start : start + GROUP * 10]
            seen = list(self._ask(part))
            if not self._exact:
                self._sharpen(part, seen)
            yield from seen

    def _sharpen(self, keys: Sequence[bytes], seen: list[_Seen]) -> None:
        """Ask again where the server was busy elsewhere between TIME and PTTL: their sum is off by as much."""
        for _ in range(5):
            blurred = [index for index, one in enumerate(seen) if one.deadline_us >= 0 and one.width_us > BLUR_US]
            for index, again in zip(blurred, self._ask([keys[index] for index in blurred]), strict=True):
                seen[index] = min(again, seen[index], key=lambda one: one.width_us)

    def _ask(self, keys: Sequence[bytes]) -> Iterator[_Seen]:
        each = GROUP if self._exact else 1
        with self._client.pipeline(transaction=False) as pipe:
            for index, key in enumerate(keys):
                if index % each == 0:
                    pipe.time()
                pipe.execute_command("PEXPIRETIME" if self._exact else "PTTL", key)
            pipe.time()
            yield from self._read(pipe.execute())

    def _read(self, said: list[Any]) -> Iterator[_Seen]:
        before, waiting = 0, []
        for one in said:
            if not isinstance(one, tuple):
                waiting.append(one)
                continue
            now = self.us(one)
            for ms in waiting:
                yield _Seen(before, now, ms if ms < 0 else self._deadline_us(ms, before))
            before, waiting = now, []

    def _deadline_us(self, ms: int, now_us: int) -> int:
        return ms * 1000 + self._offset_us() if self._exact else now_us + ms * 1000

    def there(self, keys: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
        """Yield for each GROUP of keys: from when, to when, how many are there. EXISTS touches no idle clock."""
        for start in range(0, len(keys), GROUP * 10):
            part = keys[start : start + GROUP * 10]
            with self._client.pipeline(transaction=False) as pipe:
                for first in range(0, len(part), GROUP):
                    pipe.time()
                    pipe.exists(*part[first : first + GROUP])
                pipe.time()
                said = pipe.execute()
            times = [self.us(one) for one in said[::2]]
            yield from zip(times[:-1], times[1:], said[1::2], strict=True)

    def us(self, said: tuple[int, int]) -> int:
        return said[0] * 1_000_000 + said[1] + self._offset_us()

    def _offset_us(self) -> int:
        return round(self._virtual.offset / timedelta(microseconds=1)) if self._virtual else 0


class _Run:
    """One observation: fills the log's columns."""

    def __init__(
        self,
        client: redis.Redis,
        log: ExpiryLog,
        clock: ServerClock | None,
        wait_s: float | None,
        show: Callable[[int, int], None],
    ) -> None:
        self._client, self._log, self._clock, self._show = client, log, clock, show
        self._look = _Look(client, clock)
        self._names: list[bytes] = []
        self._step_us = round(log.resolution_ms * 1000)
        self._until = time.monotonic() + wait_s if wait_s is not None else float("inf")
        self._evicted = _evicted_keys(client)
        self._jumps_in_vain = 0
        self._gone = 0
        self._events_prove = False
        self.events: _Events | None = None

    def name(self, prefix: str, ttls: Sequence[Duration], keys_per_ttl: int) -> None:
        """Make the rows of keys to write: longest TTL first, so that the shortest are fresh when the look begins."""
        for ttl in sorted((ttl_ms(ttl) for ttl in ttls), reverse=True):
            for _ in range(keys_per_ttl):
                self._row(f"{prefix}{human(ttl)}:{len(self._log)}".encode(), ttl)

    def take(self, meant: Mapping[bytes, int]) -> None:
        """Make the rows of existing keys, as they are now."""
        for name, ttl in meant.items():
            self._row(name, ttl)
        log = self._log
        for index, seen in enumerate(self._look.deadlines(self._names)):
            log.seen_us[index], log.deadline_us[index] = seen.from_us, max(seen.deadline_us, NONE)
            log.begun_us[index] = log.begun_by_us[index] = _begun_us(seen, log.ttl_ms[index])
            if seen.deadline_us == GONE:
                log.ends[index] = ENDS.index("absent")

    def _row(self, name: bytes, ttl: int) -> None:
        log = self._log
        self._names.append(name)
        log.keys.append(shown(name))
        log.ttl_ms.append(ttl)
        for column in (log.begun_us, log.begun_by_us, log.deadline_us, log.seen_us, log.gone_us, log.event_us):
            column.append(NONE)
        log.ends.append(ALIVE)

    def subscribe(self, stack: ExitStack) -> None:
        """Hear the keys' events from now on, where the server sends them."""
        self._log.events = _hearing(self._client, stack)
        if self._log.events != "not sent":
            try:
                self.events = _Events.open(self._client, self._names, stack)
            except redis.ResponseError:
                self._log.events = "refused"

    def refuse_to_wait_in_vain(self, *, may_write: bool) -> None:
        """Raise PolicyError where no events can come, or where that is neither told nor to be found out."""
        log = self._log
        if log.events == "not known" and may_write:
            log.events = "heard" if self._hears_a_key_die() else "not sent"
        if log.events != "heard":
            raise PolicyError(
                f"leave_to_sweep needs keyspace events: {UNHEARD[log.events]}; expected notify-keyspace-events to hold "
                "K, g, x and e, CONFIG GET to be allowed or ttls= to try it with, and the user to reach __keyspace@*"
            )

    def _hears_a_key_die(self) -> bool:
        events, deadline = cast("_Events", self.events), time.monotonic() + PROBE_WITHIN_S
        self._client.set(self._names[0], b"x", px=1)
        while self._client.exists(self._names[0]) and time.monotonic() < deadline:
            pass
        return (0, "expired") in events.heard(0, all_sent=True)

    def write(self) -> None:
        """SET the keys, each with its TTL, and read the deadline that it got."""
        for start in range(0, len(self._log), GROUP):
            rows = range(start, min(start + GROUP, len(self._log)))
            with self._client.pipeline(transaction=False) as pipe:
                pipe.time()
                for index in rows:
                    pipe.set(self._names[index], b"x", px=self._log.ttl_ms[index])
                pipe.time()
                said = pipe.execute()
            begun, by = self._look.us(said[0]), self._look.us(said[-1])
            seen = self._look.deadlines(self._names[start : start + GROUP])
            for index, one in zip(rows, seen, strict=True):
                self._log.begun_us[index], self._log.begun_by_us[index] = begun, by
                self._log.seen_us[index] = begun
                self._note(index, one)
            self._listen(all_sent=True)  # each TTL that is set is an event, too

    def remove_leftovers(self) -> None:
        """Remove the written keys that still live."""
        left = [name for name, gone in zip(self._names, self._log.gone_us, strict=True) if gone == NONE]
        for start in range(0, len(left), GROUP):
            self._client.unlink(*left[start : start + GROUP])

    def follow(self) -> None:
        """Cross every deadline in small steps, looking at the keys that are near theirs."""
        heap = [(deadline, index) for index, deadline in enumerate(self._log.deadline_us) if self._lives(index)]
        heapq.heapify(heap)
        ahead_us, round_us = 2 * self._step_us, 0
        while heap and self._may_go_on():
            now = self._look.now_us()
            if heap[0][0] > now + ahead_us:
                now, round_us = self._approach(heap, ahead_us), ROUND_US
            # Three rounds ahead: a key whose deadline passes during a round was looked at shortly before.
            self._see_near(heap, now + ahead_us + self._step_us + 3 * round_us)
            self._listen()
            after = self._look.now_us()
            round_us = after - now
            if heap and after < heap[0][0]:
                self._pass_time(self._step_us)
        self._finish()

    def _approach(self, heap: list[tuple[int, int]], ahead_us: int) -> int:
        """Let time pass until shortly before the next deadline; return the time."""
        # A first stop without hurry, so that no interval is wide should this process be late for the second.
        early_us = max(1_000_000, 10 * ahead_us)
        self._see_near(heap, self._reach(heap[0][0] - early_us) + 60 * early_us)
        now = self._reach(heap[0][0] - ahead_us) if heap else self._look.now_us()
        # The nearest at once: to look at thousands takes longer than they have.
        self._see_near(heap, now + ahead_us + NEAR_US)
        return now

    def _see_near(self, heap: list[tuple[int, int]], until_us: int) -> None:
        due = []
        while heap and heap[0][0] <= until_us:
            due.append(heapq.heappop(heap)[1])
        self._see(due)
        for index in filter(self._lives, due):
            heapq.heappush(heap, (self._log.deadline_us[index], index))

    def leave_to_sweep(self) -> None:
        """Go past the deadlines of keys that end together, look at none of them, and hear when each event comes."""
        self._events_prove = True
        order = sorted(filter(self._lives, range(len(self._log))), key=self._log.deadline_us.__getitem__)
        while order and self._may_go_on():
            together = self._log.deadline_us[order[0]] + 10_000_000
            dead = [index for index in order if self._log.deadline_us[index] <= together]
            self._log.sweep = _sweep(self._client, len(dead))
            # Early enough that a busy machine does not look after the deadline, which would make the keys expire.
            self._reach(self._log.deadline_us[dead[0]] - max(BEFORE_THE_SWEEP_US, 2 * self._step_us))
            self._see(dead)
            self._reach(self._log.deadline_us[dead[-1]] + 1_000, checkpoints=False)
            self._hear_of(dead)
            order = order[len(dead) :]
        self.events = None  # what comes now comes because of the last look
        self._finish()

    def _hear_of(self, dead: Sequence[int]) -> None:
        patience = min(time.monotonic() + SWEEP_WITHIN_S, self._until)
        while self._log.events != "lost" and any(map(self._lives, dead)) and time.monotonic() < patience:
            self._listen(0.02)
        self._listen(all_sent=True)

    def _lives(self, index: int) -> bool:
        log = self._log
        return log.gone_us[index] == NONE and log.deadline_us[index] != NONE and ENDS[log.ends[index]] != "absent"

    def _not_gone(self) -> list[int]:
        absent, log = ENDS.index("absent"), self._log
        return [index for index, gone in enumerate(log.gone_us) if gone == NONE and log.ends[index] != absent]

    def _may_go_on(self) -> bool:
        return time.monotonic() < self._until and self._jumps_in_vain < 100

    def _reach(self, target_us: int, *, checkpoints: bool = True) -> int:
        """Let time pass until then, with a look at all keys whenever the observation is ten times as old."""
        begun = min(self._log.begun_us)
        while (now := self._look.now_us()) < target_us and self._may_go_on():
            stop = begun + max(1_000_000, 10 * (now - begun)) if checkpoints else target_us
            self._jumps_in_vain += self._clock is not None
            self._pass_time(min(stop, target_us) - now)
            if stop < target_us and self._look.now_us() >= stop:
                self._see(self._not_gone())
        return now

    def _pass_time(self, us: int) -> None:
        if self._clock:
            self._clock.shift(timedelta(microseconds=us))
        else:
            # In slices: wait_s may end before, and events are to be stamped when they come.
            self._listen(min(us / 1_000_000, 0.05, max(0.0, self._until - time.monotonic())))
            self._show(self._gone, len(self._log))

    def _see(self, rows: Sequence[int]) -> None:
        """Look at keys, and hear meanwhile: Redis drops a subscriber that leaves 8 MB unread for 60 s of its clock.

        A jump is more than 60 s, and 100,000 keys that die send some 10 MB.
        """
        for start in range(0, len(rows), GROUP * 10):
            self._see_some(rows[start : start + GROUP * 10])
            if len(rows) > GROUP:
                self._listen(all_sent=True)

    def _see_some(self, rows: Sequence[int]) -> None:
        """Look at keys by groups; one by one where some of a group are gone, or are there after their deadline."""
        log = self._log
        doubtful: list[int] = []
        groups = (rows[start : start + GROUP] for start in range(0, len(rows), GROUP))
        for group, (since, by, there) in zip(groups, self._look.there([self._names[i] for i in rows]), strict=True):
            if not there:
                for index in group:
                    self._went(index, by)
            elif there == len(group) and all(since < log.deadline_us[index] for index in group):
                for index in group:
                    log.seen_us[index], log.event_us[index], log.ends[index] = since, NONE, ALIVE
            else:
                doubtful += group
        for index, seen in zip(doubtful, self._look.deadlines([self._names[i] for i in doubtful]), strict=True):
            self._note(index, seen)
        self._show(self._gone, len(log))

    def _note(self, index: int, seen: _Seen) -> None:
        if seen.deadline_us == GONE:
            self._went(index, seen.to_us)
            return
        log = self._log
        was = _Seen(log.seen_us[index], log.seen_us[index], log.deadline_us[index])
        log.seen_us[index], log.event_us[index], log.ends[index] = seen.from_us, NONE, ALIVE
        first = was.deadline_us == NONE and log.begun_us[index] == was.from_us
        change = None if first else _change(log.keys[index], was, seen)
        if first or change:
            log.deadline_us[index] = seen.deadline_us
        if change and len(log.changes) < MAX_CHANGES:
            log.changes.append(change)

    def _went(self, index: int, by_us: int) -> None:
        if self._log.gone_us[index] == NONE:
            self._log.gone_us[index] = by_us
            self._gone += 1
            self._jumps_in_vain = 0

    def _listen(self, wait_s: float = 0.0, *, all_sent: bool = False) -> None:
        """Stamp the events that have come, GROUP by GROUP; left to the sweep, they say that the key is gone, too."""
        if not self.events or self.events.lost:
            time.sleep(wait_s)  # between two looks, not for an expiry
            return
        heard = self.events.heard(wait_s, all_sent=all_sent)
        while some := list(islice(heard, GROUP)):
            now = self._look.now_us()
            for index, end in some:
                self._log.event_us[index], self._log.ends[index] = now, ENDS.index(end)
                if self._events_prove:
                    self._went(index, now)
            self._log.events = "heard"
            self._show(self._gone, len(self._log))
        if self.events.lost:
            self._log.events = "lost"

    def _finish(self) -> None:
        """Look once more at what lives, and name the ends that no event has told."""
        log = self._log
        immortal = [i for i in self._not_gone() if log.deadline_us[i] == NONE and log.ttl_ms[i] > 0]
        if immortal and self._clock:
            # Meant to expire, and nothing will make them: seen alive at twice their TTL, that is shown.
            self._reach(max(log.begun_us[i] + 2_000 * log.ttl_ms[i] for i in immortal))
        self._see(self._not_gone())
        self._listen(all_sent=True)
        evicted = _evicted_keys(self._client)
        early: End = "deleted" if evicted is not None and evicted == self._evicted else "evicted or deleted"
        for index, gone in enumerate(log.gone_us):
            if gone != NONE and ENDS[log.ends[index]] == "alive":
                late = NONE != log.deadline_us[index] < gone
                log.ends[index] = ENDS.index("expired" if late else early)
            self._note_an_end_before_the_deadline(index)

    def _note_an_end_before_the_deadline(self, index: int) -> None:
        """Redis expires no key before its deadline: one that did had another by then, which nobody saw."""
        log = self._log
        seen, event, deadline = log.seen_us[index], log.event_us[index], log.deadline_us[index]
        if seen < event < log.gone_us[index]:
            log.gone_us[index] = event
        gone = log.gone_us[index]
        if NONE in (gone, event, deadline) or ENDS[log.ends[index]] != "expired" or gone > deadline - SAME_US:
            return
        log.deadline_us[index] = NONE
        if len(log.changes) < MAX_CHANGES:
            left_ms = round((deadline - gone) / 1000)
            log.changes.append(DeadlineChange(log.keys[index], "shortened", at(seen), at(gone), left_ms, 0))


class _Events:
    """Keyspace events of the observed keys.

    Read from the socket: redis-py's ``get_message(timeout=0)`` raises TimeoutError when a burst ends within a message
    (8.1), and parses some 30 times slower. ``lost``: the server has ended the subscription, or its end is not there.
    """

    def __init__(self, connection: Any, names: Sequence[bytes]) -> None:
        self._connection, self._socket = connection, connection._sock
        self._reader = hiredis.Reader()
        self._index = {name: index for index, name in enumerate(names)}
        self._pong_is_due = False
        self.lost = False

    @classmethod
    def open(cls, client: redis.Redis, names: Sequence[bytes], stack: ExitStack) -> _Events:
        """Subscribe, on a connection of its own."""
        pool = client.connection_pool
        options = {name: value for name, value in pool.connection_kwargs.items() if not name.startswith("maint_")}
        connection = pool.connection_class(**{**options, "protocol": 2})
        stack.callback(connection.disconnect)
        connection.connect()
        channel = f"__keyspace@{options.get('db') or 0}__:".encode()
        if len(names) <= GROUP:
            connection.send_command("SUBSCRIBE", *(channel + name for name in names))
        else:
            # Latin-1 is a character a byte: names need not be text.
            begin = escape_glob((channel + cast("bytes", commonprefix(names))).decode("latin-1")).encode("latin-1")
            connection.send_command("PSUBSCRIBE", begin + b"*")
        connection.read_response()
        return cls(connection, names)

    def heard(self, wait_s: float, *, all_sent: bool = False) -> Iterator[tuple[int, End]]:
        """Yield what has come, row and end; wait for the first that long, or for all that were sent until now."""
        if all_sent:
            self._ping()
        # Not ready is BlockingIOError, TimeoutError or, over TLS, SSLWantReadError.
        with suppress(BlockingIOError, TimeoutError, SSLWantReadError):
            while data := self._receive(wait_s):
                self._reader.feed(data)
                yield from self._read()
                wait_s = 0

    def _ping(self) -> None:
        """Have the server answer behind its events: a socket that is empty may only be waiting for the next of them."""
        self._socket.settimeout(PONG_WITHIN_S)
        try:
            self._connection.send_packed_command(self._connection.pack_command("PING"), check_health=False)
            self._pong_is_due = True
        except redis.RedisError:
            self.lost = True

    def _receive(self, wait_s: float) -> bytes:
        """Return the next bytes; none when the subscription is lost."""
        if self.lost:
            return b""
        self._socket.settimeout(PONG_WITHIN_S if self._pong_is_due else wait_s)
        try:
            data = cast("bytes", self._socket.recv(1 << 16))
        except ConnectionError:
            data = b""
        self.lost = not data
        return data

    def _read(self) -> Iterator[tuple[int, End]]:
        while (message := self._reader.gets()) is not False:
            if message[0] == b"pong":
                self._pong_is_due = False
            if message[0] in (b"message", b"pmessage"):
                index, end = self._index.get(message[-2].partition(b":")[2]), EVENTS.get(message[-1])
                if index is not None and end:
                    yield index, end


def _hearing(client: redis.Redis, stack: ExitStack) -> Hearing:
    """Whether keyspace events come; switched on, until the stack is left, on a server that memkit started."""
    try:
        flags = _text(cast("dict[Any, Any]", client.config_get("notify-keyspace-events")))
    except redis.ResponseError:
        return "not known"  # not allowed to ask: listening does no harm
    if "K" in flags and ("A" in flags or {"g", "x", "e"} <= set(flags)):
        return "heard"
    if not started_by_memkit(client):
        return "not sent"
    client.config_set("notify-keyspace-events", flags + "Kgxe")
    stack.callback(client.config_set, "notify-keyspace-events", flags)
    return "heard"


def _text(answer: dict[Any, Any]) -> str:
    return "".join(value.decode() if isinstance(value, bytes) else str(value) for value in answer.values())


def _evicted_keys(client: redis.Redis) -> int | None:
    try:
        return cast("int", client.info("stats").get("evicted_keys"))
    except redis.ResponseError:
        return None


def _sweep(client: redis.Redis, dead: int) -> Sweep:
    """Return what the sweep will have to do; the dead-to-be are still in INFO's count."""
    database = f"db{client.connection_pool.connection_kwargs.get('db') or 0}"
    with_ttl = client.info("keyspace").get(database, {}).get("expires", 0)
    effort = "1"
    with suppress(redis.ResponseError):
        effort = _text(cast("dict[Any, Any]", client.config_get("active-expire-effort"))) or "1"
    return Sweep(dead, max(0, with_ttl - dead), client.info("server").get("hz", 10), int(effort))


def _server_name(client: redis.Redis) -> str:
    info = client.info("server")
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', '(version not told)')}"


def _check(
    ttls: Sequence[Duration],
    keys: Mapping[bytes, int],
    keys_per_ttl: int,
    resolution_ms: float,
    clock: ServerClock | None,
    wait_s: float | None,
) -> None:
    if bool(ttls) == bool(keys):
        raise PolicyError("observe_expiry takes either ttls=, to write keys, or keys=, to follow existing ones")
    if keys_per_ttl < 1 or not 0.1 <= resolution_ms <= UNIT_MS["d"]:
        raise PolicyError(
            f"keys_per_ttl={keys_per_ttl!r}, resolution_ms={resolution_ms!r}: expected at least one key, and a step of "
            "0.1 ms to a day"
        )
    longest = max((ttl_ms(ttl) for ttl in ttls), default=0)
    if longest > WAIT_LIMIT_MS and not clock and wait_s is None:
        raise PolicyError(
            f"a TTL of {human(longest)} would be waited for; give clock= (a private server's, or a sandbox's) to jump "
            "there, or wait_s= to see how far it comes"
        )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr where that is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda *_: None
        return
    with tqdm(desc="observing", unit=" keys", disable=None, leave=False, delay=1) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
