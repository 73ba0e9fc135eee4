"""Imports go one way: a module knows those before it in the list, never those after."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "memkit"
ORDER = """
    errors policy connect clock server sandbox session store
    formats reading session_report inspect
    expiry_log observe audit_* audit
    demo semantics conformance
    plot* notebook pytest_plugin lab triage cli
""".split()  # noqa: SIM905
HEAVY = {"pandas", "matplotlib", "IPython", "numpy", "jupyterlab", "fakeredis", "pytest", "papermill"}
# Figures are made of numpy and matplotlib, the notebook extension of IPython and pytest, the plugin of pytest.
MAY_LOAD_HEAVY = ("plot", "notebook", "pytest_plugin", "conformance")


def layer(module):
    """The place of ``memkit.x.y`` in the order; a package is one place."""
    top = module.split(".")[1]
    for place, name in enumerate(ORDER):
        if top == name or (name.endswith("*") and top.startswith(name[:-1])):
            return place
    raise AssertionError(f"memkit.{top} has no place in the order of layers")


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(("memkit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        if name not in ("memkit", "memkit.__main__"):
            yield pytest.param(name, path, id=name)


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module == "memkit":
                yield from (f"memkit.{alias.name}" for alias in node.names if (PACKAGE / f"{alias.name}.py").exists())
            else:
                yield node.module


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_imports_only_go_down_the_list(module, path):
    for name in imported(ast.parse(path.read_text())):
        if name.startswith("memkit."):
            assert layer(name) <= layer(module), f"{module} imports {name}, which comes later"


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_heavy_packages_are_imported_where_they_are_used(module, path):
    if module.split(".")[1].startswith(MAY_LOAD_HEAVY):
        return
    tree = ast.parse(path.read_text())
    checked = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))]
    top = [node for node in checked if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.partition(".")[0] for node in top for name in imported(node)}
    assert not names & HEAVY


def test_import_memkit_loads_nothing_heavy():
    script = f"import sys, memkit; print(sorted({HEAVY!r} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"


FORBIDDEN = {
    "fake or mock of Redis": ("fakeredis", "unittest.mock"),
    "pickle": ("pickle.load", "pickle.loads", "cloudpickle", "dill"),
}
TREES = sorted(path for folder in ("memkit", "tests") for path in (PACKAGE.parent / folder).rglob("*.py"))
# Where fakeredis is shown to lie, beside the real server.
SHOWS_A_FAKE = {"semantics.py", "test_semantics.py", "test_layers.py"}


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_no_fake_no_pickle(path):
    if path.name in SHOWS_A_FAKE:
        return
    names = set(imported(ast.parse(path.read_text())))
    calls = {
        f"{node.func.value.id}.{node.func.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }
    for what, forbidden in FORBIDDEN.items():
        assert not (names | calls) & set(forbidden), what
