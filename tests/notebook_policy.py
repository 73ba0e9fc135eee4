"""What a notebook of this repository looks like: ``complaints`` says where one differs, ``--write`` strips it.

Contract cells, tagged nbval-check-output, keep their output and execution count: nbval compares nothing where there is
no count. All other cells keep neither. nbstripout can keep the output of tagged cells, but counts only of all cells or
of none, so this does its work here.

    python tests/notebook_policy.py [--write] notebooks/*.ipynb
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

from memkit.notebook.demo import QUESTIONS

CONTRACT = "nbval-check-output"
TAGS = {CONTRACT, "parameters"}
MARKERS = re.compile(r"# *((?:NBVAL|PYTEST_VALIDATE)_\w+)")
NOTEBOOKS = 8
CELLS, LINES = 15, 12
WIDEST = 106
"""A window of 1,280 pixels shows so many characters of a line."""
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
DEFINES = re.compile(r"^\s*(async def|def|class)\b", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)\)")
# What differs from one machine or run to the next, or names somebody's machine.
PLACE = re.compile(r"/(home|Users|root|tmp)/|memkit-(test:)?[0-9a-f]{8}|0x[0-9a-f]{6,}|\d\d:\d\d:\d\d|\b\d+\.\d+\.\d+")
IMPORTS = re.compile(r"^\s*(?:import|from) +(\w+)", re.MULTILINE)
OWN = {"memkit", *sys.stdlib_module_names}

# What people wrote in the demo incident stands for what they write in a real one.
CANARIES = {text for text in QUESTIONS if len(text) > 8}


def complaints(path: Path) -> list[str]:
    """Return what is against the policy in a notebook, each with its cell."""
    notebook = nbformat.read(path, as_version=4)
    return [*_of_the_whole(notebook, path), *_of_the_cells(notebook), *_of_the_outputs(notebook)]


def _of_the_whole(notebook: Any, path: Path) -> Iterator[str]:
    first, last = notebook.cells[0], notebook.cells[-1]
    if notebook.metadata != METADATA:
        yield "metadata beyond kernel and language: run with --write"
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is not a title"
    elif "?" not in first.source or not re.search(r"\basks\b|\basked by\b", first.source, re.IGNORECASE):
        yield "the first cell does not say which question is answered and who asks it"
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    if len(code) > CELLS:
        yield f"{len(code)} code cells; at most {CELLS}"
    if sum(map(len, prose)) < sum(map(len, code)):
        yield f"{sum(map(len, prose))} characters of text for {sum(map(len, code))} of code; at least as many"
    if not code or "%load_ext memkit" not in code[0].splitlines() or len(code[0].splitlines()) > 2:
        yield "the first code cell is not the two lines of set-up, %load_ext memkit and one import"
    following = f"{(int(path.name[:2]) + 1) % NOTEBOOKS:02}_"
    if last.cell_type != "markdown" or f"]({following}" not in last.source:
        yield f"the last cell has no link to the next notebook, {following}…"
    for target in (match[1] for text in prose for match in LINK.finditer(text)):
        if not (path.parent / target).exists():
            yield f"a link to {target}, which is not there"


def _of_the_cells(notebook: Any) -> Iterator[str]:
    for number, cell in _code_cells(notebook):
        lines = len([line for line in cell.source.splitlines() if line.strip()])
        if lines > LINES:
            yield f"code cell {number} has {lines} lines; at most {LINES}"
        if (widest := max(map(len, cell.source.splitlines()), default=0)) > WIDEST:
            yield f"code cell {number} has a line of {widest} characters; at most {WIDEST}"
        if not cell.source.startswith("%%ipytest") and DEFINES.search(cell.source):
            yield f"code cell {number} defines something outside %%ipytest; logic belongs into memkit"
        if set(cell.metadata) - {"tags"}:
            yield f"code cell {number} has metadata besides tags: run with --write"
        for tag in set(cell.metadata.get("tags", ())) - TAGS | set(MARKERS.findall(cell.source)):
            yield f"code cell {number} has {tag!r}, which lets nbval look away"
        if cell.source.rstrip().endswith(";"):
            yield f"code cell {number} ends with a semicolon, which hides nothing outside a browser"


def _of_the_outputs(notebook: Any) -> Iterator[str]:
    for number, cell in _code_cells(notebook):
        if not is_contract(cell):
            if cell.outputs or cell.execution_count is not None:
                yield f"code cell {number} keeps output or a count and is no contract cell: run with --write"
            continue
        if not cell.source.startswith("%%ipytest"):
            for package in sorted(set(IMPORTS.findall(cell.source)) - OWN):
                yield f"code cell {number} stores what {package} says, and another version of it says something else"
        if not cell.outputs or cell.execution_count is None:
            yield f"code cell {number} is a contract cell and has no output with a count: nothing would be compared"
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"code cell {number} has a stored error"
        stored = str(cell.outputs)
        for seen in sorted(
            {match[0] for match in PLACE.finditer(stored)} | {text for text in CANARIES if text in stored}
        ):
            yield f"code cell {number} has a stored output with {seen!r}, which is private or differs from run to run"


def _code_cells(notebook: Any) -> Iterator[tuple[int, Any]]:
    return enumerate(cell for cell in notebook.cells if cell.cell_type == "code")


def is_contract(cell: Any) -> bool:
    """Whether a cell's stored output is a promise."""
    return CONTRACT in cell.metadata.get("tags", ())


def strip(path: Path) -> bool:
    """Take out of a notebook what the policy does not keep; whether there was anything."""
    before = path.read_text("utf-8")
    notebook = nbformat.reads(before, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code" and not is_contract(cell):
            cell.outputs, cell.execution_count = [], None
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    after = nbformat.writes(notebook) + "\n"
    path.write_text(after, "utf-8")
    return after != before


def main(arguments: list[str]) -> int:
    """Check notebooks, after stripping them with ``--write``; 1 when one was changed or is not as it should be."""
    paths = [Path(one) for one in arguments if one != "--write"]
    changed = [path for path in paths if "--write" in arguments and strip(path)]
    found = [f"{path}: {says}" for path in paths for says in complaints(path)]
    print("\n".join([f"{path}: stripped" for path in changed] + found))
    return 1 if changed or found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
