"""A random key prefix, enforced by the server, removed without a trace."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib import import_module

import pytest
import redis
from test_connect import NO_PERSISTENCE, bare_server
from waiting import nothing, wait_for

from memkit import AsyncMemoryStore, MemoryStore, Sandbox
from memkit.errors import ProductionGuardError, SandboxError
from memkit.server.guard import REGISTRY
from memkit.server.sandbox import Lease, _machine, _process_started, remove_ended_runs


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


def test_commands_outside_the_sandbox_are_refused(any_server, admin):
    with Sandbox(any_server) as sandbox, sandbox.client(decode_responses=True) as client:
        own = f"{sandbox.prefix}own"
        client.set(own, 1)
        for command in OUTSIDE:
            with pytest.raises(redis.ResponseError):
                client.execute_command(*(part.replace("{own}", own) for part in command))
        assert client.get(own) == "1"
    assert admin.keys("*") == ["foreign"]
    assert admin.get("foreign") == "theirs"


def refused(client, own):
    """What leaves the sandbox, each in another way that redis-py has of sending a command and reading its answer."""
    script = "return redis.call('GET', 'foreign')"
    return [
        lambda: client.set("foreign", 1),
        lambda: client.pipeline().set("foreign", 1).execute(),
        lambda: client.pipeline().set(own, 1).set("foreign", 1).execute(),
        lambda: client.pipeline(transaction=True).set("foreign", 1).execute(),
        lambda: client.pipeline(transaction=True).execute_command("EVAL", script, 1, own).execute(),
        lambda: client.eval(script, 1, own),
        client.flushall,
    ]


def assert_told(sandbox, **options):
    with sandbox.client(**options) as client:
        for call in refused(client, f"{sandbox.prefix}own"):
            with pytest.raises(SandboxError, match=f"outside the sandbox.*{sandbox.prefix}") as caught:
                call()
            assert str(caught.value).count("outside") == 1
        client.set(f"{sandbox.prefix}own", 1)
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            client.pipeline().rpush(f"{sandbox.prefix}own", 1).execute()


async def assert_told_async(sandbox, **options):
    async with sandbox.async_client(**options) as client:
        for call in refused(client, f"{sandbox.prefix}own"):
            with pytest.raises(SandboxError, match=f"outside the sandbox.*{sandbox.prefix}") as caught:
                await call()
            assert str(caught.value).count("outside") == 1
        await client.set(f"{sandbox.prefix}own", 1)
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            await client.pipeline().rpush(f"{sandbox.prefix}own", 1).execute()


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_refusal_is_explained(any_server, protocol):
    with Sandbox(any_server) as sandbox:
        assert_told(sandbox, protocol=protocol)
        asyncio.run(assert_told_async(sandbox, protocol=protocol))


def test_usual_commands_are_allowed(any_server):
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
            assert events.get_message(timeout=120)["type"] == "psubscribe"
        assert client.eval("return redis.call('LLEN', KEYS[1])", 1, own) == 2
        with client.pipeline() as pipe:
            assert pipe.ttl(own).exists(own).execute() == [60, 1]


def test_every_type_of_key_is_removed(any_server, admin):
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
        client.set(f"{prefix}expired", 1, px=1)
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
        inside = MemoryStore(client, prefix="a:", ttl=None)
        assert inside.prefix == f"{sandbox.prefix}a:"
        assert MemoryStore(client, prefix=inside.prefix, ttl=None).prefix == inside.prefix


def test_its_clock_shifts_vectors_too(memkit_server):
    with memkit_server.client() as admin, Sandbox(memkit_server.url) as sandbox, sandbox.client() as client:
        admin.set("foreign", 1, ex=600)
        store = MemoryStore(client, prefix="session:", ttl="1h")
        store.save("s", [{"n": 1}])
        store.put_vectors("s", array("f", [1.0]))
        assert sandbox.clock.method == "deadline shift"
        sandbox.clock.shift("50m")
        names = sandbox.keys()
        assert [client.ttl(name) for name in names] == pytest.approx([600, 600], abs=60)
        sandbox.clock.shift("11m")
        assert sandbox.keys() == []
        assert admin.ttl("foreign") > 500
        admin.delete("foreign")


def test_a_sandbox_s_clock_adds_up_its_shifts(real):
    client, url = real
    with Sandbox(url) as sandbox, sandbox.client() as mine:
        mine.set(f"{sandbox.prefix}k", 1, ex=8 * 86_400)
        sandbox.clock.shift("1d")
        assert sandbox.clock.offset == timedelta(days=1)
        then = sandbox.clock.now() + timedelta(days=1)
        sandbox.clock.move_to(then)
        sandbox.clock.move_to(then)
        assert 6 * 86_400 - 60 < mine.ttl(f"{sandbox.prefix}k") <= 6 * 86_400
    wait_for("no connection of the sandbox", lambda: named(client, "memkit-test-"), nothing)


def named(client, prefix):
    """Return the names of connections that begin with a prefix."""
    return [one["name"] for one in client.client_list() if one["name"].startswith(prefix)]


def test_asyncio_clients_close_with_their_loop(memkit_server):
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


def test_only_the_url_s_database_can_be_selected(any_server):
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


def test_removal_reads_no_foreign_key(memkit_server_factory):
    """200,000 foreign keys add no command, and there is no SCAN; bench_sandbox.py measures the time."""
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


def killed_run(url, *, keys=50):
    """A process that fills a sandbox and is SIGKILLed; returns its prefix."""
    script = (
        "import os, signal, sys\nfrom memkit import Sandbox\nsandbox = Sandbox(sys.argv[1]).open()\n"
        "client = sandbox.client()\n"
        f"for n in range({keys}): client.set(f'{{sandbox.prefix}}{{n}}', n)\n"
        "client.set(sandbox.prefix.encode() + b'\\xff', 'no UTF-8')\n"
        "print(sandbox.prefix, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def test_only_a_killed_run_s_sandbox_is_reaped(memkit_server_factory):
    server = memkit_server_factory()  # its own: a worker may keep a sandbox on the shared one
    with server.client(decode_responses=True) as admin, Sandbox(server) as neighbour:
        neighbour.client().set(f"{neighbour.prefix}k", 1)
        killed = killed_run(server.url, keys=49)
        assert admin.dbsize() == 50 + len(["the neighbour's", REGISTRY])
        with Sandbox(server):
            assert list(admin.scan_iter(match=f"{killed}*")) == []
            assert neighbour.keys() == [f"{neighbour.prefix}k"]
            users = set(admin.acl_users())
            assert f"memkit-test-{killed.split(':')[1]}" not in users
            assert len(users) == 3


def lease_of(user, prefix, **changed):
    machine, pid, started = _machine(), os.getpid(), _process_started(os.getpid())
    fields = {"machine": machine, "pid": pid, "started": started, "until_ms": 0} | changed
    return json.dumps({"user": user, "prefix": prefix, **fields})


@pytest.mark.parametrize(
    ("changed", "over"),
    [
        ({}, False),  # a running process here, even if its lease is late
        ({"started": "1"}, True),  # its PID is another process's now
        ({"pid": 2**22 + 1}, True),
        ({"machine": "elsewhere", "until_ms": 2**50}, False),
        ({"machine": "elsewhere"}, True),
    ],
)
def test_a_sandbox_is_reaped_if_its_process_has_ended(memkit_server, changed, over):
    user, prefix = "memkit-test-0123456789ab", "memkit-test:0123456789ab:"
    with memkit_server.client(decode_responses=True) as admin:
        admin.set(f"{prefix}1", 1)
        admin.hset(REGISTRY, user, lease_of(user, prefix, **changed))
        assert remove_ended_runs(admin) == ([prefix] if over else [])
        assert admin.exists(f"{prefix}1") == (not over)
        admin.delete(f"{prefix}1", REGISTRY)


@pytest.mark.parametrize("prefix", ["", "session:", "memkit-test:", "memkit-test:ffffffffffff:"])
def test_a_foreign_registry_entry_removes_nothing(memkit_server, prefix):
    user = "memkit-test-0123456789ab"
    with memkit_server.client(decode_responses=True) as admin:
        admin.set(f"{prefix}1", "theirs")
        admin.hset(REGISTRY, user, lease_of(user, prefix, started="1"))
        assert remove_ended_runs(admin) == []
        assert admin.exists(f"{prefix}1")
        admin.delete(f"{prefix}1", REGISTRY)


def test_the_lease_is_renewed(memkit_server, monkeypatch):
    monkeypatch.setattr("memkit.server.sandbox.RENEW_EVERY_S", 0.01)
    with memkit_server.client(decode_responses=True) as admin, Sandbox(memkit_server) as sandbox:
        user = sandbox.url.split("://")[1].split(":")[0]
        first = Lease(**json.loads(admin.hget(REGISTRY, user))).until_ms
        wait_for(
            "a later end of the lease",
            lambda: Lease(**json.loads(admin.hget(REGISTRY, user))).until_ms,
            lambda until_ms: until_ms > first,
        )


def test_a_killed_server_is_no_error_at_the_end(memkit_server_factory):
    server = memkit_server_factory()
    with Sandbox(server) as sandbox:
        sandbox.client().set(f"{sandbox.prefix}k", 1)
        server.kill()


@pytest.mark.parametrize("denied", ["-acl", "-@hash"])
def test_an_account_without_the_rights_is_an_error(memkit_server, denied):
    with memkit_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "plain", "on", ">secret", "~*", "&*", "+@all", denied)
        url = memkit_server.url.replace("unix://", "unix://plain:secret@")
        with pytest.raises(SandboxError, match="ACL") as caught:
            Sandbox(url).open()
        assert "secret" not in str(caught.value)
        admin.acl_deluser("plain")
        assert admin.keys("*") == []


def test_a_forked_child_removes_nothing(memkit_server):
    with Sandbox(memkit_server) as sandbox:
        sandbox.client().set(f"{sandbox.prefix}k", 1)
        pid = os.fork()
        if not pid:
            sandbox.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert sandbox.keys() == [f"{sandbox.prefix}k"]


@pytest.fixture(scope="module")
def bare():
    with bare_server(*NO_PERSISTENCE) as port, redis.Redis(port=port, db=15, decode_responses=True) as client:
        yield client, f"redis://127.0.0.1:{port}/15"


@pytest.fixture
def real(bare, monkeypatch):
    """An empty loopback server that memkit did not start, and its URL: nothing has to be allowed."""
    client, url = bare
    monkeypatch.delenv("MEMKIT_ALLOW", raising=False)
    yield client, url
    assert client.keys("*") == []
    assert client.acl_users() == ["default"]


def test_sandboxes_are_no_sign_of_use(real):
    client, url = real
    with contextlib.ExitStack() as stack:
        for _ in range(4):  # each with three connections and more
            sandbox = stack.enter_context(Sandbox(url))
            mine = stack.enter_context(sandbox.client())
            store = MemoryStore(mine, prefix="a:", ttl=60)
            store.save("s", [])
            store.put_vectors("s", array("f", [1.0]))
            assert sandbox.clock.now()
            assert stack.enter_context(redis.Redis.from_url(sandbox.url)).ping()
        assert client.dbsize() == 4 * 2 + len([REGISTRY])


def test_parallel_sandboxes_are_not_foreign(real):
    _, url = real

    def come_and_go(_):
        for _ in range(8):
            with Sandbox(url) as sandbox, sandbox.client() as client:
                client.set(f"{sandbox.prefix}k", 1)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(come_and_go, range(6)))


@pytest.mark.parametrize("closes", [False, True])
def test_a_sandbox_opened_during_the_guard_is_known(real, monkeypatch, closes):
    _, url = real
    connect = import_module("memkit.server.guard")
    scan, neighbours = connect.scan, [Sandbox(url)]

    def scan_while_a_neighbour_comes(node):
        neighbour = neighbours.pop()
        monkeypatch.setattr(connect, "scan", scan)
        with neighbour.open().client() as client:
            client.set(f"{neighbour.prefix}k", 1)
        names = list(scan(node))
        if closes:
            neighbour.close()
        else:
            stack.callback(neighbour.close)
        assert f"{neighbour.prefix}k".encode() in names
        yield from names

    with contextlib.ExitStack() as stack:
        monkeypatch.setattr(connect, "scan", scan_while_a_neighbour_comes)
        stack.enter_context(Sandbox(url))
    assert not neighbours


@pytest.mark.parametrize(
    "name", ["theirs", "memkit-test:fedcba987654:k", "memkit-test:k", "memkit-sandboxes2", b"\xff"]
)
def test_foreign_keys_are_seen_beside_a_sandbox(real, name):
    client, url = real
    killed = killed_run(url)
    client.set(name, 1)
    before = client.dbsize()
    with pytest.raises(ProductionGuardError, match="this database has 1 key outside.*MEMKIT_ALLOW=127"), Sandbox(url):
        pass
    assert client.dbsize() == before
    assert len(client.acl_users()) == 2
    client.delete(name)
    with Sandbox(url):
        assert list(client.scan_iter(f"{killed}*")) == []


def test_many_clients_are_seen_beside_a_sandbox(real):
    client, url = real
    with Sandbox(url), contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(redis.Redis.from_url(url)).ping()
        assert client.ping()
        with pytest.raises(ProductionGuardError, match="it has 5 other clients.") as caught, Sandbox(url):
            pass
        assert "outside memkit's sandboxes" not in str(caught.value)


def test_the_count_of_foreign_keys_is_limited(real):
    client, url = real
    client.eval("for i = 1, 20000 do redis.call('SET', 'foreign:' .. i, i) end", 0)
    client.config_resetstat()
    with pytest.raises(ProductionGuardError, match="more than 1,000 keys outside"), Sandbox(url):
        pass
    assert client.info("commandstats")["cmdstat_scan"]["calls"] < 5
    client.flushdb()


def cut_off(server):
    """Be a network that drops every connection."""
    with server.client() as admin:
        assert admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") > 1


def test_keys_written_during_a_lost_connection(any_server, admin):
    with Sandbox(any_server) as sandbox:
        for name in "abc":
            with sandbox.client() as client:
                client.set(f"{sandbox.prefix}{name}", 1)
            if name == "a":
                cut_off(any_server)
            else:
                assert sandbox.keys() == [f"{sandbox.prefix}{letter}" for letter in "abc" if letter <= name]
    assert admin.keys("*") == ["foreign"]
    assert admin.acl_users() == ["default"]


def test_tracking_resumes_after_a_lost_connection(any_server, admin, monkeypatch):
    monkeypatch.setattr("memkit.server.sandbox.RENEW_EVERY_S", 0.01)
    with Sandbox(any_server) as sandbox:
        cut_off(any_server)
        with sandbox.client() as client:
            client.set(f"{sandbox.prefix}meanwhile", 1)
        wait_for(
            "a connection that tracks keys by broadcast (flag B)",
            lambda: [one["flags"] for one in admin.client_list()],
            lambda seen: any("B" in flags for flags in seen),
        )
        with sandbox.client() as client:
            client.set(f"{sandbox.prefix}after", 1)
    assert admin.keys("*") == ["foreign"]
    assert admin.acl_users() == ["default"]


def test_close_right_after_a_lost_connection(any_server, admin):
    with Sandbox(any_server) as sandbox:
        cut_off(any_server)
        with sandbox.client() as client:
            client.set(f"{sandbox.prefix}k", 1)
    assert admin.keys("*") == ["foreign"]
    assert admin.acl_users() == ["default"]


def write_each(client, prefix, number, *, keys):
    """Write one key at a time, each in a turn of the server's own, so that it is pushed alone; no answer is read."""
    connection = client.connection_pool.get_connection()
    for n in range(number):
        connection.send_command("SET", f"{prefix}{n % keys}", n)
        connection.read_response()
    client.connection_pool.release(connection)


@pytest.mark.parametrize("keys", [1, 3_000])
def test_thousands_of_pushes_in_a_row_are_read(real, keys, monkeypatch):
    """Over 1,000: as many pushes in a row are more than redis-py's own reading of them lets Python nest."""
    client, url = real
    monkeypatch.setattr("memkit.server.sandbox.RENEW_EVERY_S", 3600)
    with Sandbox(f"{url}?health_check_interval=1") as sandbox, sandbox.client() as mine:
        write_each(mine, sandbox.prefix, 3_000, keys=keys)
        sandbox._host._trackers[0]._connection.next_health_check = 0  # the moment has come
        assert len(sandbox.keys()) == keys
        write_each(mine, f"{sandbox.prefix}more:", 3_000, keys=keys)
        assert client.dbsize() == 2 * keys + len([REGISTRY])


def test_the_lease_is_renewed_during_many_writes(any_server, admin, monkeypatch):
    monkeypatch.setattr("memkit.server.sandbox.RENEW_EVERY_S", 3.0)
    with Sandbox(any_server) as sandbox, sandbox.client() as client:
        write_each(client, sandbox.prefix, 3_000, keys=1)
        wait_for(
            "no byte that a connection has not read",
            lambda: sum(int(one["omem"]) for one in admin.client_list()),
            nothing,
        )
        wait_for("the names of the keys that were written", lambda: sandbox._host._trackers[0]._names)
        assert any(thread.name == f"memkit-test-{sandbox._host.token}-renewal" for thread in threading.enumerate())
    assert admin.keys("*") == ["foreign"]


def test_a_long_chat_leaves_no_key(real):
    client, url = real
    with Sandbox(url) as sandbox, sandbox.client(decode_responses=True) as mine:
        store = MemoryStore(mine, prefix="session:", ttl="7d")
        for n in range(1_500):
            store.append("s", {"role": "user", "content": str(n)})
        assert len(store.load("s")) == 1_500
    assert client.dbsize() == 0
