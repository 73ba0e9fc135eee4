"""Every notebook, run top to bottom under nbval: a failing inline test or a stored output that is not so fails it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nbval_run import Run, ahead_of_tests, run_nbval

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Run]]:
    """Run a copy, so that nothing is left in the checkout."""

    def of_a_copy(notebook: Path) -> Run:
        return run_nbval(Path(shutil.copy(notebook, tmp_path_factory.mktemp(notebook.stem))))

    with ahead_of_tests(request, "notebook", of_a_copy) as run:
        yield run


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_stored(notebook: Path, run: Callable[[Path], Run]) -> None:
    done = run(notebook)
    if done.returncode or " passed" not in done.stdout:
        pytest.fail(f"{notebook.name} under nbval:\n{done.stdout}", pytrace=False)
