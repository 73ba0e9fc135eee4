"""A full audit of 100 million keys on 16 shards, from the recorded replies of a real server: time, memory and error.

``python tests/benchmarks/simulate_large_audit.py [millions of keys] [shards]`` (default 100 and 16).

A real server with 50,000 keys is recorded first: the pages of a whole SCAN and each key's replies, as bytes. Each shard
then replays these pages, again and again, to the audit's own reading, one thread a shard. So the client's work is
real: parsing, sampling, merging, the checks. What is left out is the servers' and the network's time; it is
extrapolated from the recorded server's time for a page and for a key. About a third of the keys have 5 minutes instead
of 7 days: how far the share that is found is from the true one is printed with the error bound.
"""

from __future__ import annotations

import re
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import hiredis
import redis

sys.path.insert(0, str(Path(__file__).parents[1]))

from servers import every_server

from memkit.audit.run import BATCH_KEYS_WITHOUT_RESTS
from memkit.audit.sampling import KEPT_OF_ALL, MOST_OF_A_PAGE, Sample, Sampler, ServerKeys
from memkit.readonly import ReadOnlyConnection
from memkit.readonly.pace import Pace
from memkit.server import RedisServer

RECORDED_KEYS = 50_000
WEEK_MS, SHORT_MS = 604_800_000, 300_000
COLUMNS = ("PEXPIRETIME", "OBJECT IDLETIME", "TYPE", "MEMORY USAGE")
DUTY = 0.25
KEY = re.compile(rb"PEXPIRETIME\r\n\$\d+\r\n([^\r]*)\r\n")


class Recording(NamedTuple):
    """The pages of a whole SCAN, the replies about each key, and the server's time for them.

    A page has its number of keys, how many of them have the short TTL, and the reply without its cursor.
    """

    pages: Sequence[tuple[int, int, bytes]]
    replies: Mapping[bytes, Sequence[bytes]]
    scan_us_per_key: float
    facts_us_per_key: float


def encoded(reply: object) -> bytes:
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    assert isinstance(reply, bytes)
    return b"$%d\r\n%b\r\n" % (len(reply), reply)


def record(binary: Path) -> Recording:
    with RedisServer(binary=binary) as server, server.client() as client:
        pipe = client.pipeline(transaction=False)
        for number in range(RECORDED_KEYS):
            ttl_ms = SHORT_MS if number % 3 == 0 else WEEK_MS
            pipe.rpush(f"chat:user-{number}", '{"type":"human","data":{"content":"hello"}}')
            pipe.pexpire(f"chat:user-{number}", ttl_ms - number * 7919 % (ttl_ms // 2))
        pipe.execute()
        client.config_resetstat()
        pages, names, cursor = [], [], b"0"
        connection = ReadOnlyConnection(client)
        while True:
            cursor, keys = connection.ask("SCAN", cursor, "COUNT", MOST_OF_A_PAGE)
            short = sum(int(key.rpartition(b"-")[2]) % 3 == 0 for key in keys)
            pages.append(
                (len(keys), short, b"*%d\r\n" % len(keys) + b"".join(b"$%d\r\n%b\r\n" % (len(k), k) for k in keys))
            )
            names += keys
            if cursor == b"0":
                break
        columns = []
        for column in COLUMNS:
            pipe = client.pipeline(transaction=False)
            for name in names:
                pipe.execute_command(*column.split(), name, **{redis.client.NEVER_DECODE: []})
            columns.append(list(map(encoded, pipe.execute())))
        stats = client.info("commandstats")
        facts_us = sum(stats[f"cmdstat_{each.lower().replace(' ', '|')}"]["usec"] for each in COLUMNS)
        return Recording(
            pages,
            dict(zip(names, zip(*columns, strict=True), strict=True)),
            stats["cmdstat_scan"]["usec"] / len(names),
            facts_us / len(names),
        )


class RecordedSocket:
    """Answers an audit's commands with recorded replies; the pages repeat until there were enough keys."""

    def __init__(self, recording: Recording, keys: int, first_page: int) -> None:
        self._recording, self._keys = recording, keys
        self._waiting = b""
        self._page = first_page
        self.sent = self.short = 0

    def sendall(self, payload: bytes) -> None:
        now_us = time.time_ns() // 1000
        taken = b"*2\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(n), n) for n in (b"%d" % (now_us // 10**6), b"0"))
        parts = []
        if b"DBSIZE" in payload[:32]:
            parts.append(b":%d\r\n" % self._keys)
        timed = payload.startswith(b"*1\r\n$4\r\nTIME")
        if timed:
            parts.append(taken)
        if b"$4\r\nSCAN\r\n" in payload[:48]:
            count, short, page = self._recording.pages[self._page % len(self._recording.pages)]
            self._page, self.sent, self.short = self._page + 1, self.sent + count, self.short + short
            cursor = b"0" if self.sent >= self._keys else b"%d" % self._page
            parts.append(b"*2\r\n$%d\r\n%b\r\n%b" % (len(cursor), cursor, page))
        replies = [self._recording.replies[name] for name in KEY.findall(payload)]
        parts += [b"".join(column) for column in zip(*replies, strict=True)]
        self._waiting += b"".join([*parts, taken] if timed else parts)

    def recv(self, count: int) -> bytes:
        part, self._waiting = self._waiting[:count], self._waiting[count:]
        return part


class RecordedConnection(ReadOnlyConnection):
    """A connection on a RecordedSocket; everything behind the socket is the audit's own."""

    def __init__(self, recording: Recording, keys: int, at: int) -> None:
        self.name, self.database, self.tolerant, self.failure = f"shard-{at}", 0, True, None
        self.sent: Counter[str] = Counter()
        self.socket = RecordedSocket(recording, keys, first_page=3 * at)
        self.reader = hiredis.Reader(protocolError=redis.InvalidResponse, replyError=redis.ResponseError)
        self._pending = deque()


def audit_of(recording: Recording, keys: int, shards: int) -> tuple[Sample, int, float]:
    """Return the sample, how many keys were asked about, and the true share of keys with the short TTL."""
    connections = [RecordedConnection(recording, keys // shards, at) for at in range(shards)]
    readers = [ServerKeys(each, pace=Pace(1.0, batch=BATCH_KEYS_WITHOUT_RESTS), sizes=True) for each in connections]
    sample = Sampler(readers).full()
    sockets = [each.socket for each in connections]
    share = sum(each.short for each in sockets) / sum(each.sent for each in sockets)
    return sample, sum(each.sent["type"] for each in connections), share


def report(recording: Recording, keys: int, shards: int) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    sample, read, true_share = audit_of(recording, keys, shards)
    taken, cpu = time.perf_counter() - began, time.process_time() - cpu
    deadline_ms = [each.deadline_ms - each.seen_ms for each in sample.keys if each.deadline_ms]
    share = sum(left <= SHORT_MS for left in deadline_ms) / len(deadline_ms)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{keys / 1e6:6.1f} M keys, {shards} shards: {taken:6.1f} s, {cpu:6.1f} s of CPU "
        f"({cpu / keys * 1e6:.2f} s a million keys), peak memory {peak_mb} MB"
    )
    off = abs(share - true_share)
    print(
        f"         {sample.seen:,} seen, {len(sample.keys):,} kept, facts read of {read:,} ({read / sample.seen:.2%}); "
        f"share of short TTLs off by {off:.2%}, bound {sample.error_bound:.2%}"
    )
    assert off <= sample.error_bound
    assert len(sample.keys) <= KEPT_OF_ALL
    each_s = (keys * recording.scan_us_per_key + read * recording.facts_us_per_key) / shards / 1e6
    print(
        f"         extrapolated: each server works {each_s:.1f} s, so that it is read in {each_s / DUTY:.1f} s at the "
        f"default pace; this process needs {cpu:.0f} s for all",
        flush=True,
    )


def main(millions: float, shards: int) -> None:
    binary = every_server()["redis-8.2"] or every_server()["redis-7.0"]
    assert binary
    recording = record(binary.path)
    print(
        f"{binary.flavour} {binary.version}: {recording.scan_us_per_key:.2f} us a key of SCAN, "
        f"{recording.facts_us_per_key:.2f} us for the facts of a key (the server's own time)"
    )
    for part in (100, 10, 1):
        report(recording, int(millions * 1_000_000 / part), shards)


if __name__ == "__main__":
    arguments = [float(each) for each in sys.argv[1:]] + [100, 16][len(sys.argv) - 1 :]
    main(arguments[0], int(arguments[1]))
