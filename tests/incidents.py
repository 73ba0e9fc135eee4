"""Incidents with a known truth, drawn at random, on real servers: what the audit's verdict is held against.

A ``World`` is a plan of writes and reads in time. It is carried out in one of two ways: ``travelled``, by moving a
private server's clock and doing what an application does; or ``restored``, by RESTORE with a deadline and an idle time
for each key, which is exact and fast for many keys.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from memkit.audit.run import AuditReport
from memkit.server import RedisServer

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
TTLS = (1 * HOUR, 2 * HOUR, 12 * HOUR, 1 * DAY, 3 * DAY, 7 * DAY, 30 * DAY)
PREFIXES = ("chat:", "session:", "agent:memory:", "app1:chat:", "conv/", "history:v2:")
STEPS = 120


@dataclass(frozen=True)
class Truth:
    """What really happened. ``changed_s``: seconds before the audit; ``last_s``: the last write before the change."""

    cause: str
    prefix: str | None = None
    expected_s: float | None = None
    observed_s: float | None = None
    changed_s: float | None = None
    last_s: float | None = None
    jitter: float = 0.0
    gap_s: float = 0.0
    also: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Write:
    """A key's last write: ``age_s`` before the audit, given ``ttl_s`` (None: no TTL), read ``read_s`` before it."""

    key: str
    age_s: float
    ttl_s: float | None
    read_s: float | None = None
    kind: str = "list"
    value: str = '{"type":"human","data":{"content":"hello"}}'

    @property
    def exists(self) -> bool:
        return self.ttl_s is None or self.age_s < self.ttl_s


@dataclass
class Incident:
    """A world, what is expected of it, and the truth."""

    name: str
    truth: Truth
    expect: Mapping[str, str]
    writes: list[Write] = field(default_factory=list)
    config: Mapping[str, object] = field(default_factory=dict)
    persist: bool = True
    full: bool = False
    travelled: bool = False
    after: Callable[[RedisServer], None] | None = None

    def play(self, server: RedisServer) -> None:
        """Make it true on a private server."""
        with server.client() as client:
            if self.travelled:
                travel(server, client, self.writes, self.truth.changed_s)
            else:
                restore(server, client, self.writes)
        if self.after:
            self.after(server)


def restore(server: RedisServer, client: redis.Redis, writes: list[Write]) -> None:
    """Put the keys that still exist there, each with its deadline and its idle time."""
    existing = [one for one in writes if one.exists]
    dumps = {kind: _dump(client, write) for kind, write in {(one.kind, one.value): one for one in existing}.items()}
    for start in range(0, len(existing), 100):
        # Deadlines count from here and idle times from their RESTORE: little may lie between.
        pipe = client.pipeline(transaction=False)
        now_ms = round(server.clock.now().timestamp() * 1000)
        for write in existing[start : start + 100]:
            deadline = 0 if write.ttl_s is None else now_ms + round((write.ttl_s - write.age_s) * 1000)
            idle = round(write.age_s if write.read_s is None else min(write.read_s, write.age_s))
            dump = dumps[write.kind, write.value]
            pipe.execute_command("RESTORE", write.key, deadline, dump, "REPLACE", "ABSTTL", "IDLETIME", idle)
        pipe.execute()


def _dump(client: redis.Redis, write: Write) -> bytes:
    _write(client, "template", write)
    dump = client.dump("template") or b""
    # Not by DEL, which would be evidence.
    client.pexpire("template", 1)
    while client.exists("template"):
        pass
    return dump


def travel(server: RedisServer, client: redis.Redis, writes: list[Write], changed_s: float | None) -> None:
    """Carry it out in time: the clock goes back to the first write, then from event to event to the time it has now."""
    end = server.clock.now()
    clock = server.clock
    for batch in _batches(writes, changed_s):
        # Each at its own time would take a move each; a batch is done at the time of its latest.
        clock.move_to(end - timedelta(seconds=batch[-1][0]))
        pipe = client.pipeline(transaction=False)
        for _, reading, write in batch:
            if reading:
                _read(pipe, write)
            else:
                _write(pipe, write.key, write)
        pipe.execute()
    clock.move_to(end)


Event = tuple[float, int, Write]


def _batches(writes: list[Write], changed_s: float | None) -> list[list[Event]]:
    """Cut the events into batches close in time, none across the change."""
    events: list[Event] = [(write.age_s, 0, write) for write in writes]
    events += [(min(w.read_s, w.age_s), 1, w) for w in writes if w.read_s is not None and w.exists]
    events.sort(key=lambda event: (-event[0], event[1]))
    batches: list[list[Event]] = []
    for event in events:
        first = batches[-1][0] if batches else None
        together = first and first[0] - event[0] <= first[0] / STEPS
        across = first and changed_s is not None and event[0] <= changed_s < first[0]
        if together and not across:
            batches[-1].append(event)
        else:
            batches.append([event])
    return batches


def _write(client: Any, key: str, write: Write) -> None:
    match write.kind:
        case "list":
            client.rpush(key, write.value)
        case "hash":
            client.hset(key, mapping={"messages": write.value, "n": "1"})
        case "set":
            client.sadd(key, write.value)
        case _:
            client.set(key, write.value)
    if write.ttl_s is not None and key == write.key:
        client.pexpire(key, round(write.ttl_s * 1000))


def _read(client: Any, write: Write) -> None:
    {"list": lambda: client.lrange(write.key, 0, -1), "hash": lambda: client.hgetall(write.key)}.get(
        write.kind, lambda: client.get(write.key)
    )()


# -- dice --------------------------------------------------------------------------------------------------------------


@dataclass
class Dice:
    """Draws the parameters that all incidents share."""

    dice: random.Random
    many: bool = False

    def __post_init__(self) -> None:
        dice = self.dice
        self.prefix = dice.choice(PREFIXES)
        self.ttl = dice.choice(TTLS)
        top = 100_000 if self.many and dice.random() < 0.1 else 3_000
        self.count = round(math.exp(dice.uniform(math.log(25), math.log(top))))
        self.jitter = dice.choice((0.0, 0.0, 0.1))
        self.read_share = dice.choice((0.0, 0.2, 0.5))
        self.kind = dice.choice(("list", "list", "hash", "string"))
        self.expect = {f"{self.prefix}*": f"{self.ttl:.0f}s"}

    def given_ttl(self, ttl: float, jitter: float | None = None) -> float:
        spread = self.jitter if jitter is None else jitter
        return ttl * self.dice.uniform(1 - spread, 1 + spread)

    def session(self, number: int, age: float, ttl: float | None, *, part: str = "", **given: Any) -> Write:
        read = self.dice.uniform(0, age) * self.dice.random() if self.dice.random() < self.read_share else None
        key = f"{self.prefix}{self._id(number)}{part}"
        return Write(key, age, None if ttl is None else self.given_ttl(ttl), read, **{"kind": self.kind, **given})

    def _id(self, number: int) -> str:
        return f"{random.Random(number).getrandbits(64):016x}" if self.kind == "hash" else f"user-{number}"

    def sessions(self, count: int, newest: float, oldest: float, ttl: float | None, *, first: int = 0) -> list[Write]:
        return [self.session(first + n, self.dice.uniform(newest, oldest), ttl) for n in range(count)]

    def steady(self, count: int | None = None, *, newest: float = 0.0) -> list[Write]:
        """Sessions last written at any time of the last TTL, under the expected policy."""
        count = self.count if count is None else count
        return self.sessions(count, newest, self.ttl * (1 - self.jitter) * 0.999, self.ttl)

    def beside(self) -> list[Write]:
        """Caches, locks and counters of other prefixes, and some under the sessions' own."""
        dice, found = self.dice, []
        for n in range(dice.randrange(5, 60)):
            ttl = dice.choice((30.0, 120.0, 600.0))
            found.append(Write(f"cache:answer:{n}", dice.uniform(0, ttl), ttl, kind="string"))
            found.append(Write(f"lock:job:{n}", dice.uniform(0, 8), 10.0, kind="string", value="1"))
            found.append(Write(f"counter:user:{n}", dice.uniform(0, DAY), None, kind="string", value="17"))
        if dice.random() < 0.5:
            locks = [f"{self.prefix}lock:{n}" for n in range(dice.randrange(3, 20))]
            found += [Write(key, dice.uniform(0, 20), 30.0, kind="string", value="1") for key in locks]
        if dice.random() < 0.5:
            found.append(Write(f"{self.prefix}index", 10, None, kind="set", value="user-1"))
        return found


# -- causes ------------------------------------------------------------------------------------------------------------


def _changed(dice: Dice, cause: str, observed: float, *, factor: bool = False) -> Incident:
    """A release changed the TTL from ``dice.ttl`` to another, some time ago."""
    rng = dice.dice
    jitter = 0.0 if factor else dice.jitter
    dice.jitter = jitter
    shortest = observed * (1 - jitter)
    oldest = dice.ttl * (1 - jitter) * 0.999
    changed = rng.uniform(min(shortest * 0.3, oldest * 0.3), oldest * 0.9)
    fresh = max(6, round(dice.count * rng.uniform(0.05, 0.8)))
    old = dice.sessions(dice.count, changed, oldest, dice.ttl)
    new = dice.sessions(fresh, 0.0, min(changed, shortest * 0.98), observed, first=dice.count)
    if rng.random() < 0.2:
        old = []
    last = min((write.age_s for write in old), default=None)
    truth = Truth(
        cause,
        dice.prefix,
        dice.ttl,
        observed,
        changed if old else max(w.age_s for w in new),
        last,
        jitter,
        dice.ttl / dice.count,
    )
    return Incident(cause, truth, dice.expect, old + new + dice.beside())


def ttl_too_short(dice: Dice) -> Incident:
    choices = [s for s in (20.0, 60.0, 300.0, 600.0, 900.0, 1_800.0, HOUR, 12 * HOUR, DAY) if s <= dice.ttl * 0.6]
    observed = dice.dice.choice([*choices, float(dice.dice.randrange(20, int(dice.ttl * 0.5)))])
    while any(abs(observed * factor - dice.ttl) < 0.03 * dice.ttl for factor in (60, 1000, 60000)):
        observed = float(dice.dice.randrange(20, int(dice.ttl * 0.5)))
    return _changed(dice, "ttl_too_short", observed)


def ttl_too_long(dice: Dice) -> Incident:
    observed = dice.ttl * dice.dice.choice((1.5, 2, 4.3, 12, 30))
    return _changed(dice, "ttl_too_long", observed)


def unit_mistake(dice: Dice) -> Incident:
    factor = dice.dice.choice([f for f in (60, 1000, 60_000) if dice.ttl / f >= 3])
    longer = dice.dice.random() < 0.3 and dice.ttl * factor < 3_000 * 365 * DAY
    return _changed(dice, "unit_mistake", dice.ttl * factor if longer else dice.ttl / factor, factor=True)


def no_ttl(dice: Dice) -> Incident:
    rng = dice.dice
    oldest = dice.ttl * (1 - dice.jitter) * 0.999
    changed = rng.uniform(0.05, 0.9) * oldest
    old = dice.sessions(dice.count, changed, oldest, dice.ttl)
    new = dice.sessions(max(3, dice.count // 3), 0, changed, None, first=dice.count)
    truth = Truth(
        "no_ttl", dice.prefix, dice.ttl, None, changed, min(w.age_s for w in old), dice.jitter, dice.ttl / dice.count
    )
    return Incident("no_ttl", truth, dice.expect, old + new + dice.beside())


def mixed_ttl(dice: Dice) -> Incident:
    """Two keys a session; one of them is not renewed, or has another TTL."""
    rng = dice.dice
    dice.jitter = 0.0
    writes = []
    other = dice.ttl * rng.choice((0.02, 0.1, 0.5))
    stale = rng.random() < 0.5
    for n in range(dice.count):
        age = rng.uniform(0, dice.ttl * 0.3 if stale else other * 0.95)
        writes.append(dice.session(n, age, dice.ttl))
        part_age = rng.uniform(age + dice.ttl * 0.05, dice.ttl * 0.98) if stale else age
        writes.append(dice.session(n, part_age, dice.ttl if stale else other, part=":messages", kind="list"))
    truth = Truth("mixed_ttl", dice.prefix, dice.ttl)
    return Incident("mixed_ttl", truth, dice.expect, writes + dice.beside())


def wrong_prefix(dice: Dice) -> Incident:
    stem = dice.prefix.rstrip(":/")
    wrong = dice.dice.choice([f"{stem}s:", f"{stem.upper()}:", f"prod:{dice.prefix}", f"{stem}_", f"{stem}-"])
    expected, dice.prefix = dice.prefix, wrong
    writes = dice.steady()
    beside = [write for write in dice.beside() if not write.key.startswith(wrong)]
    return Incident("wrong_prefix", Truth("wrong_prefix", expected, dice.ttl), dice.expect, writes + beside)


def evicted(dice: Dice) -> Incident:
    policy = dice.dice.choice(("allkeys-lru", "volatile-lru", "allkeys-random", "volatile-ttl"))
    dice.count = min(dice.count, 300)

    def overfill(server: RedisServer) -> None:
        with server.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 400_000)
            for n in range(400):
                client.set(f"{dice.prefix}big-{n}", "x" * 4_000, ex=round(dice.ttl))

    config = {"maxmemory-policy": policy}
    return Incident("evicted", Truth("evicted"), dice.expect, dice.steady() + dice.beside(), config, after=overfill)


def eviction_risk(dice: Dice) -> Incident:
    policy = dice.dice.choice(("allkeys-lru", "volatile-lru", "volatile-ttl", "allkeys-lfu"))
    share = dice.dice.uniform(0.85, 0.93)
    dice.count = min(dice.count, 500)

    def fill(server: RedisServer) -> None:
        with server.client() as client:
            for n in range(600):  # so that a few per cent are more than a connection's buffers
                client.set(f"blob:{n}", "x" * 10_000)
            client.config_set("maxmemory", round(client.info("memory")["used_memory"] / share))

    config = {"maxmemory-policy": policy}
    return Incident(
        "eviction_risk", Truth("eviction_risk"), dice.expect, dice.steady() + dice.beside(), config, after=fill
    )


def persistence_risk(dice: Dice) -> Incident:
    return Incident(
        "persistence_risk", Truth("persistence_risk"), dice.expect, dice.steady() + dice.beside(), persist=False
    )


def deleted(dice: Dice) -> Incident:
    share = dice.dice.uniform(0.3, 0.8)
    command = dice.dice.choice(("delete", "unlink"))
    writes = dice.steady(max(dice.count, 40))
    keys = [write.key for write in writes if write.key.startswith(dice.prefix)]
    deleted_keys = dice.dice.sample(keys, round(share * len(keys)))

    def delete(server: RedisServer) -> None:
        with server.client() as client:
            pipe = client.pipeline(transaction=False)
            for key in deleted_keys:
                getattr(pipe, command)(key)
            pipe.execute()

    return Incident("deleted", Truth("deleted", dice.prefix), dice.expect, writes + dice.beside(), after=delete)


def clock_skew(dice: Dice) -> Incident:
    by = dice.dice.choice((-1, 1)) * dice.dice.uniform(20, 900)

    def skew(server: RedisServer) -> None:
        server.clock.shift(f"{by:.1f}s")

    # Written before the shift by less than it: nothing here shows that the clock was moved on purpose.
    dice.read_share = 0.0
    writes = dice.sessions(dice.count, 0, 1, dice.ttl)
    return Incident("clock_skew", Truth("clock_skew"), dice.expect, [], after=lambda s: (skew(s), _late(s, writes)))


def _late(server: RedisServer, writes: list[Write]) -> None:
    with server.client() as client:
        restore(server, client, writes)


def no_data(dice: Dice) -> Incident:
    beside = [write for write in dice.beside() if not write.key.startswith(dice.prefix)]
    writes = beside if dice.dice.random() < 0.5 else []
    return Incident("no_data", Truth("no_data", dice.prefix), dice.expect, writes)


# -- what only values show ---------------------------------------------------------------------------------------------


def corrupt(dice: Dice) -> Incident:
    writes = dice.steady()
    hurt = max(1, len(writes) // dice.dice.randrange(5, 40))
    broken = dice.dice.choice(('{"type":"human","data":{"content":"hel', "\x00\xff not json", '{"type": "hum'))
    for at in dice.dice.sample(range(len(writes)), hurt):
        old = writes[at]
        writes[at] = Write(old.key, old.age_s, old.ttl_s, old.read_s, old.kind, broken)
    truth = Truth("corrupt", dice.prefix, dice.ttl)
    return Incident("corrupt", truth, dice.expect, writes + dice.beside(), full=True)


def not_refreshed(dice: Dice) -> Incident:
    """Lists whose newest message is younger than the deadline allows: written to, never renewed."""
    rng, writes = dice.dice, []
    dice.kind, dice.jitter = "list", 0.0
    now = datetime.now(UTC).timestamp()
    for n in range(dice.count):
        first = rng.uniform(dice.ttl * 0.3, dice.ttl * 0.95)
        newest = rng.uniform(0, first * 0.5)
        value = json.dumps({"role": "user", "content": "hello", "timestamp": now - newest})
        writes.append(Write(f"{dice.prefix}user-{n}", first, dice.ttl, newest, "list", value))
    truth = Truth("not_refreshed", dice.prefix, dice.ttl)
    return Incident("not_refreshed", truth, dice.expect, writes + dice.beside(), full=True)


def stale_index(dice: Dice) -> Incident:
    """An index of sessions, half of which no longer exist; it does not state when they began."""
    writes = dice.steady(max(dice.count, 30))
    existing = [write for write in writes if write.exists]
    ended = [f"{dice.prefix}ended-{n}" for n in range(dice.dice.randrange(5, 200))]
    index = f"index:{dice.prefix}all"

    def make(server: RedisServer) -> None:
        with server.client() as client:
            client.sadd(index, *ended, *(write.key for write in existing))

    return Incident("stale_index", Truth("stale_index"), dice.expect, writes, full=True, after=make)


# -- healthy -----------------------------------------------------------------------------------------------------------

HEALTHY = Truth("healthy")


def healthy_steady(dice: Dice) -> Incident:
    return Incident("healthy_steady", HEALTHY, dice.expect, dice.steady() + dice.beside())


def healthy_near_the_end(dice: Dice) -> Incident:
    """No traffic for most of a TTL: everything expires soon, as expected; some were read just now."""
    quiet = dice.ttl * dice.dice.uniform(0.5, 0.85)
    return Incident("healthy_near_the_end", HEALTHY, dice.expect, dice.steady(newest=quiet) + dice.beside())


def healthy_last_minutes(dice: Dice) -> Incident:
    """Half of the sessions in their last minutes, half of those read a moment ago."""
    dice.read_share, dice.jitter = 0.5, 0.0
    writes = dice.steady(dice.count // 2 + 1)
    writes += dice.sessions(dice.count // 2 + 1, dice.ttl - 600, dice.ttl - 5, dice.ttl, first=dice.count)
    return Incident("healthy_last_minutes", HEALTHY, dice.expect, writes + dice.beside())


def healthy_jitter(dice: Dice) -> Incident:
    dice.jitter = 0.1
    return Incident("healthy_jitter", HEALTHY, dice.expect, dice.steady() + dice.beside())


def healthy_young(dice: Dice) -> Incident:
    """A fresh server: every session is young, nothing has expired yet."""
    writes = dice.sessions(dice.count, 0, min(600, dice.ttl * 0.2), dice.ttl)
    return Incident("healthy_young", HEALTHY, dice.expect, writes + dice.beside())


def healthy_absolute(dice: Dice) -> Incident:
    """Set once, read all the time: idle times show nothing."""
    dice.read_share = 0.9
    expect = {f"{dice.prefix}*": dice.expect[f"{dice.prefix}*"]}
    return Incident("healthy_absolute", HEALTHY, expect, dice.steady() + dice.beside())


def healthy_all_read(dice: Dice) -> Incident:
    """Something like redis-cli --bigkeys has just read every key."""
    writes = [Write(w.key, w.age_s, w.ttl_s, min(w.age_s, 5.0), w.kind, w.value) for w in dice.steady()]
    return Incident("healthy_all_read", HEALTHY, dice.expect, writes + dice.beside())


def healthy_batches(dice: Dice) -> Incident:
    """Sessions written in a few batches, most of them read together since."""
    rng, writes = dice.dice, []
    dice.jitter = 0.0
    for batch in range(rng.randrange(2, 8)):
        age = rng.uniform(0.0, 0.97) * dice.ttl
        read = rng.uniform(0, age)
        for n in range(max(3, dice.count // 8)):
            one = dice.session(batch * 10_000 + n, age + rng.uniform(0, 1), dice.ttl)
            writes.append(Write(one.key, one.age_s, one.ttl_s, read if rng.random() < 0.6 else None, one.kind))
    return Incident("healthy_batches", HEALTHY, dice.expect, writes + dice.beside())


def healthy_no_limit(dice: Dice) -> Incident:
    """Close to maxmemory, but writes would fail rather than keys be evicted."""
    near = eviction_risk(dice)
    return Incident(
        "healthy_no_limit", HEALTHY, dice.expect, near.writes, {"maxmemory-policy": "noeviction"}, after=near.after
    )


def healthy_room(dice: Dice) -> Incident:
    config = {"maxmemory": "500mb", "maxmemory-policy": dice.dice.choice(("allkeys-lru", "volatile-lfu"))}
    return Incident("healthy_room", HEALTHY, dice.expect, dice.steady() + dice.beside(), config)


def healthy_rdb(dice: Dice) -> Incident:
    """No append-only file, but save points."""
    return Incident(
        "healthy_rdb", HEALTHY, dice.expect, dice.steady() + dice.beside(), {"save": "3600 1"}, persist=False
    )


def healthy_after_restart(dice: Dice) -> Incident:
    """A restart has set every idle clock to zero."""
    return Incident(
        "healthy_after_restart",
        HEALTHY,
        dice.expect,
        dice.steady() + dice.beside(),
        after=lambda server: server.restart(),
    )


def healthy_two_parts(dice: Dice) -> Incident:
    """Two keys a session, renewed together."""
    writes = []
    dice.jitter = 0.0
    for n in range(dice.count):
        age = dice.dice.uniform(0, dice.ttl * 0.98)
        writes += [dice.session(n, age, dice.ttl), dice.session(n, age, dice.ttl, part=":messages", kind="list")]
    return Incident("healthy_two_parts", HEALTHY, dice.expect, writes + dice.beside())


CAUSES: dict[str, Callable[[Dice], Incident]] = {
    one.__name__: one
    for one in (
        ttl_too_short, ttl_too_long, unit_mistake, no_ttl, mixed_ttl, wrong_prefix, evicted, eviction_risk,
        persistence_risk, deleted, clock_skew, no_data, corrupt, not_refreshed, stale_index,
    )
}  # fmt: skip
HEALTHIES: dict[str, Callable[[Dice], Incident]] = {
    one.__name__: one
    for one in (
        healthy_steady, healthy_near_the_end, healthy_last_minutes, healthy_jitter, healthy_young, healthy_absolute,
        healthy_all_read, healthy_batches, healthy_no_limit, healthy_room, healthy_rdb, healthy_after_restart,
        healthy_two_parts,
    )
}  # fmt: skip
CANNOT_TRAVEL = {"clock_skew", "not_refreshed", "evicted", "eviction_risk", "healthy_no_limit", "healthy_batches"}


def draw(name: str, seed: int, *, many: bool = False) -> Incident:
    """Return an incident with parameters drawn by the seed."""
    rng = random.Random(f"{name}-{seed}")
    incident = (CAUSES | HEALTHIES)[name](Dice(rng, many))
    incident.travelled = rng.random() < 0.4 and name not in CANNOT_TRAVEL and len(incident.writes) < 4_000
    return incident


def complaints(report: AuditReport, truth: Truth) -> list[str]:
    """Return what is wrong with a verdict; nothing if it is right."""
    verdict = report.verdict
    if truth.cause == "healthy":
        return [f"false alarm: {one.cause}: {one.message}; {one.evidence}" for one in report.findings]
    if truth.cause == "wrong_prefix" and verdict.status == "no_data":
        # An expectation can be mistyped: the prefix that may have the sessions is a suspicion beside it.
        causes = [one.cause for one in report.findings]
        return [] if "wrong_prefix" in causes and truth.prefix == verdict.prefix else [f"wrong_prefix not in {causes}"]
    if verdict.cause != truth.cause:
        return [f"{truth.cause} was taken for {verdict.cause}: {verdict.sentence}"]
    found = report.findings[0] if verdict.cause == report.findings[0].cause else next(
        one for one in report.findings if one.cause == verdict.cause
    )  # fmt: skip
    wrong = []
    if truth.prefix is not None and found.prefix != truth.prefix:
        wrong.append(f"prefix {found.prefix}, not {truth.prefix}")
    for name, truly in (("expected_ttl_s", truth.expected_s), ("observed_ttl_s", truth.observed_s)):
        seen = getattr(found, name)
        if truly is not None and (seen is None or abs(seen - truly) > 0.02 * truly):
            wrong.append(f"{name} {seen}, not {truly}")
    return wrong + _wrong_date(report, found.since, found.since_is, truth)


def _wrong_date(report: AuditReport, since: datetime | None, bound: str | None, truth: Truth) -> list[str]:
    if truth.changed_s is None:
        return []
    if since is None:
        return ["no since"]
    ago = (report.at - since).total_seconds()
    # A last key that was read may be taken for one of the new; the next ones are a few gaps earlier.
    slack = 3.0 + truth.gap_s * 8 + (0.25 * (truth.expected_s or 0) if truth.jitter else 0)
    if bound == "lower bound":
        last = truth.last_s if truth.last_s is not None else truth.changed_s
        fits = truth.changed_s - 3.0 <= ago <= last + slack
    else:
        fits = ago <= truth.changed_s + 3.0
    return [] if fits else [f"since {ago:.0f} s ago ({bound}); it was {truth.changed_s:.0f} s ago, last {truth.last_s}"]
