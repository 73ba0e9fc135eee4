"""Every notebook, run all twice under nbval: a failing inline test or another output than the stored one fails it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nbval_run import Executed

import memkit.server.launcher

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
NEED_THE_PRELOAD = {"01_redis_ttl_semantics", "03_expiry_vs_policy"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_twice_as_stored(notebook: Path, executed: Callable[[Path], Executed]) -> None:
    if notebook.stem in NEED_THE_PRELOAD and not memkit.server.launcher._shim():
        pytest.skip("it needs a server whose own clock moves (Linux, a C compiler when memkit is installed)")
    returncode, log, _ = executed(notebook)
    if returncode or " passed" not in log:
        pytest.fail(f"{notebook.name} under nbval:\n{log}", pytrace=False)
