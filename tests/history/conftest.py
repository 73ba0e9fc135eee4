"""Recordings in a test's own process are committed soon: a test waits for what it finds in the file."""

from __future__ import annotations

from importlib import import_module

import pytest


@pytest.fixture(autouse=True)
def _commits_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package has a function of the module's name.
    monkeypatch.setattr(import_module("memkit.history.record"), "COMMIT_EVERY_S", 0.05)
