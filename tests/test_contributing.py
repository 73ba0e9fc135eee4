"""CONTRIBUTING.md, the workflow and the hooks: every path and every command exists."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from test_docs import ROOT, blocks

CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


def test_the_two_commands_are_the_readmes() -> None:
    commands = re.findall(r"```sh\n(.*?)```", CONTRIBUTING, re.DOTALL)[0]
    assert commands == "".join(blocks("sh")[:2])


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:memkit|tests|notebooks)/[\w./*]+", CONTRIBUTING))))
def test_every_path_in_contributing_exists(path: str) -> None:
    assert list(ROOT.glob(path.rstrip("."))) or "NAME" in path


@pytest.mark.parametrize(
    ("name", "path"), [("SEVERITIES", "memkit/audit/finding.py"), ("FORMAT", "memkit/formats/agno.py")]
)
def test_every_name_is_in_its_module(name: str, path: str) -> None:
    assert f"`{name}`" in CONTRIBUTING
    assert re.search(rf"^{name}\b", (ROOT / path).read_text(), re.MULTILINE)


def test_the_workflow_runs_ci_run() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert ".ci/run" in [step.get("run") for step in workflow["jobs"]["all"]["steps"]]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_every_hook_runs_an_installed_program(hook: dict[str, str]) -> None:
    runner, run, frozen, program, *arguments = shlex.split(hook["entry"])
    assert (runner, run, frozen) == (".venv/bin/uv", "run", "--no-sync")
    assert shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert all((ROOT / one).exists() for one in arguments if one.endswith(".py"))
