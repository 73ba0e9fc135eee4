"""Faulty notebooks: each fault fails the run and prints its reason.

The faults that leave the kernel running share one notebook, with a passing cell between two of them. The others have a
notebook each. All run in one process, except the cell that hangs: its time limit would be too short for the others.
"""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbval_run import run_nbval
from processes import alive, linux
from waiting import nothing, wait_for

LOAD = "%load_ext memkit"
PASSES = "%%ipytest\ndef test_passes():\n    pass"


@dataclass(frozen=True)
class Fault:
    """A faulty cell and the reasons that the log must contain; ``stored``: the output it is compared with."""

    cell: str
    reasons: tuple[str, ...]
    stored: str | None = None

    def to_cell(self) -> nbformat.NotebookNode:
        cell = nbformat.v4.new_code_cell(self.cell)
        if self.stored is not None:
            cell.execution_count = 1
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=self.stored)]
        return cell


def inline(body: str) -> str:
    return f"%%ipytest\nimport pytest\n{body}"


FAULTS = {
    "cell magic missing": Fault(inline("def test_ttl():\n    assert False"), ("Cell magic `%%ipytest` not found",)),
    "inline test fails": Fault(
        inline("def test_ttl(redis_memory_store):\n    ttl_s = 300\n    assert ttl_s == 604800"),
        ("1 of 1 failed: test_ttl", "assert ttl_s == 604800", "assert 300 == 604800"),
    ),
    "body raises after the first test": Fault(
        inline("def test_one():\n    pass\n1 / 0\ndef test_two():\n    pass"), ("ZeroDivisionError", "1 / 0")
    ),
    "nothing collected": Fault(inline("def tset_ttl():\n    assert False"), ("no test was found in this cell",)),
    "all skipped": Fault(inline("def test_ttl():\n    pytest.skip('no server')"), ("every test was skipped",)),
    "wrong stored output": Fault(
        "print('the session existed for 5 minutes')",
        ("Cell outputs differ", "the session existed for 5 minutes", "the session existed for 7 days"),
        stored="the session existed for 7 days\n",
    ),
}
NO_SERVER = 'import os\nos.environ["MEMKIT_REDIS_SERVER"] = "/no/redis-server"'
KERNEL_FAULTS = {
    "killed": Fault(
        inline("def test_ttl():\n    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)"),
        ("the kernel died while it was running this cell",),
    ),
    "no_server": Fault(
        f"{NO_SERVER}\n{LOAD}", ("MEMKIT_REDIS_SERVER=/no/redis-server is not a Redis or Valkey server that runs here",)
    ),
}
"""Cells that end their kernel, or a kernel without a server, by the names of their notebooks."""


def write(cells: list[nbformat.NotebookNode], path: Path) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def report_of(log: str, notebook: str, number: int) -> str:
    """Return the report of a failed cell, between two head lines; pytest's own report of an inline test is inside."""
    assert f"FAILED {notebook}.ipynb::Cell {number}" in log, log
    _, *reports = re.split(r"^_+ (\S+)\.ipynb::Cell (\d+) _+$", log, flags=re.MULTILINE)
    return {(name, int(at)): text for name, at, text in zip(*[iter(reports)] * 3, strict=True)}[notebook, number]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The log of one run of the notebook with all faults of cells, and of those with a kernel's fault each."""
    cells = [FAULTS["cell magic missing"].to_cell(), nbformat.v4.new_code_cell(LOAD)]
    for name, fault in FAULTS.items():
        if name != "cell magic missing":
            cells += [fault.to_cell(), nbformat.v4.new_code_cell(PASSES)]
    folder = tmp_path_factory.mktemp("faults")
    for name, fault in KERNEL_FAULTS.items():
        write([nbformat.v4.new_code_cell(LOAD if name == "killed" else "1"), fault.to_cell()], folder / f"{name}.ipynb")
    others = [f"{name}.ipynb" for name in KERNEL_FAULTS]
    return run_nbval(write(cells, folder / "faulty.ipynb"), options=["--maxfail=99", "-rA", *others]).stdout


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_cell_fails_with_its_reason(fault: str, log: str) -> None:
    report = report_of(log, "faulty", 2 * list(FAULTS).index(fault))
    for reason in FAULTS[fault].reasons:
        assert reason in report


def test_the_cells_between_faults_pass(log: str) -> None:
    assert re.findall(r"PASSED faulty.ipynb::Cell (\d+)", log) == ["1", *map(str, range(3, 2 * len(FAULTS), 2))]


@pytest.mark.parametrize("fault", KERNEL_FAULTS)
def test_a_kernel_fault_fails_with_its_reason(fault: str, log: str) -> None:
    for reason in KERNEL_FAULTS[fault].reasons:
        assert reason in report_of(log, fault, 1)


def test_a_cell_that_hangs_fails_the_run(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("import time\ntime.sleep(600)")
    run = run_nbval(write([cell], tmp_path / "faulty.ipynb"), cell_timeout_s=4)
    assert run.returncode != 0, run.stdout
    assert "Timeout of 4 seconds exceeded" in run.stdout


@linux
def test_a_killed_run_leaves_no_kernel(tmp_path: Path) -> None:
    cell = "import os, pathlib, time\npathlib.Path('pids').write_text(f'{os.getpid()} {os.getppid()}')\ntime.sleep(600)"
    path, pids = write([nbformat.v4.new_code_cell(cell)], tmp_path / "busy.ipynb"), tmp_path / "pids"
    with ThreadPoolExecutor() as pool:
        run = pool.submit(run_nbval, path)
        kernel, runner = map(int, wait_for("a busy kernel", lambda: pids.exists() and pids.read_text()).split())
        os.kill(runner, signal.SIGKILL)
        assert run.result().returncode == -signal.SIGKILL
    wait_for("the end of the kernel", lambda: alive(kernel), nothing)
