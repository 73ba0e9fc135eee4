"""Many writers, everything goes wrong, and each acknowledged message must be there once and in order.

``python tests/stress/exactly_once.py`` runs until 50,000 calls are acknowledged and 3,000 faults have happened, on each
of Redis 8.2, 7.0 and Valkey 9, then the controls, which must fail. A short form runs in the suite (test_stress.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import redis
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisClusterException
from redis.retry import Retry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from servers import every_server, start
from stress.chaos import FORK, Chaos

from memkit.errors import Conflict, SessionNotFound
from memkit.server import RedisServer
from memkit.store import AsyncMemoryStore, MemoryStore, Session

SESSIONS = 12
COUNTERS = 4
TIMEOUT_S = 0.3
Writer = Literal["sync", "async", "cluster", "naive"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, until so many seconds have passed, and so many calls and faults have happened."""

    server: str = "redis-8.2"
    writer: Writer = "sync"
    writers: int = 6
    seconds: float = 10
    acknowledged: int = 0
    faults: int = 0
    rate: float = 0.03
    persist: bool = True
    crashes: bool = True
    pause_s: float = 0.2
    seed: int = 0


@dataclass(slots=True)
class Result:
    """What was seen. ``unknown``: calls that neither succeeded nor failed for certain (a killed writer's last)."""

    acknowledged: int = 0
    unknown: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    over_applied: int = 0
    seconds: float = 0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.reordered or self.over_applied)

    def __str__(self) -> str:
        faults = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.faults.items()) if number)
        return (
            f"acknowledged {self.acknowledged:,} in {self.seconds:.0f} s; faults {self.faults.total():,} ({faults}); "
            f"unknown {self.unknown:,}; lost {self.lost:,}, duplicated {self.duplicated:,}, "
            f"reordered {self.reordered:,}, over-applied {self.over_applied:,}"
        )


# Writers, each a process that may be killed at any moment


class Journal:
    """What a writer meant to do and what was acknowledged: a line each, written before the next step."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, what: str, call: list[Any]) -> None:
        os.write(self._file, f"{what} {json.dumps(call)}\n".encode())


def retry(kind: type[Any] = Retry) -> Any:
    return kind(ExponentialBackoff(cap=0.05, base=0.001), 40)


def write(plan: Plan, number: int, address: tuple[str, int], path: Path) -> None:
    """Be a writer until killed."""
    with contextlib.suppress(KeyboardInterrupt):
        dice, journal = random.Random(f"{plan.seed} {number}"), Journal(path)
        if plan.writer == "async":
            asyncio.run(write_async(dice, number, address, journal))
        elif plan.writer == "naive":
            write_naively(dice, number, address, journal)
        else:
            write_sync(dice, number, client_of(plan.writer, address), journal)


def client_of(writer: Writer, address: tuple[str, int]) -> Any:
    host, port = address
    timeouts: dict[str, Any] = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    if writer == "cluster":
        return persist(lambda: redis.RedisCluster(host, port, retry=retry(), **timeouts))
    return redis.Redis(host, port, retry=retry(), **timeouts)


def write_sync(dice: random.Random, number: int, client: Any, journal: Journal) -> None:
    store = MemoryStore(client, prefix="stress:", ttl="7d")
    for n in count():
        act, session_id, call = choose(dice, number, n)
        journal.note("meant", call)
        try:
            act_sync(store, act, session_id, call)
        except (Conflict, SessionNotFound):
            journal.note("refused", call)
        except redis.RedisError:
            journal.note("unknown", call)
        else:
            journal.note("done", call)


def act_sync(store: MemoryStore, act: str, session_id: str, call: list[Any]) -> None:
    if act == "append":
        store.append(session_id, {"call": call})
    elif act == "own id":
        persist(lambda: store.append(session_id, {"id": repr(call), "call": call}))
    elif act == "count":
        store.update(session_id, **one_more(persist(lambda: store.get(session_id))))
    elif act == "compact":
        found = persist(lambda: store.get(session_id))
        if found:
            store.save(session_id, [{"calls": list(calls_in(found.messages))}], version=found.version)


def one_more(found: Session | None) -> dict[str, Any]:
    if not found:
        raise SessionNotFound("a counter that was saved before the writers began is gone")
    return {"metadata": {"count": found.metadata["count"] + 1}, "version": found.version}


def persist(do: Callable[[], Any]) -> Any:
    """Be an application that tries again, whatever happened."""
    while True:
        with contextlib.suppress(redis.RedisError, RedisClusterException):  # the second is raised before a first node
            return do()


async def write_async(dice: random.Random, number: int, address: tuple[str, int], journal: Journal) -> None:
    host, port = address
    client = redis.asyncio.Redis(
        host=host,
        port=port,
        retry=retry(redis.asyncio.retry.Retry),
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
    )
    store = AsyncMemoryStore(client, prefix="stress:", ttl="7d")

    async def one(task: int) -> None:
        for n in count():
            act, session_id, call = choose(dice, number * 100 + task, n)
            journal.note("meant", call)
            try:
                await act_async(store, act, session_id, call)
            except (Conflict, SessionNotFound):
                journal.note("refused", call)
            except redis.RedisError:
                journal.note("unknown", call)
            else:
                journal.note("done", call)

    await asyncio.gather(*(one(task) for task in range(4)))


async def act_async(store: AsyncMemoryStore, act: str, session_id: str, call: list[Any]) -> None:
    if act == "append":
        await store.append(session_id, {"call": call})
        return
    while True:
        try:
            if act == "own id":
                await store.append(session_id, {"id": repr(call), "call": call})
                return
            found = await store.get(session_id)
            break
        except redis.RedisError:
            continue
    if act == "count":
        await store.update(session_id, **one_more(found))
    elif found:
        await store.save(session_id, [{"calls": list(calls_in(found.messages))}], version=found.version)


def write_naively(dice: random.Random, number: int, address: tuple[str, int], journal: Journal) -> None:
    """The control: what most code does, a plain RPUSH under redis-py's own retries."""
    client = client_of("sync", address)
    for n in count():
        _, session_id, call = choose(dice, number, n, only="append")
        journal.note("meant", call)
        try:
            client.rpush(f"naive:{session_id}", json.dumps({"call": call}))
        except redis.RedisError:
            journal.note("unknown", call)
        else:
            journal.note("done", call)


def choose(dice: random.Random, writer: int, n: int, only: str = "") -> tuple[str, str, list[Any]]:
    """Return what to do, on which session, and the call's name: act, session, writer, number."""
    act = only or dice.choices(("append", "own id", "count", "compact"), (75, 15, 8, 2))[0]
    if act == "count":
        session_id = f"counter {dice.randrange(COUNTERS)}"
    else:
        # Own ids count among a session's last 1,024 messages: where they are used nothing is compacted away.
        odd = {"own id": 1, "compact": 0}.get(act, dice.randrange(2))
        session_id = f"session {dice.randrange(SESSIONS // 2) * 2 + odd}"
    return act, session_id, [act, session_id, writer, n]


def calls_in(messages: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for message in messages:
        yield from message["calls"] if "calls" in message else [message["call"]]


# The run


@dataclass(slots=True)
class Run:
    """One run: its servers, proxies, writers and the harm done to them."""

    plan: Plan
    servers: list[RedisServer]
    proxies: list[Chaos]
    folder: Path
    writers: dict[int, Any] = field(default_factory=dict)
    harm: Counter[str] = field(default_factory=Counter)
    numbers: Iterator[int] = field(default_factory=count)

    def employ(self) -> None:
        number = next(self.numbers)
        address = ("127.0.0.1", self.proxies[0].port)
        process = FORK.Process(target=write, args=(self.plan, number, address, self.folder / str(number)), daemon=True)
        process.start()
        self.writers[number] = process

    def dismiss(self, number: int) -> None:
        process = self.writers.pop(number)
        process.kill()
        process.join()

    def do_harm(self, dice: random.Random) -> None:
        kinds = [self.kill_connections, self.stop_server, self.kill_writer]
        if self.plan.crashes:
            kinds.append(self.crash_server)
        dice.choice(kinds)(dice)

    def kill_connections(self, dice: random.Random) -> None:
        with dice.choice(self.servers).client() as client:
            self.harm["CLIENT KILL"] += client.client_kill_filter(_type="normal", skipme=True)

    def stop_server(self, dice: random.Random) -> None:
        server = dice.choice(self.servers)
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(dice.uniform(0.05, 1.5 * TIMEOUT_S))
        os.kill(server.pid, signal.SIGCONT)
        self.harm["SIGSTOP"] += 1

    def crash_server(self, dice: random.Random) -> None:
        server = dice.choice(self.servers)
        server.kill()
        server.start()
        if self.plan.writer == "cluster":
            server.clock.shift("3s")  # a primary that comes back waits 2 s before it takes writes
        self.harm["server kill -9"] += 1

    def kill_writer(self, dice: random.Random) -> None:
        self.dismiss(dice.choice(sorted(self.writers)))
        self.employ()
        self.harm["writer kill -9"] += 1

    @property
    def faults(self) -> Counter[str]:
        return self.harm + sum((Counter(proxy.faults) for proxy in self.proxies), Counter())

    @property
    def acknowledged(self) -> int:
        journals = [path.read_bytes() for path in self.folder.iterdir()]
        return sum(text.count(b"done [") - text.count(b'done ["compact"') for text in journals)


def run(plan: Plan, servers: list[RedisServer], proxies: list[Chaos], client: Any) -> Result:
    """Let the writers write and things go wrong; then read everything back, from the servers themselves."""
    dice = random.Random(plan.seed)
    store = MemoryStore(client, prefix="stress:", ttl="7d")
    for counter in range(COUNTERS):
        store.save(f"counter {counter}", [])
        store.update(f"counter {counter}", metadata={"count": 0})
    with tempfile.TemporaryDirectory(prefix="memkit-stress-") as folder:
        going = Run(plan, servers, proxies, Path(folder))
        begun = time.monotonic()
        for _ in range(plan.writers):
            going.employ()
        try:
            while not enough(plan, going, time.monotonic() - begun):
                time.sleep(dice.uniform(0, plan.pause_s))
                going.do_harm(dice)
        finally:
            for number in list(going.writers):
                going.dismiss(number)
        for proxy in proxies:
            proxy.calm()
        result = Result(faults=going.faults, seconds=time.monotonic() - begun)
        settle(client)
        if plan.writer == "naive":
            judge(result, going.folder, lambda session_id: naive_calls(client, session_id), lambda _: 0)
        else:
            judge(result, going.folder, partial(stored_calls, store), partial(counted, store))
    return result


def enough(plan: Plan, going: Run, seconds: float) -> bool:
    if seconds < plan.seconds:
        return False
    return seconds > 600 or (going.acknowledged >= plan.acknowledged and going.faults.total() >= plan.faults)


def settle(client: Any) -> None:
    """Wait until what was under way in proxies and servers has arrived, and all servers answer."""
    deadline = time.monotonic() + 2 * TIMEOUT_S
    while time.monotonic() < deadline:
        persist(lambda: [client.exists(f"stress:session {n}") for n in range(SESSIONS)])
        time.sleep(0.02)


def stored_calls(store: MemoryStore, session_id: str) -> list[list[Any]]:
    found = store.get(session_id)
    if found:
        assert found.ttl is not None, f"{session_id} has lost its deadline"
        assert found.ttl > 86_400, f"{session_id} was not renewed"
    return list(calls_in(found.messages)) if found else []


def counted(store: MemoryStore, session_id: str) -> int:
    found = store.get(session_id)
    return int(found.metadata["count"]) if found else 0


def naive_calls(client: redis.Redis, session_id: str) -> list[list[Any]]:
    return [json.loads(element)["call"] for element in client.lrange(f"naive:{session_id}", 0, -1)]


def judge(result: Result, folder: Path, calls: Callable[[str], list[list[Any]]], counter: Callable[[str], int]) -> None:
    """Compare what writers noted with what is stored."""
    done, maybe = read_journals(folder)
    result.acknowledged, result.unknown = sum(map(len, done.values())), sum(map(len, maybe.values()))
    for session_id in sorted({*done, *maybe}):
        if session_id.startswith("counter"):
            number, acknowledged = counter(session_id), len(done[session_id])
            result.lost += max(0, acknowledged - number)
            result.over_applied += max(0, number - acknowledged - len(maybe[session_id]))
            continue
        stored = Counter(map(tuple, calls(session_id)))
        result.lost += len(done[session_id] - stored.keys())
        result.duplicated += sum(number - 1 for number in stored.values())
        result.over_applied += len(stored.keys() - done[session_id] - maybe[session_id])
        result.reordered += out_of_order([call for call in map(tuple, calls(session_id)) if call in done[session_id]])


def out_of_order(calls: list[tuple[Any, ...]]) -> int:
    """Count acknowledged calls that stand behind a later one of the same writer."""
    newest: dict[int, int] = {}
    wrong = 0
    for _, _, writer, n in calls:
        wrong += n < newest.get(writer, -1)
        newest[writer] = max(n, newest.get(writer, -1))
    return wrong


Calls = dict[str, set[tuple[Any, ...]]]


def read_journals(folder: Path) -> tuple[Calls, Calls]:
    """Return, by session, the calls that were acknowledged, and those of which nobody knows."""
    done: Calls = {}
    maybe: Calls = {}
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            what, _, text = line.partition(" ")
            call = tuple(json.loads(text))
            known, unknown = done.setdefault(call[1], set()), maybe.setdefault(call[1], set())
            if call[0] == "compact":
                continue
            unknown.add(call) if what in ("meant", "unknown") else unknown.discard(call)
            if what == "done":
                known.add(call)
    return done, maybe


def run_standalone(plan: Plan) -> Result:
    binary = every_server()[plan.server]
    with ExitStack() as stack:
        if plan.persist and binary:
            server = stack.enter_context(RedisServer(binary=binary.path, persist=True))
        else:
            server = stack.enter_context(start(plan.server))
        proxy = Chaos(server.socket_path, rate=plan.rate, delay_s=1.5 * TIMEOUT_S, seed=plan.seed)
        stack.enter_context(proxy)
        client = stack.enter_context(server.client(retry=retry()))
        return run(plan, [server], [proxy], client)


CONTROLS = {
    "a plain RPUSH duplicates": Plan(writer="naive", crashes=False, rate=0.1),
    "without an append-only file acknowledged calls are lost": Plan(persist=False),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--server", action="append", help="redis-8.2, redis-7.0, redis-6.2 or valkey-9; may be repeated"
    )
    parser.add_argument("--writer", choices=("sync", "async", "cluster"), default="sync")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--acknowledged", type=int, default=50_000)
    parser.add_argument("--faults", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    right = True
    for name in options.server or ["redis-8.2", "redis-7.0", "valkey-9"]:
        plan = Plan(name, options.writer, 6, options.seconds, options.acknowledged, options.faults, pause_s=1)
        result = run_standalone(replace(plan, seed=options.seed))
        print(f"{name} {options.writer}: {result}", flush=True)
        right &= result.clean
    for fault, plan in CONTROLS.items():
        result = run_standalone(replace(plan, seconds=5))
        print(f"control, {fault}: {result}", flush=True)
        right &= not result.clean
    print("as expected" if right else "NOT AS EXPECTED")
    return not right


if __name__ == "__main__":
    sys.exit(main())
