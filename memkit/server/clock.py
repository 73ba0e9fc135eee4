"""Move time on a real Redis: the server's own clock if memkit started it, otherwise the deadlines of the keys."""

import ctypes
import mmap
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, cast

import redis
from redis.client import NEVER_DECODE

from memkit.connect import SHORT_HANDSHAKE, chunks, escape_glob, execute_undecoded, primaries, scan
from memkit.errors import ClockUnavailable, PolicyError
from memkit.policy import UNIT_MS, Duration, duration_ms
from memkit.render import duration
from memkit.server.guard import guard_write, own_prefixes, sandboxes, started_by_memkit

KEYS_PER_SCRIPT = 500
"""Bounds the time that one script keeps the server busy: 2-6 microseconds a key (measured)."""
SETTLES_WITHIN_S = 60.0
"""A moved clock is in force after 4 ms (measured); more means that it does not work."""
COMMAND_CLOCK = re.compile(rb"^server_time_usec:(\d+)", re.MULTILINE)
LONGEST_SHOWN_MS = 1e15
"""Longer durations are shown in scientific notation."""
EARLIEST, LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""The range of a moved clock: before 1970, every version refuses to write a TTL (measured)."""
LAST_MS = 10
"""A key that a shift ends gets this TTL. With 2 ms a server that was not scheduled for as long deleted the key
instead of letting it expire (once in a dozen runs of all tests on two busy cores)."""
SHIFT_DEADLINES = files("memkit.server").joinpath("shift_deadlines.lua").read_text()
NOT_SIMULATED = {
    "preload": (
        "the pace of background work (serverCron, active expiry), which stays real",
        "OBJECT IDLETIME until the next serverCron, up to 100 ms later (Redis)",
    ),
    "deadline shift": (
        "TIME and whatever computes a deadline from it",
        "OBJECT IDLETIME, LRU and LFU",
    ),
}


class ServerClock:
    """The clock of one server.

    There are two methods. ``"preload"`` moves the server's wall clock itself; it needs a server that memkit started
    with its preload. ``"deadline shift"`` moves the deadlines of the keys under ``prefix``, and of hash fields, by the
    same duration. ``method`` is the method of this clock; ``cannot_simulate`` lists what that method does not change.

    Args:
        url_or_client: The server.
        offset_file: The file from which the preload of this server reads its offset.
        prefix: The beginning of the keys that may be moved; ``""`` is all keys of the database (all databases of a
            server that memkit started). None: the keys may belong to others, and the clock can only be read.
        dedicated: The production guard has already allowed writing to this database, and it holds a test's keys only.

    Time is only moved for a sandbox's prefix, or if the production guard allows writing.
    """

    def __init__(
        self,
        url_or_client: str | redis.Redis | redis.RedisCluster,
        *,
        offset_file: Path | None = None,
        prefix: str | None = None,
        dedicated: bool = False,
    ) -> None:
        client = url_or_client
        if isinstance(client, str):
            client = redis.Redis.from_url(client, db=0, **SHORT_HANDSHAKE)
        self._client = cast("redis.Redis", client)
        self._cluster = client if isinstance(client, redis.RedisCluster) else None
        # memkit started the server that follows an offset file: all its keys may be moved.
        self._prefix = "" if offset_file and prefix is None else prefix
        # Mapped, as in the server: opening the file for each value took a quarter of the time of a move (measured).
        self._offset_ns = _mapped(offset_file) if offset_file and self._is_mapped(offset_file) else None
        self.method = "preload" if self._offset_ns is not None else "deadline shift"
        self.cannot_simulate = NOT_SIMULATED[self.method]
        self._dedicated = dedicated
        self._shifted_ms = 0.0
        self._together_with: Sequence[ServerClock] = ()

    def require_preload(self) -> None:
        """Return if the server's own clock moves.

        A deadline shift is wrong for absolute policies, because their deadlines are computed from TIME, and for keys
        that are past their deadline and not removed yet.

        Raises:
            ClockUnavailable: Time is moved by shifting deadlines.
        """
        if self.method != "preload":
            raise ClockUnavailable(
                f"this needs a server that has its own movable clock. Here time is moved by {self.method}, which does "
                f"not change {'; '.join(self.cannot_simulate)}. Expected: a private server on Linux, and memkit "
                "installed with a C compiler"
            )

    @property
    def offset(self) -> timedelta:
        """The server's time minus real time."""
        if self._offset_ns is not None:
            return timedelta(microseconds=self._offset_ns[0] / 1000)
        return timedelta(milliseconds=self._shifted_ms)

    def now(self) -> datetime:
        """Return the time by which keys expire, in UTC."""
        seconds, micros = self._client.time()
        served = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=micros)
        return served if self._offset_ns is not None else served + self.offset

    def shift(self, by: Duration) -> None:
        """Move time by a duration. On return the new time is in force for the next command.

        Keys that expired stay expired if time moves back; hash fields that nothing has read since may exist again.

        Args:
            by: Seconds, a string such as ``"6d"``, or a timedelta; negative moves back.

        Raises:
            PolicyError: The duration is invalid, or leads before 1970 or after 2200.
            ClockUnavailable: The keys may belong to others.
            ProductionGuardError: The production guard does not allow writing; the message has the value that does.
        """
        ms = duration_ms(by)
        self._refuse_out_of_range(ms)
        if self._offset_ns is not None:
            for client in self._databases() if ms < 0 else ():
                for _ in scan(client):  # makes every version remove the keys that are past their deadline
                    pass
            self._offset_ns[0] += round(ms * 1_000_000)
            self._wait_for_the_command_clock(self._offset_ns[0] // 1000)
        else:
            self._refuse_foreign_keys()
            total_ms = self._shifted_ms + ms
            # Deadlines are whole milliseconds: fractions add up instead of being lost.
            self._shift_deadlines(round(total_ms) - round(self._shifted_ms))
            self._shifted_ms = total_ms
        for other in self._together_with:
            if other is not self:
                other.shift(by)

    @contextmanager
    def together_with(self, clocks: Sequence[Self]) -> Iterator[None]:
        """Move other servers' clocks by the same durations, within a with statement, in which the list may grow."""
        self._together_with = clocks
        try:
            yield
        finally:
            self._together_with = ()

    def move_to(self, when: datetime) -> None:
        """Move time to an instant.

        Args:
            when: A timezone-aware datetime.

        Raises:
            PolicyError: The datetime is naive, or before 1970 or after 2200.
            ClockUnavailable: The keys may belong to others.
            ProductionGuardError: The production guard does not allow writing.
        """
        self.shift(with_zone(when) - self._now())

    def _refuse_foreign_keys(self) -> None:
        """Raise unless the keys belong to a sandbox (registered, or the client's own), or memkit may write."""
        if self._prefix is None:
            raise ClockUnavailable(
                "time is not moved on a server that others may use: memkit did not start it, and this clock has no "
                "prefix; use a Sandbox's clock, or pass prefix= and name the server in MEMKIT_ALLOW"
            )
        own = [getattr(self._client, "_test_prefix", ""), *sandboxes(self._client)]
        if not self._dedicated and not any(prefix and self._prefix.startswith(prefix) for prefix in own):
            guard_write(self._client)

    def _now(self) -> datetime:
        """Return the time as the preload computes it, without a round trip; without the preload ask the server."""
        if self._offset_ns is None:
            return self.now()
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=_real_us() + self._offset_ns[0] // 1000)

    def _refuse_out_of_range(self, ms: float) -> None:
        now = self._now()
        if not (EARLIEST - now) / timedelta(milliseconds=1) <= ms <= (LATEST - now) / timedelta(milliseconds=1):
            shown = duration(ms) if abs(ms) < LONGEST_SHOWN_MS else f"{ms / UNIT_MS['d']:.3g} days"
            raise PolicyError(
                f"a shift of {shown} from {now:%Y-%m-%d} is out of range; "
                f"expected a time from {EARLIEST:%Y-%m-%d} to {LATEST:%Y-%m-%d}"
            )

    def _is_mapped(self, offset_file: Path) -> bool:
        """Whether the server has the preload, which maps the file when the server starts."""
        try:
            maps = Path(f"/proc/{self._client.info('server')['process_id']}/maps").read_text()
        except OSError:
            return False
        return str(offset_file.resolve()) in maps

    def _wait_for_the_command_clock(self, offset_us: int) -> None:
        """Return as soon as commands see the time of an offset.

        Valkey caches the time that commands see for 1-4 ms (measured on 9.1). INFO's server_time_usec shows that clock,
        so a value from after the change proves that the next command sees it too. Redis caches the clock of idle times
        until its next timer, which the preload triggers after the next command, INFO.
        """
        written_us = _real_us()

        def in_force() -> bool:
            # As one word: redis-py would parse the whole reply, which took a quarter of the time of a move (measured).
            found = COMMAND_CLOCK.search(execute_undecoded(self._client, "INFO server"))
            return found is not None and written_us <= int(found[1]) - offset_us <= _real_us()

        with suppress(redis.ConnectionError):  # a server that is down begins with this time when it starts
            _until(in_force, "the server's clock did not follow the preload")

    def _shift_deadlines(self, ms: int) -> None:
        fields = "1" if knows(self._client, "hpexpireat") else "0"
        for client in self._databases():
            expiring: list[list[bytes]] = []
            for keys in self._batches(client):
                script = ("EVAL", SHIFT_DEADLINES, len(keys), *keys, ms, fields, LAST_MS)
                expiring += cast("Any", client).execute_command(*script, **{NEVER_DECODE: []})
            for some in chunks(expiring, KEYS_PER_SCRIPT):
                _until(partial(self._all_expired, client, some), "keys past their shifted deadline did not expire")

    def _databases(self) -> Iterator[redis.Redis]:
        """Yield a client for each database that moves: all that hold keys if memkit started the server, otherwise one.

        On any other server the production guard has allowed one database only.
        """
        is_preload = self._offset_ns is not None
        if self._cluster or not (is_preload or (self._prefix == "" and started_by_memkit(self._client))):
            yield self._client
            return
        pool = self._client.connection_pool
        for name in self._client.info("keyspace"):
            number = int(name.removeprefix("db"))
            if number == (pool.connection_kwargs.get("db") or 0):
                yield self._client  # a connection of its own would take longer than the rest of a shift
                continue
            options = pool.connection_kwargs | {"db": number}
            with redis.Redis.from_pool(redis.ConnectionPool(pool.connection_class, **options)) as client:
                yield client

    def _batches(self, client: redis.Redis) -> Iterator[list[bytes]]:
        """Yield the keys in batches, one for each script; the keys of a script are in one slot of a cluster."""
        patterns = [f"{escape_glob(start)}*" for start in (own_prefixes(self._prefix) if self._prefix else [""])]
        # Each once: SCAN repeats keys while a table shrinks, and shifts add up.
        found = {key for node in primaries(client) for match in patterns for key in scan(node, match)}
        slots: dict[int, list[bytes]] = {}
        for key in found:
            slots.setdefault(self._cluster.keyslot(key) if self._cluster else 0, []).append(key)
        for keys in slots.values():
            yield from chunks(keys, KEYS_PER_SCRIPT)

    def _all_expired(self, client: redis.Redis, expiring: list[list[bytes]]) -> bool:
        """Whether none of the keys and fields is in its last milliseconds: each has expired or was written again."""
        with client.pipeline(transaction=False) as pipe:
            for key, *field in expiring:
                if field:
                    pipe.hexists(key, field[0])
                    pipe.hpttl(key, field[0])
                else:
                    pipe.exists(key)
                    pipe.pttl(key)
            replies = pipe.execute()
        # Redis 8.2's HPTTL returns -2 a millisecond before the field expires (measured): -2 is no proof.
        left_ms = [left[0] if isinstance(left, list) else left for left in replies[1::2]]
        return not any(
            exists and (left == -2 or 0 <= left <= LAST_MS) for exists, left in zip(replies[::2], left_ms, strict=True)
        )

    def __repr__(self) -> str:
        moved = duration(self.offset / timedelta(milliseconds=1))
        not_simulated = "; ".join(self.cannot_simulate)
        return f"<ServerClock by {self.method}, {moved} from real time; not simulated: {not_simulated}>"


def with_zone(when: datetime) -> datetime:
    """Return a datetime that has a time zone; raise PolicyError if it has none."""
    if not isinstance(when, datetime):
        raise PolicyError(f"expected datetime(..., tzinfo=UTC); got {type(when).__name__} {when!r}")
    if when.utcoffset() is None:
        raise PolicyError(f"{when!r} has no time zone; expected one, such as datetime(..., tzinfo=UTC)")
    return when


def offset_bytes(when: datetime) -> bytes:
    """Return what a new preload's file holds if its server's clock begins at a moment."""
    return struct.pack("q", round(when.timestamp() * 1_000_000 - _real_us()) * 1_000)


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


_libc = cache(lambda: ctypes.CDLL(None))


def _real_us() -> int:
    """Return the real time; a test may have moved Python's clock (time-machine, freezegun)."""
    read = _Timespec()
    _libc().clock_gettime(time.CLOCK_REALTIME, ctypes.byref(read))
    return int(read.s * 1_000_000 + read.ns // 1000)


def _mapped(offset_file: Path) -> memoryview:
    """Return a sequence of one number, the offset in nanoseconds, in the memory that the server reads it from."""
    with offset_file.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8)).cast("q")


def knows(client: redis.Redis | redis.RedisCluster, command: str) -> bool:
    """Return whether a server has a command."""
    one = client.get_redis_connection(client.get_random_node()) if isinstance(client, redis.RedisCluster) else client
    # As one word: redis-py's parser of COMMAND's reply fails on the nil for an unknown command.
    return bool(cast("Any", one).execute_command("COMMAND INFO", command)[0])


def _until(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise ClockUnavailable(f"{failure} within {SETTLES_WITHIN_S:g} s")
