"""Random traffic on a real server whose log has no timestamps, and what histories state about its TTLs and times.

    python tests/stress/log_dates.py --worlds 300 [--seed 7]

Each world is a private server with a replica: phases of dense and sparse writes with one TTL or several, with jitter or
not, silences between them, a rollback, a clock that is set back. Its past is read from the append-only file (Redis 6.2:
one file) and the backlog. An answer is wrong if a TTL, a bound of one, or a time is not the true one, if a cause is, or
if something is exact. Wrong answers are printed with the seed of their world, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import redis

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers import every_server
from waiting import wait_for

from memkit.history import History, history
from memkit.server import RedisServer

EXPECTED_S = (300, 1_800, 3_600, 86_400, 604_800)
TTLS_S = (60, 300, 600, 1_800, 3_600, 7_200, 86_400, 604_800, 2_592_000)
SAME_MS = 1_500
READ_WITHIN_MS = 60_000
"""The backlog is read up to this long after it was looked which keys exist: meanwhile some expire."""
JITTER = 0.1
"""A TTL that is shorter by no more counts as the expected one, as for an audit."""


class Write(NamedTuple):
    """A write with a TTL: between which times (Unix ms) it was made, and whether the clock was set back later."""

    earliest_ms: int
    latest_ms: int
    ttl_ms: int
    era: int


class World:
    """Traffic, and the truth about it: the writes with a TTL of each key in order, and the keys that were deleted."""

    def __init__(self, seed: int, server: RedisServer, client: redis.Redis) -> None:
        self.dice = random.Random(seed)
        self.server, self.client = server, client
        self.expected_s = self.dice.choice(EXPECTED_S)
        self.writes: dict[str, list[Write]] = {}
        self.deleted: dict[str, int] = {}
        self.existing: set[str] = set()
        self.ended_ms = 0
        self.era = 0
        self.jitter = self.dice.choice((0, 0, 0.05))

    def live(self) -> None:
        dice, ttls = self.dice, [self.expected_s]
        for phase in range(dice.choice((1, 2, 3, 4))):
            if phase and dice.random() < 0.7:
                ttls = dice.choice(([self.expected_s], [dice.choice(TTLS_S)], dice.sample(TTLS_S, 2)))
            self._pass_time(self.expected_s * dice.choice((0, 0, 0.02, 0.3, 1, 1.5, 4)) * dice.uniform(0.8, 1.2))
            if phase and dice.random() < 0.1:
                self.era += 1
                self.server.clock.shift(-dice.choice((60, 1_800, 7_200, self.expected_s / 2)))
            gap_s = self.expected_s * dice.choice((0.0002, 0.001, 0.02, 0.2))
            is_regular = dice.random() < 0.3
            for _ in range(dice.choice((1, 5, 25))):
                self._write(dice.choice(ttls))
                self._pass_time(gap_s if is_regular else dice.expovariate(1 / gap_s))
        self._pass_time(self.expected_s * dice.choice((0, 0, 0.005, 0.1, 1, 3)) * dice.uniform(0.8, 1.2))

    def _pass_time(self, seconds: float) -> None:
        if seconds >= 0.001:
            self.server.clock.shift(seconds)
        if self.dice.random() < 0.3:
            for key in self.writes:
                self.client.exists(key)

    def now_ms(self) -> int:
        seconds, micros = self.client.time()
        return seconds * 1_000 + micros // 1_000

    def _write(self, ttl_s: int) -> None:
        dice, client = self.dice, self.client
        ttl_ms = round(ttl_s * 1_000 * (1 - dice.uniform(0, self.jitter)))
        key = dice.choice([*self.writes]) if self.writes and dice.random() < 0.4 else f"chat:{len(self.writes)}"
        began_ms = self.now_ms()
        how = dice.choice(("SET", "RPUSH", "DEL") if key in self.writes else ("SET", "SET", "RPUSH"))
        if how == "DEL":
            if client.unlink(key):
                self.deleted[key] = began_ms
            return
        if how == "SET" or client.type(key) in (b"string", "string"):
            client.set(key, "v", px=ttl_ms)
        else:
            with client.pipeline(transaction=dice.random() < 0.5) as pipe:
                pipe.rpush(key, "v").pexpire(key, ttl_ms).execute()
        self.deleted.pop(key, None)
        self.writes.setdefault(key, []).append(Write(began_ms, self.now_ms(), ttl_ms, self.era))


def close(one: float, other: float) -> bool:
    return abs(one - other) <= max(JITTER * max(one, other), SAME_MS)


def faults_of_writes(world: World, key: str, found: History) -> Iterator[str]:
    """Yield what is wrong about the writes of one key."""
    truth = world.writes[key]
    given = [event for event in found.events if event.ttl_is_open or event.ttl_ms is not None]
    if len(given) != len(truth):
        yield f"{len(given)} writes with a TTL instead of {len(truth)}"
        return
    for event, write in zip(given, truth, strict=True):
        if event.ttl_ms is not None and not close(event.ttl_ms, write.ttl_ms):
            yield f"a TTL of {event.ttl_ms} ms instead of {write.ttl_ms}"
        least, most = event.ttl_range_ms or (0, write.ttl_ms)
        if (
            event.ttl_ms is None
            and not world.era  # bounds hold if the clock was not set back
            and (most * (1 + JITTER) + SAME_MS < write.ttl_ms or least > write.ttl_ms + SAME_MS)
        ):
            yield f"a TTL from {least} to {most} ms instead of {write.ttl_ms}"
        earliest, latest, _ = event.moment
        off_ms = max((earliest or 0) - write.latest_ms, write.earliest_ms - (latest or write.latest_ms))
        # A date is the deadline minus the expected TTL: with jitter it is as wrong as the TTL.
        if off_ms > SAME_MS + world.jitter * world.expected_s * 1_000 and not world.era:
            yield f"written between {earliest} and {latest} instead of {write.earliest_ms} ({off_ms} ms, {event})"


def faults_of_fate(world: World, key: str, found: History) -> Iterator[str]:
    """Yield what is wrong about what became of one key."""
    fate, truth = found.fate, world.writes[key]
    assert fate is not None
    end_ms = truth[-1].earliest_ms + truth[-1].ttl_ms
    cause = "deleted" if key in world.deleted else "exists" if key in world.existing else "expired"
    if 0 < end_ms - world.ended_ms < READ_WITHIN_MS:
        return
    if cause not in (fate.cause, *(fate.either or ())) and not world.era:
        yield f"is {cause}"
    if fate.at_is == "exact" or (fate.confidence == "proven" and fate.cause != cause):
        yield f"is {cause}, and nothing is exact"
    if fate.ttl_s and not close(fate.ttl_s * 1_000, truth[-1].ttl_ms):
        yield f"got {truth[-1].ttl_ms} ms at last"
    if fate.cause == "expired" == cause and fate.at and abs(fate.at.timestamp() * 1_000 - end_ms) > SAME_MS:
        yield f"expired at {end_ms} ms"


def faults_of_changes(world: World, found: History) -> Iterator[str]:
    """Yield what is wrong about the changes: between two writes one of either TTL was made, unless it was set back."""
    every = sorted((write for truth in world.writes.values() for write in truth), key=lambda write: write.earliest_ms)
    for change in found.changes:
        to = [one for one in every if close(change.to_ttl_ms or one.ttl_ms, one.ttl_ms)]
        least, most = change.to_range_ms or (0, world.ended_ms)
        to = [one for one in to if least - SAME_MS <= one.ttl_ms <= most + SAME_MS]
        if change.from_ttl_ms is not None and not any(close(change.from_ttl_ms, one.ttl_ms) for one in every):
            yield f"no TTL of {change.from_ttl_ms} ms was given: {change}"
        begin, end = change.last_before.earliest_ms or 0, change.at.latest_ms or 0
        slack = SAME_MS + (JITTER * (change.from_ttl_ms or 0) if world.jitter else 0)
        if not world.era and not any(begin - slack <= one.latest_ms and one.earliest_ms <= end + slack for one in to):
            yield f"no write gave that TTL then: {change}"
        if change.exact:
            yield f"exact: {change}"


def run(seed: int, kind: str, answers: Counter[str]) -> list[str]:
    """Return what is wrong in the answers about one world; count what is stated and what is left open."""
    binary = every_server()[kind]
    assert binary is not None
    config = {"appendonly": "yes", "appendfsync": "no", "repl-diskless-sync-delay": 0, "repl-timeout": 10**6}
    found = []
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(binary=binary.path, port=0, config=config))
        client = stack.enter_context(server.client())
        replica = RedisServer(binary=binary.path, config={"replicaof": f"127.0.0.1 {server.port}"})
        reader = stack.enter_context(stack.enter_context(replica).client())
        wait_for("a replica", lambda: reader.info("replication")["master_link_status"], "up".__eq__)
        world = World(seed, server, client)
        world.live()
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "appendonly.aof"
        original = server.directory / ("appendonly.aof" if kind.startswith("redis-6") else "appendonlydir")
        world.ended_ms, world.existing = world.now_ms(), {key for key in world.writes if client.exists(key)}
        (shutil.copytree if original.is_dir() else shutil.copy)(original, logs)
        now = server.clock.now().timestamp()
        for path in (logs, *logs.iterdir()) if logs.is_dir() else (logs,):
            os.utime(path, (now, now))
        # Redis 6.2 replicates relative TTLs.
        for source in ("aof",) if kind.startswith("redis-6") else ("aof", "backlog"):
            where, options = (logs, {}) if source == "aof" else (server.url, {"replication": "primary"})
            options |= {"expect": {"chat:*": f"{world.expected_s}s"}}
            wrong = list(faults_of_changes(world, history(where, **options)))
            for key in world.writes:
                shown = history(where, session=key, **options)
                wrong += (
                    f"{key} {one}; {shown.fate}"
                    for one in (*faults_of_writes(world, key, shown), *faults_of_fate(world, key, shown))
                )
                answers.update(
                    f"{source} TTL {'open' if event.ttl_ms is None else 'stated'}"
                    for event in shown.events
                    if event.ttl_is_open
                )
            found += [f"seed {seed} on {kind}, {source}, {world.expected_s} s expected: {one}" for one in wrong]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare what is stated about logs without timestamps with the truth.")
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time")
    given = parser.parse_args()
    kinds = [kind for kind, binary in every_server().items() if binary]
    answers: Counter[str] = Counter()
    wrong = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        seeds = range(given.seed, given.seed + given.worlds)
        for found in pool.map(lambda seed: run(seed, kinds[seed % len(kinds)], answers), seeds):
            wrong += len(found)
            print(*found, sep="\n", end="\n" if found else "", flush=True)
    print(
        f"{given.worlds} worlds, {wrong} wrong answers ({', '.join(f'{n} {c:,}' for n, c in sorted(answers.items()))})"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
