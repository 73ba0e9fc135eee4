"""Logs that no server writes: history answers or raises SourceError, in bounded time, whatever the arguments are."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memkit.errors import SourceError
from memkit.history.commands import _HANDLERS
from memkit.history.run import history

CANARY = b"canary-5f1c"
NUMBERS = (b"0", b"-1", b"1", b"9223372036854775807", b"-9223372036854775808", b"9" * 400, b"1732500000000000", b"1e9")
WORDS = (b"", b"\xff\xfe", b"*", b"chat:1", b"chat:2", b"EX", b"PX", b"EXAT", b"PXAT", b"KEEPTTL", b"DB", b"STORE")
NAMES = (*_HANDLERS, b"SELECT", b"MULTI", b"EXEC", b"NOSUCH", b"\xff")


def packed(*arguments: bytes) -> bytes:
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in arguments)


def commands(dice: random.Random, *, timestamps: bool) -> bytes:
    parts = [packed(b"SET", b"chat:1", CANARY, b"PXAT", b"1732500000000")]
    for _ in range(40):
        if timestamps and dice.random() < 0.2:
            parts.append(b"#TS:%b\r\n" % dice.choice((b"1732500000", b"0", b"99999999999", b"1732500300", b"x")))
        words = [dice.choice(NUMBERS + WORDS) for _ in range(dice.randrange(6))]
        parts.append(packed(dice.choice(NAMES), *words))
    return b"".join(parts)


@pytest.mark.parametrize("timestamps", [True, False])
def test_any_command_is_followed_or_passed_over(timestamps: bool, tmp_path: Path) -> None:
    dice = random.Random(13)
    path = tmp_path / "appendonly.aof"
    for _ in range(150):
        path.write_bytes(commands(dice, timestamps=timestamps))
        for session in ("1", None):
            with suppress(SourceError):
                found = history(path, session=session, expect={"chat:*": "7d"}, since=datetime(2000, 1, 1, tzinfo=UTC))
                assert CANARY.decode() not in found.to_text() + json.dumps(found.to_dict())


def test_deadline_in_another_millennium_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "appendonly.aof"
    path.write_bytes(packed(b"SET", b"chat:1", CANARY, b"PXAT", b"1732500000000000000"))
    found = history(path, session="1")
    assert found.fate is not None
    assert "its deadline is 9999-12-31" in found.fate.sentence


def test_other_keys_of_the_session_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "appendonly.aof"
    path.write_bytes(
        packed(b"RPUSH", b"chat:1", CANARY)
        + packed(b"SET", b"chat:1:meta", CANARY)
        + packed(b"RENAME", b"chat:1", b"old:2")
    )
    found = history(path, session="1")
    assert found.fate is not None
    assert found.fate.cause == "renamed"
    assert found.fate.sentence.endswith("; the session's other keys: 1 exists")


def test_since_leaves_out_earlier_ends(tmp_path: Path) -> None:
    path = tmp_path / "appendonly.aof"
    parts = [b"#TS:1732500000\r\n", packed(b"SET", b"chat:1", CANARY), packed(b"RENAME", b"chat:1", b"old:1")]
    parts += [b"#TS:1732503600\r\n", packed(b"SET", b"chat:2", CANARY), packed(b"RENAME", b"chat:2", b"old:2")]
    path.write_bytes(b"".join(parts))
    assert history(path).fates["chat:"] == {"renamed": 2}
    later = history(path, since=datetime.fromtimestamp(1_732_501_000, UTC))
    assert later.fates["chat:"] == {"renamed": 1}
