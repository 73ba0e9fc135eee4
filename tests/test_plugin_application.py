"""The application fixtures: any key names, any client, a keyspace that is empty at the start of each test."""

import os
import subprocess
import sys

import pytest
import redis
from servers import with_modules
from test_connect import NO_PERSISTENCE, bare_server
from test_plugin import ASYNCIO

pytest_plugins = ("pytester",)

ANY_APPLICATION = """
    import asyncio, os, threading
    import pytest, redis, redis.asyncio

    @pytest.mark.parametrize("n", range(3))
    def test_each_test_starts_empty(redis_client, n):
        assert redis_client.keys("*") == []
        assert redis_client.set("chat:user-42", n, nx=True)

    def test_the_three_share_one_keyspace(redis_client, async_redis_client, redis_client_url):
        assert type(redis_client) is redis.Redis
        assert type(async_redis_client) is redis.asyncio.Redis
        redis_client.set("k", "v")
        assert asyncio.run(async_redis_client.get("k")) == b"v"
        assert asyncio.run(async_redis_client.get("k")) == b"v"
        with redis.Redis.from_url(redis_client_url, decode_responses=True) as own:
            assert own.get("k") == "v"
            assert redis_client_url.startswith("redis://")
            assert own.connection_pool.connection_kwargs["port"]

    def test_commands_of_all_kinds(redis_client, redis_client_url, monkeypatch):
        monkeypatch.setenv("REDIS_URL", redis_client_url)
        pool = redis.BlockingConnectionPool.from_url(os.environ["REDIS_URL"], max_connections=2)
        application = redis.Redis(connection_pool=pool, decode_responses=True)
        with redis_client.pipeline() as pipe:
            assert pipe.set("a", 1).incr("a").sort("l").execute() == [True, 2, []]
        assert application.eval("return redis.call('INCRBY', KEYS[1], ARGV[1])", 1, "a", 5) == 7
        assert redis_client.register_script("return redis.call('GET', 'a')")() == b"7"
        assert set(application.scan_iter("*")) == {b"a"} or set(application.scan_iter("*")) == {"a"}
        redis_client.xadd("stream", {"f": "v"})
        redis_client.xgroup_create("stream", "workers", id="0")
        assert len(redis_client.xreadgroup("workers", "me", {"stream": ">"})[0][1]) == 1
        with application.pubsub(ignore_subscribe_messages=True) as events:
            events.subscribe("any channel")
            events.get_message(timeout=120)
            assert redis_client.publish("any channel", "hi") == 1
            assert events.get_message(timeout=120)["data"] in (b"hi", "hi")
        assert redis_client.flushdb()
        assert application.dbsize() == 0
        pool.disconnect()

    def test_the_clock_moves(redis_client, redis_client_url, memkit_clock):
        redis_client.set("short", 1, ex=60)
        redis_client.set("long", 1, ex=86_400)
        memkit_clock.shift("2h")
        with redis.Redis.from_url(redis_client_url) as own:
            assert own.get("short") is None
            assert 79_100 < own.ttl("long") <= 79_200
        assert redis_client.keys("*") == [b"long"]

    def test_the_clock_was_set_back(redis_client, memkit_clock):
        assert memkit_clock.offset.total_seconds() == 0
        assert redis_client.dbsize() == 0

    async def test_asyncio(async_redis_client):
        await async_redis_client.set("k", "v")
        assert await async_redis_client.get("k") == b"v"
        assert await async_redis_client.dbsize() == 1
"""


@pytest.fixture(autouse=True)
def _only_memkit(pytester, monkeypatch):  # noqa: ARG001  # pytester unsets PYTEST_ADDOPTS: after it
    for name in ("CI", "MEMKIT_REDIS_URL", "MEMKIT_ALLOW", "MEMKIT_REDIS_SERVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_URL", "redis://localhost:1/0")  # never used by the fixtures
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    # Plain tracebacks: pytest parses the source of each module in one, such as redis-py's (1 s of CPU each).
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p memkit.pytest_plugin -p no:cacheprovider --tb=native")


@pytest.fixture(scope="module")
def dedicated():
    with bare_server(*NO_PERSISTENCE) as port, redis.Redis(port=port, db=15, decode_responses=True) as client:
        yield client, f"redis://localhost:{port}/15"


def test_on_a_private_server(pytester):
    pytester.makepyfile(ANY_APPLICATION)
    pytester.runpytest_subprocess(*ASYNCIO, "-W", "error").assert_outcomes(passed=8)


def test_on_a_dedicated_database(pytester, dedicated):
    client, url = dedicated
    with redis.Redis.from_url(url.replace("/15", "/3")) as other:
        other.set("chat:user-42", "theirs", ex=3600)
        pytester.makepyfile(ANY_APPLICATION)
        pytester.runpytest_subprocess(f"--real-redis={url}", *ASYNCIO, "-W", "error").assert_outcomes(passed=8)
        assert other.get("chat:user-42") == b"theirs"
        assert other.ttl("chat:user-42") > 3500
        other.flushdb()
    assert client.keys("*") == []
    assert client.acl_users() == ["default"]
    assert not {"cmdstat_flushall", "cmdstat_monitor"} & set(client.info("commandstats"))


def test_workers_do_not_meet(pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", range(40))
        def test_one(redis_client, n):
            assert redis_client.set("same", n, nx=True)
            assert redis_client.incr("count") == 1
        """
    )
    pytester.runpytest_subprocess("-p", "xdist", "-n", "2").assert_outcomes(passed=40)


LEAVES_CHANGES = """
    import pytest, redis

    @pytest.mark.parametrize("command", [
        "CLIENT PAUSE 60000", "CONFIG SET maxmemory 1mb", "CONFIG SET requirepass secret", "CONFIG RESETSTAT",
        "ACL SETUSER default -set", "SHUTDOWN NOSAVE", "SAVE", "CLIENT KILL TYPE normal SKIPME no",
    ])
    def test_changes(redis_client, redis_client_url, command):
        redis_client.select if command else None
        assert redis_client.set("k", 1, nx=True)
        assert redis_client.config_get("maxmemory") == {"maxmemory": "0"}
        with redis.Redis.from_url(redis_client_url.replace("/0", "/5")) as other:
            assert other.set("k", 1, nx=True)
        try:
            redis_client.execute_command(*command.split())
        except redis.ConnectionError:
            pass
"""


def test_changes_of_the_server_do_not_last(pytester):
    pytester.makepyfile(LEAVES_CHANGES)
    pytester.runpytest_inprocess().assert_outcomes(passed=8)


def test_threads_of_earlier_tests_take_nothing(pytester):
    pytester.makepyfile(
        """
        import threading
        import pytest, redis

        def wait_for_a_job(url):
            with redis.Redis.from_url(url) as own:
                assert own.blpop("jobs") is None

        @pytest.mark.parametrize("job", [b"1", b"2"])
        def test_jobs(redis_client, redis_client_url, job):
            redis_client.rpush("jobs", job)
            assert redis_client.lpop("jobs") == job
            threading.Thread(target=wait_for_a_job, args=(redis_client_url,), daemon=True).start()
            while not redis_client.info("clients")["blocked_clients"]:
                pass

        def test_the_last_wait_has_ended(redis_client):
            while redis_client.info("clients")["blocked_clients"]:
                pass
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*in thread*")


OTHER_CLIENTS = """
    import pytest
    from redis.cluster import RedisCluster
    from redis.sentinel import Sentinel

    def test_cluster(redis_client_url):
        RedisCluster.from_url(redis_client_url)

    def test_sentinel(redis_client, redis_client_url):
        Sentinel([redis_client_url[8:-2].split(":")]).discover_master("mymaster")

    def test_cluster_of_one_node(memkit_server_factory):
        server = memkit_server_factory(port=0, config={"cluster-enabled": "yes"})
        with server.client() as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE 0 16383")
        server.clock.shift("3s")  # a new cluster refuses writes for two seconds
        with RedisCluster.from_url(server.url) as application:
            application.set("k", "v", ex=60)
            server.clock.shift("2m")
            assert application.get("k") is None

    def test_replaced_discovery(redis_client, redis_client_url, monkeypatch):
        monkeypatch.setattr(Sentinel, "discover_master", lambda self, name: redis_client_url[8:-2].split(":"))
        Sentinel([("sentinel.internal", 26379)]).master_for("mymaster").set("k", "v")
        assert redis_client.get("k") == b"v"
"""


def test_cluster_and_sentinel_clients_get_advice(pytester):
    pytester.makepyfile(OTHER_CLIENTS)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*memkit: redis_client_url is one server, no cluster or Sentinel; see README*"] * 2)


def test_changes_beside_the_clock_do_not_last(pytester):
    pytester.makepyfile(
        """
        import os

        def test_changes(redis_client, memkit_clock):
            redis_client.config_set("maxmemory", 1)

        def test_next(redis_client, memkit_clock):
            assert redis_client.config_get("maxmemory") == {"maxmemory": "0"}
            os.environ["PID_BEFORE"] = str(redis_client.info("server")["process_id"])

        def test_no_restart_without_a_change(redis_client):
            assert os.environ.pop("PID_BEFORE") == str(redis_client.info("server")["process_id"])
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=3)


@pytest.mark.parametrize("how", ["os.kill(server.pid, signal.SIGKILL); wait_for_end(server)", "server.restart()"])
def test_after_a_server_ended_the_next_test_has_one(pytester, how):
    pytester.makepyfile(
        f"""
        import os, signal, time

        def wait_for_end(server):
            while server.running:
                pass

        def test_ends(memory_store, redis_client, memkit_server, memkit_clock, _memkit_keyspace):
            memkit_clock.shift("1d")
            for server in (memkit_server, _memkit_keyspace.server):
                {how}

        def test_next(memory_store, redis_client, memkit_clock):
            assert memory_store.save("s", [])
            assert redis_client.set("k", 1)
            assert abs(redis_client.time()[0] - time.time()) < 3600
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_both_kinds_of_fixtures_share_the_clock(pytester):
    pytester.makepyfile(
        """
        def test_both(memkit_clock, redis_client, memory_store):
            redis_client.set("k", 1, ex=60)
            memory_store.save("s", [])
            assert redis_client.keys("*") == [b"k"]
            memkit_clock.shift("8d")
            assert redis_client.get("k") is None
            assert memory_store.load("s") is None
            memory_store.save("t", [])
            memkit_clock.shift("6d")
            assert memory_store.load("t") == []
            memkit_clock.shift("2d")
            assert memory_store.load("t") is None
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_modules_are_loaded(pytester, monkeypatch):
    binary, modules = with_modules()
    monkeypatch.setenv("MEMKIT_REDIS_SERVER", str(binary))
    relative = [os.path.relpath(module, pytester.path) for module in modules]
    monkeypatch.setenv("MEMKIT_REDIS_MODULES", os.pathsep.join(relative))
    pytester.makepyfile(
        """
        def test_json(redis_client, memkit_clock):
            redis_client.json().set("k", "$", {"messages": []})
            redis_client.expire("k", 60)
            memkit_clock.shift("61s")
            assert redis_client.json().get("k") is None
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_command_of_a_module_gets_advice(pytester, monkeypatch):
    monkeypatch.delenv("MEMKIT_REDIS_MODULES", raising=False)
    pytester.makepyfile(
        """
        def test_search(redis_client):
            redis_client.execute_command("FT._LIST")

        def test_typing_error(redis_client):
            redis_client.execute_command("FOO")
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=2)
    assert result.stdout.str().count("MEMKIT_REDIS_MODULES names the files") == 1


CLOCK_FIRST = """
    import pytest

    @pytest.mark.parametrize("last", ["redis_client", "redis_memory_store"])
    def test_requested_later(memkit_clock, request, last):
        client = request.getfixturevalue(last)
        key = getattr(client, "_test_prefix", "") + "k"
        client.set(key, 1, ex=60)
        memkit_clock.shift("61s")
        assert client.get(key) is None

    def test_server_beside_a_keyspace(memkit_clock, memkit_server, redis_client):
        with memkit_server.client() as client:
            client.set("k", 1, ex=60)
            redis_client.set("k", 1, ex=60)
            memkit_clock.shift("61s")
            assert client.get("k") is redis_client.get("k") is None

    def test_server_alone(memkit_clock, memkit_server):
        with memkit_server.client() as client:
            client.set("k", 1, ex=60)
            memkit_clock.shift("61s")
            assert client.get("k") is None
"""


@pytest.mark.parametrize("real", [False, True], ids=["private", "dedicated"])
def test_the_clock_moves_whatever_a_test_uses(pytester, dedicated, real):
    pytester.makepyfile(CLOCK_FIRST)
    pytester.runpytest_inprocess(*([f"--real-redis={dedicated[1]}"] if real else [])).assert_outcomes(passed=4)


def test_no_registry_is_left_in_the_keyspace(pytester, dedicated):
    pytester.makepyfile(
        """
        def test_in_a_sandbox(memory_store): memory_store.save("s", [])
        def test_empty(redis_client): assert redis_client.dbsize() == 0
        def test_in_another_sandbox(memory_store): memory_store.save("s", [])
        """
    )
    pytester.runpytest_inprocess(f"--real-redis={dedicated[1]}").assert_outcomes(passed=3)


def test_connections_in_a_loop_of_the_session_close(pytester):
    pytester.makepyfile(
        """
        import pytest

        CONNECTIONS = []

        @pytest.mark.parametrize("n", range(3))
        @pytest.mark.asyncio(loop_scope="session")
        async def test_sets(redis_client, async_redis_client, async_memory_store, n):
            CONNECTIONS.append(len(redis_client.client_list()))
            await async_redis_client.set("k", n)
            await async_memory_store.save("s", [])

        def test_none_is_left():
            assert CONNECTIONS == CONNECTIONS[:1] * 3
        """
    )
    pytester.runpytest_subprocess(*ASYNCIO, "-W", "error").assert_outcomes(passed=4)


REFUSED = """
    import pytest, redis

    def test_select(redis_client):
        redis_client.select(3)

    def test_own_client(redis_client_url):
        with redis.Redis.from_url(redis_client_url.replace("/15", "/3")) as own:
            own.set("k", 1)

    @pytest.mark.parametrize("command", ["FLUSHALL", "CONFIG SET hz 1", "SWAPDB 0 15", "COPY a b DB 3", "MOVE a 3",
        "ACL LIST", "SHUTDOWN", "SCRIPT FLUSH", "CLIENT KILL TYPE normal", "MONITOR", "REPLICAOF NO ONE"])
    def test_others(redis_client, command):
        with pytest.raises(redis.ResponseError, match="one database.*SELECT"):
            redis_client.execute_command(*command.split())
"""


def test_another_database_is_refused_naming_select(pytester, dedicated):
    client, url = dedicated
    pytester.makepyfile(REFUSED)
    result = pytester.runpytest_inprocess(f"--real-redis={url}")
    result.assert_outcomes(failed=2, passed=11)
    result.stdout.fnmatch_lines(["*With --real-redis a test has one database*SELECT of another one is refused*"] * 2)
    assert client.keys("*") == []


def test_a_database_with_foreign_keys_is_refused(pytester, dedicated, monkeypatch):
    client, url = dedicated
    client.set("customer:1", "theirs")
    pytester.makepyfile("def test_one(redis_client): pass\ndef test_two(redis_client_url): pass")
    monkeypatch.setenv("MEMKIT_ALLOW", url.removeprefix("redis://"))
    result = pytester.runpytest_inprocess(f"--real-redis={url}")
    result.assert_outcomes(errors=2)
    port = client.connection_pool.connection_kwargs["port"]
    result.stdout.fnmatch_lines([f"*is not empty: it has 1 key.*redis-cli -u redis://localhost:{port}/15 FLUSHDB"])
    assert client.keys("*") == ["customer:1"]
    assert client.acl_users() == ["default"]
    client.delete("customer:1")


def test_keys_of_a_killed_run_are_refused(pytester, dedicated):
    client, url = dedicated
    pytester.makepyfile(
        test_killed="""
            import os, signal

            def test_killed(redis_client):
                redis_client.set("left", 1)
                os.kill(os.getpid(), signal.SIGKILL)
        """,
        test_next="def test_next(redis_client): assert redis_client.dbsize() == 0",
    )
    pytester.runpytest_subprocess("test_killed.py", f"--real-redis={url}")
    result = pytester.runpytest_inprocess("test_next.py", f"--real-redis={url}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*it has 1 key.*left from a killed run*FLUSHDB"])
    assert client.delete("left")
    pytester.runpytest_inprocess("test_next.py", f"--real-redis={url}").assert_outcomes(passed=1)
    assert client.acl_users() == ["default"]


def test_workers_on_one_real_database_are_refused(pytester, dedicated):
    client, url = dedicated
    pytester.makepyfile("def test_one(redis_client): pass")
    result = pytester.runpytest_subprocess("-p", "xdist", "-n", "2", f"--real-redis={url}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*2 workers of -n 2 (gw0, gw1) would share the one database*"])
    assert client.acl_users() == ["default"]


@pytest.mark.parametrize("query", ["", "?protocol=3"])
def test_two_runs_on_one_database_are_refused(pytester, dedicated, query):
    url = dedicated[1] + query
    pytester.makepyfile(
        test_first="def test_first(redis_client): print('ready', flush=True); input()",
        test_second="def test_second(redis_client): pass",
    )
    first = [sys.executable, "-m", "pytest", "-s", "test_first.py", f"--real-redis={url}"]
    with subprocess.Popen(
        first, cwd=pytester.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        while "ready" not in process.stdout.readline():
            assert process.poll() is None
        result = pytester.runpytest_inprocess("test_second.py", f"--real-redis={url}")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*another test run uses the database*"])
        process.communicate("\n")
        assert process.returncode == 0
    pytester.runpytest_inprocess("test_second.py", f"--real-redis={url}").assert_outcomes(passed=1)


DEADLINES = """
    import time
    import redis

    def test_expireat(redis_client, memkit_clock):
        redis_client.set("chat:1", "hi")
        memkit_clock.shift("6d")
        redis_client.expireat("chat:1", int(time.time()) + 300)
        assert redis_client.get("chat:1")

    def test_pxat(redis_client_url, memkit_clock):
        memkit_clock.shift("1h")
        with redis.Redis.from_url(redis_client_url) as own:
            own.set("chat:1", "hi", pxat=int(time.time() * 1000) + 86_400_000)
            assert own.ttl("chat:1") > 86_000

    def test_in_a_sandbox(redis_memory_store, memkit_clock):
        key = redis_memory_store._test_prefix + "k"
        memkit_clock.shift("1d")
        redis_memory_store.set(key, "hi", exat=int(time.time()) + 60)
        assert redis_memory_store.get(key)
"""
NO_DEADLINES = """
    import time

    def test_before_the_move(redis_client, memkit_clock):
        redis_client.set("k", 1, exat=int(time.time()) + 300)
        memkit_clock.shift("1d")
        assert redis_client.get("k")

    def test_with_the_server_s_clock(redis_client, memkit_clock):
        memkit_clock.shift("1d")
        redis_client.set("k", 1, ex=300)
        assert redis_client.get("other")

    def test_of_another_test(redis_client):
        assert redis_client.get("k")
"""


def test_a_deadline_of_the_client_s_clock_is_explained(pytester):
    pytester.makepyfile(DEADLINES)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "*the test sent EXPIREAT chat:1 with the deadline * memkit_clock was 6d ahead*already past*time-machine",
            "*the test sent SET PXAT chat:1 with the deadline * memkit_clock was 1h ahead*23h away*time-machine",
            "*the test sent SET EXAT memkit-test:* while memkit_clock was 1d ahead*already past*time-machine",
        ]
    )


def test_other_failures_are_not_explained(pytester):
    pytester.makepyfile(NO_DEADLINES)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=3)
    result.stdout.no_fnmatch_line("*memkit: the test sent*")


BYTES = """
    def test_invalid_utf_8(redis_memory_store):
        key = redis_memory_store._test_prefix + "k"
        redis_memory_store.set(key, b"\\xff\\x00")
        redis_memory_store.get(key)

    def test_equal_bytes(redis_memory_store):
        key = redis_memory_store._test_prefix + "k"
        redis_memory_store.set(key, b"v")
        assert redis_memory_store.get(key) == b"v"

    def test_decode(redis_memory_store):
        key = redis_memory_store._test_prefix + "k"
        redis_memory_store.set(key, b"v")
        redis_memory_store.get(key).decode()

    def test_text(redis_memory_store):
        assert redis_memory_store.get(redis_memory_store._test_prefix + "k") == "bv"
"""


def test_bytes_on_a_decoding_client_are_explained(pytester):
    pytester.makepyfile(BYTES)
    result = pytester.runpytest_inprocess("--tb=auto")
    result.assert_outcomes(failed=4)
    notes = [
        line for line in result.outlines if "use the fixture redis_client, which has decode_responses=False" in line
    ]
    assert len(notes) == 3


def test_a_sandbox_s_refusal_names_the_fixtures(pytester):
    pytester.makepyfile("def test_fixed_prefix(redis_memory_store): redis_memory_store.set('chat:user-42', 'hi')")
    result = pytester.runpytest_inprocess("--tb=auto")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*outside the sandbox*redis_client (or async_redis_client), or redis_client_url*"])
    frames = [line for line in result.outlines if ": LeftSandboxError" in line or line.endswith(": ")]
    assert "test_a_sandbox_s_refusal" in frames[0]
    assert "memkit/server/sandbox.py" in frames[-1].replace("\\\\", "/")
    assert result.stdout.str().count("The above exception") == 0


def test_a_refused_command_of_the_tests_own_user_fails(pytester):
    pytester.makepyfile(
        """
        import redis

        def test_refused(redis_client):
            redis_client.acl_setuser("reader", enabled=True, nopass=True, commands=["+get"], keys=["*"])
            port = redis_client.connection_pool.connection_kwargs["port"]
            redis.Redis(port=port, username="reader", password="x").set("k", 1)
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*NoPermissionError: this user has no permissions to run the 'set' command*"])
