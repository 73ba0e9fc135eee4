"""Faulty notebooks: each has to turn the run red, in seconds, with the reason in the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from nbval_run import CELL_TIMEOUT_S, Run, ahead_of_tests, run_nbval

LOAD = "%load_ext memkit"


@dataclass(frozen=True)
class Fault:
    """The cells of a notebook, and what the log has to say. ``stored``: the last cell's output, if it is compared."""

    cells: tuple[str, ...]
    says: tuple[str, ...]
    stored: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    cell_timeout_s: float = CELL_TIMEOUT_S

    def write(self, path: Path) -> Path:
        cells = [nbformat.v4.new_code_cell(source) for source in self.cells]
        if self.stored is not None:
            cells[-1].execution_count = 1
            cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=self.stored)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path


def inline(body: str) -> str:
    return f"%%ipytest\nimport pytest\n{body}"


FAULTS = {
    "inline test fails": Fault(
        (LOAD, inline("def test_ttl(redis_memory_store):\n    ttl_s = 300\n    assert ttl_s == 604800")),
        ("1 of 1 failed: test_ttl", "assert ttl_s == 604800", "assert 300 == 604800"),
    ),
    "cell magic missing": Fault(
        (inline("def test_ttl():\n    assert False"),), ("Cell magic `%%ipytest` not found", "Cell 0")
    ),
    "body raises after the first test": Fault(
        (LOAD, inline("def test_one():\n    pass\n1 / 0\ndef test_two():\n    pass")), ("ZeroDivisionError", "1 / 0")
    ),
    "nothing collected": Fault(
        (LOAD, inline("def tset_ttl():\n    assert False")), ("no test was found in this cell",)
    ),
    "all skipped": Fault((LOAD, inline("def test_ttl():\n    pytest.skip('no server')")), ("every test was skipped",)),
    "wrong stored output": Fault(
        ("print('the session lived for 5 minutes')",),
        ("Cell outputs differ", "the session lived for 5 minutes", "the session lived for 7 days"),
        stored="the session lived for 7 days\n",
    ),
    "kernel dies": Fault(("import os", "os._exit(1)"), ("the kernel died while it was running this cell",)),
    "kernel is killed in an inline test": Fault(
        (LOAD, inline("def test_ttl():\n    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)")),
        ("the kernel died while it was running this cell",),
    ),
    "hangs": Fault(("while True: pass",), ("Timeout of 4 seconds exceeded", "while True: pass"), cell_timeout_s=4),
    "server missing": Fault(
        (LOAD,),
        ("MEMKIT_REDIS_SERVER=/no/redis-server is not a Redis or Valkey server that runs here",),
        env={"MEMKIT_REDIS_SERVER": "/no/redis-server"},
    ),
}


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Run]]:
    def with_fault(name: str) -> Run:
        notebook = FAULTS[name].write(tmp_path_factory.mktemp(name.replace(" ", "_")) / "faulty.ipynb")
        return run_nbval(notebook, cell_timeout_s=FAULTS[name].cell_timeout_s, env=dict(FAULTS[name].env))

    with ahead_of_tests(request, "fault", with_fault) as run:
        yield run


@pytest.mark.parametrize("fault", FAULTS)
def test_it_turns_the_run_red(fault: str, run: Callable[[str], Run]) -> None:
    done = run(fault)
    assert done.returncode != 0, done.stdout
    for reason in FAULTS[fault].says:
        assert reason in done.stdout
