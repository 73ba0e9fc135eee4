"""``%load_ext memkit``: a private real Redis for the notebook, and inline tests that can fail.

``%%ipytest`` runs the tests defined in its cell, with memkit's fixtures; the cell fails when a test fails, when none
was collected, when all were skipped, or when its own code raised, and shows the assertion. ``%ipytest`` runs the tests
above again. With ``--must-fail`` either passes only when a test fails, and shows how: for a change that has to go red.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import shlex
from functools import cache
from typing import Any

import ipytest
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

import memkit
from memkit.connect import connect, redact, started_by_memkit
from memkit.demo import Incident, load_incident
from memkit.server import RedisServer

# A null configuration, so that an inline run does not inherit the options of a project around the notebook.
PYTEST_OPTIONS = shlex.split(
    f"-q --color=no --no-header --disable-warnings -c {os.devnull} -p no:cacheprovider -p no:nbval "
    "-o asyncio_default_fixture_loop_scope=function"
)


class InlineTestsFailed(AssertionError):
    """A ``%%ipytest`` cell that is not green; shown with pytest's report, without this module's frames."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


@cache
def server() -> RedisServer:
    """Return this notebook's private server, started at the first call and gone with the kernel."""
    return RedisServer(persist=True).start()


@cache
def incident_server() -> RedisServer:
    """Return the private server of the demo incident. Every write is fsynced once a second, as most people's are."""
    return RedisServer(persist=True, config={"appendfsync": "everysec"}).start()


@cache
def incident() -> Incident:
    """Return the demo incident, replayed on a private server of its own at the first call."""
    return load_incident(incident_server())


def url() -> str:
    """Return the URL of the Redis under investigation: what `memkit lab` was given, else the demo incident."""
    return os.environ.get("MEMKIT_LAB_URL") or incident().url


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Start the server, register the magics, show the status line. Nothing is put into the user's namespace."""
    ipytest.config(magics=False, rewrite_asserts=True, addopts=PYTEST_OPTIONS, coverage=False)
    magics: Any = shell.register_magic_function
    magics(_cell_magic, "cell", "ipytest")
    magics(_line_magic, "line", "ipytest")
    show: Any = display
    show(Status(server()))


class Status:
    """One line: what is running, who brought it, how time is moved, what the guard lets through."""

    def __init__(self, running: RedisServer) -> None:
        self._text = (
            f"memkit {memkit.__version__}: {running.flavour} {running.version} ({running.source}), private; "
            f"time moved by {running.clock.rung}; {_guard()}"
        )

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return f'<div style="border-left:4px solid #009E73;padding:2px 8px">{html.escape(self._text)}</div>'


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
    if must_fail:
        _went_red(seen, printed.getvalue())
    elif code or not seen.passed:
        raise InlineTestsFailed(f"{_why(seen)}\n{printed.getvalue().strip()}")
    else:
        print(f"{len(seen.passed)} passed: {', '.join(seen.passed)}" + _and_skipped(seen))


def _why(seen: _Outcomes) -> str:
    if seen.failed:
        return f"{len(seen.failed)} of {len(seen.failed) + len(seen.passed)} failed: {', '.join(seen.failed)}"
    return "every test was skipped" if seen.skipped else "no test was found in this cell; a test is a function test_…"


def _went_red(seen: _Outcomes, report: str) -> None:
    if not seen.failed:
        raise InlineTestsFailed(f"expected a failing test, and none failed\n{report.strip()}")
    print("\n".join([f"{len(seen.failed)} went red, as they must: {', '.join(seen.failed)}", *seen.assertions]))


def _and_skipped(seen: _Outcomes) -> str:
    return "".join(f"\nskipped {name}: {why}" for name, why in seen.skipped.items())


class _Outcomes:
    """A pytest plugin of one run: which tests passed, failed and were skipped."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []
        self.skipped: dict[str, str] = {}
        self.assertions: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self.failed.append(name)
            self.assertions += [f"  {row}" for row in report.longreprtext.splitlines() if row.startswith(("E ", ">"))]
        elif report.skipped:
            self.skipped[name] = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        elif report.when == "call":
            self.passed.append(name)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
