"""``executed``: each notebook runs once under nbval, for the test of its cells and for the browser."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from nbval_run import Executed, run_twice


@pytest.fixture(scope="session")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Executed]:
    """Return a function from a notebook to its run."""
    return cache(lambda notebook: run_twice(notebook, tmp_path_factory.mktemp(notebook.stem)))
