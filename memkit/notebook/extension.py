"""``%load_ext memkit``: a private Redis for the notebook, and inline tests that fail their cell.

``%%ipytest`` runs the tests defined in its cell, with memkit's fixtures. The cell fails and shows the assertion if a
test fails; it also fails if no test was collected, if all were skipped, or if its own code raised. ``%ipytest`` runs
the tests of the cell above again. With ``--must-fail`` either passes only if a test fails, and shows the assertion.
"""

import bisect
import contextlib
import io
import os
import shlex
from functools import cache
from math import ceil
from typing import Any

import ipytest
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

import memkit
from memkit.connect import connect, redact
from memkit.errors import ServerNotFound
from memkit.notebook import ttl_semantics as semantics
from memkit.notebook.demo import EXPECTATIONS, LAB_EXPECT, LAB_URL, continue_incident, demo_server, load_incident
from memkit.render import Table, counted, escaped, wrapped
from memkit.server.guard import started_by_memkit
from memkit.server.launcher import RedisServer

DAY_S = 86_400
TTL_STEPS_S = (
    ("up to 5 minutes", 300),
    ("5 minutes to 12 hours", DAY_S // 2),
    ("12 hours to 2 days", 2 * DAY_S),
    *((f"{day} to {day + 1} days", (day + 1) * DAY_S) for day in range(2, 7)),
)

# A null configuration, so that an inline run does not inherit the options of a project around the notebook. The
# disabled plugins have nothing to do here, and Hypothesis's takes longer to load than all others together (measured).
# unraisableexception only adds warnings, which are not shown, and takes half of a run beside matplotlib (0.09 s for
# garbage collections). pytest lists every folder from confcutdir down to the notebook's; without the option it begins
# at / (0.2 s in a /tmp with 900 entries). A test that returns a value instead of asserting it fails.
PYTEST_OPTIONS = shlex.split(
    f"-q --color=no --no-header --disable-warnings -c {os.devnull} --confcutdir=. -p no:cacheprovider -p no:nbval "
    "-p no:hypothesispytest -p no:xdist -p no:xdist.looponfail -p no:unraisableexception "
    "-o asyncio_default_fixture_loop_scope=function -W error::pytest.PytestReturnNotNoneWarning"
)


class _MessageOnly:
    """An error that a notebook shows as its message, without memkit's frames."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


class InlineTestsFailed(_MessageOnly, AssertionError):
    """A ``%%ipytest`` cell with a test that did not pass; the message is pytest's report."""


class _ServerNotFound(_MessageOnly, ServerNotFound):
    """A ServerNotFound error that a notebook shows without a traceback."""


def server() -> RedisServer:
    """Return this notebook's private server: started at the first call or if it has ended, until the kernel stops."""
    return _server().start()


@cache
def _server() -> RedisServer:
    # Without fsync the file has each write before its reply too, and a notebook does not wait for the disk.
    return RedisServer(persist=True, config={"appendfsync": "no"})


def server_with_expire_options() -> RedisServer:
    """Return a private server that has EXPIRE with NX, XX, GT, LT: this notebook's, if it does."""
    return _server_with_expire_options().start()


@cache
def _server_with_expire_options() -> RedisServer:
    binary = semantics.binary_with_expire_options() if semantics.lacks_expire_options(server()) else None
    return RedisServer(binary=binary.path) if binary else server()


def incident() -> RedisServer:
    """Return the private server of the demo incident, replayed at the first call or if the server has ended."""
    if not _incident().running:
        _incident.cache_clear()
    return _incident()


@cache
def _incident() -> RedisServer:
    replayed = load_incident(demo_server().start())
    continue_incident(replayed.url)
    return replayed


def url() -> str:
    """Return the URL of the Redis under investigation: that of `memkit lab --url`, or the demo incident's."""
    return os.environ.get(LAB_URL) or incident().url


def expectations(url: str = "") -> list[str]:
    """Return the expected TTLs, such as ``["chat:*=7d"]``: those of `memkit lab --expect`, or the demo incident's.

    Another Redis than the one under investigation has none, and neither has that of `memkit lab --url` without
    `--expect`.

    Args:
        url: The Redis that they are for; empty: the one under investigation.
    """
    if url and url != os.environ.get(LAB_URL):
        return []
    if given := os.environ.get(LAB_EXPECT):
        return given.split("\n")
    return [] if os.environ.get(LAB_URL) else EXPECTATIONS


def is_demo() -> bool:
    """Return whether the Redis under investigation is a demo that memkit started, with a clock that can be moved."""
    with connect(url()) as client:
        return started_by_memkit(client)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Start the server, register the magics and show the status line; the user's namespace stays as it is.

    Raises:
        ServerNotFound: No Redis or Valkey server is installed.
    """
    ipytest.config(magics=False, rewrite_asserts=True, addopts=PYTEST_OPTIONS, coverage=False)
    magics: Any = shell.register_magic_function
    magics(_cell_magic, "cell", "ipytest")
    magics(_line_magic, "line", "ipytest")
    # Otherwise IPython answers a second Run All with "already loaded" instead of the status line.
    shell.events.register("post_run_cell", _forget_that_it_is_loaded)
    try:
        status = Status(server())
    except ServerNotFound as error:
        raise _ServerNotFound(str(error)) from None
    show: Any = display
    show(status)


def _forget_that_it_is_loaded(_: object) -> None:
    shell: Any = InteractiveShell.instance()
    shell.extension_manager.loaded.discard("memkit")


class Status:
    """One line: the server, its source, how its clock is moved, and what other Redis memkit may read."""

    def __init__(self, running: RedisServer) -> None:
        other = "no other Redis is used"
        if named := os.environ.get(LAB_URL):
            with connect(named) as client:
                started = started_by_memkit(client)
            other = "the demo incident runs beside it" if started else f"read-only on {redact(named)}"
        self._text = (
            f"memkit {memkit.__version__}: {running.flavour} {running.version} ({running.source}), private; "
            f"time moved by {running.clock.method}; {other}"
        )
        if semantics.lacks_expire_options(running):
            newer = semantics.binary_with_expire_options()
            instead = (
                f"{newer.flavour} {newer.version} is used instead" if newer else "and no other server is installed"
            )
            self._text += f"; this server lacks {semantics.EXPIRE_OPTIONS}; {instead}"

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return f'<div style="border-left:4px solid #009E73;padding:2px 8px">{escaped(self._text)}</div>'


def running() -> Table:
    """Return the Redis servers that this notebook uses, as a table. Sends only INFO, DBSIZE and CONFIG GET."""
    own, target = server(), url()
    with own.client() as client:
        keys = client.dbsize()
    rows = [
        ("this notebook's", "experiments and inline tests", f"{own.flavour} {own.version}", own.source, f"{keys:,}")
    ]
    with connect(target) as client:
        info: dict[str, Any] = client.info("server")
        flavour = info.get("server_name", "redis")
        version = f"{flavour} {info.get(f'{flavour}_version', info['redis_version'])}"
        private = started_by_memkit(client)
        purpose = "the demo incident" if private else "yours, read-only"
        source = "memkit's, private" if private else redact(target)
        rows.append(("under investigation", purpose, version, source, f"{client.dbsize():,}"))
    return Table("The servers of this notebook", ("server", "purpose", "version", "source", "keys"), rows)


def remaining_ttls(target: str, prefix: str) -> Table:
    """Return the number of sessions with a prefix by remaining TTL, as a table. Sends only SCAN and PTTL."""
    with connect(target) as client, client.pipeline(transaction=False) as pipe:
        keys = [key for key in client.scan_iter(count=1000) if bytes(key).startswith(prefix.encode())]
        for key in keys:
            pipe.pttl(key)
        left_s = [left_ms / 1000 for left_ms in pipe.execute() if left_ms > 0]
    steps = [bisect.bisect_left([upper_s for _, upper_s in TTL_STEPS_S], one) for one in left_s]
    most = max((steps.count(place) for place in steps), default=1)
    rows = [
        (title, f"{steps.count(place):>4}", "▪" * ceil(20 * steps.count(place) / most))
        for place, (title, _) in enumerate(TTL_STEPS_S)
    ]
    caption = f"{counted(len(left_s), 'session')} {prefix}* by remaining TTL"
    return Table(caption, ("remaining TTL", "sessions", ""), rows)


def _cell_magic(line: str, cell: str) -> None:
    ipytest.clean()
    shell: Any = InteractiveShell.instance()
    result = shell.run_cell(cell)
    if not result.success:
        error = result.error_before_exec or result.error_in_exec
        raise InlineTestsFailed(f"the cell's own code raised {type(error).__name__}: no test ran")
    _line_magic(line)


def _line_magic(line: str) -> None:
    arguments = shlex.split(line)
    must_fail = "--must-fail" in arguments
    seen = _Outcomes()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = ipytest.run(*(one for one in arguments if one != "--must-fail"), plugins=[seen], raise_on_error=False)
    if code == pytest.ExitCode.INTERRUPTED and not seen.errors:
        print(printed.getvalue())
        raise KeyboardInterrupt("interrupted while an inline test was running")
    if seen.not_run and not (seen.failed or seen.errors):
        raise InlineTestsFailed(_named(f"pytest stopped before {counted(len(seen.not_run), 'test')} ran", seen.not_run))
    report = printed.getvalue().strip()
    if must_fail:
        if seen.errors:
            raise InlineTestsFailed(f"expected a failing test; this is an error outside of one\n{report}")
        if not seen.failed:
            raise InlineTestsFailed(f"expected a failing test, and none failed\n{report}")
        print("\n".join([_named(f"{len(seen.failed)} failed as expected", seen.failed), *seen.assertions]))
    elif code or not seen.passed:
        failed = list(dict.fromkeys([*seen.failed, *seen.errors]))
        reason = "no test was found in this cell; name a test function test_…"
        if failed:
            reason = _named(f"{len(failed)} of {len({*failed, *seen.passed})} failed", failed)
        elif seen.skipped:
            reason = "every test was skipped"
        raise InlineTestsFailed(f"{reason}\n{report}")
    else:
        skipped = "".join(f"\nskipped {name}: {reason}" for name, reason in seen.skipped.items())
        print(_named(f"{len(seen.passed)} passed", seen.passed) + skipped)


def _named(what: str, tests: list[str]) -> str:
    """Return ``what: test_a, test_b[1, 2]``: the cases of a parametrized test together, wrapped at a cell's width."""
    cases: dict[str, list[str]] = {}
    for test in tests:
        name, _, case = test.partition("[")
        cases.setdefault(name, []).append(case.removesuffix("]"))
    names = [f"{name}[{', '.join(some)}]" if some[0] else name for name, some in cases.items()]
    return wrapped(f"{what}: {', '.join(names)}", indent="  ", columns=96)


class _Outcomes:
    """A pytest plugin for one run: which tests passed, failed, were skipped, had errors outside, or did not run."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []
        self.errors: list[str] = []
        self.skipped: dict[str, str] = {}
        self.assertions: list[str] = []
        self.not_run: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.not_run = [item.name for item in session.items]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.when == "teardown" and name in self.not_run:
            self.not_run.remove(name)
        if report.failed and report.when != "call":
            self.errors.append(name)
        elif report.failed:
            self.failed.append(name)
            self.assertions += [f"  {row}" for row in report.longreprtext.splitlines() if row.startswith(("E ", ">"))]
        elif report.skipped:
            self.skipped[name] = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        elif report.when == "call":
            self.passed.append(name)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.errors.append(report.nodeid)
