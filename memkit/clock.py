"""Move time on a real Redis: the server's own clock where memkit launched it, the keys' deadlines anywhere else."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

import redis
from redis.client import NEVER_DECODE

from memkit.connect import guard_write, own_prefixes, primaries, sandboxes, scan, started_by_memkit
from memkit.errors import ClockUnavailable, PolicyError
from memkit.policy import UNIT_MS, Duration, duration_ms, human

Item = TypeVar("Item")

KEYS_PER_SCRIPT = 500
"""Bounds how long the server is busy with one script: 2-6 microseconds a key (measured)."""
SETTLES_WITHIN_S = 60.0
"""Decides that a server hangs: it follows within 4 ms (measured)."""
TRIES_FOR_S = 0.5
EARLIEST, LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Where a server can be sent: with a clock before 1970, every version refuses to write a TTL (measured)."""
SHIFT_DEADLINES = files("memkit").joinpath("lua/shift_deadlines.lua").read_text()
NOT_SIMULATED = {
    "preload": (
        "the pace of background work (serverCron, active expiry), which stays real",
        "OBJECT IDLETIME until the next serverCron, up to 100 ms later (Redis)",
    ),
    "deadline shift": (
        "TIME and whatever computes a deadline from it",
        "OBJECT IDLETIME, LRU and LFU",
        "keys that are gone coming back to life",
    ),
}


class ServerClock:
    """The clock of one server: ``shift("6d")``, ``move_to(datetime)``, ``now()``.

    ``rung`` is how time is moved. ``"preload"``: the server's wall clock itself, for a server launched with the preload
    (``offset_file`` is the file it maps). ``"deadline shift"``: the deadlines of the keys under ``prefix`` come nearer
    by the shift, hash fields' included; ``cannot_simulate`` says what that leaves out. ``spare``: keys to leave alone.
    Without a ``prefix`` the keys may be anybody's: such a clock tells the time and refuses to move it; ``""`` says that
    all keys of the database are one's own (of a server that memkit launched: of all databases). Unless the prefix is a
    sandbox's, the production guard has to agree.
    """

    def __init__(
        self,
        url_or_client: str | redis.Redis | redis.RedisCluster,
        *,
        offset_file: Path | None = None,
        prefix: str | None = None,
        spare: Iterable[str] = (),
    ) -> None:
        client = redis.Redis.from_url(url_or_client, db=0) if isinstance(url_or_client, str) else url_or_client
        self._client = cast("redis.Redis", client)
        # A server that follows an offset file was launched by memkit: all its keys are its own.
        self._prefix = "" if offset_file and prefix is None else prefix
        self._spare = {key.encode() for key in spare}
        self._offset_file = offset_file if offset_file and self._preload_works(offset_file) else None
        self._shifted_ms = 0.0

    @property
    def rung(self) -> str:
        """``"preload"`` or ``"deadline shift"``."""
        return "preload" if self._offset_file else "deadline shift"

    @property
    def cannot_simulate(self) -> tuple[str, ...]:
        """What this rung leaves as it is."""
        return NOT_SIMULATED[self.rung]

    def require_preload(self) -> None:
        """Raise ClockUnavailable, saying what it takes, where the server's own clock does not move.

        For what a deadline shift gets wrong: absolute policies (their deadlines are computed from TIME), keys that are
        past their deadline and not removed yet.
        """
        if self.rung != "preload":
            raise ClockUnavailable(
                f"this needs a server whose own clock moves, and here time is moved by {self.rung}, without "
                f"{'; '.join(self.cannot_simulate)}. Expected: a private server on Linux, with memkit installed where "
                "there is a C compiler"
            )

    @property
    def offset(self) -> timedelta:
        """How far this server's time is from real time."""
        if self._offset_file:
            return timedelta(microseconds=_read_ns(self._offset_file) / 1000)
        return timedelta(milliseconds=self._shifted_ms)

    def now(self) -> datetime:
        """Return the time that keys expire by, UTC."""
        seconds, micros = self._client.time()
        served = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=micros)
        return served if self._offset_file else served + self.offset

    def shift(self, by: Duration) -> None:
        """Move time by a duration; negative goes back. On return it is in force for the very next command.

        Keys that are gone stay gone; hash fields that nothing has touched since may come back. Raises PolicyError for
        what is no duration or leads before 1970 or after 2200; ClockUnavailable, or ProductionGuardError with the value
        that allows it, where the server's keys may be somebody else's.
        """
        ms = duration_ms(by)
        self._refuse_far_away(ms)
        if self._offset_file:
            if ms < 0:
                self._bury_the_dead()
            _write_ns(self._offset_file, _read_ns(self._offset_file) + round(ms * 1_000_000))
            self._wait_for_the_command_clock(self._offset_file)
        else:
            self._refuse_keys_of_others()
            total_ms = self._shifted_ms + ms
            # Deadlines are whole milliseconds: fractions add up instead of being lost.
            self._shift_deadlines(round(total_ms) - round(self._shifted_ms))
            self._shifted_ms = total_ms

    def move_to(self, when: datetime) -> None:
        """Move time to an instant (timezone-aware). Raises PolicyError for a naive one, and as shift() does."""
        if not isinstance(when, datetime):
            raise PolicyError(f"{when!r} is no instant but {type(when).__name__}; give a datetime(..., tzinfo=UTC)")
        if when.utcoffset() is None:
            raise PolicyError(f"{when!r} has no time zone; give one, such as datetime(..., tzinfo=UTC)")
        self.shift(when - self.now())

    def _refuse_keys_of_others(self) -> None:
        """Raise unless the keys are of a sandbox (registered, or the client cannot leave it), or memkit may write."""
        if self._prefix is None:
            raise ClockUnavailable(
                "time is not moved on a server that others may use: this clock has neither a server that memkit "
                "launched nor a prefix of its own; use a Sandbox's clock, or pass prefix= and name the server in "
                "MEMKIT_ALLOW"
            )
        own = [getattr(self._client, "_test_prefix", ""), *sandboxes(self._client)]
        if not any(prefix and self._prefix.startswith(prefix) for prefix in own):
            guard_write(self._client)

    def _refuse_far_away(self, ms: float) -> None:
        now = self.now()
        if not (EARLIEST - now) / timedelta(milliseconds=1) <= ms <= (LATEST - now) / timedelta(milliseconds=1):
            far = human(ms) if abs(ms) < 1e15 else f"{ms / UNIT_MS['d']:.3g} days"
            raise PolicyError(
                f"a shift of {far} from {now:%Y-%m-%d} leaves what a server's clock can show; "
                f"expected a time from {EARLIEST:%Y-%m-%d} to {LATEST:%Y-%m-%d}"
            )

    def _preload_works(self, offset_file: Path) -> bool:
        """Whether the server follows the file; tried backwards, so that nothing expires by it."""
        before = _read_ns(offset_file)
        _write_ns(offset_file, before - 1_000_000_000)
        try:
            self._wait_for_the_command_clock(offset_file, within_s=TRIES_FOR_S)
        except ClockUnavailable:
            return False
        finally:
            _write_ns(offset_file, before)
        self._wait_for_the_command_clock(offset_file)
        return True

    def _wait_for_the_command_clock(self, offset_file: Path, *, within_s: float = SETTLES_WITHIN_S) -> None:
        """Return once commands see the time that the file asks for.

        Valkey caches the time that commands see for 1-4 ms (measured on 9.1); INFO's server_time_usec is that very
        clock, so a value from after the change proves that the next command is past it too. Redis caches the clock of
        idle times (whole seconds, 24 bits of them) until its next timer, which the preload brings about.
        """
        offset_us = _read_ns(offset_file) // 1000
        written_us = _real_us()

        def in_force() -> bool:
            info = self._client.info("server")
            now_us = info["server_time_usec"]
            idle_clock_follows = (now_us // 1_000_000 - info["lru_clock"] + 1) % (1 << 24) <= 2
            return bool(idle_clock_follows and written_us <= now_us - offset_us <= _real_us())

        _until(in_force, "the server's clock did not follow the preload", within_s)

    def _shift_deadlines(self, ms: int) -> None:
        fields = "1" if knows(self._client, "hpexpireat") else "0"
        for client in self._databases():
            dying: list[list[bytes]] = []
            for keys in self._batches(client):
                script = ("EVAL", SHIFT_DEADLINES, len(keys), *keys, ms, fields)
                dying += cast("Any", client).execute_command(*script, **{NEVER_DECODE: []})
            for victims in _chunks(dying, KEYS_PER_SCRIPT):
                _until(partial(self._all_gone, client, victims), "keys past their shifted deadline did not expire")

    def _databases(self) -> Iterator[redis.Redis]:
        """Yield a client for each database that moves: all that have keys where the server is memkit's, else the one.

        On any other server the production guard has agreed to one alone.
        """
        if self._cluster or not (self._offset_file or (self._prefix == "" and started_by_memkit(self._client))):
            yield self._client
            return
        pool = self._client.connection_pool
        for name in self._client.info("keyspace"):
            options = pool.connection_kwargs | {"db": int(name.removeprefix("db"))}
            with redis.Redis.from_pool(redis.ConnectionPool(pool.connection_class, **options)) as client:
                yield client

    def _batches(self, client: redis.Redis) -> Iterator[list[bytes]]:
        """Yield the keys in batches for one script each; in a cluster a script's keys are all of one slot."""
        slots: dict[int, list[bytes]] = {}
        for key in self._own_keys(client):
            slots.setdefault(self._cluster.keyslot(key) if self._cluster else 0, []).append(key)
        for keys in slots.values():
            yield from _chunks(keys, KEYS_PER_SCRIPT)

    @property
    def _cluster(self) -> redis.RedisCluster | None:
        client: object = self._client
        return client if isinstance(client, redis.RedisCluster) else None

    def _own_keys(self, client: redis.Redis) -> set[bytes]:
        """Return the keys to shift, each once: SCAN repeats keys while a table shrinks, and a shift adds up."""
        starts = own_prefixes(self._prefix) if self._prefix else [""]
        patterns = [f"{escape_glob(start)}*" for start in starts]
        return {key for node in primaries(client) for match in patterns for key in scan(node, match)} - self._spare

    def _all_gone(self, client: redis.Redis, victims: list[list[bytes]]) -> bool:
        """Whether none of the keys and fields is still in its last milliseconds (gone, or written anew)."""
        with client.pipeline(transaction=False) as pipe:
            for key, *field in victims:
                if field:
                    pipe.hexists(key, field[0])
                    pipe.hpttl(key, field[0])
                else:
                    pipe.exists(key)
                    pipe.pttl(key)
            said = pipe.execute()
        # Redis 8.2's HPTTL says that a field is gone a millisecond before it is (measured): -2 is no proof.
        left_ms = [left[0] if isinstance(left, list) else left for left in said[1::2]]
        return not any(there and left in (-2, 0, 1, 2) for there, left in zip(said[::2], left_ms, strict=True))

    def _bury_the_dead(self) -> None:
        """Let the server remove the keys that are past their deadline, which SCAN does on all versions."""
        for client in self._databases():
            for _ in scan(client):
                pass

    def __repr__(self) -> str:
        without = "; ".join(self.cannot_simulate)
        moved = human(self.offset / timedelta(milliseconds=1))
        return f"<ServerClock by {self.rung}, {moved} from real time; not simulated: {without}>"


def escape_glob(text: str) -> str:
    r"""Return text as a pattern that MATCH takes literally (``\ * ? [ ]`` are escaped)."""
    return "".join(f"\\{char}" if char in "\\*?[]" else char for char in text)


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _real_us() -> int:
    """Return the real time: a test may hold Python's own clock (time-machine, freezegun) beside the server's."""
    read = _Timespec()
    _libc().clock_gettime(time.CLOCK_REALTIME, ctypes.byref(read))
    return int(read.s * 1_000_000 + read.ns // 1000)


def _read_ns(offset_file: Path) -> int:
    return int(struct.unpack("q", offset_file.read_bytes())[0])


def _write_ns(offset_file: Path, ns: int) -> None:
    # In place: the server has this very file mapped.
    with offset_file.open("r+b") as file:
        file.write(struct.pack("q", ns))


def knows(client: redis.Redis | redis.RedisCluster, command: str) -> bool:
    """Return whether a server has a command."""
    one = client.get_redis_connection(client.get_random_node()) if isinstance(client, redis.RedisCluster) else client
    # As one word: redis-py's parser of COMMAND's reply fails on the nil of an unknown command.
    return bool(cast("Any", one).execute_command("COMMAND INFO", command)[0])


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _until(condition: Callable[[], bool], otherwise: str, within_s: float = SETTLES_WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise ClockUnavailable(f"{otherwise} within {within_s:g} s")
