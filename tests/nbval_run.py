"""Run one notebook as CI does: strictly under nbval, in a process, a folder and a Jupyter of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CELL_TIMEOUT_S = 60.0
HERE = Path(__file__).parent
# Strict: stored outputs are compared. The first failure ends a run: what follows from it says nothing.
NBVAL = (
    f"--nbval --nbval-current-env -x -q -c {os.devnull} -p nbval_hooks -p no:cacheprovider -p no:xdist "
    "-o asyncio_default_fixture_loop_scope=function --color=no"
).split()


def run_notebook(
    notebook: Path, folder: Path, *, cell_timeout_s: float = CELL_TIMEOUT_S, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a copy of a notebook in ``folder``; the log is in ``stdout``. ``env``: variables beside the usual ones."""
    copied = shutil.copy(notebook, folder)
    command = [sys.executable, "-m", "pytest", *NBVAL, f"--nbval-cell-timeout={cell_timeout_s}", str(copied)]
    return subprocess.run(
        command,
        cwd=folder,
        env=own_jupyter(folder) | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


def own_jupyter(folder: Path) -> dict[str, str]:
    """Return an environment in which nobody's Jupyter settings, start-up files or Redis play a part."""
    private = {
        name: str(folder / name.lower())
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("MEMKIT_LAB", "PYTEST_"))}
    return usual | private | {"PYTHONPATH": str(HERE), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
