"""``%load_ext memkit``: a private real Redis for the notebook, and inline tests that can fail.

``%%ipytest`` runs the tests defined in its cell, with memkit's fixtures; the cell fails when a test fails, when none
was collected, when all were skipped, or when its own code raised, and shows the assertion. ``%ipytest`` runs the tests
above again. With ``--must-fail`` either passes only when a test fails, and shows how: for a change that has to go red.
"""

from __future__ import annotations

import bisect
import contextlib
import html
import io
import os
import shlex
import textwrap
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
from memkit.notebook.demo import Incident, demo_server, keep_talking, load_incident
from memkit.observe.log import html_table
from memkit.server.guard import started_by_memkit
from memkit.server.launcher import RedisServer

DAY_S = 86_400

# A null configuration, so that an inline run does not inherit the options of a project around the notebook. The plugins
# that are left out have nothing to do here, and Hypothesis's takes longer to load than all else together (measured). A
# test that returns False instead of asserting it fails.
PYTEST_OPTIONS = shlex.split(
    f"-q --color=no --no-header --disable-warnings -c {os.devnull} -p no:cacheprovider -p no:nbval "
    "-p no:hypothesispytest -p no:xdist -p no:xdist.looponfail "
    "-o asyncio_default_fixture_loop_scope=function -W error::pytest.PytestReturnNotNoneWarning"
)


class _Brief:
    """An error that a notebook shows by its message alone, without memkit's frames."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


class InlineTestsFailed(_Brief, AssertionError):
    """A ``%%ipytest`` cell that is not green; the message is pytest's report."""


class _NoServerHere(_Brief, ServerNotFound):
    """ServerNotFound as a notebook shows it."""


@cache
def server() -> RedisServer:
    """Return this notebook's private server, started at the first call and gone with the kernel."""
    return RedisServer(persist=True).start()


@cache
def server_with_expire_options() -> RedisServer:
    """Return this notebook's server, or another private one where EXPIRE takes no condition on it."""
    binary = semantics.binary_with_expire_options() if semantics.lacks_expire_options(server()) else None
    return RedisServer(binary=binary.path).start() if binary else server()


def _lacking(here: RedisServer) -> str:
    if not semantics.lacks_expire_options(here):
        return ""
    other = semantics.binary_with_expire_options()
    instead = f"asked on {other.flavour} {other.version} instead" if other else "and no other server is here"
    return f"not on this server: {semantics.EXPIRE_OPTIONS}; {instead}"


@cache
def incident_server() -> RedisServer:
    """Return the private server of the demo incident."""
    return demo_server().start()


@cache
def incident() -> Incident:
    """Return the demo incident, replayed on a private server of its own at the first call; it goes on from there."""
    replayed = load_incident(incident_server())
    keep_talking(replayed.url)
    return replayed


def url() -> str:
    """Return the URL of the Redis under investigation: what `memkit lab` was given, else the demo incident."""
    return os.environ.get("MEMKIT_LAB_URL") or incident().url


def is_demo() -> bool:
    """Whether the Redis under investigation is a demo, the lab's or the notebook's: nobody's, and its clock moves."""
    with connect(url()) as client:
        return started_by_memkit(client)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Start the server, register the magics, show the status line. Nothing is put into the user's namespace."""
    ipytest.config(magics=False, rewrite_asserts=True, addopts=PYTEST_OPTIONS, coverage=False)
    magics: Any = shell.register_magic_function
    magics(_cell_magic, "cell", "ipytest")
    magics(_line_magic, "line", "ipytest")
    # IPython would answer the second Run All with "already loaded" instead of the status line.
    shell.events.register("post_run_cell", _may_be_loaded_again)
    try:
        status = Status(server())
    except ServerNotFound as error:
        raise _NoServerHere(str(error)) from None
    show: Any = display
    show(status)


def _may_be_loaded_again(_: object) -> None:
    shell: Any = InteractiveShell.instance()
    shell.extension_manager.loaded.discard("memkit")


class Status:
    """One line: what is running, who brought it, how time is moved, what the guard lets through."""

    def __init__(self, running: RedisServer) -> None:
        self._text = (
            f"memkit {memkit.__version__}: {running.flavour} {running.version} ({running.source}), private; "
            f"time moved by {running.clock.method}; {'; '.join(filter(None, (_guard(), _lacking(running))))}"
        )

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return f'<div style="border-left:4px solid #009E73;padding:2px 8px">{html.escape(self._text)}</div>'


class Running:
    """The Redis servers that this notebook talks to, as a table; asked by INFO, DBSIZE and CONFIG GET alone."""

    CAPTION = "The servers that this notebook talks to"
    TITLES = ("server", "what it is for", "version", "where it comes from", "keys")

    def __init__(self) -> None:
        own = server()
        with own.client() as client:
            keys = client.dbsize()
        version = f"{own.flavour} {own.version}"
        self.rows = [
            ("this notebook's own", "experiments and inline tests", version, own.source, f"{keys:,}"),
            ("under investigation", *_investigated(url())),
        ]

    def __repr__(self) -> str:
        return "\n".join(", ".join(row) for row in self.rows)

    def _repr_html_(self) -> str:
        return html_table(self.CAPTION, self.TITLES, self.rows)


class TimeLeft:
    """How many of the keys under a prefix have how long to live; asked by SCAN and PTTL alone."""

    TITLES = ("time left", "sessions", "")
    STEPS_S = (
        ("up to 5 minutes", 300),
        ("5 minutes to 12 hours", DAY_S // 2),
        ("12 hours to 2 days", 2 * DAY_S),
        *((f"{day} to {day + 1} days", (day + 1) * DAY_S) for day in range(2, 7)),
    )

    def __init__(self, target: str, prefix: str) -> None:
        with connect(target) as client, client.pipeline(transaction=False) as asked:
            keys = [key for key in client.scan_iter(count=1000) if bytes(key).startswith(prefix.encode())]
            for key in keys:
                asked.pttl(key)
            left_s = [left_ms / 1000 for left_ms in asked.execute() if left_ms > 0]
        step = [bisect.bisect_left([up_to for _, up_to in self.STEPS_S], one) for one in left_s]
        most = max((step.count(place) for place in step), default=1)
        self.rows = [
            (title, f"{step.count(place)}", "▪" * ceil(20 * step.count(place) / most))
            for place, (title, _) in enumerate(self.STEPS_S)
        ]
        self.caption = f"{len(left_s)} sessions {prefix}* by the time they have left"

    def __repr__(self) -> str:
        return "\n".join([self.caption, *(f"{title:>21} {count:>5} {bar}" for title, count, bar in self.rows)])

    def _repr_html_(self) -> str:
        return html_table(self.caption, self.TITLES, self.rows)


def _investigated(target: str) -> tuple[str, str, str, str]:
    with connect(target) as client:
        info: dict[str, Any] = client.info("server")
        keys = client.dbsize()
        private = started_by_memkit(client)
    flavour = info.get("server_name", "redis")
    version = info.get(f"{flavour}_version", info["redis_version"])
    purpose = "the demo incident, to be looked at" if private else "yours, read-only"
    return purpose, f"{flavour} {version}", "memkit's, private" if private else redact(target), f"{keys:,}"


def _guard() -> str:
    named = os.environ.get("MEMKIT_LAB_URL")
    if not named:
        return "no other Redis is named, none is touched"
    with connect(named) as client:
        return "beside the demo incident" if started_by_memkit(client) else f"read-only on {redact(named)}"


def _cell_magic(line: str, cell: str) -> None:
    ipytest.clean()
    shell: Any = InteractiveShell.instance()
    result = shell.run_cell(cell)
    if not result.success:
        error = result.error_before_exec or result.error_in_exec
        raise InlineTestsFailed(f"the cell's own code raised {type(error).__name__}: no test ran")
    _run(line)


def _line_magic(line: str) -> None:
    _run(line)


def _run(line: str) -> None:
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
        raise InlineTestsFailed(_named(f"pytest was ended before {len(seen.not_run)} had run", seen.not_run))
    if must_fail:
        _went_red(seen, printed.getvalue())
    elif code or not seen.passed:
        raise InlineTestsFailed(f"{_why(seen)}\n{printed.getvalue().strip()}")
    else:
        print(_named(f"{len(seen.passed)} passed", seen.passed) + _and_skipped(seen))


def _why(seen: _Outcomes) -> str:
    not_green = list(dict.fromkeys([*seen.failed, *seen.errors]))
    if not_green:
        return _named(f"{len(not_green)} of {len({*not_green, *seen.passed})} failed", not_green)
    return "every test was skipped" if seen.skipped else "no test was found in this cell; a test is a function test_…"


def _went_red(seen: _Outcomes, report: str) -> None:
    if seen.errors:
        raise InlineTestsFailed(f"expected a failing test; this is an error around one\n{report.strip()}")
    if not seen.failed:
        raise InlineTestsFailed(f"expected a failing test, and none failed\n{report.strip()}")
    print("\n".join([_named(f"{len(seen.failed)} went red, as they must", seen.failed), *seen.assertions]))


def _named(what: str, tests: list[str]) -> str:
    """Return ``what: test_a, test_b[1, 2]``, the cases of a parametrized test together, in lines as wide as a cell."""
    cases: dict[str, list[str]] = {}
    for test in tests:
        name, _, case = test.partition("[")
        cases.setdefault(name, []).append(case.removesuffix("]"))
    names = [f"{name}[{', '.join(some)}]" if some[0] else name for name, some in cases.items()]
    return textwrap.fill(f"{what}: {', '.join(names)}", 96, subsequent_indent="  ", break_on_hyphens=False)


def _and_skipped(seen: _Outcomes) -> str:
    return "".join(f"\nskipped {name}: {why}" for name, why in seen.skipped.items())


def _name(nodeid: str) -> str:
    return nodeid.rpartition("::")[2]


class _Outcomes:
    """A pytest plugin of one run: which tests passed, failed, were skipped, had an error around them, never ended."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []
        self.errors: list[str] = []
        self.skipped: dict[str, str] = {}
        self.assertions: list[str] = []
        self.not_run: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.not_run = [_name(item.nodeid) for item in session.items]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = _name(report.nodeid)
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
