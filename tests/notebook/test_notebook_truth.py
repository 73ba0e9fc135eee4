"""Faulty notebooks: each fault fails the run and prints its reason.

The faults that leave the kernel running share one notebook, with a passing cell between two of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from nbval_run import run_nbval

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


@dataclass(frozen=True)
class KernelFault:
    """Cells that end or block their kernel, or a kernel without a server: each needs its own."""

    cells: tuple[str, ...]
    reason: str
    cell_timeout_s: float = 300
    env: Mapping[str, str] = field(default_factory=dict)


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
KERNEL_FAULTS = {
    "kernel is killed in an inline test": KernelFault(
        (LOAD, inline("def test_ttl():\n    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)")),
        "the kernel died while it was running this cell",
    ),
    "hangs": KernelFault(("while True: pass",), "Timeout of 4 seconds exceeded", cell_timeout_s=4),
    "server missing": KernelFault(
        (LOAD,),
        "MEMKIT_REDIS_SERVER=/no/redis-server is not a Redis or Valkey server that runs here",
        env={"MEMKIT_REDIS_SERVER": "/no/redis-server"},
    ),
}


def write(cells: list[nbformat.NotebookNode], path: Path) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The log of one run of a notebook with all faults of cells."""
    cells = [FAULTS["cell magic missing"].to_cell(), nbformat.v4.new_code_cell(LOAD)]
    for name, fault in FAULTS.items():
        if name != "cell magic missing":
            cells += [fault.to_cell(), nbformat.v4.new_code_cell(PASSES)]
    path = write(cells, tmp_path_factory.mktemp("faults") / "faulty.ipynb")
    return run_nbval(path, options=["--maxfail=99", "-rA"]).stdout


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_cell_fails_with_its_reason(fault: str, log: str) -> None:
    place = list(FAULTS).index(fault)
    number = 2 * place if place else 0
    assert f"FAILED faulty.ipynb::Cell {number}" in log, log
    # The reports of the cells, between their head lines; pytest's own report of an inline test is inside.
    _, *reports = re.split(r"^_+ .*Cell (\d+) _+$", log, flags=re.MULTILINE)
    report = dict(zip(reports[::2], reports[1::2], strict=True))[str(number)]
    for reason in FAULTS[fault].reasons:
        assert reason in report


def test_the_cells_between_faults_pass(log: str) -> None:
    assert re.findall(r"PASSED faulty.ipynb::Cell (\d+)", log) == ["1", *map(str, range(3, 2 * len(FAULTS), 2))]


@pytest.mark.parametrize("fault", KERNEL_FAULTS.values(), ids=KERNEL_FAULTS)
def test_a_kernel_fault_fails_the_run(fault: KernelFault, tmp_path: Path) -> None:
    path = write([nbformat.v4.new_code_cell(source) for source in fault.cells], tmp_path / "faulty.ipynb")
    run = run_nbval(path, cell_timeout_s=fault.cell_timeout_s, env=dict(fault.env))
    assert run.returncode != 0, run.stdout
    assert fault.reason in run.stdout
