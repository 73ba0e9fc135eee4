"""A fair sample of a keyspace, from a part or from all of it: type, deadline, last access and size, never a value.

Each server of a cluster is read by a thread of its own, at a pace of its own; the parts are merged at the end. A part
keeps keys in proportion to the keys of its server, so that the memory does not grow with the number of servers.
"""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import NamedTuple

import redis

from memkit.readonly.connection import (
    Command,
    KeyCommands,
    PendingReplies,
    ReadOnlyConnection,
    Reply,
    command,
    redirected,
    refused,
)
from memkit.readonly.pace import Pace

ENOUGH_KEYS = 26_500
"""Bounds every share of the keyspace to 1 % at 99 % confidence, at any size (Dvoretzky-Kiefer-Wolfowitz)."""
KEPT_OF_ALL = 40_000
"""How many keys a full pass keeps, whatever the number of keys: memory does not grow with the keyspace."""
SURPLUS_DEVIATIONS = 4
"""So many standard deviations more keys are picked than are kept: the chance that they are too few is 0.00003."""
ENOUGH_OF_A_PATTERN = 3_000
READ_ALL_UP_TO = 1.2
"""A keyspace with up to this many times enough keys is read whole."""
WRITTEN_MEANWHILE, MOST_WRITTEN = 100, 500_000
"""How many keys may be added while a server is read: the first number is kept besides those of a small server; at the
second a scan ends, which would otherwise never end."""
PATTERN_PAGE_KEYS, LEAST_PAGES = 1_000, 200
MOST_AT_FIRST = 20
"""The first batch is small: it shows which commands the server refuses."""
LARGER_PAGES = 4
MOST_OF_A_PAGE = 1_000
"""A page of which few keys are drawn is several times the batch: three names are as much work for the server as the
facts of one key. With 8 times, a neighbour's GET p99 was 2.5 times idle, with 4 times 1.9 (medians of five runs).
"""
GUARD_EVERY_S = 1.0
CLUSTER_DOWN_S = 60.0
"""How long to wait for a failover: cluster-node-timeout is 15 s by default, and a replica takes over a little later."""
PROGRESS_EVERY_S = 0.1
MOST_THREADS = 32

IDLE_RANGE_MS = 8_388_600_000
"""The idle clock has 24 bits of seconds; half of that is what RESTORE writes for idle times it cannot express."""

Progress = Callable[[int, int], None]
Walk = Generator[int, None, None]


class KeyFacts(NamedTuple):
    """One key, as seen at ``seen_ms`` on the server's clock. A named tuple, because there may be 40,000.

    ``deadline_ms`` is None for a key without TTL. ``touched_ms`` is the last access by the key's idle time, None if the
    server does not report that (LFU, permission). ``size_bytes`` is None unless asked for.
    """

    key: bytes
    kind: str
    deadline_ms: int | None
    touched_ms: int | None
    seen_ms: int
    size_bytes: int | None

    def with_known_access(self, load_ms: tuple[int, int] | None) -> KeyFacts:
        """Return the facts without a last access that the idle clock does not show.

        Args:
            load_ms: The time in which the server loaded its keys, which started their idle clocks.
        """
        at = self.touched_ms
        if at is None or (self.seen_ms - at < IDLE_RANGE_MS and not (load_ms and load_ms[0] <= at <= load_ms[1])):
            return self
        return self._replace(touched_ms=None)

    @property
    def left_ms(self) -> int | None:
        """The remaining TTL when the key was seen."""
        return None if self.deadline_ms is None else self.deadline_ms - self.seen_ms

    @property
    def ttl_at_last_access_ms(self) -> int | None:
        """Deadline minus last access: the TTL that was last set, or less if the key was read since."""
        return None if self.deadline_ms is None else self.deadline_ms - (self.touched_ms or self.seen_ms)


@dataclass
class Sample:
    """Keys that were seen on one server, or on all. ``seen`` counts those that existed; ``keys`` has those kept.

    ``of`` is the number of keys by DBSIZE, ``of_each`` that of each server. ``moved`` counts keys that moved to
    another server while they were read.
    ``extra`` counts the keys that were read because the fair sample has too few of their pattern, and ``scales`` has
    how many keys there are for each one of a prefix that was looked at.
    """

    method: str
    of: int
    keys: list[KeyFacts] = field(default_factory=list)
    seen: int = 0
    moved: int = 0
    complete: bool = False
    stopped: str | None = None
    refused_commands: set[str] = field(default_factory=set)
    extra: int = 0
    scales: dict[str, float] = field(default_factory=dict)
    of_each: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.of_each = [self.of]

    @property
    def error_bound(self) -> float:
        """How far a share in the sample can be from the truth, with 99 % confidence; 0 if every key was seen."""
        if self.complete and len(self.keys) == self.seen:
            return 0.0
        return round(math.sqrt(math.log(2 / 0.01) / (2 * max(len(self.keys) - self.extra, 1))), 4)

    def add(self, prefix: str, own: int, more: Sequence[KeyFacts], *, complete: bool) -> None:
        """Add more keys of a pattern, or all, of which the fair sample has ``own`` ones."""
        fair = max(len(self.keys) - self.extra, 1)
        self.scales[prefix] = 1.0 if complete else self.of / fair * own / (own + len(more))
        self.keys += more
        self.extra += len(more)


class Reservoir:
    """A uniform sample of a stream of any length (Li's algorithm L, which draws how many keys to skip).

    It picks positions in the stream before the keys there are read, so that only these are asked for all their facts.

    Args:
        capacity: How many keys are kept at most.
        dice: The source of randomness.
        length: How long the stream probably is. Few more keys than ``capacity`` are then picked of it; otherwise keys
            of its beginning are picked too that others replace later.
    """

    def __init__(self, capacity: int, dice: random.Random, *, length: int = 0) -> None:
        self.capacity, self._dice = max(capacity, 1), dice
        self._kept: list[KeyFacts | None] = []
        self.offered = self._picked = 0
        surplus = SURPLUS_DEVIATIONS * math.sqrt(self.capacity)
        self.chance = min(1.0, (self.capacity + surplus) / max(length, 1))
        self._next = -1
        self._skip()

    def picks(self, count: int) -> list[int]:
        """Return which of the next ``count`` keys of the stream are to be put."""
        first = self.offered
        self.offered += count
        picked = []
        while self._next < self.offered:
            picked.append(self._next - first)
            self._picked += 1
            if self._picked >= self.capacity:
                self.chance *= math.exp(math.log(self._dice.random() or 1e-12) / self.capacity)
            self._skip()
        return picked

    def put(self, facts: KeyFacts | None) -> None:
        """Keep a key that was picked; None if it no longer exists."""
        if len(self._kept) < self.capacity:
            self._kept.append(facts)
        else:
            self._kept[int(self._dice.random() * self.capacity)] = facts

    def kept(self) -> list[KeyFacts]:
        """Return the sample."""
        return [facts for facts in self._kept if facts]

    def _skip(self) -> None:
        """Draw the next position: each key is picked with the same chance."""
        skipped = math.log(self._dice.random() or 1e-12) / math.log1p(-self.chance) if self.chance < 1 else 0
        self._next += int(skipped) + 1


class ServerKeys:
    """Reads the keys of one server in batches, at a pace, for a Sample."""

    def __init__(
        self,
        connection: ReadOnlyConnection,
        *,
        pace: Pace,
        guard: Callable[[], str | None] = lambda: None,
        sizes: bool = False,
        idle_times: bool = True,
        dice: random.Random | None = None,
    ) -> None:
        self.connection = connection
        self._pace = pace
        self._guard = guard
        self._guarded_at = time.monotonic()
        self._dice = dice or random.Random()  # noqa: S311  # a sample, not a secret
        wanted = {"object|idletime": idle_times, "memory|usage": sizes}
        names = ("pexpiretime", "object|idletime", "type", "memory|usage")
        self._columns = tuple(name for name in names if wanted.get(name, True))
        self._learned = False
        self._known: set[bytes] | None = None

    def count(self) -> int:
        """Return the number of keys by DBSIZE; 0 of a server that does not answer."""
        reply = self.connection.ask("DBSIZE")
        if refused(reply) and not self.connection.failure:
            raise reply
        return 0 if refused(reply) else int(reply)

    def all(self, sample: Sample, *, capacity: int, unique: bool) -> Walk:
        """Scan every key, and read the facts of a fair part of them; ``unique``: skip keys that SCAN repeats."""
        self._known = set() if unique else None
        with self._reservoir(sample, capacity, length=sample.of + WRITTEN_MEANWHILE) as reservoir:
            yield from self._scan(sample, reservoir, 0, 2 * (sample.of + MOST_WRITTEN))
        sample.complete = not sample.stopped

    def stretch(self, sample: Sample, share: int) -> Walk:
        """Scan from a random cursor: keys lie in hash order, so a stretch of a standalone keyspace is a fair sample."""
        self._known = set()
        with self._reservoir(sample, share) as reservoir:
            yield from self._scan(sample, reservoir, self._dice.getrandbits(40), share)
            if sample.seen < share and not sample.stopped:
                yield from self._scan(sample, reservoir, 0, share)

    def random(self, sample: Sample, share: int) -> Walk:
        """RANDOMKEY: in a cluster, where hash tags put many keys into one slot, a partial SCAN is unfair (measured)."""
        self._known = set()
        left = share
        with self._reservoir(sample, share) as reservoir:
            while left > 0 and not sample.stopped:
                began = time.monotonic()
                count = min(self._pace.batch, left)
                replies = self.connection.send([command("RANDOMKEY")] * count).take()
                drawn = self._new([key for key in replies if isinstance(key, bytes)])
                server_s = self._read(drawn, sample, reservoir)
                self._pace.after(server_s, time.monotonic() - began, count)
                left -= count
                yield count
                self._must_stop(sample)

    def matching(self, sample: Sample, pattern: str, known: set[bytes], *, enough: int, pages: int) -> Walk:
        """Read keys of a pattern with SCAN MATCH, until there are enough or the keyspace is scanned."""
        self._known = set(known)
        cursor = start = self._dice.getrandbits(40) if sample.of > ENOUGH_KEYS else 0
        wrapped = start == 0
        with self._reservoir(sample, enough * 10) as reservoir:
            for _ in range(pages):
                began = time.monotonic()
                cursor, keys = _page(
                    self.connection.send([_scan_command(cursor, PATTERN_PAGE_KEYS, pattern)]).take()[0]
                )
                server_s = self._read(self._new(keys), sample, reservoir)
                self._pace.after(server_s, time.monotonic() - began, max(len(keys), PATTERN_PAGE_KEYS))
                yield len(keys)
                if sample.seen >= enough or (cursor == 0 and wrapped) or self._must_stop(sample):
                    return
                wrapped = wrapped or cursor == 0

    def named(self, sample: Sample, names: Sequence[bytes]) -> Walk:
        """Read the keys of these names that exist."""
        with self._reservoir(sample, len(names)) as reservoir:
            left = list(names)
            while left:
                began = time.monotonic()
                batch, left = left[: self._pace.batch], left[self._pace.batch :]  # which the pace may change
                server_s = self._read(batch, sample, reservoir)
                self._pace.after(server_s, time.monotonic() - began, len(batch))
                yield len(batch)

    @contextmanager
    def _reservoir(self, sample: Sample, capacity: int, *, length: int = 0) -> Iterator[Reservoir]:
        """Keep what was read so far even if reading ends early."""
        reservoir = Reservoir(capacity, self._dice, length=length)
        try:
            yield reservoir
        finally:
            sample.keys += reservoir.kept()

    def _scan(self, sample: Sample, reservoir: Reservoir, cursor: int, enough: int) -> Walk:
        """Scan from a cursor to the end, or until enough keys were seen.

        Without rests, the next batch is sent as soon as its page has arrived, which the server answers first: the
        server works on that batch while this process decodes the one before.
        """
        cursor, keys = _page(self.connection.send([_scan_command(cursor, self._pace.batch)]).take()[0])
        self._read(self._new(keys[:MOST_AT_FIRST]), sample, reservoir)
        ahead: _Request | None = self._send(self._new(keys[MOST_AT_FIRST:]), reservoir, cursor)
        while ahead:
            began, now, ahead = time.monotonic(), ahead, None
            cursor, keys = now.page()
            count = now.count
            left = bool(cursor or keys) and sample.seen + count < enough
            if left and not self._pace.rests and not self._must_pause():
                ahead = self._send(self._new(keys), reservoir, cursor)
            server_s = self._take(now, sample, reservoir)
            self._pace.after(server_s, time.monotonic() - began, count)
            if left and not ahead and not self._must_stop(sample):
                ahead = self._send(self._new(keys), reservoir, cursor)
            yield count

    def _send(self, keys: Sequence[bytes], reservoir: Reservoir, cursor: int = 0) -> _Request:
        """Ask for the next page of the scan if there is one, the facts of the keys to keep, the time before and after.

        SCAN returns only keys that exist, so that nothing is asked about the others: of a million keys, one in 25 is
        drawn, and fewer of more.
        """
        larger = min(1 / reservoir.chance, LARGER_PAGES)
        page = [_scan_command(cursor, min(int(self._pace.batch * larger), MOST_OF_A_PAGE))] if cursor else []
        commands = KeyCommands([keys[at] for at in reservoir.picks(len(keys))], self._columns)
        now = [command("TIME")]
        return _Request(len(keys), commands, bool(page), self.connection.send(now, page, commands, now))

    def _read(self, keys: Sequence[bytes], sample: Sample, reservoir: Reservoir) -> float | None:
        request = self._send(keys, reservoir)
        request.page()
        return self._take(request, sample, reservoir)

    def _take(self, request: _Request, sample: Sample, reservoir: Reservoir) -> float | None:
        """Take the replies about keys into the sample; return the server's time for them, if it reports the time."""
        columns = self._available(request.commands, request.replies.columns(request.commands))
        if self.connection.failure:
            raise self.connection.failure
        seen_ms, server_s = request.times()
        keys = request.commands.keys
        if not self._learned and keys:
            self._drop_what_is_refused(columns, sample)
            self._learned = True
        if keys and "pexpiretime" in columns and "pexpiretime" not in self._columns:
            commands = KeyCommands(keys, ("pttl",))
            columns |= self._available(commands, self.connection.send(commands).columns(commands))
            if all(refused(reply) and not redirected(reply) for reply in columns["pttl"]):
                raise columns["pttl"][0]
        relative = "pttl" in columns
        deadlines = columns["pttl" if relative else "pexpiretime"]
        moved = sum(map(redirected, _errors(deadlines)))
        sample.seen += request.count - deadlines.count(-2) - moved
        sample.moved += moved
        unknown = [None] * len(keys)
        idle, sizes = columns.get("object|idletime", unknown), columns.get("memory|usage", unknown)
        for row in zip(keys, columns["type"], deadlines, idle, sizes, strict=True):
            reservoir.put(_facts(*row, seen_ms=seen_ms, relative=relative))
        return server_s

    def _available(self, commands: KeyCommands, columns: dict[str, list[Reply]]) -> dict[str, list[Reply]]:
        """Return the replies, asked for again while the cluster is down: in a failover, no server answers for keys."""
        until = time.monotonic() + CLUSTER_DOWN_S
        while any(str(reply).startswith("CLUSTERDOWN") for reply in _errors(columns[commands.names[0]])):
            if time.monotonic() > until:
                raise redis.exceptions.ClusterDownError(f"the cluster was down for {CLUSTER_DOWN_S:.0f} s")
            time.sleep(CLUSTER_DOWN_S / 100)
            columns = self.connection.send(commands).columns(commands)
        return columns

    def _drop_what_is_refused(self, columns: Mapping[str, Sequence[Reply]], sample: Sample) -> None:
        """Stop asking what the server refuses for all keys, and fall back from PEXPIRETIME (7.0) to PTTL."""
        for name, replies in columns.items():
            if not all(refused(reply) and not redirected(reply) for reply in replies):
                continue
            if name == "type":
                raise replies[0]
            sample.refused_commands.add(f"{name}: {replies[0]}")
            instead = ("pttl",) if name == "pexpiretime" else ()
            self._columns = (*instead, *(one for one in self._columns if one != name))

    def _new(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the keys that were not seen yet: SCAN repeats some while a table grows or shrinks."""
        if self._known is None:
            return list(keys)
        found = [key for key in dict.fromkeys(keys) if key not in self._known]
        self._known.update(found)
        return found

    def _must_stop(self, sample: Sample) -> bool:
        """Check now and then whether the server has trouble; only when no reply is pending."""
        if self._must_pause():
            self._guarded_at = time.monotonic()
            sample.stopped = sample.stopped or self._pace.stopped or self._guard()
        return sample.stopped is not None

    def _must_pause(self) -> bool:
        return self._pace.stopped is not None or time.monotonic() - self._guarded_at > GUARD_EVERY_S


class Sampler:
    """Reads a sample, or every key, of one server or of all servers of a cluster.

    ``route`` returns the connection for a key.
    """

    def __init__(
        self,
        servers: Sequence[ServerKeys],
        *,
        route: Callable[[bytes], ReadOnlyConnection] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._servers = servers
        self._route = route or (lambda _key: servers[0].connection)
        self._progress = progress
        self._interrupted = Event()

    def sample(self, *, cluster: bool, enough: int = ENOUGH_KEYS) -> Sample:
        """Return a fair sample of ``enough`` keys, or every key if there are hardly more."""
        sizes = [server.count() for server in self._servers]
        total = sum(sizes)
        jobs = []
        for server, size in zip(self._servers, sizes, strict=True):
            if total <= READ_ALL_UP_TO * enough:
                part = Sample("scan", size)
                walk = server.all(part, capacity=2 * (size + WRITTEN_MEANWHILE), unique=True)
            elif cluster:
                part = Sample("randomkey", size)
                walk = server.random(part, enough * size // total)
            else:
                part = Sample("scan", size)
                walk = server.stretch(part, enough * size // total)
            jobs.append(_Job(server, part, walk))
        return self._read(jobs)

    def full(self) -> Sample:
        """Scan every key; the facts of at most KEPT_OF_ALL, drawn fairly, are read and kept."""
        weights = [server.count() + WRITTEN_MEANWHILE for server in self._servers]
        jobs = []
        for server, weight in zip(self._servers, weights, strict=True):
            part = Sample("full", weight - WRITTEN_MEANWHILE)
            walk = server.all(part, capacity=KEPT_OF_ALL * weight // sum(weights), unique=False)
            jobs.append(_Job(server, part, walk))
        return self._read(jobs)

    def more_of(self, sample: Sample, pattern: str, matches: Callable[[bytes], object]) -> list[KeyFacts]:
        """Return keys of a pattern that the sample has too few of, found by SCAN MATCH over the whole keyspace."""
        known = {facts.key for facts in sample.keys if matches(facts.key)}
        enough = math.ceil(ENOUGH_OF_A_PATTERN / len(self._servers))
        pages = 2 * max(LEAST_PAGES, sample.of // PATTERN_PAGE_KEYS)
        jobs = []
        for server in self._servers:
            part = Sample("scan", sample.of // len(self._servers))
            jobs.append(_Job(server, part, server.matching(part, pattern, known, enough=enough, pages=pages)))
        found = self._read(jobs)
        sample.seen += len(found.keys)
        return found.keys

    def look_up(self, names: Sequence[bytes]) -> list[KeyFacts]:
        """Return the facts of those of the named keys that exist."""
        jobs = []
        for server, own in self._routed(names):
            part = Sample("named", len(own))
            jobs.append(_Job(server, part, server.named(part, own)))
        return self._read(jobs).keys if jobs else []

    def missing(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return which of the keys no longer exist (EXISTS resets no idle time)."""
        found: set[bytes] = set()
        for server, own in self._routed(keys):
            replies = server.connection.send(KeyCommands(own, ("exists",))).take()
            found.update(key for key, reply in zip(own, replies, strict=True) if reply == 0)
        return found

    def _routed(self, keys: Sequence[bytes]) -> list[tuple[ServerKeys, list[bytes]]]:
        routed: defaultdict[ReadOnlyConnection, list[bytes]] = defaultdict(list)
        for key in keys:
            routed[self._route(key)].append(key)
        return [(server, routed[server.connection]) for server in self._servers if server.connection in routed]

    def _read(self, jobs: Sequence[_Job]) -> Sample:
        """Read on each server, in a thread of its own if there are several, and merge what was seen."""
        if len(self._servers) == 1:
            self._read_here(jobs[0])
            return jobs[0].part
        jobs = [job for job in jobs if not job.server.connection.failure]
        parts = [job.part for job in jobs]
        self._interrupted.clear()
        with ThreadPoolExecutor(MOST_THREADS, "memkit-audit") as pool:
            futures = [pool.submit(self._read_in_thread, job) for job in jobs]
            try:
                while wait(futures, PROGRESS_EVERY_S).not_done:
                    if self._progress:
                        self._progress(sum(part.seen for part in parts), sum(part.of for part in parts))
            except KeyboardInterrupt:
                self._interrupted.set()
            for future in futures:
                future.result()
        failures = [server.connection.failure for server in self._servers if server.connection.failure]
        if failures and len(failures) == len(self._servers):
            raise failures[0]
        return _merged(parts)

    def _read_here(self, job: _Job) -> None:
        try:
            for _ in job.walk:
                if self._progress:
                    self._progress(job.part.seen, job.part.of)
        except KeyboardInterrupt:
            job.walk.close()
            job.part.stopped = INTERRUPTED
            job.server.connection.reconnect()

    def _read_in_thread(self, job: _Job) -> None:
        try:
            for _ in job.walk:
                if self._interrupted.is_set():
                    job.walk.close()
                    job.part.stopped = INTERRUPTED
        except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ClusterDownError) as error:
            job.server.connection.failure = error
        except BaseException:
            self._interrupted.set()
            raise


INTERRUPTED = "Ctrl-C; the findings cover the keys that were read until then"


class _Job(NamedTuple):
    """One server, and what is read of it into a part of the sample."""

    server: ServerKeys
    part: Sample
    walk: Walk


def _merged(parts: Sequence[Sample]) -> Sample:
    merged = Sample(
        parts[0].method,
        sum(part.of for part in parts),
        [facts for part in parts for facts in part.keys],
        sum(part.seen for part in parts),
        sum(part.moved for part in parts),
        all(part.complete and not part.moved for part in parts),
        next((part.stopped for part in parts if part.stopped), None),
        set().union(*(part.refused_commands for part in parts)),
    )
    merged.of_each = [part.of for part in parts]
    return merged


def _errors(replies: Sequence[Reply]) -> list[Exception]:
    # Types are compared in C first: this looks at every key.
    return [] if redis.ResponseError not in set(map(type, replies)) else [one for one in replies if refused(one)]


@dataclass(slots=True)
class _Request:
    """What was asked about the drawn ones of ``count`` keys.

    The server's time is asked before and after. Deadline minus the later time plus idle time may be less than the TTL
    that was set, never more.
    """

    count: int
    commands: KeyCommands
    has_page: bool
    replies: PendingReplies
    began: Reply = None

    def page(self) -> tuple[int, list[bytes]]:
        """Receive the page of the scan, if it was asked for."""
        self.began, *page = self.replies.take(1 + self.has_page)
        return _page(page[0]) if page else (0, [])

    def times(self) -> tuple[int, float | None]:
        """Return the time in ms, and the seconds that the server took; None if it refuses to report the time."""
        ended = self.replies.take(1)[0]
        if refused(ended) or refused(self.began):
            return time.time_ns() // 1_000_000, None
        began_us, ended_us = (int(seconds) * 1_000_000 + int(us) for seconds, us in (self.began, ended))
        return ended_us // 1000, max(ended_us - began_us, 0) / 1e6


def _facts(
    key: bytes, kind: Reply, deadline: Reply, idle: Reply, size: Reply, *, seen_ms: int, relative: bool
) -> KeyFacts | None:
    """Return the facts of a key, or None if it does not exist (any more), or not here."""
    name = KINDS.get(kind) if kind.__class__ is bytes else None
    if deadline.__class__ is not int or deadline == -2 or (name is None and (kind == b"none" or refused(kind))):
        return None
    at = None if deadline == -1 else deadline + seen_ms if relative else deadline
    touched = seen_ms - idle * 1000 if idle.__class__ is int else None
    return KeyFacts(key, name or kind.decode(), at, touched, seen_ms, size if size.__class__ is int else None)


KINDS = {kind.encode(): kind for kind in ("string", "list", "hash", "set", "zset", "stream", "ReJSON-RL")}


def _scan_command(cursor: int, count: int, pattern: str | None = None) -> Command:
    match = ("MATCH", pattern) if pattern else ()
    return command("SCAN", cursor, *match, "COUNT", count)


def _page(reply: Reply) -> tuple[int, list[bytes]]:
    if refused(reply):
        raise reply
    return int(reply[0]), reply[1]
