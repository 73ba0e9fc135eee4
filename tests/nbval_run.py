"""Run one notebook as CI does: strictly under nbval, in a process, a folder and a Jupyter of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat

CELL_TIMEOUT_S = 300.0
HERE = Path(__file__).parent
SANITIZE = HERE / "nbval_sanitize.cfg"
# Strict: stored outputs are compared, but for pytest's own words. The first failure ends a run: later ones
# may only follow from it.
NBVAL = (
    f"--nbval --nbval-current-env --nbval-sanitize-with {SANITIZE} -x -q -c {os.devnull} --rootdir=. --confcutdir=. "
    "-p nbval_hooks -p no:cacheprovider -p no:xdist -p no:hypothesispytest -p no:valkey -p no:asyncio -p no:memkit "
    "--color=no"
).split()
Run = subprocess.CompletedProcess[str]


class Executed(NamedTuple):
    """A run of nbval: exit status, log, and the file of the notebook with the outputs of its first Run All."""

    returncode: int
    log: str
    path: str


def run_nbval(
    notebook: Path,
    *,
    cell_timeout_s: float = CELL_TIMEOUT_S,
    options: Sequence[str] = (),
) -> Run:
    """Run a notebook in its folder; the log is in ``stdout``. ``options`` are added to the usual ones."""
    limit = f"--nbval-cell-timeout={cell_timeout_s}"
    command = [sys.executable, "-m", "pytest", *NBVAL, limit, *options, notebook.name]
    return subprocess.run(
        command,
        cwd=notebook.parent,
        env=own_jupyter(notebook.parent),
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


def run_twice(notebook: Path, folder: Path) -> Executed:
    """Run a copy with every cell in it twice, as in a second Run All of the same kernel.

    The conformance suite runs once: it has processes and servers of its own, and takes most of its notebook's time.
    """
    content = nbformat.read(notebook, as_version=4)
    count = len(content.cells)
    again = [cell for cell in content.cells if "conformance.run(" not in cell.source]
    content.cells += [nbformat.from_dict(cell | {"id": f"again-{number}"}) for number, cell in enumerate(again)]
    copy = folder / notebook.name
    nbformat.write(content, copy)
    run = run_nbval(copy)
    path = copy.with_name("executed.ipynb")
    executed = nbformat.read(path, as_version=4)
    executed.cells = executed.cells[:count]
    nbformat.write(executed, path)
    return Executed(run.returncode, run.stdout, str(path))
