"""Every notebook, run all twice under nbval: a failing inline test or a stored output that is not so fails it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbval_run import Run, ahead_of_tests, run_nbval

import memkit.server.launcher

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
NEED_THE_PRELOAD = {"01_redis_ttl_semantics", "03_expiry_vs_policy"}


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Run]]:
    """Run a copy, so that nothing is left in the checkout; in it, every cell is there twice, as in a second Run All."""

    def twice(notebook: Path) -> Run:
        content = nbformat.read(notebook, as_version=4)
        again = [nbformat.from_dict(cell | {"id": f"again-{number}"}) for number, cell in enumerate(content.cells)]
        content.cells += again
        copy = tmp_path_factory.mktemp(notebook.stem) / notebook.name
        nbformat.write(content, copy)
        return run_nbval(copy)

    with ahead_of_tests(request, "notebook", twice) as run:
        yield run


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_stored(notebook: Path, run: Callable[[Path], Run]) -> None:
    if notebook.stem in NEED_THE_PRELOAD and not memkit.server.launcher._shim():
        pytest.skip("it needs a server whose own clock moves (Linux, a C compiler when memkit is installed)")
    done = run(notebook)
    if done.returncode or " passed" not in done.stdout:
        pytest.fail(f"{notebook.name} under nbval:\n{done.stdout}", pytrace=False)
