"""``any_server``, the quick tests, the order under xdist, and last lines that name the servers that were tested."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import py_compile
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import LANES, every_server, start

from memkit.server import RedisServer
from memkit.server.guard import REGISTRY

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # Otherwise each of the hundreds of processes that the tests start would compile all that it imports (matplotlib,
    # pandas and IPython: 3.6 s of CPU instead of 1.3 s, measured). The folder is kept for the next run: starting four
    # workers takes 42 s of CPU with an empty one, 23 s with a full one. What this process has imported so far is
    # compiled first: each worker would do that at the same time.
    folder = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(folder)
    sys.dont_write_bytecode = False
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None) or ""
        if source.endswith(".py") and not Path(importlib.util.cache_from_source(source)).exists():
            py_compile.compile(source, quiet=2)


def pytest_configure() -> None:
    from hypothesis import HealthCheck, settings  # here, so that its bytecode is kept for the workers

    # How long an example takes is no failure on a busy machine; the examples of a test may share a server.
    suppressed = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings.register_profile("memkit", deadline=None, suppress_health_check=suppressed)
    settings.load_profile("memkit")


@pytest.fixture(params=every_server())
def any_server(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[RedisServer]:
    """A fresh private server, once for each server program found (6-40 ms to start)."""
    record_property("server", request.param)
    with start(request.param) as server:
        yield server


@pytest.fixture(autouse=True)
def _leaves_no_key(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tests of a worker share ``memkit_server``, in any order: each leaves it empty."""
    yield
    if "memkit_server" in request.fixturenames:
        with request.getfixturevalue("memkit_server").client() as client:
            # The registry may hold the lease of a sandbox that the worker keeps for the next test.
            left = set(client.keys("*")) - {REGISTRY.encode()}
            if left:
                client.unlink(*left)
        assert left == set()


QUICK_LANE = "redis-8.2"
NOT_QUICK = (
    *("tests/notebook/", "tests/conformance/", "tests/plot/", "tests/test_plugin", "tests/test_stress.py"),
    *("tests/test_cluster.py", "tests/test_sentinel.py", "test_audit_cluster.py", "test_audit_sampling.py"),
    *("test_audit_worlds.py", "test_audit_verdicts.py", "test_audit_values.py", "test_audit_indexes.py"),
    *("test_audit_payloads.py", "test_record", "test_history_cluster.py", "test_cli_terminal.py", "test_server.py"),
    *("hostile", "fuzzer", "sentinel", "conformance_of", "shifted_keys", "the_verdict_is_the_truth", "the_wheel"),
)
"""Tests that take seconds each, by their names: whole notebooks, many processes, thousands of sessions."""
FIRST = ("test_notebooks.py", "test_record.py")
"""The longest files, so that no worker is left alone with one at the end. One worker runs the kernels of notebooks in
turn: together they would each compile IPython, matplotlib and pandas (4 s of CPU) before one of them has."""
LATER = ("test_browser.py",)
"""Files that begin in the middle: this one looks at what ``test_notebooks.py`` has run, and would wait for it."""
ALONE = ("test_stores.py",)
"""Files without a shared server: each of their tests goes to the next free worker. The other files stay together."""


def pytest_collection_finish() -> None:
    """Keep modules and tests out of garbage collections, which took 4 % of the CPU: nothing of them is garbage.

    Collections of the rest take another 3 % after each 700 new objects, 1.5 % after each 10,000.
    """
    gc.enable()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import another part of the test modules in each worker of xdist, before all workers import all of them.

    Without bytecode, as in a fresh clone, each worker would compile each module: 7 s of CPU in each of four workers.
    What one worker has compiled the others read: 4 s. An error in a module is left for the collection to report.
    """
    gc.disable()
    worker = getattr(session.config, "workerinput", None)
    if not worker:
        return
    paths = [Path(argument.partition("::")[0]) for argument in session.config.args]
    modules = sorted(module for path in paths for module in ([path] if path.is_file() else path.rglob("test_*.py")))
    for module in modules[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        sys.path.insert(0, str(module.parent))
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(module.stem)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        lanes = {lane for lane in parameters if isinstance(lane, str) and lane in LANES}
        name = item.nodeid  # it is put together anew each time
        if lanes <= {QUICK_LANE} and not any(part in name for part in NOT_QUICK):
            item.add_marker("quick")
    if hasattr(config, "workerinput"):
        places = _places({item.path for item in items})
        items.sort(key=lambda item: places[item.path])


def _places(files: set[Path]) -> dict[Path, tuple[bool, int, float, str]]:
    """Return the sort key of each file under xdist, by which the files of each folder are spread over the whole run.

    Many files of one folder wait for a server or a kernel: run at the same time, they leave the cores idle (15 s,
    measured).
    """
    folders: dict[Path, list[Path]] = {}
    for file in sorted(files):
        folders.setdefault(file.parent, []).append(file)
    return {
        file: (
            file.name in ALONE,
            FIRST.index(file.name) if file.name in FIRST else len(FIRST),
            0.5 if file.name in LATER else (folders[file.parent].index(file) + 0.5) / len(folders[file.parent]),
            str(file),
        )
        for file in files
    }


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return nodeid if path.endswith(ALONE) else path

    config.option.loadscopereorder = False
    return ByFile(config, log)


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
