from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebook_policy import METADATA, complaints, main
from test_notebooks import NOTEBOOKS

Cell = nbformat.NotebookNode
markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_keeps_the_policy(notebook: Path) -> None:
    found = complaints(notebook)
    assert not found, "\n".join(found)


def contract(source: str, text: str = "1 passed: test_ttl\n") -> Cell:
    cell = code(source, metadata={"tags": ["nbval-check-output"]}, execution_count=3)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
    return cell


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a notebook that keeps the policy, changed by a function over its cells."""
    (tmp_path / "01_next.ipynb").touch()

    def write(change: Callable[[list[Cell]], Any] = list) -> Path:
        cells = [
            markdown("# A title\n\n**Which question does it answer?** The one who is on call asks it."),
            code("%load_ext memkit\nfrom memkit.notebook import server"),
            markdown("A test, and what it shows: as long as the code that it belongs to, and longer."),
            contract("%%ipytest\ndef test_ttl(memory_store):\n    assert memory_store"),
            markdown("Next: [the next one](01_next.ipynb)"),
        ]
        change(cells)
        path = tmp_path / "00_this.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), path)
        return path

    return write


def test_notebook_within_the_policy_is_not_changed(write: Callable[..., Path]) -> None:
    path = write()
    assert complaints(path) == []
    before = path.read_bytes()
    assert main(["--write", str(path)]) == 0
    assert path.read_bytes() == before


def set_in(number: int, **values: Any) -> Callable[[list[Cell]], None]:
    return lambda cells: cells[number].update(values)


BROKEN: dict[str, Callable[[list[Cell]], Any]] = {
    "the first cell is not a title": set_in(0, source="Which question? I ask."),
    "does not say which question is answered": set_in(0, source="# A title"),
    "17 code cells; at most 15": lambda cells: cells[3:3] + [cells.insert(3, code("1")) for _ in range(15)],
    "characters of text for": lambda cells: cells.insert(3, code(f"x = {'1' * 999}")),
    "is not the two lines of set-up": set_in(1, source="import memkit\nimport redis\n%load_ext memkit"),
    "no link to the next notebook": set_in(4, source="The end."),
    "a link to 09_gone.ipynb, which is not there": set_in(4, source="[a](01_next.ipynb) [b](09_gone.ipynb)"),
    "13 lines; at most 12": set_in(1, source="%load_ext memkit\n" + "1\n" * 12),
    "a line of 107 characters; at most 106": set_in(1, source=f"%load_ext memkit\nx = {'1' * 103}"),
    "defines something outside %%ipytest": set_in(1, source="%load_ext memkit\ndef helper(): pass"),
    "metadata besides tags": set_in(1, metadata={"collapsed": True}),
    "'raises-exception', which lets nbval look away": set_in(1, metadata={"tags": ["raises-exception"]}),
    "'NBVAL_SKIP', which lets nbval look away": set_in(1, source="%load_ext memkit\n1 # NBVAL_SKIP"),
    "ends with a semicolon": set_in(1, source="%load_ext memkit\n1;"),
    "keeps output or a count and is no contract cell": set_in(1, execution_count=1),
    "has no output with a count: nothing would be compared": set_in(3, execution_count=None),
    "has a stored error": lambda cells: cells[3].outputs.append(nbformat.v4.new_output("error", ename="E")),
    "'Where is my order?', which is private": lambda cells: cells.insert(3, contract("1", "Where is my order?")),
    "'/home/', which is private or differs": lambda cells: cells.insert(3, contract("1", "/home/mia/chat.py")),
    "'7.0.15', which is private or differs": lambda cells: cells.insert(3, contract("1", "Redis 7.0.15")),
    "stores what fakeredis says": lambda cells: cells.insert(3, contract("import fakeredis")),
    "'memkit-test:5e372a9e', which is private or differs": lambda cells: cells.insert(
        3, contract("1", "memkit-test:5e372a9efc2c:chat:")
    ),
}


@pytest.mark.parametrize("says", BROKEN)
def test_each_rule_finds_what_breaks_it(says: str, write: Callable[..., Path]) -> None:
    found = complaints(write(BROKEN[says]))
    assert any(says in one for one in found), found


def test_write_strips_what_jupyterlab_saved(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    def saved(cells: list[Cell]) -> None:
        for number, cell in enumerate(cells):
            cell.metadata |= {"execution": {"iopub.status.busy": "2026"}, "editable": True}
            if cell.cell_type == "code":
                cell.execution_count = number
                cell.outputs.append(nbformat.v4.new_output("display_data", {"text/plain": "1"}, metadata={"a": 1}))

    path = write(saved)
    assert main(["--write", str(path)]) == 1
    assert capsys.readouterr().out == f"{path}: stripped\n"
    assert complaints(path) == []
    setup, test = (cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    assert (setup.execution_count, setup.outputs) == (None, [])
    assert (test.execution_count, len(test.outputs)) == (3, 2)
    assert main(["--write", str(path)]) == 0
