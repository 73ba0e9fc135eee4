"""Loaded into nbval's runs (``-p nbval_hooks``): what nbval 0.11 lets pass fails, what it leaves out is shown.

A cell whose magic does not exist passes (nbval #147): its reply says "error" and there is no exception to see. A kernel
that died is waited for until the cell's time is up. And a failing cell is shown without what it printed.

The notebook is saved with what its cells put out, as ``executed.ipynb``: the browser's test shows that.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from queue import Empty
from typing import Any

import nbformat
import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, NbCellError

LOOKS_EVERY_S = 0.5
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
receive = RunningKernel.get_message


class KernelDied(Exception):
    """The process behind the notebook ended while a cell was running."""


def _get_message(self: Any, stream: str, timeout: float | None = None) -> Any:
    """Wait for a message as nbval does, but not for one from a dead kernel; remember how the cell ended."""
    deadline = time.monotonic() + (timeout or 1e9)
    while True:
        try:
            message = receive(self, stream, min(LOOKS_EVERY_S, timeout or LOOKS_EVERY_S))
        except Empty:
            if not self.is_alive():
                raise KernelDied("the kernel died while it was running this cell") from None
            if time.monotonic() > deadline:
                raise
        else:
            if stream == "shell":
                self.ended_with = message["content"].get("status")
            return message


def pytest_configure() -> None:
    RunningKernel.get_message = _get_message


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    result = yield
    if isinstance(item, IPyNbCell) and item.parent.kernel.ended_with == "error" and not item.options["check_exception"]:
        said = "\n".join(text for _, text in _streams(item))
        raise NbCellError(item.cell_num, "Cell failed without an exception", item.cell.source, said)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    for notebook in {item.parent for item in session.items if isinstance(item, IPyNbCell)}:
        cells = {item.cell.id: item for item in session.items if item.parent is notebook}
        content = nbformat.read(notebook.path, as_version=4)
        for number, cell in enumerate((one for one in content.cells if one.cell_type == "code"), 1):
            outputs = cells[cell.id].test_outputs
            cell.execution_count = None if outputs is None else number
            cell.outputs = [nbformat.from_dict(output) for output in outputs or ()]
        nbformat.write(content, notebook.path.with_name("executed.ipynb"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if isinstance(item, IPyNbCell) and report.failed:
        report.sections += [(f"the cell's {name}", text) for name, text in _streams(item)]
        report.longrepr = COLOURS.sub("", str(report.longrepr))
    return report


def _streams(cell: IPyNbCell) -> list[tuple[str, str]]:
    return [(out.name, COLOURS.sub("", out.text)) for out in cell.test_outputs or () if out.output_type == "stream"]
