"""The cases as tests of a user's own suite: StoreContract and --memkit-store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from right_stores import ListScript

from memkit.conformance import CASES, StoreContract
from memkit.conformance.pytest_suite import StoreSuite

TESTS = Path(__file__).parents[1]
WITHOUT = [part for name in ("hypothesispytest", "nbval", "xdist", "asyncio", "anyio") for part in ("-p", f"no:{name}")]


class TestRightStore(StoreContract):
    """As a user would write it; only a few cases, because test_stores runs the others."""

    store = ListScript


for _case in CASES:
    if _case.name not in {"round_trip", "ttl_boundary", "reopen_shorter"}:
        setattr(TestRightStore, f"test_{_case.name}", None)

USERS_TESTS = """
import sys
import pytest
from memkit.conformance import StoreContract
from mutants import TheIncident
import right_stores

class TestByClass(StoreContract):
    store = TheIncident

class TestByName(StoreContract):
    store = "right_stores:NoTtl"

class TestByFunction(StoreContract):
    def store():
        return right_stores.ListScript()

class TestUnset(StoreContract):
    pass

class TestRaises(StoreContract):
    def store(): raise KeyError("boom")

class TestExits(StoreContract):
    def store(): sys.exit(4)

class TestSkips(StoreContract):
    def store(): pytest.skip("no library here")
"""


def run_pytest(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *WITHOUT, "-rA", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_contract_class_in_a_users_suite(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(USERS_TESTS)
    text = run_pytest(tmp_path, "-k", "reopen_shorter or roles")
    assert "FAILED test_mine.py::TestByClass::test_reopen_shorter - Failed: observed: " in text
    assert "PASSED test_mine.py::TestByClass::test_roles" in text
    assert "PASSED test_mine.py::TestByName::test_roles" in text
    assert "PASSED test_mine.py::TestByFunction::test_reopen_shorter" in text
    assert "TestUnset.store is not set" in text
    assert "Traceback" not in text
    # An adapter that cannot be used fails once; the other test is skipped.
    assert text.count("FAILED test_mine.py::TestRaises::") == text.count("FAILED test_mine.py::TestExits::") == 1
    assert "TestRaises: the factory raised KeyError: 'boom'" in text
    assert "no library here" in text
    assert "4 failed, 4 passed, 6 skipped" in text


def test_memkit_store_option_adds_the_cases(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("def test_mine(): pass")
    text = run_pytest(tmp_path, "--memkit-store=mutants:TheIncident", "-k", "reopen_shorter or mine or roles")
    assert "PASSED test_mine.py::test_mine" in text
    assert "PASSED mutants:TheIncident::roles" in text
    assert "FAILED mutants:TheIncident::reopen_shorter - Failed: observed: " in text


def test_option_with_an_adapter_whose_open_raises(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    name = 'Mine'\n    def open(self, *_): raise OSError('no')")
    text = run_pytest(tmp_path, "--memkit-store=mine:Mine")
    assert "FAILED mine:Mine::round_trip - Failed: mine:Mine: open() raised OSError: no" in text
    assert f"1 failed, {len(CASES) - 1} skipped" in text


def test_option_with_an_adapter_that_does_not_exist(request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.UsageError, match="--memkit-store=no_such_module:X: the adapter cannot be imported"):
        StoreSuite.of(request.session, "no_such_module:X")
