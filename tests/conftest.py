"""``any_server``: the same test on every real server that is here, and last lines that say which those were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from servers import LANES, every_server, start

from memkit.server import RedisServer


@pytest.fixture(params=every_server())
def any_server(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[RedisServer]:
    """A fresh private server, once for each server program found (6-40 ms to start)."""
    record_property("server", request.param)
    with start(request.param) as server:
        yield server


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their parameter, not by what is in them: that may hold the time or a random number.

    Workers that collect different names run no test at all.
    """
    return argname if isinstance(val, bytes | bytearray) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = Counter(
        (dict(report.user_properties).get("server"), outcome)
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.getreports(outcome)
    )
    if not any(name for name, _ in counts):
        return
    for name, binary in every_server().items():
        tests = ", ".join(f"{counts[name, outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
        where = f"{binary.version}, {binary.source}" if binary else f"not here: {LANES[name]}"
        terminalreporter.write_line(f"server {name} ({where}): {tests}")
