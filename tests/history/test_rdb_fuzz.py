"""Damaged RDB files of all servers: audit and history answer or raise SourceError, in bounded time and memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from rdb_files import with_checksum
from stress.fuzz_rdb import attempt, changed, corpus

STEPS = 500


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return corpus()


def test_unchanged_rdb_files_are_readable(files: list[bytes], tmp_path: Path) -> None:
    for data in files:
        path = tmp_path / "dump.rdb"
        path.write_bytes(with_checksum(data))
        assert attempt(path) == (True, "")


def test_changed_files_raise_source_errors_only(files: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "dump.rdb"
    readable = 0
    for step in range(STEPS):
        dice = random.Random(step)
        path.write_bytes(changed(dice.choice(files), files, dice))
        was_read, failure = attempt(path)
        assert failure == "", f"step {step}"
        readable += was_read
    assert readable > STEPS / 20  # the changes reach what comes behind the checksum


def test_truncated_files_raise_source_errors_only(files: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "dump.rdb"
    dice = random.Random(1)
    for data in files:
        for end in dice.sample(range(len(data)), 20):
            path.write_bytes(data[:end])
            assert attempt(path) == (False, "")
