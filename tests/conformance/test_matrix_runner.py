"""The runner of the matrix: environments, libraries that cannot be tested, and what it keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from libraries import Library
from run_libraries import environment, run_library
from run_libraries import main as matrix_command


def test_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installs: list[list[str]] = []

    def install(command: list[str], **_: Any) -> None:
        installs.append(command)

    # No network in tests: pip does not run.
    monkeypatch.setattr("run_libraries.venv.create", lambda folder, **_: make_venv(folder))
    monkeypatch.setattr("run_libraries.subprocess.run", install)
    library = Library("a-store", "a-store", "x:Y", ("a-store==1",))
    python = environment(library, tmp_path)
    packages = tmp_path / "a-store/lib/python3/site-packages"
    assert python == tmp_path / "a-store/bin/python"
    assert installs[0][0] == str(python)
    assert installs[0][-1] == "a-store==1"
    assert (packages / "memkit/__init__.py").exists()
    (packages / "memkit/__init__.py").unlink()
    environment(library, tmp_path)
    assert len(installs) == 1
    assert (packages / "memkit/__init__.py").exists()
    environment(Library("a-store", "a-store", "x:Y", ("a-store==2",)), tmp_path)
    assert [command[-1] for command in installs] == ["a-store==1", "a-store==2"]


def test_packages_of_npm_are_installed_for_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installs: list[list[str]] = []
    monkeypatch.setattr("run_libraries.subprocess.run", lambda command, **_: installs.append(command))
    library = Library("a-store", "a-package", "x:Y", ("a-package@1",), npm=True)
    assert environment(library, tmp_path) == environment(library, tmp_path) == Path(sys.executable)
    assert [(command[:2], command[-1]) for command in installs] == [(["npm", "install"], "a-package@1")]
    assert (tmp_path / "a-store/npm_stores.mjs").exists()


def make_venv(folder: Path) -> None:
    (folder / "lib/python3/site-packages").mkdir(parents=True, exist_ok=True)


def test_library_that_cannot_run_names_the_command(tmp_path: Path) -> None:
    answer = run_library(Library("memkit", "redis-memkit", "no.such:Thing", ()), tmp_path)
    assert "cases" not in answer
    assert f"{sys.executable} -m memkit conformance no.such:Thing" in answer["error"]
    assert answer["reproduce"] == "python tests/matrix/run_libraries.py memkit"


def test_library_that_pip_cannot_install_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr("run_libraries.venv.create", lambda folder, **_: make_venv(folder))
    monkeypatch.setattr("run_libraries.subprocess.run", fails)
    assert "exit status 1" in run_library(Library("a-store", "a-store", "x:Y", ("a-store==1",)), tmp_path)["error"]
    # Not remembered as made.
    assert not (tmp_path / "a-store/memkit-requirements.txt").exists()


def test_one_case_of_one_store_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix_command(["memkit", "--case", "roles", "--cache", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert ", roles: passed" in out
    assert not list(tmp_path.iterdir())


def test_command_keeps_and_updates_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMKIT_REDIS_MODULES", raising=False)
    kept = tmp_path / "results.json"
    code = matrix_command(["memkit", "redisvl", "--case", "roles", "--cache", str(tmp_path), "--output", str(kept)])
    assert code == 2
    out = capsys.readouterr().out
    assert "memkit" in out
    assert "redisvl: not tested: needs Redis's JSON and search modules" in out
    first, second = json.loads(kept.read_text())["stores"]
    assert [case["outcome"] for case in first["cases"]] == ["passed"]
    assert "error" in second
    assert matrix_command(["memkit", "--case", "order", "--cache", str(tmp_path), "--update", str(kept)]) == 0
    stores = json.loads(kept.read_text())["stores"]
    assert [case["name"] for case in stores[0]["cases"]] == ["order"]
    assert stores[1] == second
