"""observe_expiry and Watch: when keys expired, as intervals [last seen, first missing] on the server's clock.

An ``expired`` event is not the time of the expiry: Redis sends it when it frees the memory, by active expiry or at
the first access, which may be long after the deadline. The log keeps it as an upper bound.
"""

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from posixpath import commonprefix
from secrets import token_hex
from ssl import SSLWantReadError
from typing import Any, Final, Self, cast

import redis

from memkit.connect import chunks, escape_glob
from memkit.errors import PolicyError
from memkit.observe.log import (
    NEVER,
    NONE,
    WHY_NO_EVENTS,
    DeadlineChange,
    End,
    EventStatus,
    ExpiryLog,
    Sweep,
    time_at,
)
from memkit.policy import UNIT_MS, Duration, ttl_ms, ttl_text
from memkit.readonly.connection import ReadOnlyConnection, command, refused
from memkit.render import duration, progress
from memkit.server.clock import ServerClock, knows
from memkit.server.guard import guard_write, started_by_memkit

EVENTS: Final[Mapping[bytes, End]] = {b"expired": "expired", b"evicted": "evicted", b"del": "deleted"}
GROUP_KEYS = 100
"""Keys between two readings of TIME. Checking them takes 0.2 ms (measured), the least width of an interval."""
NEAR_DEADLINE_US = 40_000
"""Deadlines this close are checked first: checking thousands of keys takes longer (measured)."""
BEFORE_DEADLINES_US = 500_000
"""The last check before a deadline, after which keys are left to active expiry: a busy machine must not check later."""
ROUND_US = 300_000
"""The assumed time of the first round of checks after a jump; later rounds use the time of the last one."""
WIDE_READING_US = 1_500
"""TIME and PTTL further apart than this are asked again (Redis 6.2 only)."""
SAME_US = 5_000
"""Smaller moves of a deadline are within the clock's own resolution."""
WAIT_LIMIT_MS = 3_600_000
EVENTS_LIMIT_S = PONG_LIMIT_S = PROBE_LIMIT_S = 60.0
"""More means that the server hangs or sends no event."""
MAX_CHANGES = 1_000
MAX_USELESS_JUMPS = 100
"""Jumps of the clock after which no key ended: the clock does not move these keys."""
NO_KEY: Final = -2
"""In place of a deadline: the key does not exist."""
Names = Iterable[str] | Iterable[bytes]
"""Key names as text or bytes: ``["a"]``, ``client.scan_iter("chat:*")``."""


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
    """Observe when keys can no longer be read, as intervals on the server's clock.

    Args:
        client: A client of one server. Writing (``ttls``) needs the production guard's permission; following existing
            keys (``keys``) only reads.
        ttls: Write keys with these TTLs (``"7d"``, seconds, a timedelta) and observe them. Keys that are left are
            removed at the end.
        keys_per_ttl: The number of keys to write per TTL.
        keys: Observe these existing keys instead, named as text or bytes. A mapping gives the configured TTL of each
            key; None means no TTL. If the remaining TTL is within 1 % of it, the lifetime begins with that write,
            otherwise with the last access, which Redis keeps to a second.
        prefix: The prefix of written keys; a random token follows it.
        resolution_ms: The step with which deadlines are crossed, in milliseconds (0.1 to a day).
        clock: The server's clock, to jump to shortly before each deadline. Without it the observation waits.
        wait_s: The longest time to wait, in seconds.
        leave_to_sweep: Do not check a key between its deadline and its event, to measure how long the server's
            active expiry takes (a check would make the key expire at once).

    Returns:
        The log. ``log.events`` is ``received`` if keyspace events were: they need ``notify-keyspace-events``, which
        is set for the duration of the observation on a server that memkit started.

    Raises:
        PolicyError: An argument is invalid.
        ProductionGuardError: ``ttls`` would write to a server that memkit may not write to.
    """
    if isinstance(ttls, str):
        raise PolicyError(f"ttls={ttls!r} is one TTL; expected several, as in ttls=[{ttls!r}]")
    wanted, names = list(ttls), _encoded_names(keys)
    configured = dict.fromkeys(names, NONE)
    if isinstance(keys, Mapping):
        configured = dict(zip(names, [NEVER if ttl is None else ttl_ms(ttl) for ttl in keys.values()], strict=True))
    _check_arguments(wanted, configured, keys_per_ttl, resolution_ms, clock, wait_s)
    sandbox = getattr(client, "_test_prefix", "")
    if wanted and not sandbox:
        guard_write(client)
    prefix = prefix if prefix.startswith(sandbox) else sandbox + prefix
    info = client.info("server")
    server = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    log = ExpiryLog(server, "by jumps" if clock else "in real time", resolution_ms)
    with ExitStack() as stack:
        run = _Observation(client, log, clock, wait_s, stack.enter_context(progress("observing", "keys")))
        if wanted:
            run.add_new(f"{prefix}{token_hex(4)}:", wanted, keys_per_ttl)
            stack.callback(run.remove_leftovers)
        else:
            run.follow_existing(configured)
        run.subscribe(stack)
        if leave_to_sweep:
            run.require_events(may_write=bool(wanted))
        if wanted:
            run.write()
        (run.leave_to_sweep if leave_to_sweep else run.cross_deadlines)()
    return log


class Watch:
    """The deadlines of some keys; ``look()`` returns those that moved. Read-only.

    Moves of less than 5 ms are ignored: they are within the clock's own resolution.

    Args:
        client: A client of one server.
        keys: The keys' names, as text or bytes.
        clock: The server's clock, if it moves time by shifting deadlines.

    Raises:
        PolicyError: ``keys`` are not names, or the client is a cluster's.
    """

    def __init__(self, client: redis.Redis, keys: Names, *, clock: ServerClock | None = None) -> None:
        self._reader = _KeyReader(client, clock)
        self._names = list(dict.fromkeys(_encoded_names(keys)))
        self.keys = [shown(name) for name in self._names]
        self._seen = list(self._reader.deadlines(self._names))

    def look(self) -> list[DeadlineChange]:
        """Return the deadlines that moved since the last call, in the order of the keys."""
        seen = list(self._reader.deadlines(self._names))
        pairs = zip(self.keys, self._seen, seen, strict=True)
        changes = [change for key, was, now in pairs if (change := _change(key, was, now))]
        self._seen = seen
        return changes


def _encoded_names(keys: Iterable[Any]) -> list[bytes]:
    if isinstance(keys, str | bytes):
        raise PolicyError(f"keys={keys!r} is one name; expected several, as in keys=[{keys!r}] or client.scan_iter()")
    names = list(keys)
    for name in names:
        if not isinstance(name, str | bytes):
            raise PolicyError(f"{name!r} is not a key name; expected text or bytes")
    # redis-py 8.1 with hiredis sends text as UTF-8, whatever the client's encoding.
    return [name if isinstance(name, bytes) else name.encode() for name in names]


def shown(name: bytes) -> str:
    """Return a key's name as text; bytes that are not UTF-8 are escaped."""
    return name.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class _Check:
    """One check of a key, between two server times: its deadline, NONE (no TTL) or NO_KEY."""

    from_us: int
    to_us: int
    deadline_us: int


def _change(key: str, was: _Check, now: _Check) -> DeadlineChange | None:
    moved = now.deadline_us - was.deadline_us
    if NO_KEY in (was.deadline_us, now.deadline_us):
        kind = None if not moved else "ended" if now.deadline_us == NO_KEY else "created"
    elif NONE in (was.deadline_us, now.deadline_us):
        kind = None if not moved else "TTL removed" if now.deadline_us == NONE else "TTL set"
    else:
        kind = None if abs(moved) < SAME_US else "renewed" if moved > 0 else "shortened"
    if not kind:
        return None
    left = [round((d - now.to_us) / 1000) if d >= 0 else None for d in (was.deadline_us, now.deadline_us)]
    return DeadlineChange(key, cast("Any", kind), time_at(was.from_us), time_at(now.to_us), left[0], left[1])


def _start_us(seen: _Check, ttl: int, idle_s: int | None) -> tuple[int, int]:
    """Return the earliest and the latest time at which an existing key's lifetime can have begun.

    A key with its configured TTL, but for 1 %, was written then. Any other was written at its last access or before;
    Redis keeps that time to a second. Without it, the lifetime begins with the observation.
    """
    age_us = ttl * 1000 - (seen.deadline_us - seen.from_us)
    if ttl > 0 and seen.deadline_us > 0 and 0 <= age_us <= ttl * 10:
        return seen.from_us - age_us, seen.from_us - age_us
    if idle_s is None or seen.deadline_us == NO_KEY:
        return seen.from_us, seen.from_us
    earliest = seen.from_us - (idle_s + 1) * 1_000_000
    return earliest, min(seen.from_us, earliest + 2_000_000)


def _width_us(check: _Check) -> int:
    return check.to_us - check.from_us


class _KeyReader:
    """Read keys without resetting their idle times: each deadline, or how many of a group exist."""

    def __init__(self, client: redis.Redis, clock: ServerClock | None) -> None:
        if isinstance(client, redis.RedisCluster):
            raise PolicyError("a cluster has a clock per node; pass a node's client: client.get_redis_connection(node)")
        self._client = client
        # A deadline shift leaves TIME as it is, so the shift is added to it.
        self._virtual = clock if clock and clock.method != "preload" else None
        self._exact = knows(client, "pexpiretime")

    def now_us(self) -> int:
        return self.us(self._client.time())

    def deadlines(self, keys: Sequence[bytes]) -> Iterator[_Check]:
        """Yield each key's deadline; Redis 6.2 has no PEXPIRETIME, so there it is the sum of TIME and PTTL."""
        for part in chunks(keys, GROUP_KEYS * 10):
            seen = list(self._request(part))
            # Ask again for keys with a gap between TIME and PTTL: their sum is wrong by as much.
            for _ in range(0 if self._exact else 5):
                blurred = [i for i, one in enumerate(seen) if one.deadline_us >= 0 and _width_us(one) > WIDE_READING_US]
                for i, again in zip(blurred, self._request([part[i] for i in blurred]), strict=True):
                    seen[i] = min(again, seen[i], key=_width_us)
            yield from seen

    def _request(self, keys: Sequence[bytes]) -> Iterator[_Check]:
        each = GROUP_KEYS if self._exact else 1
        with self._client.pipeline(transaction=False) as pipe:
            for index, key in enumerate(keys):
                if index % each == 0:
                    pipe.time()
                pipe.execute_command("PEXPIRETIME" if self._exact else "PTTL", key)
            pipe.time()
            replies = pipe.execute()
        before, waiting = 0, []
        for one in replies:
            if not isinstance(one, tuple):
                waiting.append(one)
                continue
            now = self.us(one)
            for ms in waiting:
                deadline_us = ms * 1000 + (self._offset_us() if self._exact else before)
                yield _Check(before, now, ms if ms < 0 else deadline_us)
            before, waiting = now, []

    def idle_times_s(self, keys: Sequence[bytes]) -> Iterator[int | None]:
        """Yield the seconds since each key's last access; None if the server does not keep them (LFU) or refuses."""
        for part in chunks(keys, GROUP_KEYS * 10):
            with self._client.pipeline(transaction=False) as pipe:
                for key in part:
                    pipe.object("idletime", key)
                for reply in pipe.execute(raise_on_error=False):
                    yield reply if isinstance(reply, int) else None

    def count_existing(self, keys: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
        """Yield for each GROUP_KEYS keys two server times and how many existed in between (EXISTS keeps idle times)."""
        for part in chunks(keys, GROUP_KEYS * 10):
            with self._client.pipeline(transaction=False) as pipe:
                for group in chunks(part, GROUP_KEYS):
                    pipe.time()
                    pipe.exists(*group)
                pipe.time()
                replies = pipe.execute()
            times = [self.us(one) for one in replies[::2]]
            yield from zip(times[:-1], times[1:], replies[1::2], strict=True)

    def us(self, replies: tuple[int, int]) -> int:
        return replies[0] * 1_000_000 + replies[1] + self._offset_us()

    def _offset_us(self) -> int:
        return round(self._virtual.offset / timedelta(microseconds=1)) if self._virtual else 0


class _Observation:
    """One observation, which fills the log's columns."""

    def __init__(
        self,
        client: redis.Redis,
        log: ExpiryLog,
        clock: ServerClock | None,
        wait_s: float | None,
        show: Callable[[int, int], None],
    ) -> None:
        self._client, self._log, self._clock, self._show = client, log, clock, show
        self._reader = _KeyReader(client, clock)
        self._names: list[bytes] = []
        self._step_us = round(log.resolution_ms * 1000)
        self._stop_at = time.monotonic() + wait_s if wait_s is not None else float("inf")
        self._evicted = _evicted_keys(client)
        self._useless_jumps = 0
        self._ended_keys = 0
        self._events_count_as_end = False
        self.events: _Events | None = None

    def add_new(self, prefix: str, ttls: Sequence[Duration], keys_per_ttl: int) -> None:
        """Add a row per key to write: longest TTL first, so that the shortest are the newest when the checks begin."""
        for ttl in sorted(map(ttl_ms, ttls), reverse=True):
            for _ in range(keys_per_ttl):
                self._row(f"{prefix}{ttl_text(ttl)}:{len(self._log)}".encode(), ttl)

    def follow_existing(self, configured: Mapping[bytes, int]) -> None:
        """Add a row per existing key, as it is now."""
        for name, ttl in configured.items():
            self._row(name, ttl)
        log = self._log
        idle_times = self._reader.idle_times_s(self._names)
        for index, (seen, idle_s) in enumerate(zip(self._reader.deadlines(self._names), idle_times, strict=True)):
            log.seen_us[index], log.deadline_us[index] = seen.from_us, max(seen.deadline_us, NONE)
            log.started_us[index], log.started_by_us[index] = _start_us(seen, log.ttl_ms[index], idle_s)
            if seen.deadline_us == NO_KEY:
                log.ends[index] = "absent"

    def _row(self, name: bytes, ttl: int) -> None:
        log = self._log
        self._names.append(name)
        log.keys.append(shown(name))
        log.ttl_ms.append(ttl)
        for column in (log.started_us, log.started_by_us, log.deadline_us, log.seen_us, log.missing_us, log.event_us):
            column.append(NONE)
        log.ends.append("not expired")

    def subscribe(self, stack: ExitStack) -> None:
        """Receive the keys' events from now on, if the server sends them."""
        self._log.events = _event_status(self._client, stack)
        if self._log.events != "not sent":
            try:
                self.events = _Events.open(self._client, self._names, stack)
            except redis.ResponseError:
                self._log.events = "refused"

    def require_events(self, *, may_write: bool) -> None:
        """Raise PolicyError if no events are sent, or if that cannot be found out."""
        log = self._log
        if self.events and log.events == "unknown" and may_write:
            deadline = time.monotonic() + PROBE_LIMIT_S
            self._client.set(self._names[0], b"x", px=1)
            while self._client.exists(self._names[0]) and time.monotonic() < deadline:
                pass
            log.events = "received" if (0, "expired") in self.events.receive(0, all_sent=True) else "not sent"
        if log.events != "received":
            raise PolicyError(
                f"leave_to_sweep needs keyspace events, but {WHY_NO_EVENTS[log.events]}. Set notify-keyspace-events "
                "to Kgxe. Allow the user the channels __keyspace@*. Allow CONFIG GET, or pass ttls="
            )

    def write(self) -> None:
        """SET the keys, each with its TTL, and read the deadline that it got."""
        for rows in chunks(range(len(self._log)), GROUP_KEYS):
            with self._client.pipeline(transaction=False) as pipe:
                pipe.time()
                for index in rows:
                    pipe.set(self._names[index], b"x", px=self._log.ttl_ms[index])
                pipe.time()
                replies = pipe.execute()
            begun, by = self._reader.us(replies[0]), self._reader.us(replies[-1])
            seen = self._reader.deadlines([self._names[index] for index in rows])
            for index, one in zip(rows, seen, strict=True):
                self._log.started_us[index], self._log.started_by_us[index] = begun, by
                self._log.seen_us[index] = begun
                self._record(index, one)
            self._listen(all_sent=True)  # each TTL that is set is an event, too

    def remove_leftovers(self) -> None:
        left = (name for name, missing in zip(self._names, self._log.missing_us, strict=True) if missing == NONE)
        for names in chunks(left, GROUP_KEYS):
            self._client.unlink(*names)

    def cross_deadlines(self) -> None:
        """Cross every deadline in small steps, checking the keys that are near theirs."""
        heap = [(deadline, index) for index, deadline in enumerate(self._log.deadline_us) if self._may_expire(index)]
        heapq.heapify(heap)
        ahead_us, round_us = 2 * self._step_us, 0
        while heap and self._may_continue():
            now = self._reader.now_us()
            if heap[0][0] > now + ahead_us:
                # The first stop is early, so that no interval is wide if this process is late for the second.
                early_us = max(1_000_000, 10 * ahead_us)
                self._check_near(heap, self._reach(heap[0][0] - early_us) + 60 * early_us)
                now, round_us = self._reach(heap[0][0] - ahead_us) if heap else self._reader.now_us(), ROUND_US
                # The nearest keys first: checking thousands takes longer than they still have.
                self._check_near(heap, now + ahead_us + NEAR_DEADLINE_US)
            # Three rounds ahead, so that a key with a deadline during a round was checked shortly before.
            self._check_near(heap, now + ahead_us + self._step_us + 3 * round_us)
            self._listen()
            after = self._reader.now_us()
            round_us = after - now
            if heap and after < heap[0][0]:
                self._pass_time(self._step_us)
        self._finish()

    def _check_near(self, heap: list[tuple[int, int]], until_us: int) -> None:
        due = []
        while heap and heap[0][0] <= until_us:
            due.append(heapq.heappop(heap)[1])
        self._check_keys(due)
        for index in filter(self._may_expire, due):
            heapq.heappush(heap, (self._log.deadline_us[index], index))

    def leave_to_sweep(self) -> None:
        """Pass the deadlines of keys that end together without checking them, and wait for each event."""
        self._events_count_as_end, log = True, self._log
        order = sorted(filter(self._may_expire, range(len(log))), key=log.deadline_us.__getitem__)
        while order and self._may_continue():
            together = log.deadline_us[order[0]] + 10_000_000
            expiring = [index for index in order if log.deadline_us[index] <= together]
            log.sweep = _sweep(self._client, len(expiring))
            # Early: a check after the deadline would make the keys expire.
            self._reach(log.deadline_us[expiring[0]] - max(BEFORE_DEADLINES_US, 2 * self._step_us))
            self._check_keys(expiring)
            self._reach(log.deadline_us[expiring[-1]] + 1_000, checkpoints=False)
            give_up_at = min(time.monotonic() + EVENTS_LIMIT_S, self._stop_at)
            while log.events != "lost" and any(map(self._may_expire, expiring)) and time.monotonic() < give_up_at:
                self._listen(0.02)
            self._listen(all_sent=True)
            order = order[len(expiring) :]
        self.events = None  # events from here on are caused by the last check
        self._finish()

    def _may_expire(self, index: int) -> bool:
        log = self._log
        return log.missing_us[index] == NONE and log.deadline_us[index] != NONE and log.ends[index] != "absent"

    def _existing(self) -> list[int]:
        rows = enumerate(zip(self._log.missing_us, self._log.ends, strict=True))
        return [index for index, (missing, end) in rows if missing == NONE and end != "absent"]

    def _may_continue(self) -> bool:
        return time.monotonic() < self._stop_at and self._useless_jumps < MAX_USELESS_JUMPS

    def _reach(self, target_us: int, *, checkpoints: bool = True) -> int:
        """Let time pass until then, checking all keys whenever the observation is ten times as old."""
        begun = min(self._log.started_us)
        while (now := self._reader.now_us()) < target_us and self._may_continue():
            stop = begun + max(1_000_000, 10 * (now - begun)) if checkpoints else target_us
            self._useless_jumps += self._clock is not None
            self._pass_time(min(stop, target_us) - now)
            if stop < target_us and self._reader.now_us() >= stop:
                self._check_keys(self._existing())
        return now

    def _pass_time(self, us: int) -> None:
        if self._clock:
            self._clock.shift(timedelta(microseconds=us))
        else:
            # In slices, because wait_s may end first and events get their time when they arrive.
            self._listen(min(us / 1_000_000, 0.05, max(0.0, self._stop_at - time.monotonic())))
            self._show(self._ended_keys, len(self._log))

    def _check_keys(self, rows: Sequence[int]) -> None:
        """Check keys by groups, and one by one if a group is incomplete or a deadline in it has passed.

        Events are read in between: Redis drops a subscriber that leaves 8 MB unread for 60 s of the server's clock. A
        jump is longer than that, and 100,000 keys that expire send about 10 MB.
        """
        log = self._log
        for some in chunks(rows, GROUP_KEYS * 10):
            doubtful: list[int] = []
            checks = self._reader.count_existing([self._names[i] for i in some])
            for group, (since, by, existing) in zip(chunks(some, GROUP_KEYS), checks, strict=True):
                if not existing:
                    for index in group:
                        self._record_end(index, by)
                elif existing == len(group) and all(since < log.deadline_us[index] for index in group):
                    for index in group:
                        log.seen_us[index], log.event_us[index], log.ends[index] = since, NONE, "not expired"
                else:
                    doubtful += group
            for index, seen in zip(doubtful, self._reader.deadlines([self._names[i] for i in doubtful]), strict=True):
                self._record(index, seen)
            self._show(self._ended_keys, len(log))
            if len(rows) > GROUP_KEYS:
                self._listen(all_sent=True)

    def _record(self, index: int, seen: _Check) -> None:
        if seen.deadline_us == NO_KEY:
            self._record_end(index, seen.to_us)
            return
        log = self._log
        was = _Check(log.seen_us[index], log.seen_us[index], log.deadline_us[index])
        log.seen_us[index], log.event_us[index], log.ends[index] = seen.from_us, NONE, "not expired"
        first = was.deadline_us == NONE and log.started_us[index] == was.from_us
        change = None if first else _change(log.keys[index], was, seen)
        if first or change:
            log.deadline_us[index] = seen.deadline_us
        if change and len(log.changes) < MAX_CHANGES:
            log.changes.append(change)

    def _record_end(self, index: int, by_us: int) -> None:
        if self._log.missing_us[index] == NONE:
            self._log.missing_us[index] = by_us
            self._ended_keys += 1
            self._useless_jumps = 0

    def _listen(self, wait_s: float = 0.0, *, all_sent: bool = False) -> None:
        """Record the times of received events, GROUP_KEYS at a time; without checks, an event also ends its key."""
        if not self.events or self.events.lost:
            time.sleep(wait_s)  # between two checks, not for an expiry
            return
        for some in chunks(self.events.receive(wait_s, all_sent=all_sent), GROUP_KEYS):
            now = self._reader.now_us()
            for index, end in some:
                self._log.event_us[index], self._log.ends[index] = now, end
                if self._events_count_as_end:
                    self._record_end(index, now)
            self._log.events = "received"
            self._show(self._ended_keys, len(self._log))
        if self.events.lost:
            self._log.events = "lost"

    def _finish(self) -> None:
        """Check the existing keys once more, and name the ends without an event."""
        log = self._log
        persistent = [i for i in self._existing() if log.deadline_us[i] == NONE and log.ttl_ms[i] > 0]
        if persistent and self._clock:
            # A configured TTL that the key does not have: existing at twice the TTL shows it.
            self._reach(max(log.started_us[i] + 2_000 * log.ttl_ms[i] for i in persistent))
        self._check_keys(self._existing())
        self._listen(all_sent=True)
        evicted = _evicted_keys(self._client)
        early: End = "deleted" if evicted is not None and evicted == self._evicted else "evicted or deleted"
        for index, missing in enumerate(log.missing_us):
            if missing != NONE and log.ends[index] == "not expired":
                late = NONE != log.deadline_us[index] < missing
                log.ends[index] = "expired" if late else early
            self._correct_end_before_deadline(index)

    def _correct_end_before_deadline(self, index: int) -> None:
        """Redis expires no key before its deadline, so a key that ended before had got an earlier deadline unseen."""
        log = self._log
        seen, event, deadline = log.seen_us[index], log.event_us[index], log.deadline_us[index]
        if seen < event < log.missing_us[index]:
            log.missing_us[index] = event
        missing = log.missing_us[index]
        if NONE in (missing, event, deadline) or log.ends[index] != "expired" or missing > deadline - SAME_US:
            return
        log.deadline_us[index] = NONE
        if len(log.changes) < MAX_CHANGES:
            left_ms = round((deadline - missing) / 1000)
            log.changes.append(
                DeadlineChange(log.keys[index], "shortened", time_at(seen), time_at(missing), left_ms, 0)
            )


class _Events:
    """Keyspace events of the observed keys.

    Read from the socket: redis-py 8.1's ``get_message(timeout=0)`` raises TimeoutError if a burst ends within a
    message, and parses about 30 times slower. ``lost``: the server ended the subscription.
    """

    def __init__(self, connection: ReadOnlyConnection, names: Sequence[bytes]) -> None:
        self._socket, self._reader = connection.socket, connection.reader
        self._index = {name: index for index, name in enumerate(names)}
        self._pong_is_due = False
        self.lost = False

    @classmethod
    def open(cls, client: redis.Redis, names: Sequence[bytes], stack: ExitStack) -> Self:
        connection = ReadOnlyConnection(client, keep_idle_times=False)
        stack.callback(connection.close)
        channel = f"__keyspace@{connection.database}__:".encode()
        if len(names) <= GROUP_KEYS:
            reply = connection.ask("SUBSCRIBE", *(channel + name for name in names))
        else:
            begin = escape_glob(channel + cast("bytes", commonprefix(names)))
            reply = connection.ask("PSUBSCRIBE", begin + b"*")
        if refused(reply):
            raise reply
        return cls(connection, names)

    def receive(self, wait_s: float, *, all_sent: bool = False) -> Iterator[tuple[int, End]]:
        """Yield each event's row and end; wait up to ``wait_s`` for the first, or for all that were sent so far."""
        if all_sent:
            # A PONG comes behind the events: an empty socket does not prove that none is on its way.
            self._socket.settimeout(PONG_LIMIT_S)
            try:
                self._socket.sendall(command("PING").payload)
                self._pong_is_due = True
            except OSError:
                self.lost = True
        # Not ready is BlockingIOError, TimeoutError or, over TLS, SSLWantReadError.
        with suppress(BlockingIOError, TimeoutError, SSLWantReadError):
            while data := self._receive(wait_s):
                self._reader.feed(data)
                while (message := self._reader.gets()) is not False:
                    if message[0] == b"pong":
                        self._pong_is_due = False
                    if message[0] in (b"message", b"pmessage"):
                        index, end = self._index.get(message[-2].partition(b":")[2]), EVENTS.get(message[-1])
                        if index is not None and end:
                            yield index, end
                wait_s = 0

    def _receive(self, wait_s: float) -> bytes:
        """Return the next bytes; none if the subscription is lost."""
        if self.lost:
            return b""
        self._socket.settimeout(PONG_LIMIT_S if self._pong_is_due else wait_s)
        try:
            data = cast("bytes", self._socket.recv(1 << 16))
        except ConnectionError:
            data = b""
        self.lost = not data
        return data


def _event_status(client: redis.Redis, stack: ExitStack) -> EventStatus:
    """Return whether keyspace events are sent; enable them until the stack ends on a server that memkit started."""
    try:
        flags = _config(client, "notify-keyspace-events")
    except redis.ResponseError:
        return "unknown"  # CONFIG GET is not allowed; subscribing does no harm
    if "K" in flags and ("A" in flags or {"g", "x", "e"} <= set(flags)):
        return "received"
    if not started_by_memkit(client):
        return "not sent"
    client.config_set("notify-keyspace-events", flags + "Kgxe")
    stack.callback(client.config_set, "notify-keyspace-events", flags)
    return "received"


def _config(client: redis.Redis, name: str) -> str:
    return cast("dict[str, str]", client.config_get(name)).get(name, "")


def _evicted_keys(client: redis.Redis) -> int | None:
    try:
        return cast("int", client.info("stats").get("evicted_keys"))
    except redis.ResponseError:
        return None


def _sweep(client: redis.Redis, expiring: int) -> Sweep:
    """Return what active expiry will have to do; INFO still counts the keys that are about to expire."""
    database = f"db{client.connection_pool.connection_kwargs.get('db') or 0}"
    with_ttl = client.info("keyspace").get(database, {}).get("expires", 0)
    effort = "1"
    with suppress(redis.ResponseError):
        effort = _config(client, "active-expire-effort") or "1"
    return Sweep(expiring, max(0, with_ttl - expiring), client.info("server").get("hz", 10), int(effort))


def _check_arguments(
    ttls: Sequence[Duration],
    keys: Mapping[bytes, int],
    keys_per_ttl: int,
    resolution_ms: float,
    clock: ServerClock | None,
    wait_s: float | None,
) -> None:
    if bool(ttls) == bool(keys):
        raise PolicyError("observe_expiry takes either ttls= (write keys) or keys= (follow existing ones)")
    if keys_per_ttl < 1 or not 0.1 <= resolution_ms <= UNIT_MS["d"]:
        raise PolicyError(
            f"keys_per_ttl={keys_per_ttl!r}, resolution_ms={resolution_ms!r}: expected at least one key, and a step of "
            "0.1 ms to a day"
        )
    longest = max((ttl_ms(ttl) for ttl in ttls), default=0)
    if longest > WAIT_LIMIT_MS and not clock and wait_s is None:
        raise PolicyError(
            f"observing a TTL of {duration(longest)} takes as long; pass clock= (a private server's or a sandbox's) "
            "to jump there, or wait_s= to limit the wait"
        )
