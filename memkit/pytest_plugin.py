"""The pytest plugin: a real Redis for each run, a sandbox for each test. No autouse fixtures.

Works the same under ``pytest``, ``pytest -n``, ``%%ipytest`` and nbval.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import redis

from memkit.connect import connect, redact
from memkit.errors import MemkitError, ServerNotFound
from memkit.server.clock import ServerClock
from memkit.server.guard import NAME
from memkit.server.launcher import RedisServer
from memkit.server.sandbox import Sandbox
from memkit.store.store import AsyncMemoryStore, MemoryStore

DEFAULT_REAL = "redis://localhost:6379/15"
REAL_URL = pytest.StashKey[str | None]()
RAN_ON = pytest.StashKey["set[str]"]()
FIXTURES = {
    "redis_url",
    "redis_memory_store",
    "memkit_server",
    "memkit_clock",
    "memkit_sandbox",
    "memory_store",
    "async_memory_store",
    "memkit_server_factory",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --real-redis, --memkit-require-server and --memkit-store."""
    group = parser.getgroup("memkit", "memory stores on a real Redis")
    group.addoption(
        "--real-redis",
        nargs="?",
        const=DEFAULT_REAL,
        default=os.environ.get("MEMKIT_REDIS_URL"),
        metavar="URL",
        help=f"run in sandboxes on this dedicated server (alone: {DEFAULT_REAL}) instead of on a private one",
    )
    group.addoption(
        "--memkit-require-server",
        action="store_true",
        default=bool(os.environ.get("CI")),
        help="fail, rather than skip, where there is no Redis server to launch (the default when CI is set)",
    )
    group.addoption(
        "--memkit-store",
        metavar="ADAPTER",
        help="add the conformance cases for the session store that package.module:factory makes",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and what the run's summary will say."""
    config.addinivalue_line("markers", "redis: needs a real Redis (set by itself on tests that use memkit's fixtures)")
    config.stash[REAL_URL] = _url(config.getoption("--real-redis"))
    config.stash[RAN_ON] = set()


def _url(given: str | None) -> str | None:
    """Return what --real-redis was given; ``pytest --real-redis test_x.py`` gives it the file."""
    if given and "://" not in given:
        shown = redact(f"://{given}")[3:]
        raise pytest.UsageError(
            f"--real-redis was given {shown!r}, which is no URL. Name the server as --real-redis=URL, such as "
            f"--real-redis={DEFAULT_REAL}; without a URL ({DEFAULT_REAL} is meant), put it behind the files"
        )
    return given


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


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take in what an xdist worker ran on."""
    output = getattr(node, "workeroutput", {})
    node.config.stash[RAN_ON].update(output.get("memkit_ran_on", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In an xdist worker: tell the controller what the tests ran on."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        ran_on: set[str] = session.config.stash[RAN_ON]
        output["memkit_ran_on"] = sorted(ran_on)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the servers that the results are from."""
    ran_on: set[str] = config.stash[RAN_ON]
    for line in sorted(ran_on):
        terminalreporter.write_line(f"memkit: {line}")


def _started(pytest_config: pytest.Config, /, **options: Any) -> RedisServer:
    try:
        server = RedisServer(**options).start()
    except ServerNotFound as error:
        if pytest_config.getoption("--memkit-require-server"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    clock = server.clock.method
    pytest_config.stash[RAN_ON].add(
        f"{server.flavour} {server.version} ({server.source}), private, time moved by {clock}"
    )
    return server


@dataclass(frozen=True, slots=True)
class Target:
    """Where this run's tests go: a private server, or a real one by URL."""

    server: RedisServer | None
    url: str = field(repr=False)


@pytest.fixture(scope="session")
def memkit_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A private real server for the whole run, whatever --real-redis says; started when first used."""
    with _started(request.config) as server:
        yield server


def _asked(real: str) -> dict[str, Any]:
    """Return what a real server says it is; fail in one line when it says nothing."""
    try:
        with connect(real, client_name=NAME) as client:
            return cast("dict[str, Any]", client.info("server"))
    except (redis.RedisError, MemkitError, OSError) as error:
        said = redact(str(error))
    pytest.fail(
        f"no answer from {redact(real)}, which --real-redis or MEMKIT_REDIS_URL names ({said}): start it, name "
        "another, or leave both out for a private server",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def _memkit_target(request: pytest.FixtureRequest) -> Target:
    real = request.config.stash[REAL_URL]
    if not real:
        server = cast("RedisServer", request.getfixturevalue("memkit_server"))
        return Target(server, server.url)
    info = _asked(real)
    request.config.stash[RAN_ON].add(
        f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])} at {redact(real)}, "
        "in sandboxes, time moved by deadline shift"
    )
    return Target(None, real)


@pytest.fixture
def memkit_sandbox(_memkit_target: Target) -> Iterator[Sandbox]:
    """A key prefix of the test's own, enforced by the server, removed without trace."""
    with Sandbox(_memkit_target.server or _memkit_target.url) as sandbox:
        yield sandbox


@pytest.fixture
def redis_url(request: pytest.FixtureRequest, _memkit_target: Target) -> str:
    """The URL of the private server; on a real server, of a sandbox's user, who cannot leave its prefix."""
    if _memkit_target.server:
        return _memkit_target.url
    return cast("Sandbox", request.getfixturevalue("memkit_sandbox")).url


@pytest.fixture
def redis_memory_store(memkit_sandbox: Sandbox) -> Iterator[Any]:
    """A redis-py client in a sandbox (``decode_responses`` on); stores on it nest in its ``_test_prefix``."""
    client = memkit_sandbox.client(decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def memkit_clock(_memkit_target: Target, memkit_sandbox: Sandbox) -> Iterator[ServerClock]:
    """The clock of the server under test; set back afterwards.

    On a private server the next test finds real time, however it was moved: what expired stays gone, deadlines still
    to come are as far away again as time went back. On a real server only the sandbox's own deadlines are moved, and
    they go with it.
    """
    clock = memkit_sandbox.clock
    before = clock.offset
    yield clock
    if _memkit_target.server:
        clock.shift(before - clock.offset)


@pytest.fixture
def memory_store(redis_memory_store: Any) -> MemoryStore:
    """A MemoryStore in a sandbox: prefix ``session:``, 7 days, sliding."""
    return MemoryStore(redis_memory_store, prefix="session:", ttl="7d")


@pytest.fixture
def async_memory_store(memkit_sandbox: Sandbox) -> AsyncMemoryStore:
    """An AsyncMemoryStore in a sandbox: prefix ``session:``, 7 days, sliding."""
    return AsyncMemoryStore(memkit_sandbox.async_client(decode_responses=True), prefix="session:", ttl="7d")


@pytest.fixture
def memkit_server_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., RedisServer]]:
    """``memkit_server_factory(**options)``: more private servers, started, stopped after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(_started(request.config, **options))
