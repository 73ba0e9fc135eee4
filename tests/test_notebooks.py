"""Every notebook, run top to bottom under nbval: a failing inline test or a stored output that is not so fails it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from nbval_run import run_notebook

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Run]]:
    """The runs go on ahead of the tests that wait for them, two at a time: much of a run is a kernel starting."""

    def started(notebook: Path) -> Future[Run]:
        return pool.submit(run_notebook, notebook, tmp_path_factory.mktemp(notebook.stem))

    with ThreadPoolExecutor(max_workers=2) as pool:
        selected = [item.callspec.params["notebook"] for item in request.session.items if item.path == request.path]
        # A worker of xdist knows every test, but not which will be its own: it runs ahead of none.
        ahead = {} if "PYTEST_XDIST_WORKER" in os.environ else {one: started(one) for one in selected}
        yield lambda notebook: (ahead.get(notebook) or started(notebook)).result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_stored(notebook: Path, run: Callable[[Path], Run]) -> None:
    done = run(notebook)
    if done.returncode or "passed" not in done.stdout:
        pytest.fail(f"{notebook.name} under nbval:\n{done.stdout}", pytrace=False)
