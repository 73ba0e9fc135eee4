"""Run one notebook as CI does: strictly under nbval, in a process, a folder and a Jupyter of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

CELL_TIMEOUT_S = 300.0
HERE = Path(__file__).parent
SANITIZE = HERE / "nbval_sanitize.cfg"
# Strict: stored outputs are compared, but for pytest's own words. The first failure ends a run: later ones
# may only follow from it.
NBVAL = (
    f"--nbval --nbval-current-env --nbval-sanitize-with {SANITIZE} -x -q -c {os.devnull} -p nbval_hooks "
    "-p no:cacheprovider -p no:xdist -p no:hypothesispytest -o asyncio_default_fixture_loop_scope=function --color=no"
).split()
Given = TypeVar("Given")
Run = subprocess.CompletedProcess[str]


def run_nbval(
    notebook: Path,
    *,
    cell_timeout_s: float = CELL_TIMEOUT_S,
    env: dict[str, str] | None = None,
    options: Sequence[str] = (),
) -> Run:
    """Run a notebook in its folder; the log is in ``stdout``. ``env`` and ``options`` are added to the usual ones."""
    limit = f"--nbval-cell-timeout={cell_timeout_s}"
    command = [sys.executable, "-m", "pytest", *NBVAL, limit, *options, notebook.name]
    return subprocess.run(
        command,
        cwd=notebook.parent,
        env=own_jupyter(notebook.parent) | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )


def own_jupyter(folder: Path) -> dict[str, str]:
    """Return an environment without the user's Jupyter settings, start-up files or Redis."""
    private = {
        name: str(folder / name.lower())
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("MEMKIT_LAB", "PYTEST_"))}
    return usual | private | {"PYTHONPATH": str(HERE), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


@contextlib.contextmanager
def ahead_of_tests(
    request: pytest.FixtureRequest, parameter: str, work: Callable[[Given], Run]
) -> Iterator[Callable[[Given], Run]]:
    """Yield a function that waits for ``work(value)``: begun, two at a time, for the ``parameter`` of every test here.

    Much of a run is a kernel starting. A worker of xdist knows all tests, but not which will be its own: ahead of none.
    """
    here = [item for item in request.session.items if item.path == request.path]
    parameters = [item.callspec.params for item in here if hasattr(item, "callspec")]
    values = [one[parameter] for one in parameters if parameter in one]
    values = [] if "PYTEST_XDIST_WORKER" in os.environ else values
    with ThreadPoolExecutor(max_workers=2) as pool:
        begun = {value: pool.submit(work, value) for value in values}
        yield lambda value: begun[value].result() if value in begun else work(value)
        pool.shutdown(cancel_futures=True)
