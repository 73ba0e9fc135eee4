"""Worlds drawn at random: healthy ones of many kinds, and the same traffic with one fault.

A ``World`` is a list of commands with their times, which a private server executes with its clock at each time.
"""

from __future__ import annotations

import gzip
import json
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
from servers import NO_FSYNC, every_server
from waiting import nothing, wait_for

from memkit.audit import audit
from memkit.audit.report import AuditReport
from memkit.policy import ExpiryPolicy
from memkit.server import RedisServer

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
STEPS = 60
Event = tuple[float, tuple[Any, ...]]
"""Seconds before the audit, and the command."""


@dataclass
class World:
    """What happened on a server, and what is expected of it."""

    expect: dict[str, Any]
    events: list[Event] = field(default_factory=list)
    age_s: float = 0.0
    full: bool = False
    persist: bool = True
    port: int | None = None
    config: dict[str, object] = field(default_factory=dict)
    after: Callable[[RedisServer], None] | None = None
    oldest_server: tuple[str, ...] = ()
    lane: str = ""
    """The server to use; empty: Redis 7.0, or a newer one if it is needed."""
    steps: int = STEPS
    """Events that are closer than their age divided by it happen at once."""
    stops_s: float = 0.0
    """How long before the audit ``after`` begins; it moves the clock on."""

    @contextmanager
    def played(self) -> Iterator[RedisServer]:
        """Yield a server on which it has happened."""
        lanes = every_server()
        name = next((one for one in ("redis-7.0", "redis-8.2", "valkey-9", "redis-6.2") if lanes[one]), "redis-7.0")
        if self.oldest_server or self.full:
            name = next((one for one in ("redis-8.2", "valkey-9") if lanes[one]), name)
        binary = lanes[self.lane or name]
        assert binary
        now = datetime.now(UTC)
        oldest = max([self.age_s, *(age for age, _ in self.events)], default=0.0)
        starts_at = now - timedelta(seconds=oldest) if oldest > MINUTE else None
        config = self.config | NO_FSYNC
        server = RedisServer(
            binary=binary.path, port=self.port, persist=self.persist, config=config, starts_at=starts_at
        )
        with server:
            with server.client() as client:
                for batch in _batches(self.events, self.steps):
                    server.clock.move_to(now - timedelta(seconds=batch[-1][0]))
                    pipe = client.pipeline(transaction=False)
                    for _, command in batch:
                        pipe.execute_command(*command)
                    pipe.execute(raise_on_error=False)
            server.clock.move_to(now - timedelta(seconds=self.stops_s))
            if self.after:
                self.after(server)
            yield server

    def audited(self) -> AuditReport:
        """Return the audit's report of it."""
        with self.played() as server:
            return audit(server.url, expect=self.expect, full=self.full, duty=1)


def _batches(events: list[Event], steps: int) -> Iterator[list[Event]]:
    batch: list[Event] = []
    for event in sorted(events, key=lambda one: -one[0]):
        if batch and batch[0][0] - event[0] > max(1.0, batch[0][0] / steps):
            yield batch
            batch = []
        batch.append(event)
    if batch:
        yield batch


@dataclass
class Traffic:
    """Draws sessions: when they are written, with which TTL, and when they are read."""

    dice: random.Random
    count: int
    prefix: str = "chat:"
    ttl_s: float = 7 * DAY

    def uid(self) -> str:
        return f"{self.dice.getrandbits(64):016x}"

    def text(self) -> str:
        return " ".join(
            self.dice.choices(["order", "refund", "invoice", "tomorrow", "account", "thanks", "card", "total"], k=12)
        )

    def message(self, **more: Any) -> str:
        return json.dumps({"role": "user", "content": self.text(), **more})

    def times(self, newest_s: float = 0.0, oldest_s: float | None = None) -> list[float]:
        oldest_s = 0.98 * self.ttl_s if oldest_s is None else oldest_s
        return [self.dice.uniform(newest_s, oldest_s) for _ in range(self.count)]

    def write(
        self, key: str, age_s: float, *, kind: str = "list", ttl_s: float | None = -1, value: str = ""
    ) -> list[Event]:
        """Return the commands of one write; each renews the TTL."""
        ttl_s = self.ttl_s if ttl_s == -1 else ttl_s
        value = value or self.message()
        made = {
            "list": ("RPUSH", key, value),
            "hash": ("HSET", key, "messages", value, "n", 1),
            "string": ("SET", key, value),
            "zset": ("ZADD", key, 1, value),
            "stream": ("XADD", key, "*", "message", value),
        }[kind]
        return [(age_s, made), *([(age_s, ("PEXPIRE", key, round(ttl_s * 1000)))] if ttl_s else [])]

    def read(self, key: str, age_s: float, *, kind: str = "list") -> Event:
        commands = {"list": ("LRANGE", key, 0, -1), "hash": ("HGETALL", key), "string": ("GET", key)}
        commands |= {"zset": ("ZRANGE", key, 0, -1), "stream": ("XRANGE", key, "-", "+")}
        return self.dice.uniform(0, age_s), commands[kind]

    def sessions(
        self, *, kind: str = "list", reads: float = 0.3, shape: str = "{}", newest_s: float = 0.0, **given: Any
    ) -> list[Event]:
        """Return steady traffic: each session written once or twice, some read later."""
        events: list[Event] = []
        for age_s in self.times(newest_s):
            key = self.prefix + shape.format(self.uid())
            events += self.write(key, age_s, kind=kind, **given)
            last = age_s
            if self.dice.random() < 0.3:
                last = self.dice.uniform(newest_s, age_s)
                events += self.write(key, last, kind=kind, **given)
            if self.dice.random() < reads:
                events.append(self.read(key, last, kind=kind))
        return events

    def world(self, events: list[Event], **given: Any) -> World:
        given = {"expect": {f"{self.prefix}*": self.ttl_s}, "age_s": 1.3 * self.ttl_s} | given
        return World(events=events, **given)


# -- healthy -----------------------------------------------------------------------------------------------------------


def of_kind(kind: str) -> Callable[[Traffic], World]:
    return lambda t: t.world(t.sessions(kind=kind))


def jitter(t: Traffic) -> World:
    events = []
    for age_s in t.times(0, 0.85 * t.ttl_s):
        events += t.write(f"chat:{t.uid()}", age_s, ttl_s=t.ttl_s * t.dice.uniform(0.91, 1.09))
    return t.world(events)


def read_often(t: Traffic) -> World:
    return t.world(t.sessions(reads=0.95))


def all_read_at_once(t: Traffic) -> World:
    events = t.sessions(reads=0)
    keys = {command[1] for _, command in events}
    return t.world(events + [(20.0, ("LRANGE", key, 0, -1)) for key in sorted(keys)])


def quiet_for_long(t: Traffic) -> World:
    return t.world(t.sessions(newest_s=t.ttl_s * t.dice.uniform(0.3, 0.85)))


def batches(t: Traffic) -> World:
    events = []
    for _ in range(t.dice.randrange(2, 7)):
        age_s = t.dice.uniform(0, 0.95) * t.ttl_s
        keys = [f"chat:{t.uid()}" for _ in range(t.count // 4 + 1)]
        events += [one for key in keys for one in t.write(key, age_s)]
        read_s = t.dice.uniform(0, age_s)
        events += [(read_s, ("LRANGE", key, 0, -1)) for key in keys if t.dice.random() < 0.6]
    return t.world(events)


def hourly_grid(t: Traffic) -> World:
    events = []
    for hour in range(1, round(0.95 * t.ttl_s / HOUR), max(round(t.ttl_s / HOUR / 40), 1)):
        for _ in range(max(t.count // 40, 1)):
            events += t.write(key := f"chat:{t.uid()}", hour * HOUR)
            if t.dice.random() < 0.4:
                events.append((t.dice.randrange(hour) * HOUR + 1, ("LRANGE", key, 0, -1)))
    return t.world(events)


def daily_returns(t: Traffic) -> World:
    events = []
    for age_s in t.times():
        events += t.write(key := f"chat:{t.uid()}", age_s)
        days = int(age_s / DAY)
        if days and t.dice.random() < 0.5:
            back_s = age_s - t.dice.randint(1, days) * DAY + t.dice.gauss(0, HOUR)
            events.append((min(max(back_s, 0.0), age_s), ("LRANGE", key, 0, -1)))
    return t.world(events)


def restarted(*, ago_s: float, reads: float = 0.0, persist: bool = True) -> Callable[[Traffic], World]:
    def make(t: Traffic) -> World:
        def restart(server: RedisServer) -> None:
            now = server.clock.now()
            server.clock.move_to(now - timedelta(seconds=ago_s))
            with server.client() as client:
                if not persist:
                    _save(client)
                keys = [key for key in client.scan_iter("chat:*") if t.dice.random() < reads]
            server.restart()
            server.clock.move_to(now - timedelta(seconds=ago_s / 2))
            with server.client() as client:
                for key in keys:
                    client.lrange(key, 0, -1)
                for _ in range(5):
                    client.rpush(key := f"chat:{t.uid()}", t.message())
                    client.pexpire(key, round(t.ttl_s * 1000))
            server.clock.move_to(now)

        config: dict[str, object] = {} if persist else {"save": "3600 1"}
        events = t.sessions(newest_s=ago_s + 60)
        return t.world(events, after=restart, persist=persist, config=config)

    return make


def _save(client: redis.Redis) -> None:
    """Save; a background save that the clock's move has begun must end first."""
    wait_for("no save under way", lambda: client.info("persistence")["rdb_bgsave_in_progress"], nothing)
    client.save()


def young_server(t: Traffic) -> World:
    events = [one for age_s in t.times(0, 300) for one in t.write(f"chat:{t.uid()}", age_s)]
    return t.world(events, age_s=300)


def few(count: int) -> Callable[[Traffic], World]:
    return lambda t: replace(t, count=count).world(replace(t, count=count).sessions(reads=0))


def with_policy(policy: str) -> Callable[[Traffic], World]:
    return lambda t: t.world(t.sessions(), config={"maxmemory": "400mb", "maxmemory-policy": policy})


def save_points(t: Traffic) -> World:
    def save(server: RedisServer) -> None:
        with server.client() as client:
            _save(client)

    return t.world(t.sessions(), persist=False, config={"save": "3600 1"}, after=save)


def parts(*shapes: str) -> Callable[[Traffic], World]:
    def make(t: Traffic) -> World:
        events = []
        for age_s in t.times():
            uid, again = t.uid(), t.dice.uniform(0, age_s)
            for at in (age_s, again):
                events += [one for shape in shapes for one in t.write(t.prefix + shape.format(uid), at)]
        return t.world(events)

    return make


def channels(t: Traffic) -> World:
    """A user has a session on each channel, and uses them at different times."""
    shape = t.dice.choice(("{}:web {}:app {}:slack", "web:{} app:{}", "{} {}_support", "{}:planner:log {}:coder:log"))
    events = []
    for _ in range(t.count):
        uid = t.uid()
        for part in shape.split():
            events += t.write(t.prefix + part.format(uid), t.dice.uniform(0, 0.98) * t.ttl_s)
    return t.world(events, steps=500)


def buffers(t: Traffic) -> World:
    """Each write leaves a part with a short TTL of its own, on purpose."""
    buffer_s = t.dice.choice((MINUTE, 5 * MINUTE, HOUR))
    events = []
    for age_s in [*t.times(), *t.times(0, 0.9 * buffer_s)]:
        events += t.write(key := f"chat:{t.uid()}", age_s)
        events += t.write(f"{key}:buffer", age_s, ttl_s=buffer_s)
    return t.world(events)


def always_in_use(t: Traffic) -> World:
    """Sessions of channels: each is written to every few hours, and none ever expires."""
    events = []
    for _ in range(min(t.count, 40)):
        key = f"chat:{t.uid()}"
        for n in range(120):
            events += t.write(key, 3 * t.ttl_s - (n + t.dice.random()) * t.ttl_s / 40)
    return t.world(events, age_s=3.2 * t.ttl_s, steps=400)


def job_at_one_age(t: Traffic) -> World:
    """A job executes a command that leaves the TTL on each session, at one age."""
    job_s = t.dice.uniform(0.1, 0.6) * t.ttl_s
    kind, command, *options = t.dice.choice(
        (
            ("list", "LTRIM", -50, -1), ("list", "LSET", 0, "{}"), ("list", "LREM", 1, "none"), ("hash", "HDEL", "n"),
            ("hash", "HINCRBY", "n", 1), ("hash", "HGETALL"), ("zset", "ZREM", "none"), ("zset", "ZINCRBY", 1, "n"),
            ("stream", "XTRIM", "MAXLEN", 100), ("stream", "XDEL", "1-1"), ("string", "SETRANGE", 0, "{"),
            ("string", "APPEND", " "), ("string", "DUMP"),
        )
    )  # fmt: skip
    events = []
    for age_s in t.times():
        events += t.write(key := f"chat:{t.uid()}", age_s, kind=kind)
        events += [(age_s - job_s, (command, key, *options))] if age_s > job_s else []
    return t.world(events, steps=500)


def read_in_batches(t: Traffic) -> World:
    """One call reads many sessions."""
    events = t.sessions(kind="string", reads=0)
    keys = sorted({command[1] for _, command in events})
    at_s, command = t.dice.choice((30.0, 3 * HOUR)), t.dice.choice(("MGET", "TOUCH"))
    return t.world(events + [(at_s, (command, *keys[n : n + 100])) for n in range(0, len(keys), 100)])


def lazy_migration(t: Traffic) -> World:
    """Sessions are copied at their first use, over days, with what was left of their TTLs."""
    start_s = t.dice.uniform(0.1, 0.9) * t.ttl_s
    events: list[Event] = []
    for age_s in t.times():
        key, at_s = f"chat:{t.uid()}", t.dice.uniform(0, start_s)
        if age_s <= start_s:
            events += t.write(key, age_s)
        else:
            events += t.write(key, at_s, ttl_s=t.ttl_s - age_s + at_s)
            events += t.write(key, t.dice.uniform(0, at_s)) if t.dice.random() < 0.3 else []
    return t.world(events, age_s=t.dice.choice((start_s + MINUTE, 1.3 * t.ttl_s)))


def quiet_and_backup(t: Traffic) -> World:
    """No session for days; then a backup reads all keys."""
    quiet_s = t.ttl_s * t.dice.uniform(0.5, 0.8)
    ages = [*t.times(quiet_s), *t.times(t.ttl_s + MINUTE, 2 * t.ttl_s)]
    events = [one for age_s in ages for one in t.write(f"chat:{t.uid()}", age_s)]

    def backup(server: RedisServer) -> None:
        with server.client() as client:
            for key in list(client.scan_iter()):
                client.dump(key)

    return t.world(events, age_s=2.2 * t.ttl_s, after=backup, steps=300)


def one_year(t: Traffic) -> World:
    t = replace(t, ttl_s=365 * DAY)
    return t.world(t.sessions(reads=t.dice.choice((0, 0.3))))


def clock_set_back(t: Traffic) -> World:
    t = replace(t, ttl_s=6 * HOUR)
    return t.world(t.sessions(), after=lambda server: server.clock.shift("-1h"))


def binary_names(t: Traffic) -> World:
    return t.world([one for age_s in t.times() for one in t.write(b"chat:" + t.dice.randbytes(16), age_s)])  # type: ignore[arg-type]


def locks(t: Traffic) -> World:
    events = t.sessions()
    for _ in range(t.count):
        at, key = t.dice.uniform(0, DAY), f"lock:{t.uid()}"
        events += [(at, ("SET", key, "1", "NX", "EX", 30)), (at, ("DEL", key))]
    return t.world(events)


def locks_under_the_prefix(t: Traffic) -> World:
    events = t.sessions()
    keys = [command[1] for _, command in events if command[0] == "RPUSH"]
    return t.world(events + [(2.0, ("SET", f"{key}:lock", "1", "EX", 30)) for key in keys[:10]])


def caches(t: Traffic) -> World:
    events = t.sessions()
    events += [(t.dice.uniform(0, HOUR), ("SET", f"cache:{t.uid()}", t.text(), "EX", 600)) for _ in range(3 * t.count)]
    return t.world(events)


def counters(t: Traffic) -> World:
    return t.world(t.sessions() + [(t.dice.uniform(0, DAY), ("INCR", f"count:{n % 9}")) for n in range(50)])


def index_that_is_pruned(t: Traffic) -> World:
    events = t.sessions()
    keys = sorted({command[1] for _, command in events})
    return t.world(events + [(5.0, ("ZADD", "index", n, key)) for n, key in enumerate(keys)])


def field_ttls(t: Traffic) -> World:
    events: list[Event] = []
    for age_s in t.times():
        key = f"chat:{t.uid()}"
        for n in range(3):
            events.append((age_s, ("HSET", key, f"m{n}", t.message())))
            events.append((age_s, ("HEXPIRE", key, round(t.ttl_s), "FIELDS", 1, f"m{n}")))
    return t.world(events, oldest_server=("redis-7.4", "valkey-9"))


def hash_tags(t: Traffic) -> World:
    return t.world(t.sessions(shape="{{{}}}"))


def empty_part_of_the_name(t: Traffic) -> World:
    """Names with a channel that may be empty; the newest session is of either kind."""
    events = t.sessions(shape="web:{}", newest_s=t.dice.choice((0.0, HOUR)))
    return t.world(events + t.sessions(shape=":{}", newest_s=t.dice.choice((0.0, HOUR))))


def read_at_one_age(t: Traffic) -> World:
    """A job reads sessions, or most of them, exactly so many days after their last write."""
    days, share = t.dice.choice((1, 2, 3, 5, 6)), t.dice.choice((0.5, 0.9, 1.0))
    t = replace(t, count=min(t.count, 120))
    events = []
    for age_s in t.times():
        events += t.write(key := f"chat:{t.uid()}", age_s)
        if age_s > days * DAY and t.dice.random() < share:
            events.append((age_s - days * DAY, ("LRANGE", key, 0, -1)))
    return t.world(events, steps=10_000)


def counters_of_sessions(t: Traffic) -> World:
    events = t.sessions()
    for key in sorted({command[1] for _, command in events}):
        events += [(5.0, ("INCR", f"{key}:count")), (5.0, ("PEXPIRE", f"{key}:count", round(t.ttl_s * 1000)))]
    return t.world(events)


def nightly_batches(t: Traffic) -> World:
    events = []
    for night in range(6):
        for _ in range(t.count // 6 + 1):
            events += t.write(key := f"chat:{t.uid()}", at := 9 * HOUR + night * DAY + t.dice.uniform(0, MINUTE))
            events += [t.read(key, at)] if t.dice.random() < 0.5 else []
    return t.world(events)


def migrated_by_restore(t: Traffic) -> World:
    def migrate(server: RedisServer) -> None:
        with server.client() as client:
            for key in list(client.scan_iter("chat:*")):
                client.restore(key, client.pttl(key), client.dump(key), replace=True)
        server.clock.shift("1h")

    return t.world(t.sessions(newest_s=HOUR + MINUTE), after=migrate, stops_s=HOUR)


def absolute_deadlines(t: Traffic) -> World:
    """The TTL is set once, on purpose; a job may write to each session at one age."""
    job_s = t.dice.choice((None, 0.1, 0.5)) and t.dice.uniform(0.05, 0.6) * t.ttl_s
    reads = t.dice.choice((0.0, 0.5))
    events = []
    for age_s in t.times():
        events += t.write(key := f"chat:{t.uid()}", age_s)
        for _ in range(t.dice.randrange(4)):
            events.append((t.dice.uniform(0, 1) * age_s, ("RPUSH", key, t.message())))
        if job_s and age_s > job_s:
            events.append((age_s - job_s, ("RPUSH", key, t.message())))
        events += [t.read(key, age_s)] if t.dice.random() < reads else []
    return t.world(events, expect={"chat:*": ExpiryPolicy.absolute(t.ttl_s)})


def migrated_by_replication(t: Traffic) -> World:
    """The server has become a primary after it was the replica of another, which sent it all sessions."""
    gap_s = t.dice.choice((HOUR, 5 * MINUTE, DAY))
    at_once: dict[str, object] = {"repl-diskless-sync-delay": 0}

    def migrate(server: RedisServer) -> None:
        with RedisServer(port=0, config=at_once) as other, server.client() as client, other.client() as source:
            other.clock.move_to(server.clock.now())
            for one, of in ((source, server), (client, other)):
                one.replicaof(*of.url.removeprefix("redis://").removesuffix("/0").split(":"))
                wait_for("a full sync", lambda one=one: one.info("replication")["master_link_status"], "up".__eq__)
                one.replicaof("NO", "ONE")
        server.clock.shift(gap_s)

    sessions = t.sessions(newest_s=gap_s + t.dice.choice((MINUTE, 0.5 * t.ttl_s)), reads=0.3)
    return t.world(sessions, after=migrate, stops_s=gap_s, port=0, config=at_once)


def migrated_by_copy(t: Traffic) -> World:
    """A script has copied sessions from another server, with what was left of their TTLs; then traffic went on."""
    moved_s = t.dice.choice((30.0, 5 * MINUTE, 2 * HOUR, DAY))
    took_s = t.dice.choice((1.0, MINUTE, moved_s))
    way = t.dice.choice(("PXAT", "PEXPIREAT", "PEXPIRE"))
    ages = t.times(moved_s)
    if t.dice.random() < 0.4:  # of batches
        starts = [t.dice.uniform(moved_s, 0.95 * t.ttl_s) for _ in range(t.dice.randrange(1, 4))]
        ages = [t.dice.choice(starts) + t.dice.uniform(0, t.dice.choice((1, 600))) for _ in range(t.count)]
    events: list[Event] = []
    now_ms = datetime.now(UTC).timestamp() * 1000
    for age_s in ages:
        key = f"chat:{t.uid()}"
        at_s = moved_s - t.dice.uniform(0, took_s) if age_s > moved_s else moved_s
        deadline_ms = round(now_ms + 1000 * (t.ttl_s - age_s))
        left_ms = round(1000 * (t.ttl_s - age_s + at_s))
        if way == "PXAT":
            events.append((at_s, ("SET", key, t.message(), "PX", left_ms)))
        else:
            events += [(at_s, ("RPUSH", key, t.message())) for _ in range(t.dice.randrange(1, 6))]
            events.append((at_s, (way, key, deadline_ms if way == "PEXPIREAT" else left_ms)))
        if t.dice.random() < 0.3 and at_s > 1 and way != "PXAT":
            events += t.write(key, t.dice.uniform(0, at_s))
    if t.dice.random() < 0.5:
        fresh = replace(t, count=t.count // 3 + 1)
        events += [one for age_s in fresh.times(0, moved_s) for one in t.write(f"chat:{t.uid()}", age_s)]
    age_s = t.dice.choice((moved_s + MINUTE, 1.3 * t.ttl_s))
    return t.world(events, age_s=age_s)


def tenants(t: Traffic) -> World:
    events = [one for n in range(8) for one in replace(t, count=t.count // 8 + 1).sessions(shape=f"tenant-{n}:{{}}")]
    return t.world(events)


def two_ttls_on_purpose(t: Traffic) -> World:
    events = t.sessions(reads=0.1)
    events += replace(t, ttl_s=DAY, count=3 * t.count).sessions(reads=0.1, ttl_s=DAY)
    return t.world(events, expect={"chat:*": ["1d", "7d"]})


def never(t: Traffic) -> World:
    return t.world(t.sessions(ttl_s=None), expect={"chat:*": None})


def never_with_locks(t: Traffic) -> World:
    """Sessions without TTL, one of them locked, and rate limits under their prefix."""
    events = t.sessions(ttl_s=None)
    key = next(command[1] for _, command in events)
    events.append((2.0, ("SET", f"{key}:lock", t.uid(), "NX", "EX", 30)))
    for age_s in t.times(0, 50):
        events += [(age_s, ("INCR", key := f"chat:rate:{t.uid()}")), (age_s, ("EXPIRE", key, 60))]
    return t.world(events, expect={"chat:*": None})


def several_expectations(t: Traffic) -> World:
    other = replace(t, prefix="user:", ttl_s=30 * DAY)
    return t.world(t.sessions() + other.sessions(), expect={"chat:*": "7d", "user:*": "30d"}, age_s=40 * DAY)


def deadlines_of_clients(t: Traffic) -> World:
    events: list[Event] = []
    now = datetime.now(UTC).timestamp()
    for age_s in t.times():
        key = f"chat:{t.uid()}"
        events += [(age_s, ("RPUSH", key, t.message())), (age_s, ("EXPIREAT", key, round(now - age_s + t.ttl_s)))]
    # A batch is executed at the time of its last event, so deadlines are a little early.
    return t.world(events, expect={"chat:*": "7d"})


def flush_of_another_database(t: Traffic) -> World:
    def flush(server: RedisServer) -> None:
        with server.client() as client:
            client.select(1)
            client.set("x", 1)
            client.flushdb()

    return t.world(t.sessions(), after=flush)


def flush_before_the_first_session(t: Traffic) -> World:
    return t.world([(1.2 * t.ttl_s, ("FLUSHALL",)), *t.sessions()])


def flushed_at_launch(t: Traffic) -> World:
    """The server was flushed before the service was launched, some time less than the TTL ago."""
    launch_s = t.dice.uniform(0.05, 0.9) * t.ttl_s
    locks = [(t.dice.uniform(0, launch_s), ("SET", f"lock:{t.uid()}", 1, "EX", 10)) for _ in range(20)]
    return t.world([(launch_s, ("FLUSHALL",)), *locks, *[one for one in t.sessions() if one[0] < launch_s]])


def another_database(t: Traffic) -> World:
    def fill(server: RedisServer) -> None:
        with server.client() as client:
            client.select(3)
            client.set("cache", 1)

    return t.world(t.sessions(), after=fill)


def throttled_renewal(t: Traffic) -> World:
    events: list[Event] = []
    for age_s in t.times(0, 1.5 * t.ttl_s):
        key, left_until = f"chat:{t.uid()}", 0.0
        while age_s > 0:
            events.append((age_s, ("SET", key, t.message(), "KEEPTTL")))
            if age_s - left_until < 0.6 * t.ttl_s or not left_until:
                left_until = age_s - t.ttl_s
                events.append((age_s, ("PEXPIRE", key, round(t.ttl_s * 1000))))
            age_s -= t.dice.expovariate(1 / (0.1 * t.ttl_s))
            if t.dice.random() < 0.2:
                break
    return t.world(events)


def renewed_by_reads(t: Traffic) -> World:
    events = []
    for age_s in t.times():
        events += t.write(key := f"chat:{t.uid()}", age_s)
        if t.dice.random() < 0.5:
            at = t.dice.uniform(0, age_s)
            events += [(at, ("LRANGE", key, 0, -1)), (at, ("PEXPIRE", key, round(t.ttl_s * 1000)))]
    return t.world(events)


def payloads(value: Callable[[Traffic, float], str | bytes], kind: str = "string") -> Callable[[Traffic], World]:
    def make(t: Traffic) -> World:
        events = []
        for age_s in t.times():
            events += t.write(f"chat:{t.uid()}", age_s, kind=kind, value=value(t, age_s))  # type: ignore[arg-type]
        return t.world(events, full=True)

    return make


def written(age_s: float) -> float:
    return datetime.now(UTC).timestamp() - age_s


def scripts(t: Traffic) -> World:
    body = "redis.call('RPUSH',KEYS[1],ARGV[1]);redis.call('PEXPIRE',KEYS[1],ARGV[2])"
    ttl_ms = round(t.ttl_s * 1000)
    events = [(age_s, ("EVAL", body, 1, f"chat:{t.uid()}", t.message(), ttl_ms)) for age_s in t.times()]
    return t.world(events)


def few_deletions(t: Traffic) -> World:
    events = t.sessions()
    keys = [command[1] for _, command in events if command[0] == "RPUSH"]
    return t.world(events + [(1.0, ("DEL", key)) for key in keys[: t.count // 20]])


def nearly_full(t: Traffic) -> World:
    def limit(server: RedisServer) -> None:
        with server.client() as client:
            client.set("blob", "x" * 4_000_000)
            client.config_set("maxmemory", round(client.info("memory")["used_memory"] / 0.85))

    return t.world(t.sessions(), config={"maxmemory-policy": "noeviction"}, after=limit)


def names_of_people(t: Traffic) -> World:
    names = [f"Zoë-{n}" if n % 2 else f"名前-{n}" for n in range(t.count)]
    events = [one for name, age_s in zip(names, t.times(), strict=True) for one in t.write(f"chat:{name}", age_s)]
    return t.world(events)


def batch_before_a_restart(t: Traffic) -> World:
    """Few sessions of one batch; the append-only file that is loaded is small."""
    age_s, ago_s = t.dice.uniform(0.2, 0.9) * t.ttl_s, t.dice.choice((700.0, HOUR, 3 * HOUR))

    def restart(server: RedisServer) -> None:
        server.restart()
        server.clock.shift(0.9 * ago_s)
        with server.client() as client:
            for _ in range(t.dice.choice((0, 100))):
                client.set("lock", 1, nx=True, ex=60)  # a call that changes nothing
        server.clock.shift(0.1 * ago_s)

    events = [one for _ in range(t.dice.choice((3, 9))) for one in t.write(f"chat:{t.uid()}", age_s)]
    return t.world(events, after=restart, stops_s=ago_s)


def one_session_at_night(t: Traffic) -> World:
    """The largest session is always in use, by a monitor, and the only one at night."""
    t = replace(t, ttl_s=DAY, count=min(t.count, 60))
    events = [one for age_s in t.times(8 * HOUR, 20 * HOUR) for one in t.write(f"chat:{t.uid()}", age_s)]
    events += [one for n in range(400) for one in t.write("chat:monitor", n * 0.95 * DAY / 400)]
    return t.world(events, full=True, steps=500)


def _exceed_maxmemory(server: RedisServer) -> None:
    """Write caches until keys are evicted."""
    with server.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
        for n in range(400):
            client.set(f"cache:{n}", "x" * 4_000, ex=9_000)


def evicted_caches(t: Traffic) -> World:
    """Caches are evicted, and sessions never expire, so that the policy spares them."""

    config: dict[str, object] = {"maxmemory-policy": "volatile-lru"}
    return t.world(t.sessions(ttl_s=None), expect={"chat:*": None}, config=config, after=_exceed_maxmemory)


def evicted_long_ago(t: Traffic) -> World:
    """Keys were evicted before the first of today's sessions was written, and memory has room since."""
    t = replace(t, count=min(t.count, 60))

    def fill(server: RedisServer) -> None:
        end = server.clock.now() + timedelta(seconds=1.2 * t.ttl_s)
        with server.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
            for n in range(300):
                client.set(f"blob:{n}", "x" * 4_000, ex=900)
            client.config_set("maxmemory", "400mb")
            for age_s in sorted(t.times(), reverse=True):
                server.clock.move_to(end - timedelta(seconds=age_s))
                client.rpush(key := f"chat:{t.uid()}", t.message())
                client.pexpire(key, round(t.ttl_s * 1000))
        server.clock.move_to(end)

    return t.world([], config={"maxmemory-policy": "allkeys-lru"}, after=fill, stops_s=1.2 * t.ttl_s)


def one_large_session_ended(t: Traffic) -> World:
    """A user has ended a session that was so large that the slow log has it."""

    def end(server: RedisServer) -> None:
        with server.client() as client:
            client.config_set("slowlog-log-slower-than", 0)
            client.delete(next(client.scan_iter("chat:*")))
            client.config_set("slowlog-log-slower-than", 10_000)

    return t.world(t.sessions(), after=end)


def texts_under_a_store_s_name(t: Traffic) -> World:
    t = replace(t, prefix="message_store:")
    events = [one for age_s in t.times() for one in t.write(t.prefix + t.uid(), age_s, value=t.text())]
    return t.world(events, full=True)


def heartbeats(t: Traffic) -> World:
    """Each connected client renews its session every four seconds; none has left since the server started."""
    ttl_s = 1.5 * MINUTE
    events: list[Event] = []
    for _ in range(30):
        key, offset_s = f"chat:{t.uid()}", t.dice.uniform(0, 4)
        events.append((10 * MINUTE, ("HSET", key, "user", "x")))
        events += [(age_s + offset_s, ("PEXPIRE", key, round(ttl_s * 1000))) for age_s in range(0, 596, 4)]
    return replace(t, ttl_s=ttl_s).world(events, age_s=10 * MINUTE, steps=10**6)


def task_after_an_hour(t: Traffic) -> World:
    """Clients compute deadlines, and a task reads each session one hour after it was written; no session is newer."""
    events: list[Event] = []
    now = datetime.now(UTC).timestamp()
    for age_s in t.times(1.2 * HOUR):
        key = f"chat:{t.uid()}"
        events += [(age_s, ("RPUSH", key, "{}")), (age_s, ("EXPIREAT", key, round(now - age_s + t.ttl_s)))]
        events.append((age_s - HOUR, ("LRANGE", key, 0, -1)))
    return t.world(events, steps=10**6)


def service_ended(t: Traffic) -> World:
    """Nothing has been written for nearly a TTL, and all of the last sessions are read now."""
    last = replace(t, count=8)
    events = [one for age_s in last.times(0.96 * t.ttl_s) for one in t.write(f"chat:{t.uid()}", age_s)]
    keys = sorted({command[1] for _, command in events})
    return t.world(events + [(t.dice.uniform(1, HOUR), ("LRANGE", key, 0, -1)) for key in keys])


def drafts(t: Traffic) -> World:
    """Drafts of the sessions' type have a short TTL on purpose; sessions are few."""
    t = replace(t, count=12)
    events = t.sessions(newest_s=t.dice.choice((0.0, 12 * HOUR)))
    for age_s in t.times(0, 28 * MINUTE):
        events += t.write(f"chat:draft:{t.uid()}", age_s, ttl_s=30 * MINUTE)
    return t.world(events)


def setting_without_ttl(t: Traffic) -> World:
    settings: list[Event] = [(1.1 * t.ttl_s, ("HSET", f"chat:{name}", "model", "large")) for name in ("main", "test")]
    return t.world([*t.sessions(), *settings])


def spring_session(t: Traffic) -> World:
    t = replace(t, prefix="spring:session:sessions:", ttl_s=30 * MINUTE)
    events = []
    for age_s in t.times():
        uid = t.uid()
        events += t.write(f"{t.prefix}{uid}", age_s, kind="hash", ttl_s=35 * MINUTE)
        events += [(age_s, ("SET", f"{t.prefix}expires:{uid}", "", "EX", 1_800))]
    return t.world(events, age_s=8 * HOUR)


HEALTHY: dict[str, Callable[[Traffic], World]] = {
    **{f"of_{kind}s": of_kind(kind) for kind in ("list", "hash", "string", "zset", "stream")},
    **{f"policy_{name}": with_policy(name) for name in ("allkeys-lru", "volatile-lfu", "allkeys-lfu", "volatile-ttl")},
    "restarted_10_minutes_ago": restarted(ago_s=600),
    "restarted_2_hours_ago": restarted(ago_s=7_200),
    "restarted_and_read": restarted(ago_s=3_600, reads=0.3),
    "restarted_from_rdb": restarted(ago_s=3_600, persist=False),
    "one_session": few(1),
    "two_sessions": few(2),
    "two_parts": parts("{}", "{}:messages"),
    "three_parts": parts("{}:meta", "{}:messages", "{}:summary"),
    "gzip": payloads(lambda t, _: gzip.compress(t.message().encode(), mtime=0)),
    "markdown": payloads(lambda t, _: f"[Order 17](https://example.org) {t.text()}"),
    "transcript": payloads(lambda t, _: f"[10:02] user: {t.text()}\n[10:03] bot: {t.text()}\n"),
    "token_deadline": payloads(
        lambda _, age_s: json.dumps({"created_at": written(age_s), "expires_at": written(age_s) + 3600})
    ),
    "naive_local_time": payloads(
        lambda t, age_s: t.message(updated_at=datetime.fromtimestamp(written(age_s) + 7_200, UTC).isoformat()[:19])
    ),
    "encoding_changed": payloads(lambda t, age_s: t.message() if age_s > t.ttl_s / 2 else f"v2:{t.uid()}{t.uid()}"),
    "dates_in_the_dialogue": payloads(
        lambda t, _: t.message(arguments={"departure_date": "2031-05-01T10:00:00Z", "time": "2030-01-01T00:00:00Z"})
    ),
    **{
        one.__name__: one
        for one in (
            jitter, read_often, all_read_at_once, quiet_for_long, batches, hourly_grid, daily_returns, young_server,
            save_points, locks, locks_under_the_prefix, caches, counters, index_that_is_pruned, field_ttls, hash_tags,
            empty_part_of_the_name, tenants, two_ttls_on_purpose, never, several_expectations, deadlines_of_clients,
            flush_of_another_database, flush_before_the_first_session, another_database, throttled_renewal,
            read_at_one_age, flushed_at_launch, counters_of_sessions, nightly_batches, migrated_by_restore,
            migrated_by_copy, scripts, few_deletions, nearly_full, names_of_people, spring_session, renewed_by_reads,
            migrated_by_replication, absolute_deadlines, buffers, always_in_use, channels,
            job_at_one_age, read_in_batches, lazy_migration, quiet_and_backup, one_year, binary_names,
            clock_set_back, batch_before_a_restart, one_session_at_night, evicted_caches, drafts, setting_without_ttl,
            evicted_long_ago, one_large_session_ended, texts_under_a_store_s_name,
            heartbeats, task_after_an_hour, service_ended, never_with_locks,
        )
    },
}  # fmt: skip


# -- one fault ---------------------------------------------------------------------------------------------------------


def short_ttl(ttl_s: float) -> Callable[[Traffic], World]:
    def make(t: Traffic) -> World:
        return t.world([one for age in t.times(0, ttl_s) for one in t.write(f"chat:{t.uid()}", age, ttl_s=ttl_s)])

    return make


def long_ttl(t: Traffic) -> World:
    return t.world(t.sessions(ttl_s=30 * t.ttl_s))


def unix_time(t: Traffic) -> World:
    return t.world(t.sessions(ttl_s=datetime.now(UTC).timestamp()))


def no_ttl(t: Traffic) -> World:
    return t.world(t.sessions(ttl_s=None))


def two_ttls(t: Traffic) -> World:
    events = t.sessions(reads=0)
    return t.world(events + [one for age in t.times(0, 290) for one in t.write(f"chat:{t.uid()}", age, ttl_s=300)])


def two_ttls_and_a_restart(t: Traffic) -> World:
    """Half of the sessions get little; a restart has reset the idle clocks that show it."""
    short = [one for age_s in t.times(60, 290) for one in t.write(f"chat:{t.uid()}", age_s, ttl_s=300)]

    def restart(server: RedisServer) -> None:
        server.restart()
        server.clock.shift("20s")

    return t.world(t.sessions(reads=0, newest_s=60) + short, after=restart, stops_s=20)


def mixed_parts(t: Traffic) -> World:
    events = []
    for age_s in t.times(0, 0.5 * t.ttl_s):
        uid = t.uid()
        events += t.write(f"chat:{uid}", age_s) + t.write(f"chat:{uid}:messages", age_s, ttl_s=0.6 * t.ttl_s)
    return t.world(events)


def encoded_twice(t: Traffic) -> World:
    return payloads(lambda t, _: json.dumps(t.message()))(t)


def python_repr(t: Traffic) -> World:
    return payloads(lambda t, _: repr(json.loads(t.message())))(t)


def not_renewed(t: Traffic) -> World:
    events = []
    for age_s in t.times(0.7 * t.ttl_s, 0.95 * t.ttl_s):
        events += t.write(key := f"chat:{t.uid()}", age_s)
        events += [(age_s * share, ("RPUSH", key, t.message())) for share in (0.8, 0.3, 0.05)]
    return t.world(events)


def another_type(t: Traffic) -> World:
    """A new kind of sessions with the same shape of names gets a short TTL."""
    events = t.sessions(kind="string")
    for age_s in t.times(0, 300):
        events += t.write(f"chat:{t.uid()}", age_s, kind="hash", ttl_s=300)
    return t.world(events)


def another_prefix(t: Traffic) -> World:
    return t.world(replace(t, prefix="chats:").sessions(), expect={"chat:*": "7d"})


def formatted_bytes(t: Traffic) -> World:
    return t.world(t.sessions(shape="b'{}'"))


def flushed(t: Traffic) -> World:
    return t.world([*t.sessions(newest_s=2 * HOUR), (HOUR, ("FLUSHALL",))])


def swapped(t: Traffic) -> World:
    """A job has swapped the database for another; a few sessions are written since."""
    later = replace(t, count=t.count // 10 + 1)
    events = [one for age_s in later.times(0, HOUR) for one in later.write(f"chat:{t.uid()}", age_s)]
    return t.world([*t.sessions(newest_s=2 * HOUR), (1.5 * HOUR, ("SWAPDB", 0, 1)), *events])


def slightly_long(t: Traffic) -> World:
    return t.world(t.sessions(ttl_s=8 * t.ttl_s / 7, reads=0))


def fields_end_before_the_key(t: Traffic) -> World:
    """All fields of a session have a short TTL, and its key has the expected one."""
    events: list[Event] = []
    for age_s in t.times(0, 290):
        events += t.write(key := f"chat:{t.uid()}", age_s, kind="hash")
        events.append((age_s, ("HEXPIRE", key, 300, "FIELDS", 2, "messages", "n")))
    return t.world(events, oldest_server=("redis-7.4", "valkey-9"))


def past_deadlines(t: Traffic) -> World:
    """Clients give a Unix time in seconds that the server takes for milliseconds."""
    events: list[Event] = []
    for age_s in t.times():
        key = f"chat:{t.uid()}"
        events += [(age_s, ("SET", key, "{}")), (age_s, ("PEXPIREAT", key, round(written(age_s) + t.ttl_s)))]
    return t.world(events)


def full_memory(t: Traffic) -> World:
    def fill(server: RedisServer) -> None:
        with server.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 100_000)
            for _ in range(20):
                with suppress(redis.ResponseError):
                    client.set(f"chat:{t.uid()}", "x", ex=100)

    return t.world(t.sessions(), after=fill)


def evicted(t: Traffic) -> World:
    return t.world(t.sessions(), config={"maxmemory-policy": "allkeys-lru"}, after=_exceed_maxmemory)


def local_times(t: Traffic) -> World:
    """Clients compute deadlines from a local time and take it for UTC."""
    t, now = replace(t, ttl_s=DAY), datetime.now(UTC).timestamp()
    zone_s = t.dice.choice((-8, -7, -5, -3)) * HOUR
    events: list[Event] = []
    for age_s in t.times(0, 0.6 * DAY):
        key = f"chat:{t.uid()}"
        events += [(age_s, ("RPUSH", key, "{}")), (age_s, ("EXPIREAT", key, round(now - age_s + DAY + zone_s)))]
    return t.world(events, steps=5_000)


def one_of_many(t: Traffic) -> World:
    """One session alone is given little; nothing has been read."""
    return t.world(t.sessions(reads=0) + t.write(f"chat:{t.uid()}", 100, ttl_s=300))


def cut_pickles(t: Traffic) -> World:
    return payloads(lambda t, _: pickle.dumps({"messages": 9 * t.message()})[:400], kind="string")(t)


def all_deleted(t: Traffic) -> World:
    events = t.sessions()
    return t.world(events + [(1.0, ("DEL", key)) for key in sorted({command[1] for _, command in events})])


FAULTS: dict[str, Callable[[Traffic], World]] = {
    "five_minutes": short_ttl(300),
    "one_hour": short_ttl(3_600),
    "one_sixtieth": short_ttl(7 * DAY / 60),
    **{
        one.__name__: one
        for one in (
            encoded_twice, python_repr, long_ttl, unix_time, no_ttl, two_ttls, mixed_parts, not_renewed,
            another_prefix, another_type, formatted_bytes, flushed, full_memory, evicted, all_deleted, local_times,
            one_of_many, cut_pickles, swapped, slightly_long, past_deadlines, fields_end_before_the_key,
            two_ttls_and_a_restart,
        )
    },
}  # fmt: skip


def draw_world(name: str, seed: int, count: int | None = None) -> World:
    """Return a world of a kind with parameters drawn by the seed; ``count`` sessions, or some tens to hundreds."""
    dice = random.Random(f"{name}-{seed}")
    count = dice.choice((12, 40, 120, 300)) if count is None else count
    return (HEALTHY | FAULTS)[name](Traffic(dice, count))


def false_alarms(report: AuditReport) -> list[str]:
    """Return what must not be reported of a healthy world: anything critical, and likely or proven warnings."""
    return [
        f"{one.severity} {one.cause} {one.confidence}: {one.message}; {'; '.join(one.evidence)}"
        for one in report.findings
        if one.severity == "critical" or (one.severity == "warning" and one.confidence != "possible")
    ]
