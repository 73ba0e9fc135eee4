"""A fair sample of a keyspace, or every key: type, deadline, last access and size, never a value."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import redis

from memkit.readonly.connection import Command, KeyCommands, PendingReplies, ReadOnlyConnection, Reply, command, refused
from memkit.readonly.pace import Pace

ENOUGH_KEYS = 26_500
"""Bounds every share of the keyspace to 1 % at 99 % confidence, at any size (Dvoretzky-Kiefer-Wolfowitz)."""
KEPT_OF_ALL = 40_000
"""How many keys a full pass remembers, whatever the number of keys: memory does not grow with the keyspace."""
ENOUGH_OF_A_PATTERN = 3_000
MOST_AT_FIRST = 20
GUARD_EVERY_S = 1.0

Progress = Callable[[int, int], None]
Walk = Generator[int, None, None]


class KeyFacts(NamedTuple):
    """One key, as seen at ``seen_ms`` on the server's clock. A named tuple: there may be 40,000, built in a hurry.

    ``deadline_ms`` None: never expires. ``touched_ms``: last access by its idle clock; None where the server cannot say
    (LFU, permission). ``size_bytes``: None unless asked for.
    """

    key: bytes
    kind: str
    deadline_ms: int | None
    touched_ms: int | None
    seen_ms: int
    size_bytes: int | None

    @property
    def left_ms(self) -> int | None:
        """What was left to live when it was seen."""
        return None if self.deadline_ms is None else self.deadline_ms - self.seen_ms

    @property
    def set_ms(self) -> int | None:
        """Deadline minus last touch: the TTL that was last set, or less if the key was read since."""
        if self.deadline_ms is None:
            return None
        touched = self.seen_ms if self.touched_ms is None else min(self.touched_ms, self.seen_ms)
        return self.deadline_ms - touched


@dataclass
class Sample:
    """The keys that were looked at. ``seen`` counts them all; ``keys`` are those remembered."""

    method: str
    of: int
    keys: list[KeyFacts] = field(default_factory=list)
    seen: int = 0
    complete: bool = False
    stopped: str | None = None
    blind: set[str] = field(default_factory=set)

    @property
    def error_bound(self) -> float:
        """How far a share in the sample can be from the truth, with 99 % confidence; 0 when every key was seen."""
        if self.complete and len(self.keys) == self.seen:
            return 0.0
        return round(math.sqrt(math.log(2 / 0.01) / (2 * max(len(self.keys), 1))), 4)


class Reservoir:
    """A uniform sample of a stream of unknown length (Li's algorithm L: it draws how many to skip)."""

    def __init__(self, kept: list[KeyFacts], capacity: int, dice: random.Random) -> None:
        self._kept, self._capacity, self._dice = kept, capacity, dice
        self._offered = 0
        self._weight = 1.0
        self._next = 0

    def offer(self, batch: _Batch) -> None:
        """Offer a batch; facts are only made of what is taken."""
        first = self._offered
        self._offered += batch.count
        if len(self._kept) + batch.count <= self._capacity:
            self._kept += batch.all()
            self._next = self._offered
            return
        if len(self._kept) < self._capacity:
            self._kept += batch.all()[: self._capacity - len(self._kept)]
            self._next = self._offered
            self._skip()
        while self._next < self._offered:
            taken = batch.at(self._next - first)
            if taken:
                self._kept[self._dice.randrange(self._capacity)] = taken
            self._skip()

    def _skip(self) -> None:
        self._weight *= math.exp(math.log(self._dice.random() or 1e-12) / self._capacity)
        self._next += int(math.log(self._dice.random() or 1e-12) / math.log1p(-self._weight)) + 1


class Sampler:
    """Walks the nodes of one server, or of one cluster, and fills a Sample."""

    def __init__(
        self,
        connections: Sequence[ReadOnlyConnection],
        *,
        pace: Pace,
        guard: Callable[[], str | None],
        sizes: bool = False,
        progress: Progress | None = None,
        dice: random.Random | None = None,
    ) -> None:
        self._connections = connections
        self._pace = pace
        self._guard = guard
        self._guarded_at = time.monotonic()
        self._progress = progress
        self._dice = dice or random.Random()  # noqa: S311  # a sample, not a secret
        self._columns = ["type", "pexpiretime", "object|idletime"] + (["memory|usage"] if sizes else [])
        self._known: set[bytes] | None = set()

    def sample(self, *, cluster: bool, enough: int = ENOUGH_KEYS) -> Sample:
        """Return a fair sample of ``enough`` keys, or every key where there are hardly more."""
        sizes = [_dbsize(connection) for connection in self._connections]
        total = sum(sizes)
        sample = Sample("scan", total)
        if total <= enough * 1.2:
            self._run(
                sample,
                [
                    self._all(connection, sample, Reservoir(sample.keys, total * 2 + 10, self._dice))
                    for connection in self._connections
                ],
            )
            sample.complete = not sample.stopped
            return sample
        sample.method = "randomkey" if cluster else "scan"
        walk = self._random_keys if cluster else self._random_stretch
        self._run(
            sample,
            [
                walk(connection, sample, enough * size // total)
                for connection, size in zip(self._connections, sizes, strict=True)
            ],
        )
        return sample

    def full(self) -> Sample:
        """Return every key's facts, counted; at most KEPT_OF_ALL of them, drawn fairly, remembered."""
        sample = Sample("full", sum(_dbsize(connection) for connection in self._connections))
        self._known = None
        reservoir = Reservoir(sample.keys, KEPT_OF_ALL, self._dice)
        self._run(sample, [self._all(connection, sample, reservoir) for connection in self._connections])
        sample.complete = not sample.stopped
        return sample

    def more_of(self, sample: Sample, pattern: str, matches: Callable[[bytes], object]) -> list[KeyFacts]:
        """Return keys of a pattern that the sample has too few of, found by SCAN MATCH over the whole keyspace."""
        found = Sample("scan", sample.of)
        self._known = {facts.key for facts in sample.keys if matches(facts.key)}
        budget = max(200, sample.of // 1000)
        self._run(found, [self._matching(connection, found, pattern, budget) for connection in self._connections])
        sample.seen += len(found.keys)
        return found.keys

    def look_up(self, names: Sequence[bytes]) -> list[KeyFacts]:
        """Return the facts of those of the named keys that exist; one node only."""
        found = Sample("scan", len(names))
        self._known = None
        reservoir = Reservoir(found.keys, len(names), self._dice)
        for start in range(0, len(names), self._pace.batch):
            began = time.monotonic()
            batch = names[start : start + self._pace.batch]
            self._take(self._connections[0], batch, found, reservoir)
            self._pace.after(time.monotonic() - began, len(batch))
        return found.keys

    def look_again(self, keys: Sequence[bytes]) -> list[bool]:
        """Return which of the keys are still there (EXISTS, which touches no idle clock); one node only."""
        connection = self._connections[0]
        return [reply != 0 for reply in connection.send(KeyCommands(keys, ["exists"])).take()]

    def _run(self, sample: Sample, walks: Sequence[Walk]) -> None:
        try:
            for walk in walks:
                for _ in walk:
                    if self._progress:
                        self._progress(sample.seen, sample.of)
                if self._must_stop(sample):
                    return
        except KeyboardInterrupt:
            sample.stopped = "interrupted (Ctrl-C): findings so far"
            for connection in self._connections:
                connection.reconnect()

    def _must_stop(self, sample: Sample) -> bool:
        """Ask now and then whether the server suffers; only when nothing is under way on its connection."""
        if self._must_pause():
            self._guarded_at = time.monotonic()
            sample.stopped = sample.stopped or self._pace.stopped or self._guard()
        return sample.stopped is not None

    def _must_pause(self) -> bool:
        return self._pace.stopped is not None or time.monotonic() - self._guarded_at > GUARD_EVERY_S

    def _all(self, connection: ReadOnlyConnection, sample: Sample, reservoir: Reservoir) -> Walk:
        return self._walk(connection, sample, reservoir, 0, sample.of * 2 + 1_000_000)

    def _random_stretch(self, connection: ReadOnlyConnection, sample: Sample, share: int) -> Walk:
        """Scan from a random cursor: keys lie in hash order, so a stretch of a standalone keyspace is a fair sample."""
        start = self._dice.getrandbits(40)
        yield from self._walk(connection, sample, Reservoir(sample.keys, share, self._dice), start, share)
        if sample.seen < share and not sample.stopped:
            yield from self._walk(connection, sample, Reservoir(sample.keys, share, self._dice), 0, share)

    def _walk(
        self, connection: ReadOnlyConnection, sample: Sample, reservoir: Reservoir, cursor: int, enough: int
    ) -> Walk:
        """Scan from a cursor to the end, or until enough keys were seen.

        Without rests, the next batch is sent as soon as its page has arrived, which the server answers first: the
        server works on that batch while this process digests the one before.
        """
        cursor, keys = _scan(connection, cursor, self._pace.batch)
        self._take(connection, self._new(keys[:MOST_AT_FIRST]), sample, reservoir)  # learns what this server refuses
        ahead: _Request | None = self._send(connection, self._new(keys[MOST_AT_FIRST:]), cursor)
        while ahead:
            began, now, ahead = time.monotonic(), ahead, None
            cursor, keys = _page(now.replies.take(1)[0]) if now.has_page else (0, [])
            count = len(now.commands.keys)
            left = bool(cursor or keys) and sample.seen + count < enough
            if left and not self._pace.rests and not self._must_pause():
                ahead = self._send(connection, self._new(keys), cursor)
            self._digest(now.batch(), sample, reservoir)
            self._pace.after(time.monotonic() - began, count)
            if left and not ahead and not self._must_stop(sample):
                ahead = self._send(connection, self._new(keys), cursor)
            yield count

    def _send(self, connection: ReadOnlyConnection, keys: Sequence[bytes], cursor: int) -> _Request:
        """Ask for the next page of the scan if there is one, the facts of keys, and the time.

        The time comes last: deadline minus time plus idle time may be less than the TTL that was set, never more.
        """
        page = [_scan_command(cursor, self._pace.batch)] if cursor else []
        commands = KeyCommands(keys, tuple(self._columns))
        return _Request(commands, connection.send(page, commands, [command("TIME")]), bool(page))

    def _random_keys(self, connection: ReadOnlyConnection, sample: Sample, share: int) -> Walk:
        """RANDOMKEY: in a cluster, where hash tags pile keys up in slots, a partial SCAN is worthless (measured)."""
        reservoir = Reservoir(sample.keys, ENOUGH_KEYS, self._dice)
        left = share
        while left > 0:
            began = time.monotonic()
            count = min(self._pace.batch, left)
            replies = connection.send([command("RANDOMKEY")] * count).take()
            drawn = [key for key in replies if isinstance(key, bytes)]
            self._take(connection, self._new(drawn), sample, reservoir)
            self._pace.after(time.monotonic() - began, count)
            left -= count
            yield count
            if self._must_stop(sample):
                return

    def _matching(self, connection: ReadOnlyConnection, found: Sample, pattern: str, budget: int) -> Walk:
        reservoir = Reservoir(found.keys, ENOUGH_OF_A_PATTERN * 10, self._dice)
        cursor = start = self._dice.getrandbits(40) if found.of > ENOUGH_KEYS else 0
        wrapped = start == 0
        for _ in range(budget * 2):
            began = time.monotonic()
            cursor, keys = _scan(connection, cursor, 1000, pattern)
            self._take(connection, self._new(keys), found, reservoir)
            self._pace.after(time.monotonic() - began, max(len(keys), 1000))
            yield len(keys)
            if len(found.keys) >= ENOUGH_OF_A_PATTERN or (cursor == 0 and wrapped) or self._must_stop(found):
                return
            wrapped = wrapped or cursor == 0

    def _new(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the keys that were not seen yet: SCAN repeats some while a table grows or shrinks."""
        if self._known is None:
            return list(keys)
        found = [key for key in dict.fromkeys(keys) if key not in self._known]
        self._known.update(found)
        return found

    def _take(
        self, connection: ReadOnlyConnection, keys: Sequence[bytes], sample: Sample, reservoir: Reservoir
    ) -> None:
        """Ask for the facts of keys; once more where a column was refused for all of them."""
        request = self._send(connection, keys, 0)
        batch = request.batch()
        self._drop_what_is_refused(batch.columns, sample)
        if tuple(self._columns) != request.commands.names:
            self._take(connection, keys, sample, reservoir)
        else:
            self._digest(batch, sample, reservoir)

    def _digest(self, batch: _Batch, sample: Sample, reservoir: Reservoir) -> None:
        sample.seen += batch.count
        reservoir.offer(batch)

    def _drop_what_is_refused(self, columns: Mapping[str, Sequence[Reply]], sample: Sample) -> None:
        """Stop asking what this server or user is refused throughout, and fall back from PEXPIRETIME (7.0) to PTTL."""
        for name, answers in columns.items():
            if not answers or not refused(answers[0]) or not all(map(refused, answers)):
                continue
            if name in ("type", "pttl"):
                raise answers[0]
            sample.blind.add(f"{name}: {answers[0]}")
            self._columns = [one for one in self._columns if one != name]
            if name == "pexpiretime":
                self._columns.append("pttl")


class _Request(NamedTuple):
    """What was asked about some keys."""

    commands: KeyCommands
    replies: PendingReplies
    has_page: bool

    def batch(self) -> _Batch:
        """Receive the replies; the page of the scan was taken before."""
        columns = self.replies.columns(self.commands)
        return _Batch(self.commands.keys, columns, _clock_ms(self.replies.take(1)[0]))


class _Batch:
    """The replies about some keys."""

    def __init__(self, keys: Sequence[bytes], columns: Mapping[str, list[Reply]], seen_ms: int) -> None:
        self.count = len(keys)
        self.columns = columns
        self._seen_ms = seen_ms
        self._relative = "pttl" in columns
        deadlines = columns["pttl" if self._relative else "pexpiretime"]
        sizes = columns.get("memory|usage", [None] * self.count)
        idle = columns.get("object|idletime", [None] * self.count)
        self._rows = (keys, columns["type"], deadlines, idle, sizes)

    def all(self) -> list[KeyFacts]:
        """Return the facts of every key that is there."""
        found = [self._facts(*row) for row in zip(*self._rows, strict=True)]
        return [facts for facts in found if facts]

    def at(self, index: int) -> KeyFacts | None:
        """Return a key's facts, None for one that is gone."""
        keys, kinds, deadlines, idle, sizes = self._rows
        return self._facts(keys[index], kinds[index], deadlines[index], idle[index], sizes[index])

    def _facts(self, key: bytes, kind: Reply, deadline: Reply, idle: Reply, size: Reply) -> KeyFacts | None:
        name = KINDS.get(kind) if kind.__class__ is bytes else None
        if deadline.__class__ is not int or deadline == -2 or (name is None and (kind == b"none" or refused(kind))):
            return None
        seen = self._seen_ms
        at = None if deadline == -1 else deadline + seen if self._relative else deadline
        touched = seen - idle * 1000 if idle.__class__ is int else None
        return KeyFacts(key, name or kind.decode(), at, touched, seen, size if size.__class__ is int else None)


KINDS = {kind.encode(): kind for kind in ("string", "list", "hash", "set", "zset", "stream", "ReJSON-RL")}


def _dbsize(connection: ReadOnlyConnection) -> int:
    reply = connection.ask("DBSIZE")
    if isinstance(reply, redis.ResponseError):
        raise reply
    return int(reply)


def _scan_command(cursor: int, count: int, pattern: str | None = None) -> Command:
    match = ("MATCH", pattern) if pattern else ()
    return command("SCAN", cursor, *match, "COUNT", count)


def _scan(
    connection: ReadOnlyConnection, cursor: int, count: int, pattern: str | None = None
) -> tuple[int, list[bytes]]:
    return _page(connection.send([_scan_command(cursor, count, pattern)]).take()[0])


def _page(reply: Reply) -> tuple[int, list[bytes]]:
    if isinstance(reply, redis.ResponseError):
        raise reply
    return int(reply[0]), reply[1]


def _clock_ms(reply: Reply) -> int:
    """Return the server's time; this machine's where TIME is refused."""
    if isinstance(reply, Exception):
        return time.time_ns() // 1_000_000
    return int(reply[0]) * 1000 + int(reply[1]) // 1000
