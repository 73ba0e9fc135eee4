"""The suite itself: workers that collect different names run no test at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def by_file(names: list[str]) -> list[str]:
    """The files sorted, as they may be given in any order; within each, as collected."""
    return sorted(names, key=lambda name: name.partition("::")[0])


def test_workers_collect_names_in_the_same_order(request: pytest.FixtureRequest) -> None:
    here = by_file([item.nodeid for item in request.session.items])
    # Another process, at a later second, whose sets and dicts of strings are in another order.
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"PYTHONHASHSEED": "20"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    there = [line for line in done.stdout.splitlines() if "::" in line]
    assert by_file([name for name in there if name in set(here)]) == here
