"""The pytest plugin: fixtures on a private Redis, or on a real one with --real-redis. No autouse fixtures.

Works the same under ``pytest``, ``pytest -n``, ``%%ipytest`` and nbval.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
import redis
from redis.exceptions import NoPermissionError

from memkit.connect import connect, redact
from memkit.errors import LeftSandboxError, MemkitError, ServerNotFound
from memkit.server.client_deadlines import explained_deadlines
from memkit.server.clock import ServerClock
from memkit.server.guard import NAME
from memkit.server.keyspace import DedicatedDatabase, PrivateKeyspace
from memkit.server.launcher import RedisServer, modules_config
from memkit.server.sandbox import Sandbox, close_async_connections
from memkit.store.store import AsyncMemoryStore, MemoryStore

DEFAULT_REAL = "redis://localhost:6379/15"
REAL_URL_KEY = pytest.StashKey[str | None]()
RAN_ON_KEY = pytest.StashKey["set[str]"]()
APPLICATION_FIXTURES = {"redis_client", "async_redis_client", "redis_client_url"}
DECODING_FIXTURES = {"redis_memory_store", "memory_store"}
TARGET_FIXTURES = {"redis_memory_store", "memory_store", "async_memory_store", "memkit_sandbox", "redis_url"}
Keyspace = PrivateKeyspace | DedicatedDatabase
FIXTURES = APPLICATION_FIXTURES | TARGET_FIXTURES | {"memkit_server", "memkit_clock", "memkit_server_factory"}
# 'v' == b'v', b'v' == 'v', or a method that only bytes have.
BYTES_EXPECTED = re.compile(r"""['"] == b['"]|\bb(['"]).*\1 == ['"]|'str' object has no attribute 'decode'""")
OTHER_SERVER_EXPECTED = re.compile("cluster mode is not enabled|unknown command .sentinel", re.IGNORECASE)
MODULE_EXPECTED = re.compile(r"unknown command .(FT|JSON|TS|BF|CF|CMS|TOPK|TDIGEST)\.", re.IGNORECASE)
MOVED_KEY = pytest.StashKey["_MovedClocks"]()
DATABASE_KEY = pytest.StashKey[DedicatedDatabase]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --real-redis, --memkit-require-server and --memkit-store."""
    group = parser.getgroup("memkit", "memory stores on a real Redis")
    group.addoption(
        "--real-redis",
        nargs="?",
        const=DEFAULT_REAL,
        default=os.environ.get("MEMKIT_REDIS_URL"),
        metavar="URL",
        help=f"run on this dedicated server (without a URL: {DEFAULT_REAL}) instead of on a private one",
    )
    group.addoption(
        "--memkit-require-server",
        action="store_true",
        default=bool(os.environ.get("CI")),
        help="fail, rather than skip, if there is no Redis server to start (the default if CI is set)",
    )
    group.addoption(
        "--memkit-store",
        metavar="ADAPTER",
        help="add the conformance cases for the session store that package.module:factory makes",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and what the summary prints."""
    config.addinivalue_line("markers", "redis: needs a real Redis (added to tests that use memkit's fixtures)")
    given: str | None = config.getoption("--real-redis")
    if given and "://" not in given:  # pytest --real-redis test_x.py gives it the file
        shown = redact(f"://{given}")[3:]
        raise pytest.UsageError(
            f"--real-redis was given {shown!r}, which is not a URL. Name the server as --real-redis=URL, such as "
            f"--real-redis={DEFAULT_REAL}; to use this default, put --real-redis after the file names"
        )
    config.stash[REAL_URL_KEY], config.stash[RAN_ON_KEY] = given, set()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the cases for --memkit-store; mark every test that uses one of the fixtures."""
    store = session.config.getoption("--memkit-store")
    if store:
        from memkit.conformance.pytest_suite import StoreSuite

        items += StoreSuite.of(session, store).collect()
    for item in items:
        if FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.redis)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Add a note to the error of a failed test if one of the fixtures explains it."""
    error = call.excinfo.value if call.when == "call" and call.excinfo else None
    names = FIXTURES.intersection(getattr(item, "fixturenames", ()))
    if error is None or not names or isinstance(error, pytest.skip.Exception):
        return
    with contextlib.suppress(redis.RedisError, MemkitError, OSError):
        moved = item.stash.get(MOVED_KEY, None)
        explanation = next(filter(None, (explain() for explain in moved.explanations)), None) if moved else None
        if explanation:
            error.add_note(explanation)
    if names & DECODING_FIXTURES and (isinstance(error, UnicodeDecodeError) or BYTES_EXPECTED.search(str(error))):
        error.add_note(
            f"memkit: the client of {min(names & DECODING_FIXTURES)} decodes replies as UTF-8 (decode_responses=True). "
            "For values that are bytes use the fixture redis_client, which has decode_responses=False"
        )
    if names & APPLICATION_FIXTURES and OTHER_SERVER_EXPECTED.search(str(error)):
        error.add_note("memkit: redis_client_url is one server, no cluster or Sentinel; see README, In your own tests")
    if MODULE_EXPECTED.search(str(error)):
        error.add_note(
            "memkit: the server has not loaded the module of this command; the variable MEMKIT_REDIS_MODULES names the "
            "files of the modules that private servers load"
        )
    database = item.stash.get(DATABASE_KEY, None)
    if database and isinstance(error, NoPermissionError) and not isinstance(error, LeftSandboxError):
        error.add_note(f"memkit: {database.limits}")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect what an xdist worker ran on."""
    output = getattr(node, "workeroutput", {})
    node.config.stash[RAN_ON_KEY].update(output.get("memkit_ran_on", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In an xdist worker, send what the tests ran on to the controller."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        ran_on: set[str] = session.config.stash[RAN_ON_KEY]
        output["memkit_ran_on"] = sorted(ran_on)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the servers of the results."""
    ran_on: set[str] = config.stash[RAN_ON_KEY]
    for line in sorted(ran_on):
        terminalreporter.write_line(f"memkit: {line}")


def _started(pytest_config: pytest.Config, /, **options: Any) -> RedisServer:
    try:
        server = RedisServer(**options).start()
    except ServerNotFound as error:
        if pytest_config.getoption("--memkit-require-server"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    pytest_config.stash[RAN_ON_KEY].add(
        f"{server.flavour} {server.version} ({server.source}), private, time moved by {server.clock.method}"
    )
    return server


class _MovedClocks:
    """What memkit_clock moves: the clock of each server or keyspace that the test uses."""

    def __init__(self) -> None:
        self.clocks: list[ServerClock] = []
        self.explanations: list[Callable[[], str | None]] = []
        self._before: list[tuple[RedisServer, timedelta]] = []
        self._logs = contextlib.ExitStack()

    def add(self, part: Keyspace | RedisServer | Sandbox) -> None:
        """Move one more clock, if it is not moved already."""
        if part.clock in self.clocks:
            return
        server = part.server if isinstance(part, PrivateKeyspace) else part
        if isinstance(server, RedisServer):
            self._before.append((server, server.clock.offset))
            if server.clock.method == "preload":
                accept = part.accept_changes if isinstance(part, PrivateKeyspace) else lambda work: work()
                log = contextlib.ExitStack()
                self._logs.callback(accept, log.close)
                self.explanations.append(accept(lambda: log.enter_context(explained_deadlines(server))))
        self.clocks.append(part.clock)

    @contextlib.contextmanager
    def moving(self) -> Iterator[ServerClock]:
        """Yield the first clock, which moves the others; set back the private servers' clocks afterwards."""
        with self._logs:
            with self.clocks[0].together_with(self.clocks):
                yield self.clocks[0]
            for server, offset in self._before:
                if not server.running:
                    server.start()
                if server.clock.offset != offset:
                    server.clock.shift(offset - server.clock.offset)


def _move_too(request: pytest.FixtureRequest, part: Keyspace | RedisServer | Sandbox) -> None:
    """Let a memkit_clock that exists already move this too: ``getfixturevalue`` may request fixtures in any order."""
    moved = request.node.stash.get(MOVED_KEY, None)
    if moved:
        moved.add(part)


@pytest.fixture(scope="session")
def memkit_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A private real server for the whole run, whatever --real-redis is; started at first use."""
    with _started(request.config, config=modules_config()) as server:
        yield server


@pytest.fixture(scope="session")
def _memkit_target(request: pytest.FixtureRequest) -> RedisServer | str:
    """The server of this run: a private one, or the URL of a real one."""
    real = request.config.stash[REAL_URL_KEY]
    if not real:
        return cast("RedisServer", request.getfixturevalue("memkit_server"))
    try:
        with connect(real, client_name=NAME) as client:
            info: dict[str, Any] = client.info("server")
    except (redis.RedisError, MemkitError, OSError) as error:
        pytest.fail(
            f"no answer from {redact(real)}, which --real-redis or MEMKIT_REDIS_URL names ({redact(str(error))}): "
            "start it, name another, or leave both out for a private server",
            pytrace=False,
        )
    request.config.stash[RAN_ON_KEY].add(
        f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])} at {redact(real)}, "
        "in sandboxes, time moved by deadline shift"
    )
    return real


@pytest.fixture(scope="session")
def _memkit_sandboxes() -> Iterator[dict[str, Sandbox]]:
    """The sandbox of the whole run, one for each time that a private server was started."""
    with contextlib.ExitStack() as stack:
        sandboxes: dict[str, Sandbox] = {}
        yield sandboxes
        for sandbox in sandboxes.values():
            stack.callback(sandbox.close)


@pytest.fixture
def memkit_sandbox(
    request: pytest.FixtureRequest, _memkit_target: RedisServer | str, _memkit_sandboxes: dict[str, Sandbox]
) -> Iterator[Sandbox]:
    """A random key prefix, enforced by the server, removed without trace."""
    if isinstance(_memkit_target, RedisServer) and not _memkit_target.running:
        _memkit_target.start()  # an earlier test has ended it
    # A private server that was started again has no users.
    server = _memkit_target if isinstance(_memkit_target, str) else f"{_memkit_target.url} {_memkit_target.pid}"
    if server not in _memkit_sandboxes:
        _memkit_sandboxes[server] = Sandbox(_memkit_target).open()
    with Sandbox(_memkit_target, parent=_memkit_sandboxes[server]) as sandbox:
        _move_too(request, _memkit_target if isinstance(_memkit_target, RedisServer) else sandbox)
        yield sandbox


@pytest.fixture
def redis_url(request: pytest.FixtureRequest, _memkit_target: RedisServer | str) -> str:
    """The URL of the private server; on a real server, of a sandbox's user, who cannot leave its prefix."""
    sandboxed = isinstance(_memkit_target, str)
    where: RedisServer | Sandbox = request.getfixturevalue("memkit_sandbox" if sandboxed else "memkit_server")
    return where.url


@pytest.fixture
def redis_memory_store(memkit_sandbox: Sandbox) -> Iterator[Any]:
    """A redis-py client in a sandbox (``decode_responses`` on); stores on it nest in its ``_test_prefix``."""
    client = memkit_sandbox.client(decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def memory_store(redis_memory_store: Any) -> MemoryStore:
    """A MemoryStore in a sandbox: prefix ``session:``, 7 days, sliding."""
    return MemoryStore(redis_memory_store, prefix="session:", ttl="7d")


@pytest.fixture
def async_memory_store(memkit_sandbox: Sandbox) -> Iterator[AsyncMemoryStore]:
    """An AsyncMemoryStore in a sandbox: prefix ``session:``, 7 days, sliding."""
    client = memkit_sandbox.async_client(decode_responses=True)
    yield AsyncMemoryStore(client, prefix="session:", ttl="7d")
    close_async_connections(client)


@pytest.fixture(scope="session")
def _memkit_keyspaces(request: pytest.FixtureRequest) -> Iterator[Keyspace]:
    real = request.config.stash[REAL_URL_KEY]
    if not real:
        server = _started(request.config, port=0, config=modules_config())
        with server, contextlib.closing(PrivateKeyspace(server)) as keyspace:
            yield keyspace
        return
    request.getfixturevalue("_memkit_target")
    workers = getattr(request.config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        names = ", ".join(f"gw{number}" for number in range(workers))
        pytest.fail(
            f"the {workers} workers of -n {workers} ({names}) would share the one database at {redact(real)}. For "
            "redis_client, async_redis_client and redis_client_url run without -n, or leave out --real-redis: each "
            "worker then has a private server",
            pytrace=False,
        )
    with contextlib.closing(DedicatedDatabase(real)) as database:
        yield database.open()


@pytest.fixture
def _memkit_keyspace(
    request: pytest.FixtureRequest, _memkit_keyspaces: Keyspace, _memkit_sandboxes: dict[str, Sandbox]
) -> Iterator[Keyspace]:
    if isinstance(_memkit_keyspaces, DedicatedDatabase):
        request.node.stash[DATABASE_KEY] = _memkit_keyspaces
        # The sandbox of earlier tests has a key in the same database, the registry.
        while _memkit_sandboxes and "memkit_sandbox" not in request.fixturenames:
            _memkit_sandboxes.popitem()[1].close()
    _memkit_keyspaces.begin()
    _move_too(request, _memkit_keyspaces)
    yield _memkit_keyspaces
    _memkit_keyspaces.end()


@pytest.fixture
def redis_client(_memkit_keyspace: Keyspace) -> Iterator[Any]:
    """A plain redis.Redis (``decode_responses`` off) for any key names; its database is empty and the test's own."""
    client = _memkit_keyspace.client()
    yield client
    client.close()


@pytest.fixture
def async_redis_client(_memkit_keyspace: Keyspace) -> Iterator[Any]:
    """A plain redis.asyncio.Redis (``decode_responses`` off) on the same keyspace as ``redis_client``."""
    client = _memkit_keyspace.async_client()
    yield client
    close_async_connections(client)


@pytest.fixture
def redis_client_url(_memkit_keyspace: Keyspace) -> str:
    """The URL of the keyspace of ``redis_client``: ``redis://`` with host and port."""
    return _memkit_keyspace.url


@pytest.fixture
def memkit_clock(request: pytest.FixtureRequest) -> Iterator[ServerClock]:
    """The clock of the server under test; set back afterwards.

    After a test on a private server, the server has real time again. Keys that expired do not come back. The remaining
    TTL of other keys grows by the time that the clock goes back. On a real server only the deadlines of the test's own
    keys are moved.
    """
    names = set(request.fixturenames)
    moved = _MovedClocks()
    if names & APPLICATION_FIXTURES:
        moved.add(request.getfixturevalue("_memkit_keyspace"))
    if names & TARGET_FIXTURES or not (moved.clocks or "memkit_server" in names):
        target: RedisServer | str = request.getfixturevalue("_memkit_target")
        moved.add(target if isinstance(target, RedisServer) else request.getfixturevalue("memkit_sandbox"))
    if "memkit_server" in names:
        moved.add(request.getfixturevalue("memkit_server"))
    request.node.stash[MOVED_KEY] = moved
    with moved.moving() as clock:
        yield clock


@pytest.fixture
def memkit_server_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., RedisServer]]:
    """``memkit_server_factory(**options)``: more private servers, started, stopped after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(_started(request.config, **options))
