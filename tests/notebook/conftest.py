"""``executed``: each notebook runs once under nbval, for the test of its cells and for the browser."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from nbval_run import Executed, run_twice


@pytest.fixture(scope="session")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Executed]:
    """Return a function from a notebook to its run; the workers of xdist share the runs."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "executed"
    shared.mkdir(exist_ok=True)

    def run(notebook: Path) -> Executed:
        saved = shared / f"{notebook.stem}.json"
        with (shared / notebook.stem).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not saved.exists():
                saved.write_text(json.dumps(run_twice(notebook, tmp_path_factory.mktemp(notebook.stem))))
        return Executed(*json.loads(saved.read_text()))

    return run
