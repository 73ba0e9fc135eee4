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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

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
HIDDEN = {"never_seen": ("deleted", "evicted", "expired", "flushed", "renamed"), "exists": ("overwritten",)}
"""What happened between two snapshots, before a log was rewritten, or between two looks may not be visible."""
ALIKE = ("exists", "overwritten")
"""A key without a TTL: a write may have removed that, or the key was deleted before the write."""
WITHOUT_TTL = ("PERSIST KEY", "GETEX KEY PERSIST")
KEEP_DEADLINES = ("RENAME", "RENAMENX", "COPY", "SORT", "MOVE", "SWAPDB")
"""After these a key has the deadline that another key had."""
MOVES = ("RENAME", "RENAMENX", "MOVE", "SWAPDB")
ACTS = (
    """
SET KEY v|SET KEY v EX TTL|SET KEY v PX MS|SET KEY w KEEPTTL|SET KEY v PXAT AT GET|SET KEY v NX EX TTL|SET KEY 1 NX
SETEX KEY TTL v|PSETEX KEY MS v|GETSET KEY w|APPEND KEY w|SETRANGE KEY 2 x|INCR KEY|MSET KEY v TO w|MSETNX KEY v TO w
RPUSH KEY a b|LPUSHX KEY a|LPOP KEY|LPOP KEY 2|LTRIM KEY 0 0|LTRIM KEY 1 -1|LTRIM KEY 5 2|LREM KEY 0 a|BLPOP KEY 0.01
LMPOP 2 KEY TO LEFT COUNT 2|LMOVE KEY TO LEFT RIGHT|BLMOVE KEY TO LEFT LEFT 0.01|LINSERT KEY BEFORE a z|LSET KEY 0 q
HSET KEY f v|HSET KEY f v g w|HDEL KEY f|HDEL KEY f g|HEXPIRE KEY TTL FIELDS 1 f|HEXPIRE KEY 0 FIELDS 1 f
HSETEX KEY EX TTL FIELDS 1 f v|HGETEX KEY EX TTL FIELDS 1 f|HPERSIST KEY FIELDS 1 f|HGETDEL KEY FIELDS 1 f
SADD KEY m|SADD KEY m n|SREM KEY m|SPOP KEY|SPOP KEY 5|SMOVE KEY TO m|ZADD KEY 1 m 2 n|ZREM KEY m|ZPOPMIN KEY 2
ZMPOP 1 KEY MIN|ZREMRANGEBYRANK KEY 0 0|ZADD KEY XX 3 m|GEOADD KEY 1 1 m|PFADD KEY a|PFMERGE TO KEY
XADD KEY * f v|XADD KEY NOMKSTREAM * f v|XTRIM KEY MAXLEN 0|XGROUP CREATE KEY g $ MKSTREAM
XREADGROUP GROUP g c STREAMS KEY >
EXPIRE KEY TTL|EXPIRE KEY TTL|EXPIRE KEY TTL NX|EXPIRE KEY TTL XX|EXPIRE KEY TTL GT|EXPIRE KEY TTL LT|PEXPIRE KEY MS
EXPIRE KEY 0|EXPIRE KEY -5|PEXPIREAT KEY AT|PEXPIREAT KEY 5|PERSIST KEY|GETEX KEY EX TTL|GETEX KEY PXAT AT
GETEX KEY PXAT 5|GETEX KEY PERSIST|GETDEL KEY|DEL KEY|UNLINK KEY|DEL KEY TO|DEL KEY; SET KEY v|SET KEY v; EXPIRE KEY TTL
DEL KEY; RPUSH KEY a b c; EXPIRE KEY TTL|SET KEY v; DEL KEY|SET KEY v EX TTL; PERSIST KEY
RENAME KEY TO|RENAMENX KEY TO|COPY KEY TO REPLACE|COPY KEY TO
RESTORE TO 0 DUMP REPLACE|RESTORE TO MS DUMP REPLACE|RESTORE TO AT DUMP REPLACE ABSTTL|RESTORE TO 5 DUMP REPLACE ABSTTL
SORT KEY ALPHA STORE TO|SINTERSTORE TO KEY none|SUNIONSTORE TO KEY|ZUNIONSTORE TO 1 KEY|ZRANGESTORE TO KEY 0 -1
BITOP NOT TO KEY|BITOP AND TO none none2|GEOSEARCHSTORE TO KEY FROMLONLAT 1 1 BYRADIUS 1 km|SDIFFSTORE TO KEY KEY
""".strip()
    .replace("\n", "|")
    .split("|")
)
OTHER_DATABASE = (
    """
MOVE KEY 1|COPY KEY KEY DB 1 REPLACE|1> MOVE KEY 0|1> COPY KEY TO DB 0 REPLACE|1> SET KEY v EX TTL|1> SET KEY v
1> DEL KEY|1> EXPIRE KEY TTL|SWAPDB 0 1|SWAPDB 1 0
""".strip()
    .replace("\n", "|")
    .split("|")
)
FLUSHES = ["FLUSHDB", "FLUSHALL", "FLUSHDB ASYNC", "1> FLUSHDB"]
EVICTION = "eviction"
MADE_AND_DELETED = "made and deleted"
TIME = "time passes"
SCRIPT = """
local at = 1
while at <= #ARGV do
  redis.call(unpack(ARGV, at + 1, at + ARGV[at]))
  at = at + ARGV[at] + 1
end
"""
SETTINGS: dict[str, tuple[str, ...]] = {
    "lazyfree-lazy-eviction": ("yes", "no"),
    "lazyfree-lazy-expire": ("yes", "no"),
    "lazyfree-lazy-user-del": ("yes", "no"),
    "lazyfree-lazy-server-del": ("yes", "no"),
    "aof-use-rdb-preamble": ("yes", "yes", "no"),
    "notify-keyspace-events": ("", "", "Exe"),
    "maxmemory-policy": ("allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl"),
}
"""Settings that change what a server logs; one value of each is drawn for a world."""


@dataclass
class Truth:
    """What became of one key, between which moments, and the TTL in seconds that it was given last, if it was."""

    cause: str = "never_seen"
    moment: tuple[int, int] = (0, 0)
    ttl_s: float | None = None
    commands: list[str] = field(default_factory=list)


class World:
    """A server, random commands on it, and the truth about each key."""

    def __init__(self, seed: int, server: RedisServer, client: redis.Redis, other: redis.Redis) -> None:
        self.dice = random.Random(seed)
        self.server, self.client, self.other = server, client, other
        self.truth = {key: Truth() for key in KEYS}
        self.acts = [*ACTS, *[TIME] * 4]
        self.has_databases = self.dice.random() < 0.5
        if self.has_databases:
            self.acts += OTHER_DATABASE
        if self.dice.random() < 0.5:
            self.acts += FLUSHES
        if self.dice.random() < 0.5:
            self.acts += [EVICTION] * 3

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
        act = self.dice.choice(self.acts)
        key, to = self.dice.sample(KEYS, 2)
        if act == TIME:
            self.server.clock.shift(f"{self.dice.choice((1, 60, 600, 7_200))}s")
            time.sleep(0.15)  # the server dates its log by a time that it reads ten times a second
            for one in KEYS:
                self.client.exists(one)
        elif act == EVICTION:
            self._evict()
        else:
            with suppress(redis.ResponseError, redis.DataError):
                self._do(act, key, to)
        after, ended = self.look()
        if act.startswith("DEL KEY; SET") and key in after:
            self.truth[key].cause = "exists"  # also if it lost its TTL before
        name = act.removeprefix("1> ").partition(" ")[0]
        for one in KEYS:
            cause = "renamed" if name in MOVES and (one == key or name == "SWAPDB") else "deleted"
            cause = MADE_AND_DELETED if one == key and act.endswith("; DEL KEY") and one not in before else cause
            cause = {TIME: "expired", EVICTION: "evicted"}.get(act, "flushed" if "FLUSH" in act else cause)
            self._keep(one, act, cause, before.get(one, -1), after.get(one, -1), (began, ended))

    def _do(self, act: str, key: str, to: str) -> None:
        client = self.other if act.startswith("1> ") else self.client
        seconds, micros = client.time()
        words: dict[str, object] = {
            "KEY": key,
            "TO": to,
            "TTL": self.dice.choice(TTLS_S),
            "MS": self.dice.randrange(60_000, 10**8),
            "AT": seconds * 1_000 + micros // 1_000 + self.dice.randrange(60_000, 10**8),
            "DUMP": client.dump(key) or b"",
        }
        commands = [[words.get(word, word) for word in one.split()] for one in act.removeprefix("1> ").split(";")]
        how = self.dice.choice(("one by one", "one by one", "transaction", "script"))
        if how == "script" and "BLPOP" not in act:
            client.eval(SCRIPT, 0, *(word for one in commands for word in (len(one), *one)))
        elif how == "transaction":
            with client.pipeline(transaction=True) as pipe:
                for one in commands:
                    pipe.execute_command(*one)
                pipe.execute()
        else:
            for one in commands:
                client.execute_command(*one)

    def _evict(self) -> None:
        """Set a limit so far below the memory in use that a write evicts some keys."""
        memory = self.client.info("memory")
        limit = memory["used_memory"] - memory["mem_not_counted_for_evict"] - self.dice.randrange(200, 1_500)
        self.client.config_set("maxmemory", limit)
        with suppress(redis.ResponseError):
            self.client.set("filler", "v")
        self.client.config_set("maxmemory", 0)
        self.client.delete("filler")

    def _keep(self, key: str, act: str, cause: str, was: int | None, now: int | None, moment: tuple[int, int]) -> None:
        """Keep what a command did to a key, by its deadline before and after: -1 if it does not exist."""
        truth = self.truth[key]
        if was == now and cause != MADE_AND_DELETED:
            return
        truth.commands.append(act)
        if now == -1:
            on_time = cause == "expired" and was is not None and was <= moment[1]  # otherwise its last field expired
            truth.cause, truth.moment = cause.removeprefix("made and "), (was, was) if on_time else moment
        elif was == -1:
            truth.cause, truth.moment, truth.ttl_s = "exists", moment, None
        elif now is None:
            replaced = act not in WITHOUT_TTL and "DEL KEY;" not in act and "PERSIST" not in act
            truth.cause, truth.moment = "overwritten" if replaced else "exists", moment
            truth.ttl_s = None if ";" in act else truth.ttl_s
        if now not in (None, -1) and (was is None or abs(now - was) > SAME_MS / 300):
            truth.cause = "exists"
            keeps = act.removeprefix("1> ").startswith(KEEP_DEADLINES)
            truth.ttl_s = None if keeps else (now - moment[1]) / 1_000


def fault(truth: Truth, fate: Fate, source: str, *, has_gaps: bool) -> str:
    """Return what is wrong with a fate; empty if nothing is."""
    possible: tuple[str, ...] = fate.either or (fate.cause,)
    if any(text in fate.sentence for text in ("in database 1", "in a gap", "the session's other keys")):
        return ""
    if has_gaps or source in ("snapshots", "aof", "names"):
        possible += tuple(one for cause in possible for one in HIDDEN.get(cause, ()))
    if source == "names" and truth.commands and truth.commands[-1].endswith("; DEL KEY"):
        return ""  # between two looks
    possible += ALIKE if fate.cause in ALIKE and fate.confidence != "proven" else ()
    # Valkey logs an eviction as DEL if lazyfree-lazy-eviction is off, which the log does not show.
    possible += ("evicted",) if fate.cause == "deleted" and fate.confidence == "likely" else ()
    # A log names all keys of DEL, also those that did not exist.
    possible += ("never_seen",) if fate.cause == "deleted" and fate.confidence == "likely" else ()
    if truth.cause not in possible and (fate.cause != "unknown" or fate.either):
        return f"is {truth.cause}"
    if fate.at and truth.cause == fate.cause != "exists":
        latest = fate.at.timestamp() * 1_000
        earliest = latest if fate.at_is == "exact" else fate.not_before.timestamp() * 1_000 if fate.not_before else 0
        if truth.moment[0] > latest + SAME_MS or truth.moment[1] < earliest - SAME_MS:
            return f"{truth.cause} between {truth.moment} ms"
    if fate.cause != "unknown" and fate.ttl_s and truth.ttl_s and abs(fate.ttl_s - truth.ttl_s) > SAME_MS / 1_000:
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
    rewrites = "aof" in sources and world.dice.random() < 0.5
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
                if rewrites:
                    client.bgrewriteaof()
                    wait_for(
                        "a rewritten log", lambda: client.info("persistence")["aof_rewrite_in_progress"], (0).__eq__
                    )
        time.sleep(1.5)  # the recorder reads the counters every 0.2 s, and connects again 0.5 s after SWAPDB
    take_snapshot(server, client, folder / "2.rdb")


def answer(source: str, server: RedisServer, folder: Path, key: str | None = None) -> History:
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
    dice = random.Random(seed)
    config |= {name: dice.choice(values) for name, values in SETTINGS.items()}
    if kind.startswith("redis-6"):
        sources = sources - NEWER_ONLY
    else:
        config["aof-timestamp-enabled"] = dice.choice(("yes", "yes", "no"))
    found = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(RedisServer(binary=binary.path, port=0, config=config))
        client, other = (stack.enter_context(server.client(db=db)) for db in (0, 1))
        replica = RedisServer(binary=binary.path, config={"replicaof": f"127.0.0.1 {server.port}"})
        reader = stack.enter_context(stack.enter_context(replica).client())
        wait_for("a replica", lambda: reader.info("replication")["master_link_status"], "up".__eq__)
        world = World(seed, server, client, other)
        live(world, folder, sources)
        for source in sorted(sources):
            fates: Counter[str] = Counter()
            for key, truth in world.truth.items():
                if source in ("names", "stream") and not key.startswith("chat:"):
                    continue
                shown = answer(source, server, folder, key)
                fate = shown.fate
                assert fate is not None
                if key.startswith("chat:"):
                    fates[fate.cause] += 1
                answers[f"{source} {'open' if fate.cause == 'unknown' else 'named'}"] += 1
                if wrong := fault(truth, fate, source, has_gaps=bool(shown.gaps)):
                    last = ", ".join(truth.commands[-4:])
                    found.append(f"seed {seed} on {kind}, {source}: {key} {wrong} ({last}); {fate.to_dict()}")
            counts = Counter(answer(source, server, folder).fates.get("chat:", {}))
            del fates["never_seen"]
            if counts != fates and not world.has_databases:
                found.append(
                    f"seed {seed} on {kind}, {source}: {dict(counts)} without a session; {dict(fates)} with one"
                )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare histories of random commands with what happened.")
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", choices=SOURCES)
    parser.add_argument("--jobs", type=int, default=3, help="worlds at a time")
    given = parser.parse_args()
    kinds = [kind for kind, binary in every_server().items() if binary]
    sources = {given.source} if given.source else set(SOURCES)
    answers: Counter[str] = Counter()
    wrong = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        seeds = range(given.seed, given.seed + given.worlds)
        for found in pool.map(lambda seed: run(seed, kinds[seed % len(kinds)], sources, answers), seeds):
            wrong += len(found)
            print(*found, sep="\n", end="\n" if found else "", flush=True)
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(answers.items()))
    print(f"{given.worlds} worlds, {wrong} wrong answers ({counts})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
