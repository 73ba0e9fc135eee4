"""Imports go one way: each file of memkit imports only what stands before it, and no files import in a circle."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "memkit"
ORDER = """
    errors policy config render connect server store readonly formats history inspect observe audit conformance
    plot notebook pytest_plugin cli
""".split()  # noqa: SIM905
FILES = {
    ".".join(("memkit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__main__.py"
}
PARTS = [name for name, path in FILES.items() if path.name != "__init__.py"]
HEAVY = {"pandas", "matplotlib", "IPython", "numpy", "jupyterlab", "fakeredis", "pytest", "papermill"}
# Figures are made of numpy and matplotlib, the notebook extension of IPython and pytest, the plugin of pytest.
MAY_LOAD_HEAVY = ("memkit.plot", "memkit.notebook.extension", "memkit.pytest_plugin", "memkit.conformance.pytest_suite")
# A package's parts that bring the others together: the parts below them know nothing of them.
ASSEMBLY = {"run", "runner", "report", "result"}


@cache
def tree(path):
    return ast.parse(path.read_text())


def imported(parsed):
    """Every module that the code imports, wherever the import stands; a name out of a module counts as the module."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module


@cache
def own_imports(name):
    return {one for one in imported(tree(FILES[name])) if one.partition(".")[0] == "memkit"}


def place(name):
    return ORDER.index(name.split(".")[1])


# One test a rule, which lists every file that breaks it: a test for each of 300 files costs more than its check.


def test_imports_only_what_stands_before_it():
    arrows = [(name, other) for name in PARTS for other in own_imports(name) - {"memkit"}]
    assert [f"{name} imports {other}" for name, other in arrows if place(other) > place(name)] == []


def test_no_part_imports_its_own_package():
    arrows = [(name, other) for name in PARTS for other in own_imports(name) - {"memkit"}]
    assert [f"{name} imports {other}" for name, other in arrows if name.startswith(f"{other}.")] == []


def test_checks_and_cases_know_no_assembly():
    judged = [name for name in PARTS if {"checks", "cases"} & set(name.split("."))]
    assembly = {name: {f"{'.'.join(name.split('.')[:2])}.{part}" for part in ASSEMBLY} for name in judged}
    assert {name: found for name in judged if (found := own_imports(name) & assembly[name])} == {}


def test_imports_have_no_cycle():
    arrows = {name: own_imports(name) for name in PARTS}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def imported_at_once(name):
    """The packages that a file imports as soon as it is imported."""
    body = tree(FILES[name]).body
    checked = [node for node in body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))]
    top = [node for node in checked if isinstance(node, ast.Import | ast.ImportFrom)]
    return {one.partition(".")[0] for node in top for one in imported(node)}


def test_heavy_packages_are_imported_at_use():
    judged = [name for name in FILES if not name.startswith(MAY_LOAD_HEAVY)]
    assert {name: found for name in judged if (found := imported_at_once(name) & HEAVY)} == {}


def test_import_memkit_loads_nothing_heavy():
    script = f"import sys, memkit; print(sorted({HEAVY!r} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"


FORBIDDEN = {
    "fake or mock of Redis": ("fakeredis", "unittest.mock"),
    "pickle": ("pickle.load", "pickle.loads", "cloudpickle", "dill"),
}
SOURCES = sorted(path for folder in ("memkit", "tests") for path in (PACKAGE.parent / folder).rglob("*.py"))
# Notebook 01 shows fakeredis beside the real server.
SHOWS_A_FAKE = {"ttl_semantics.py", "test_semantics.py", "test_layers.py"}


@cache
def names_and_calls(path):
    """What a file imports, and the functions of modules that it calls."""
    calls = {
        f"{node.func.value.id}.{node.func.attr}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }
    return calls | set(imported(tree(path)))


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_fake_no_pickle(what):
    words = {name.partition(".")[0] for name in FORBIDDEN[what]}
    # A file without these words cannot use what they name; parsing all of the tests takes 2 s.
    named = [path for path in SOURCES if any(word in path.read_text("utf-8") for word in words)]
    judged = [path for path in named if path.name not in SHOWS_A_FAKE]
    assert {path: found for path in judged if (found := names_and_calls(path) & set(FORBIDDEN[what]))} == {}
