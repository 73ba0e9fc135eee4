"""A prefix nobody else has, enforced by the server, removed without a trace."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from array import array

import pytest
import redis

from memkit import AsyncMemoryStore, MemoryStore, Sandbox
from memkit.connect import REGISTRY
from memkit.errors import SandboxError
from memkit.sandbox import Lease, _this_process, reap


@pytest.fixture
def admin(any_server):
    with any_server.client(decode_responses=True) as client:
        client.set("foreign", "theirs")
        yield client


OUTSIDE = [
    ("SET", "foreign", "mine"), ("GET", "foreign"), ("DEL", "foreign"), ("RENAME", "{own}", "foreign"),
    ("COPY", "{own}", "foreign"), ("COPY", "{own}", "{own}2", "DB", "3"), ("SELECT", "3"), ("MOVE", "{own}", "3"),
    ("SWAPDB", "0", "1"), ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "dir"), ("CONFIG", "SET", "hz", "1"),
    ("ACL", "LIST"), ("ACL", "WHOAMI"), ("MONITOR",), ("KEYS", "*"), ("RANDOMKEY",), ("SCRIPT", "FLUSH"),
    ("EVAL", "return redis.call('GET', 'foreign')", "0"), ("EVAL", "return redis.call('SELECT', '3')", "0"),
    ("EVAL", "return redis.call('FLUSHALL')", "0"), ("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"),
    ("SORT", "foreign"), ("SHUTDOWN", "NOSAVE"), ("SAVE",), ("BGREWRITEAOF",), ("DEBUG", "SLEEP", "0"),
    ("PUBLISH", "x", "y"), ("REPLICAOF", "NO", "ONE"), ("MIGRATE", "h", "1", "foreign", "0", "1"),
    ("OBJECT", "ENCODING", "foreign"), ("TTL", "foreign"), ("EXPIRE", "foreign", "1"), ("SLOWLOG", "RESET"),
    ("FUNCTION", "FLUSH"), ("CLUSTER", "RESET"), ("LATENCY", "RESET"), ("MEMORY", "USAGE", "foreign"),
]  # fmt: skip


def test_nothing_outside_can_be_reached(any_server, admin):
    with Sandbox(any_server) as sandbox, sandbox.client(decode_responses=True) as client:
        own = f"{sandbox.prefix}own"
        client.set(own, 1)
        for command in OUTSIDE:
            with pytest.raises(redis.ResponseError):
                client.execute_command(*(part.replace("{own}", own) for part in command))
        assert client.get(own) == "1"
    assert admin.keys("*") == ["foreign"]
    assert admin.get("foreign") == "theirs"


def test_the_refusal_is_told_in_memkits_words(memkit_server):
    with Sandbox(memkit_server) as sandbox, sandbox.client() as client:
        for refused in (
            lambda: client.set("foreign", 1),
            lambda: client.pipeline().set("foreign", 1).execute(),
            lambda: client.eval("return redis.call('GET', 'foreign')", 0),
            client.flushall,
        ):
            with pytest.raises(SandboxError, match=f"outside the sandbox.*{sandbox.prefix}"):
                refused()


def test_what_tests_need_is_allowed(any_server):
    with Sandbox(any_server) as sandbox, sandbox.client(decode_responses=True) as client:
        own = f"{sandbox.prefix}own"
        client.rpush(own, 1, 2)
        client.pexpire(own, 60_000)
        assert client.object("encoding", own)
        assert client.memory_usage(own)
        assert client.info("server")["process_id"] == any_server.pid
        assert own in client.scan_iter(match=f"{sandbox.prefix}*")
        with client.pubsub() as events:
            events.psubscribe(f"__keyspace@0__:{sandbox.prefix}*")
            assert events.get_message(timeout=5)["type"] == "psubscribe"
        assert client.eval("return redis.call('LLEN', KEYS[1])", 1, own) == 2
        with client.pipeline() as pipe:
            assert pipe.ttl(own).exists(own).execute() == [60, 1]


def test_every_kind_of_key_is_removed_and_no_trace_is_left(any_server, admin):
    with Sandbox(any_server) as sandbox, sandbox.client() as client:
        prefix = sandbox.prefix
        client.set(f"{prefix}string", 1)
        client.hset(f"{prefix}hash", "f", 1)
        client.sadd(f"{prefix}set", 1)
        client.zadd(f"{prefix}zset", {"m": 1})
        client.xadd(f"{prefix}stream", {"f": 1})
        client.set(f"{prefix}\xff binary \n*?[]\\".encode("latin-1"), 1)
        client.set(f"{prefix}renamed from", 1)
        client.rename(f"{prefix}renamed from", f"{prefix}renamed to")
        client.eval("redis.call('SET', ARGV[1], 1)", 0, f"{prefix}by a script, undeclared")
        client.set(f"{prefix}gone", 1, px=1)
        assert len(sandbox.keys()) >= 8
    assert admin.keys("*") == ["foreign"]
    assert admin.acl_users() == ["default"]


def test_clients_of_a_closed_sandbox_are_locked_out(memkit_server):
    with Sandbox(memkit_server) as sandbox:
        client = sandbox.client()
        client.set(f"{sandbox.prefix}k", 1)
    with pytest.raises(redis.RedisError):
        client.set(f"{sandbox.prefix}k", 1)
    client.close()
    with pytest.raises(SandboxError, match="not open"):
        sandbox.keys()


def test_a_stores_prefix_nests_and_nests_once(memkit_server):
    with Sandbox(memkit_server) as sandbox, sandbox.client() as client:
        inside = MemoryStore(client, prefix="a:")
        assert inside.prefix == f"{sandbox.prefix}a:"
        assert MemoryStore(client, prefix=inside.prefix).prefix == inside.prefix


def test_on_another_server_its_clock_shifts_its_own_keys_vectors_included(memkit_server):
    with memkit_server.client() as admin, Sandbox(memkit_server.url) as sandbox, sandbox.client() as client:
        admin.set("foreign", 1, ex=60)
        store = MemoryStore(client, prefix="session:", ttl="1h")
        store.save("s", [{"n": 1}])
        store.put_vectors("s", array("f", [1.0]))
        assert sandbox.clock.rung == "deadline shift"
        sandbox.clock.shift("50m")
        names = sandbox.keys()
        assert [client.ttl(name) for name in names] == [600, 600]
        sandbox.clock.shift("11m")
        assert sandbox.keys() == []
        assert admin.ttl("foreign") > 50
        admin.delete("foreign")


def test_asyncio_clients_are_held_too_and_close_with_their_loop(memkit_server):
    async def use(sandbox):
        client = sandbox.async_client()
        store = AsyncMemoryStore(client, prefix="a:", ttl=60)
        await store.append("s", {"n": 1})
        with pytest.raises(SandboxError, match="outside"):
            await client.set("foreign", 1)
        return await store.load("s")

    with Sandbox(memkit_server) as sandbox:
        assert asyncio.run(use(sandbox)) == [{"n": 1}]
        assert asyncio.run(use(sandbox)) == [{"n": 1}, {"n": 1}]


def test_another_database_is_selected_and_no_other(any_server):
    url = any_server.url.replace("db=0", "db=9")
    with Sandbox(url) as sandbox, sandbox.client() as client:
        client.set(f"{sandbox.prefix}k", 1)
        with any_server.client() as zero, redis.Redis.from_url(url) as nine:
            assert zero.dbsize() == 0
            assert nine.exists(f"{sandbox.prefix}k")
        with pytest.raises(SandboxError):
            client.select(0)
    with redis.Redis.from_url(url) as nine:
        assert nine.dbsize() == 0


def test_removal_looks_at_no_foreign_key(memkit_server_factory):
    """As many commands beside 200,000 foreign keys as beside none, and no SCAN; bench_sandbox.py times it."""
    server = memkit_server_factory()

    def commands_of_a_sandbox():
        with server.client() as admin:
            admin.config_resetstat()
            with Sandbox(server) as sandbox, sandbox.client() as client:
                client.mset({f"{sandbox.prefix}{n}": n for n in range(200)})
            stats = admin.info("commandstats")
            return {name: count["calls"] for name, count in stats.items() if "info" not in name}

    alone = commands_of_a_sandbox()
    with server.client() as client:
        client.eval("for i = 1, 200000 do redis.call('SET', 'foreign:' .. i, i) end", 0)
        assert commands_of_a_sandbox() == alone
        assert client.dbsize() == 200_000
    assert alone["cmdstat_unlink"] == 200
    assert not {"cmdstat_scan", "cmdstat_keys"} & set(alone)


def killed_run(server, *, keys=50):
    """A process that fills a sandbox and is SIGKILLed; returns its prefix."""
    script = (
        "import os, signal, sys\nfrom memkit import Sandbox\nsandbox = Sandbox(sys.argv[1]).open()\n"
        "client = sandbox.client()\n"
        f"for n in range({keys}): client.set(f'{{sandbox.prefix}}{{n}}', n)\n"
        "print(sandbox.prefix, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, server.url], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def test_a_killed_runs_sandbox_is_reaped_by_the_next_and_a_living_neighbours_is_not(memkit_server):
    with memkit_server.client(decode_responses=True) as admin, Sandbox(memkit_server) as neighbour:
        neighbour.client().set(f"{neighbour.prefix}k", 1)
        dead = killed_run(memkit_server)
        assert len(list(admin.scan_iter(match=f"{dead}*"))) == 50
        with Sandbox(memkit_server):
            assert list(admin.scan_iter(match=f"{dead}*")) == []
            assert neighbour.keys() == [f"{neighbour.prefix}k"]
            users = set(admin.acl_users())
            assert f"memkit-test-{dead.split(':')[1]}" not in users
            assert len(users) == 3


def lease_of(prefix, **changed):
    machine, pid, started = _this_process()
    fields = {"machine": machine, "pid": pid, "started": started, "until_ms": 0} | changed
    return json.dumps({"user": f"user-of-{prefix}", "prefix": prefix, **fields})


@pytest.mark.parametrize(
    ("changed", "over"),
    [
        ({}, False),  # a living process here, however late its lease
        ({"started": "1"}, True),  # its PID is another process's now
        ({"pid": 2**22 + 1}, True),
        ({"machine": "elsewhere", "until_ms": 2**50}, False),
        ({"machine": "elsewhere"}, True),
    ],
)
def test_who_is_reaped(memkit_server, changed, over):
    with memkit_server.client(decode_responses=True) as admin:
        admin.set("left:1", 1)
        admin.hset(REGISTRY, "user-of-left:", lease_of("left:", **changed))
        assert reap(admin) == (["left:"] if over else [])
        assert admin.exists("left:1") == (not over)
        admin.delete("left:1", REGISTRY)


def test_the_lease_is_renewed(memkit_server, monkeypatch):
    monkeypatch.setattr("memkit.sandbox.RENEW_EVERY_S", 0.01)
    with memkit_server.client(decode_responses=True) as admin, Sandbox(memkit_server) as sandbox:
        user = sandbox.url.split("://")[1].split(":")[0]
        first = Lease(**json.loads(admin.hget(REGISTRY, user))).until_ms
        deadline = time.monotonic() + 10
        while Lease(**json.loads(admin.hget(REGISTRY, user))).until_ms == first:
            assert time.monotonic() < deadline
            threading.Event().wait(0.005)


def test_a_server_that_is_killed_meanwhile_is_no_error(memkit_server_factory):
    server = memkit_server_factory()
    with Sandbox(server) as sandbox:
        sandbox.client().set(f"{sandbox.prefix}k", 1)
        server.kill()


def test_an_account_that_may_not_make_users_is_told(memkit_server):
    with memkit_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "plain", "on", ">secret", "~*", "&*", "+@all", "-acl|setuser", "-acl")
        url = memkit_server.url.replace("unix://", "unix://plain:secret@")
        with pytest.raises(SandboxError, match="ACL") as caught:
            Sandbox(url).open()
        assert "secret" not in str(caught.value)
        admin.acl_deluser("plain")
        assert admin.keys("*") == []


def test_a_forked_child_does_not_remove_its_parents(memkit_server):
    with Sandbox(memkit_server) as sandbox:
        sandbox.client().set(f"{sandbox.prefix}k", 1)
        pid = os.fork()
        if not pid:
            sandbox.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert sandbox.keys() == [f"{sandbox.prefix}k"]
