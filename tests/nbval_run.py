"""Run one notebook as CI does: strictly under nbval, in a process, a folder and a Jupyter of its own.

Run as a program, it reads requests from its standard input, and runs each in a fork of itself: importing pytest, nbval
and Jupyter takes 1.2 s of CPU, which every notebook would pay. Its kernels are forks, too: IPython, matplotlib and
pandas take 1.8 s. memkit is not among what is imported before: each kernel imports it anew.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

CELL_TIMEOUT_S = 300.0
HERE = Path(__file__).parent
SANITIZE = HERE / "nbval_sanitize.cfg"
# Strict: stored outputs are compared, but for pytest's own words. The first failure ends a run: later ones
# may only follow from it.
NBVAL = (
    f"--nbval --nbval-current-env --nbval-sanitize-with {SANITIZE} -x -q -c {os.devnull} --rootdir=. --confcutdir=. "
    "-p nbval_hooks -p no:cacheprovider -p no:xdist -p no:xdist.looponfail -p no:hypothesispytest -p no:valkey "
    "-p no:anyio -p no:asyncio -p no:memkit --color=no"
).split()
OF_KERNELS = ("ipykernel.kernelapp", "matplotlib_inline.backend_inline", "matplotlib.pyplot", "pandas", "ipytest")
"""What most kernels import."""


class Run(NamedTuple):
    """A run of nbval: exit status and log."""

    returncode: int
    stdout: str


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
    log = notebook.with_suffix(".log")
    arguments = [*NBVAL, f"--nbval-cell-timeout={cell_timeout_s}", *options, notebook.name]
    request = [arguments, str(notebook.parent), own_jupyter(notebook.parent), str(log)]
    forks = _forks()
    assert forks.stdin
    assert forks.stdout
    print(json.dumps(request), file=forks.stdin, flush=True)
    return Run(int(forks.stdout.readline()), log.read_text())


@cache
def _forks() -> subprocess.Popen[str]:
    """Start the process that forks; it ends with this one, which closes its standard input."""
    command = [sys.executable, __file__]
    forks = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(forks.communicate)
    return forks


def _serve() -> None:
    import nbval_hooks  # noqa: F401  # with pytest, nbval and Jupyter
    import pytest
    from jupyter_client.provisioning import local_provisioner

    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel does, before the imports
    for module in OF_KERNELS:
        importlib.import_module(module)
    gc.freeze()
    for line in sys.stdin:
        arguments, folder, environment, log = json.loads(line)
        child = os.fork()
        if not child:
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            # They are forked now, before pytest has changed the process.
            kernels = [ForkedKernel() for one in arguments if one.endswith(".ipynb")]
            local_provisioner.launch_kernel = partial(_launch, kernels)
            sys.exit(pytest.main(arguments))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _launch(kernels: list[ForkedKernel], command: list[str], **options: Any) -> ForkedKernel:
    return kernels.pop().launch(command, **options)


class ForkedKernel(subprocess.Popen[bytes]):
    """A fork of this process that waits until it is launched, and then is a kernel; it ends if it never is."""

    def __init__(self) -> None:
        self.args, self.returncode, self._child_created = ["a kernel"], None, True
        self.stdin = self.stdout = self.stderr = None
        self._waitpid_lock = threading.Lock()
        receiving, self._sending = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(receiving)
            return
        os.close(self._sending)
        try:
            os.setsid()
            with os.fdopen(receiving) as requests:
                request = requests.read()
            if request:
                _be_a_kernel(*json.loads(request))
        finally:
            os._exit(0)

    def launch(self, command: list[str], *, env: dict[str, str], cwd: str, **_: Any) -> ForkedKernel:
        """Do what jupyter_client's launch_kernel does."""
        with os.fdopen(self._sending, "w") as request:
            json.dump([command, env, str(cwd)], request)
        return self


def _be_a_kernel(command: list[str], environment: dict[str, str], folder: str) -> None:
    from ipykernel.kernelapp import launch_new_instance

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for fd in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    atexit._clear()
    # With its parent it ends, too. The import has read JPY_PARENT_PID, which was not set then.
    parent = f"--IPKernelApp.parent_handle={os.getppid()}"
    launch_new_instance([*command[command.index("ipykernel_launcher") + 1 :], parent])
    atexit._run_exitfuncs()


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


if __name__ == "__main__":
    _serve()
