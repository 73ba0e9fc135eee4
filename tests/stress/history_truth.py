"""Random commands on a real server, and what histories of it report: each fate must be true, or be left open.

    python tests/stress/history_truth.py --worlds 40 [--seed 7] [--source aof]

Each world is a private server with a replica. Its past is read from a recording by names, a recording of the
replication stream, the append-only directory, the backlog and three RDB files. After each command the deadlines of all
keys are read, so that it is known what happened to them. An answer is wrong if it names another cause, if it leaves out
the true one of those that it cannot tell apart, or if its time or its TTL is not the true one. Wrong answers are
printed with the seed of their world, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers import every_server
from waiting import wait_for

from memkit.history import History, history, record
from memkit.history.fate import Fate
from memkit.history.record import Replication
from memkit.server import RedisServer

SOURCES = ("names", "stream", "aof", "backlog", "snapshots")
NEWER_ONLY = {"names", "stream", "aof"}
"""Sources that Redis 6.2 does not have: PEXPIRETIME and appendonlydir came with 7.0."""
KEYS = [f"chat:{number}" for number in range(12)] + [f"temp:{number}" for number in range(4)]
TTLS_S = [90, 300, 3_600, 86_400, 604_800]
STEPS = 60
SAME_MS = 1_500
"""Logs are dated to the second, and a recording by its looks at the server."""
HIDDEN = {"never_seen": ("deleted", "expired", "flushed", "renamed"), "exists": ("overwritten",)}
"""What happened between two snapshots may not be visible in them."""
ALIKE = ("exists", "overwritten")
"""A key without a TTL: a write may have removed that, or the key was deleted before the write."""
KEEP_DEADLINES = ("RENAME", "RENAMENX", "COPY", "SORT STORE")
Do = Callable[[Any, random.Random, str, str], object]


def multi(client: redis.Redis, key: str, ttl_s: int) -> None:
    with client.pipeline(transaction=True) as pipe:
        pipe.delete(key)
        pipe.rpush(key, "a", "b", "c")
        pipe.expire(key, ttl_s)
        pipe.execute()


def script(client: redis.Redis, key: str, ttl_s: int) -> None:
    client.eval("redis.call('SET', KEYS[1], 'a') redis.call('EXPIRE', KEYS[1], ARGV[1])", 1, key, str(ttl_s))


def restore(client: redis.Redis, source: str, target: str, ttl_ms: int) -> None:
    client.restore(target, ttl_ms, client.dump(source) or b"", replace=True)


ACTS: dict[str, Do] = {
    "SET": lambda client, _dice, key, _to: client.set(key, "v"),
    "SET EX": lambda client, dice, key, _to: client.set(key, "v", ex=dice.choice(TTLS_S)),
    "SET PX": lambda client, dice, key, _to: client.set(key, "v", px=dice.randrange(60_000, 10**8)),
    "SET KEEPTTL": lambda client, _dice, key, _to: client.set(key, "w", keepttl=True),
    "SETEX": lambda client, dice, key, _to: client.execute_command("SETEX", key, dice.choice(TTLS_S), "v"),
    "SETNX": lambda client, _dice, key, _to: client.set(key, "1", nx=True),
    "GETSET": lambda client, _dice, key, _to: client.execute_command("GETSET", key, "w"),
    "APPEND": lambda client, _dice, key, _to: client.append(key, "w"),
    "RPUSH": lambda client, _dice, key, _to: client.rpush(key, "a", "b"),
    "LPOP": lambda client, _dice, key, _to: client.lpop(key),
    "LTRIM": lambda client, _dice, key, _to: client.ltrim(key, 0, 0),
    "LREM": lambda client, _dice, key, _to: client.lrem(key, 0, "a"),
    "HSET": lambda client, _dice, key, _to: client.hset(key, "f", "v"),
    "HDEL": lambda client, _dice, key, _to: client.hdel(key, "f"),
    "SADD": lambda client, _dice, key, _to: client.sadd(key, "m"),
    "SREM": lambda client, _dice, key, _to: client.srem(key, "m"),
    "EXPIRE": lambda client, dice, key, _to: client.expire(key, dice.choice(TTLS_S)),
    "PEXPIRE": lambda client, dice, key, _to: client.pexpire(key, dice.randrange(60_000, 10**8)),
    "EXPIRE 0": lambda client, _dice, key, _to: client.expire(key, 0),
    "EXPIREAT": lambda client, dice, key, _to: client.expireat(key, client.time()[0] + dice.choice(TTLS_S)),
    "PERSIST": lambda client, _dice, key, _to: client.persist(key),
    "GETEX": lambda client, dice, key, _to: client.getex(key, ex=dice.choice(TTLS_S)),
    "GETEX PERSIST": lambda client, _dice, key, _to: client.getex(key, persist=True),
    "GETDEL": lambda client, _dice, key, _to: client.getdel(key),
    "DEL": lambda client, _dice, key, _to: client.delete(key),
    "UNLINK": lambda client, _dice, key, _to: client.unlink(key),
    "DEL and SET": lambda client, _dice, key, _to: (client.delete(key), client.set(key, "v")),
    "RENAME": lambda client, _dice, key, to: client.rename(key, to),
    "RENAMENX": lambda client, _dice, key, to: client.renamenx(key, to),
    "COPY": lambda client, _dice, key, to: client.copy(key, to, replace=True),
    "RESTORE": lambda client, dice, key, to: restore(client, key, to, dice.choice((0, 60_000))),
    "MOVE": lambda client, _dice, key, _to: client.move(key, 1),
    "script": lambda client, dice, key, _to: script(client, key, dice.choice(TTLS_S)),
    "MULTI": lambda client, dice, key, _to: multi(client, key, dice.choice(TTLS_S)),
    "SORT STORE": lambda client, _dice, key, to: client.sort(key, store=to, alpha=True),
    "SINTERSTORE": lambda client, _dice, key, to: client.sinterstore(to, [key, "none"]),
    "FLUSHDB": lambda client, dice, _key, _to: dice.random() < 0.2 and client.flushdb(),
}
CAUSES = {"RENAME": "renamed", "RENAMENX": "renamed", "MOVE": "renamed"}


@dataclass
class Truth:
    """What became of one key, between which moments, and the TTL in seconds that it was given last, if it was."""

    cause: str = "never_seen"
    moment: tuple[int, int] = (0, 0)
    ttl_s: float | None = None
    commands: list[str] = field(default_factory=list)


class World:
    """A server, random commands on it, and the truth about each key."""

    def __init__(self, seed: int, server: RedisServer, client: redis.Redis) -> None:
        self.dice = random.Random(seed)
        self.server, self.client = server, client
        self.truth = {key: Truth() for key in KEYS}

    def look(self) -> tuple[dict[str, int | None], int]:
        """Return each key that exists with its deadline (None without one), and the server's time, in milliseconds."""
        with self.client.pipeline(transaction=True) as pipe:
            for key in KEYS:
                pipe.pttl(key)
            pipe.time()
            *left, (seconds, micros) = pipe.execute()
        now = seconds * 1_000 + micros // 1_000
        return {key: now + one if one >= 0 else None for key, one in zip(KEYS, left, strict=True) if one != -2}, now

    def step(self) -> None:
        """Do one thing, and keep what it changed."""
        before, began = self.look()
        command = self.dice.choice([*ACTS, "EXPIRE", "SET EX", "time passes"])
        key, to = self.dice.sample(KEYS, 2)
        if command == "time passes":
            self.server.clock.shift(f"{self.dice.choice((1, 60, 600, 7_200))}s")
            time.sleep(0.15)  # the server dates its log by a time that it reads ten times a second
            for one in KEYS:
                self.client.exists(one)
        else:
            try:
                ACTS[command](self.client, self.dice, key, to)
            except (redis.ResponseError, redis.DataError):
                return
        after, ended = self.look()
        for one in KEYS:
            cause = CAUSES.get(command, "deleted") if one == key else "deleted"
            cause = {"time passes": "expired", "FLUSHDB": "flushed"}.get(command, cause)
            self._keep(one, command, cause, before.get(one, -1), after.get(one, -1), (began, ended))

    def _keep(
        self, key: str, command: str, cause: str, was: int | None, now: int | None, moment: tuple[int, int]
    ) -> None:
        """Keep what a command did to a key, by its deadline before and after: -1 if it does not exist."""
        truth = self.truth[key]
        if was == now:
            return
        truth.commands.append(command)
        if now == -1:
            truth.cause, truth.moment = cause, (was, was) if cause == "expired" and was is not None else moment
        elif was == -1:
            truth.cause, truth.moment, truth.ttl_s = "exists", moment, None
        elif now is None:
            replaced = command not in ("PERSIST", "GETEX PERSIST", "DEL and SET")
            truth.cause, truth.moment = "overwritten" if replaced else "exists", moment
        if now not in (None, -1) and (was is None or abs(now - was) > SAME_MS / 300):
            truth.cause = "exists"
            truth.ttl_s = None if command in KEEP_DEADLINES else (now - moment[1]) / 1_000


def fault(truth: Truth, fate: Fate, source: str) -> str:
    """Return what is wrong with a fate; empty if nothing is."""
    possible: tuple[str, ...] = fate.either or (fate.cause,)
    possible += HIDDEN.get(fate.cause, ()) if source == "snapshots" else ()
    possible += ALIKE if fate.cause in ALIKE and fate.confidence != "proven" else ()
    possible += ("renamed",) if fate.cause == "exists" and "in database 1" in fate.sentence else ()
    if truth.cause not in possible and (fate.cause != "unknown" or fate.either):
        return f"is {truth.cause}"
    if fate.at and truth.cause == fate.cause != "exists":
        latest = fate.at.timestamp() * 1_000
        earliest = latest if fate.at_is == "exact" else fate.not_before.timestamp() * 1_000 if fate.not_before else 0
        if truth.moment[0] > latest + SAME_MS or truth.moment[1] < earliest - SAME_MS:
            return f"{truth.cause} between {truth.moment} ms"
    if fate.ttl_s and truth.ttl_s and abs(fate.ttl_s - truth.ttl_s) > SAME_MS / 1_000:
        return f"got a TTL of {truth.ttl_s} s"
    return ""


@contextmanager
def recording(url: str, output: Path, replication: Replication | None) -> Iterator[None]:
    stop, begun = threading.Event(), threading.Event()
    began: Callable[[str], None] = lambda _: begun.set()  # noqa: E731
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(record, url, output, prefixes=[b"chat:"], replication=replication, stop=stop, began=began)
        while not begun.wait(0.1):
            if done.done():
                done.result()
        try:
            yield
        finally:
            stop.set()
            done.result()


def take_snapshot(server: RedisServer, client: redis.Redis, to: Path) -> None:
    wait_for("the end of a save", lambda: client.info("persistence")["rdb_bgsave_in_progress"], (0).__eq__)
    client.save()
    shutil.copy(server.directory / "dump.rdb", to)


def live(world: World, folder: Path, sources: set[str]) -> None:
    """Run the commands of a world while it is recorded; take snapshots before, in the middle and after."""
    server, client = world.server, world.client
    take_snapshot(server, client, folder / "0.rdb")
    with ExitStack() as recordings:
        if "names" in sources:
            recordings.enter_context(recording(server.url, folder / "names.db", None))
        if "stream" in sources:
            recordings.enter_context(recording(server.url, folder / "stream.db", "primary"))
        for step in range(STEPS):
            world.step()
            if world.dice.random() < 0.1:
                time.sleep(world.dice.random() * 0.3)
            if step == STEPS // 2:
                take_snapshot(server, client, folder / "1.rdb")
        time.sleep(0.6)  # the recorder reads the counters that explain an end every 0.2 s
    take_snapshot(server, client, folder / "2.rdb")


def answer(source: str, key: str, server: RedisServer, folder: Path) -> History:
    if source == "backlog":
        return history(server.url, session=key, replication="primary")
    if source == "snapshots":
        return history(*sorted(folder.glob("*.rdb")), session=key)
    if source == "aof":
        logs, now = server.directory / "appendonlydir", server.clock.now().timestamp()
        for path in [logs, *logs.iterdir()]:
            os.utime(path, (now, now))
        return history(logs, session=key)
    return history(folder / f"{source}.db", session=key)


def run(seed: int, kind: str, sources: set[str], answers: Counter[str]) -> list[str]:
    """Return what is wrong in the answers about one world; count those that are named and those that are left open."""
    binary = every_server()[kind]
    assert binary is not None
    config: dict[str, object] = {"appendonly": "yes", "appendfsync": "no", "auto-aof-rewrite-percentage": "0"}
    # With the usual time-out, a moved clock ends the connection of a replica and of a recording.
    config |= {"repl-diskless-sync-delay": 0, "repl-timeout": 10**6}
    if kind.startswith("redis-6"):
        sources = sources - NEWER_ONLY
    else:
        config["aof-timestamp-enabled"] = "yes"
    found = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(RedisServer(binary=binary.path, port=0, config=config))
        client = stack.enter_context(server.client(decode_responses=True))
        replica = RedisServer(binary=binary.path, config={"replicaof": f"127.0.0.1 {server.port}"})
        reader = stack.enter_context(stack.enter_context(replica).client())
        wait_for("a replica", lambda: reader.info("replication")["master_link_status"], "up".__eq__)
        world = World(seed, server, client)
        live(world, folder, sources)
        for source in sorted(sources):
            for key, truth in world.truth.items():
                if source in ("names", "stream") and not key.startswith("chat:"):
                    continue
                fate = answer(source, key, server, folder).fate
                assert fate is not None
                answers[f"{source} {'open' if fate.cause == 'unknown' else 'named'}"] += 1
                if wrong := fault(truth, fate, source):
                    last = ", ".join(truth.commands[-4:])
                    found.append(f"seed {seed} on {kind}, {source}: {key} {wrong} ({last}); {fate.to_dict()}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare histories of random commands with what happened.")
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", choices=SOURCES)
    given = parser.parse_args()
    kinds = [kind for kind, binary in every_server().items() if binary]
    sources = {given.source} if given.source else set(SOURCES)
    answers: Counter[str] = Counter()
    wrong = 0
    for seed in range(given.seed, given.seed + given.worlds):
        for one in run(seed, kinds[seed % len(kinds)], sources, answers):
            wrong += 1
            print(one, flush=True)
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(answers.items()))
    print(f"{given.worlds} worlds, {wrong} wrong answers ({counts})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
