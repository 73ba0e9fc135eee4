"""The pytest plugin, as another project's tests use it."""

import signal
import subprocess
import sys

import pytest
import redis
from test_cluster import foreign_cluster
from test_connect import NO_PERSISTENCE, bare_server

from memkit.connect import connect
from memkit.server import find_server

pytest_plugins = ("pytester",)

ARTICLE = """
    from memkit import MemoryStore

    def test_round_trip(redis_memory_store):
        store = MemoryStore(redis_memory_store, prefix="session:", ttl=60)
        store.save("s", [{"role": "user", "content": "你好"}])
        assert store.load("s") == [{"role": "user", "content": "你好"}]
        assert store.key("s").startswith(redis_memory_store._test_prefix)

    def test_expires(redis_memory_store, memkit_clock):
        store = MemoryStore(redis_memory_store, prefix="session:", ttl="7d")
        store.save("s", [])
        memkit_clock.shift("6d")
        assert store.load("s") == []
        memkit_clock.shift("2d")
        assert store.load("s") is None
"""


@pytest.fixture(autouse=True)
def _plain(pytester, monkeypatch):  # noqa: ARG001  # pytester unsets PYTEST_ADDOPTS: after it
    for name in ("CI", "MEMKIT_REDIS_URL", "MEMKIT_ALLOW", "MEMKIT_REDIS_SERVER"):
        monkeypatch.delenv(name, raising=False)
    # Of the plugins that are installed here, only this one: the others take seconds to load. Plain tracebacks: pytest
    # parses the source of each module in one, such as redis-py's (1 s of CPU each).
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p memkit.pytest_plugin -p no:cacheprovider --tb=native")


def test_the_summary_names_the_private_server(pytester, monkeypatch):
    """Found by its entry point."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    monkeypatch.delenv("PYTEST_ADDOPTS")
    pytester.makepyfile(ARTICLE)
    # Those that are left out take two seconds to load.
    result = pytester.runpytest_subprocess("-p", "no:nbval", "-p", "no:valkey", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["memkit: * (*), private, time moved by *"])


def test_article_tests_pass_under_xdist(pytester):
    pytester.makepyfile(ARTICLE)
    result = pytester.runpytest_subprocess("-p", "xdist", "-n", "2")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["memkit: * (*), private, time moved by *"])


def test_a_run_without_fixtures_prints_nothing(pytester):
    pytester.makepyfile("def test(): pass")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("memkit:*")


def test_users_of_the_fixtures_are_marked(pytester):
    pytester.makepyfile("def test_with(memory_store): pass\ndef test_without(): pass")
    result = pytester.runpytest_inprocess("-m", "redis", "--strict-markers", "-v")
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["*test_with PASSED*"])


def test_every_fixture_is_described(pytester):
    result = pytester.runpytest_inprocess("--fixtures")
    for name in ("redis_url", "redis_memory_store", "memkit_server", "memkit_clock", "memkit_sandbox", "memory_store"):
        result.stdout.fnmatch_lines([f"{name}*"])
    assert "no docstring available" not in "".join(line for line in result.outlines if "memkit" in line)


ASYNCIO = (
    "-p",
    "pytest_asyncio.plugin",
    "-o",
    "asyncio_mode=auto",
    "-o",
    "asyncio_default_fixture_loop_scope=function",
)
FIXTURES = """
    import pytest
    from memkit import AsyncMemoryStore, MemoryStore, RedisServer, Sandbox, ServerClock

    def test_kinds(memory_store, async_memory_store, memkit_server, memkit_clock, memkit_sandbox, redis_url):
        assert isinstance(memory_store, MemoryStore)
        assert isinstance(async_memory_store, AsyncMemoryStore)
        assert isinstance(memkit_server, RedisServer)
        assert isinstance(memkit_clock, ServerClock)
        assert isinstance(memkit_sandbox, Sandbox)
        assert redis_url.startswith(("redis://", "unix://"))
        assert memory_store.policy == async_memory_store.policy

    def test_factory(memkit_server_factory, memkit_server):
        first, second = memkit_server_factory(), memkit_server_factory(config={"maxmemory": "1mb"})
        assert len({first.pid, second.pid, memkit_server.pid}) == 3

    @pytest.mark.parametrize("n", range(3))
    def test_each_test_starts_empty(redis_memory_store, memkit_sandbox, n):
        assert memkit_sandbox.keys() == []
        redis_memory_store.set(f"{memkit_sandbox.prefix}left", n)

    def test_time_is_set_back_after_a_test_that_moved_it_1(memkit_clock):
        memkit_clock.shift("5d")

    def test_time_is_set_back_after_a_test_that_moved_it_2(memkit_clock):
        assert abs(memkit_clock.offset.total_seconds()) < 60

    async def test_asyncio(async_memory_store):
        await async_memory_store.append("s", {"n": 1})
        assert await async_memory_store.load("s") == [{"n": 1}]
"""


def test_each_fixture_works_without_warnings(pytester):
    pytester.makepyfile(FIXTURES)
    pytester.runpytest_subprocess(*ASYNCIO, "-W", "error").assert_outcomes(passed=8)


NO_SERVER = """
    import pytest
    from memkit.server import launcher
    from memkit.errors import ServerNotFound

    @pytest.fixture(autouse=True, scope="session")
    def without_a_server():
        def find():
            raise ServerNotFound(launcher.HOW_TO_GET_ONE)
        before, launcher.find_server = launcher.find_server, find
        yield
        launcher.find_server = before
"""


def test_without_a_server_tests_are_skipped(pytester):
    pytester.makeconftest(NO_SERVER)
    pytester.makepyfile(ARTICLE)
    result = pytester.runpytest_inprocess("-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*pip install 'redis-memkit[[]server[]]'*"])


@pytest.mark.parametrize("how", ["option", "CI"])
def test_a_required_server_that_is_missing_fails(pytester, monkeypatch, how):
    if how == "CI":
        monkeypatch.setenv("CI", "true")
    pytester.makeconftest(NO_SERVER)
    pytester.makepyfile(ARTICLE)
    result = pytester.runpytest_inprocess(*(["--memkit-require-server"] if how == "option" else []))
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*pip install 'redis-memkit[[]server[]]'*"])


@pytest.fixture(scope="module")
def prepared():
    with bare_server(*NO_PERSISTENCE) as port, redis.Redis(port=port, db=15, decode_responses=True) as client:
        yield client, f"redis://localhost:{port}/15"


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_real_server_is_left_unchanged(pytester, prepared, monkeypatch, how):
    client, url = prepared
    if how == "environment":
        monkeypatch.setenv("MEMKIT_REDIS_URL", url)
    pytester.makepyfile(ARTICLE)
    result = pytester.runpytest_inprocess(*([f"--real-redis={url}"] if how == "option" else []))
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"memkit: redis * at {url}, in sandboxes, time moved by deadline shift"])
    assert client.keys("*") == []
    assert client.acl_users() == ["default"]
    assert client.info("commandstats")["cmdstat_acl|setuser"]["calls"] > 0


def test_the_fixtures_work_on_a_real_server(pytester, prepared):
    client, url = prepared
    pytester.makepyfile(FIXTURES)
    pytester.runpytest_subprocess(f"--real-redis={url}", *ASYNCIO).assert_outcomes(passed=8)
    assert client.keys("*") == []


SIDE_BY_SIDE = """
    import pytest

    @pytest.mark.parametrize("n", range(24))
    def test_one(memory_store, n):
        memory_store.save("s", [{"n": n}])
        assert memory_store.load("s") == [{"n": n}]
"""


def test_parallel_runs_share_a_real_server(pytester, prepared):
    client, url = prepared
    pytester.makepyfile(SIDE_BY_SIDE)
    other = [sys.executable, "-m", "pytest", "-q", f"--real-redis={url}"]
    with subprocess.Popen(other, cwd=pytester.path, stdout=subprocess.DEVNULL) as process:
        pytester.runpytest_subprocess("-p", "xdist", "-n", "4", f"--real-redis={url}").assert_outcomes(passed=24)
        assert process.wait(120) == 0
    assert client.keys("*") == []
    assert client.acl_users() == ["default"]


def test_a_run_removes_what_a_killed_one_left(pytester, prepared):
    client, url = prepared
    pytester.makepyfile(
        test_killed="""
            import os, signal

            def test_killed(memory_store):
                memory_store.save("s", [])
                os.kill(os.getpid(), signal.SIGKILL)
        """,
        test_next=ARTICLE,
    )
    assert pytester.runpytest_subprocess("test_killed.py", f"--real-redis={url}").ret == -signal.SIGKILL
    assert len(client.keys("memkit-test:*")) == 1
    pytester.runpytest_inprocess("test_next.py", f"--real-redis={url}").assert_outcomes(passed=2)
    assert client.keys("*") == []
    assert client.acl_users() == ["default"]


def test_a_cluster_may_be_the_real_server(pytester, tmp_path):
    pytester.makepyfile(ARTICLE)
    with foreign_cluster(tmp_path, find_server().path) as url, connect(url) as client:
        pytester.runpytest_inprocess(f"--real-redis={url}").assert_outcomes(passed=2)
        assert list(client.scan_iter()) == []


def test_a_server_with_foreign_keys_is_refused(pytester, prepared, monkeypatch):
    client, url = prepared
    client.set("customer:1", "theirs")
    pytester.makepyfile(ARTICLE)
    try:
        result = pytester.runpytest_inprocess(f"--real-redis={url}")
        result.assert_outcomes(errors=2)
        result.stdout.fnmatch_lines(["*ProductionGuardError*1 key outside*MEMKIT_ALLOW=*"])
        assert client.keys("*") == ["customer:1"]
        monkeypatch.setenv("MEMKIT_ALLOW", url.removeprefix("redis://"))
        pytester.runpytest_inprocess(f"--real-redis={url}").assert_outcomes(passed=2)
        assert client.keys("*") == ["customer:1"]
    finally:
        client.delete("customer:1")


def test_an_unreachable_real_server_is_an_error(pytester):
    pytester.makepyfile(ARTICLE)
    # In this process pytest may warn that the plugin was imported before, on lines of its own.
    result = pytester.runpytest_subprocess("--real-redis=redis://:secret@localhost:1/15")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["no answer from redis://:[*][*][*]@localhost:1/15, which --real-redis *start it*"])
    assert len(result.outlines) < 30
    assert "secret" not in result.stdout.str()


@pytest.mark.parametrize("how", ["file", "environment"])
def test_an_invalid_real_redis_is_a_usage_error(pytester, monkeypatch, how):
    given = pytester.makepyfile(ARTICLE).name if how == "file" else ":secret@localhost:6379"
    if how == "environment":
        monkeypatch.setenv("MEMKIT_REDIS_URL", given)
    result = pytester.runpytest_inprocess(*(["--real-redis", given] if how == "file" else []))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: *'{given.replace('secret', '[*][*][*]')}'*not a URL*--real-redis=URL*redis://localhost:6379/15*"]
    )


def test_the_plugin_loads_no_heavy_package(pytester):
    pytester.makepyfile(
        "import sys\ndef test(): assert not {'pandas', 'matplotlib', 'IPython', 'numpy'} & set(sys.modules)"
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


WITHOUT_PRELOAD = """
    import pytest
    from memkit.server import launcher

    @pytest.fixture(autouse=True, scope="session")
    def without_preload():
        before, launcher._shim = launcher._shim, str
        yield
        launcher._shim = before
"""
MOVED = """
    from datetime import UTC, datetime, timedelta
    from memkit import MemoryStore

    def test_moves(memory_store, memkit_clock):
        assert memkit_clock.method == "deadline shift"
        memory_store.save("a", [])
        memkit_clock.shift("8d")
        assert memory_store.load("a") is None

    def test_finds_time_set_back(memkit_clock):
        assert abs(memkit_clock.now() - datetime.now(UTC)) < timedelta(seconds=5)

    def test_moves_to_an_instant(memory_store, memkit_clock):
        memory_store.save("a", [])
        memkit_clock.move_to(datetime.now(UTC) + timedelta(days=6))
        assert 0.9 < memory_store.ttl("a") / 86400 <= 1

    def test_deadlines_of_the_whole_server_go_back_1(redis_url, memkit_server, memkit_clock):
        MemoryStore(memkit_server.client(), prefix="all:", ttl="7d").save("a", [])
        memkit_clock.shift("6d")

    def test_deadlines_of_the_whole_server_go_back_2(memkit_server):
        assert 6.9 < MemoryStore(memkit_server.client(), prefix="all:", ttl=None).ttl("a") / 86400 <= 7
"""


def test_without_the_preload_time_is_set_back_too(pytester):
    pytester.makeconftest(WITHOUT_PRELOAD)
    pytester.makepyfile(MOVED)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["memkit: *, private, time moved by deadline shift"])
