"""Fates from logs written by hand: each as a server writes it, for what is rare or close."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rdb_files import file_of_strings
from test_hostile_logs import packed

from memkit.history.fate import Fate
from memkit.history.run import History, history

BEGAN_S = 1_800_000_000
EVICTED = "deleted", "evicted"


def log_of(path: Path, text: str, *, timestamps: bool = True) -> Path:
    """Write a log: each line ``SECOND COMMAND``, seconds since the beginning; ``+S`` is such a second as Unix ms."""
    parts = []
    for line in filter(None, map(str.strip, text.splitlines())):
        second, *words = re.sub(
            r"\+([\d.]+)", lambda found: str(round((BEGAN_S + float(found[1])) * 1000)), line
        ).split()
        parts += [b"#TS:%d\r\n" % (BEGAN_S + int(second))] if timestamps else []
        parts.append(packed(*(word.encode() for word in words)))
    path.write_bytes(b"".join(parts))
    os.utime(path, (BEGAN_S + int(second),) * 2)
    return path


def valkey_log(directory: Path, text: str) -> Path:
    """Write a directory with the base that Valkey 9 writes, so that the log is read as Valkey's."""
    directory.mkdir(exist_ok=True)
    header = b"VALKEY080\xfa\x0avalkey-ver\x059.0.0\xfa\x05ctime\xc2" + BEGAN_S.to_bytes(4, "little")
    (directory / "base.rdb").write_bytes(header + b"\xff" + bytes(8))
    log_of(directory / "incr.aof", text)
    manifest = "file base.rdb seq 1 type b\nfile incr.aof seq 1 type i\n"
    (directory / "appendonly.aof.manifest").write_text(manifest)
    return directory


def fate_of(path: Path, session: str = "1", **options: object) -> Fate:
    fate = history(path, session=session, **options).fate  # type: ignore[arg-type]
    assert fate is not None
    return fate


def causes(path: Path, session: str = "1") -> tuple[str, ...]:
    fate = fate_of(path, session)
    return fate.either or (fate.cause,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 RPUSH chat:1 a b\n1 LPOP chat:1", ["exists"]),
        ("0 RPUSH chat:1 a b\n1 LPOP chat:1 2", ["deleted"]),
        ("0 RPUSH chat:1 a\n1 LMOVE chat:1 other LEFT LEFT", ["deleted"]),
        ("0 RPUSH chat:1 a\n1 LMOVE chat:1 chat:1 LEFT RIGHT", ["exists"]),
        ("0 RPUSH chat:1 a b c\n1 LTRIM chat:1 -2 -1\n2 LPOP chat:1", ["exists"]),
        ("0 RPUSH chat:1 a b c\n1 LTRIM chat:1 2 -1\n2 LPOP chat:1", ["deleted"]),
        ("0 RPUSH chat:1 a b c\n1 LTRIM chat:1 0 0\n2 LPOP chat:1", ["deleted"]),
        ("0 RPUSH chat:1 a b c\n1 LTRIM chat:1 1 0", ["deleted"]),
        ("0 RPUSH chat:1 a b\n1 LREM chat:1 0 a", ["exists", "deleted"]),
        ("0 SADD chat:1 a a\n1 SREM chat:1 a", ["deleted"]),
        ("0 SADD chat:1 a b\n1 SREM chat:1 a c", ["exists", "deleted"]),
        ("0 SADD chat:1 a b\n0 PEXPIREAT chat:1 +9\n1 SREM chat:1 a c\n20 SET other v", ["expired", "deleted"]),
        ("0 SADD chat:1 a b\n0 PEXPIREAT chat:1 +9\n1 SREM chat:1 a\n20 SET other v", ["expired"]),
        ("0 ZADD chat:1 NX CH 1 a inf b\n1 ZPOPMIN chat:1", ["exists"]),
        ("0 ZADD chat:1 1 a\n1 ZREMRANGEBYRANK chat:1 0 -1", ["deleted"]),
        ("0 HSET chat:1 f v\n1 HDEL chat:1 f", ["deleted"]),
        ("0 HSET chat:1 f v\n1 HPEXPIREAT chat:1 +9 FIELDS 1 f\n9 HDEL chat:1 f", ["expired", "deleted"]),
        ("0 HSETEX chat:1 PXAT +9 FIELDS 2 f v g v\n9 HDEL chat:1 f", ["exists"]),
        ("0 HSETEX chat:1 KEEPTTL FIELDS 1 f 1.5\n9 HDEL chat:1 f", ["deleted"]),
        ("0 XGROUP CREATE chat:1 g $ MKSTREAM", ["exists"]),
        ("0 VADD chat:1 VALUES 1 2 a\n1 VADD chat:1 VALUES 1 3 b\n2 VREM chat:1 a", ["exists", "deleted"]),
        ("0 VADD chat:1 VALUES 1 2 a\n1 VREM chat:1 a", ["deleted"]),
        ("0 SINTERSTORE chat:1 a b", ["exists"]),
        ("0 SET chat:1 v\n1 SINTERSTORE chat:1 a b", ["exists", "deleted"]),
        ("0 SET chat:1 v PXAT +300\n1 SINTERSTORE chat:1 a b", ["overwritten", "deleted"]),
        ("0 SET chat:1 v PXAT +300\n1 SINTERSTORE chat:1 a b\n2 SADD chat:1 a", ["overwritten", "exists"]),
        ("0 SADD chat:1 v\n1 SINTERSTORE chat:1 a b\n2 PEXPIREAT chat:1 +300", ["exists"]),
        ("0 SADD chat:1 v\n1 SINTERSTORE chat:1 a b\n2 FLUSHALL", ["flushed", "deleted"]),
        ("0 HSETEX chat:1 PXAT +9 FIELDS 1 f v\n9 HDEL chat:1 f\n9 FLUSHALL", ["expired", "deleted"]),
        ("0 HSETEX chat:1 PXAT +9 FIELDS 2 f v g v\n9 HDEL chat:1 f g\n9 FLUSHALL", ["flushed", "deleted", "expired"]),
    ],
)
def test_key_that_may_have_no_element_left(text: str, expected: list[str], tmp_path: Path) -> None:
    path = log_of(tmp_path / "appendonly.aof", text)
    assert list(causes(path)) == expected
    cause = expected[0] if len(expected) == 1 else "unknown"
    assert history(path).fates["chat:"] == {cause: 1}


@pytest.mark.parametrize(
    ("deadline_s", "expected"), [(9, ("exists", "deleted", "expired")), (60, ("exists", "deleted"))]
)
def test_emptied_key_of_an_undated_log_may_expire(deadline_s: int, expected: tuple[str, ...], tmp_path: Path) -> None:
    text = f"0 HSET chat:1 f v g w\n0 PEXPIREAT chat:1 +{deadline_s}\n1 HDEL chat:1 f h\n20 SET other v"
    path = log_of(tmp_path / "appendonly.aof", text, timestamps=False)
    assert causes(path) == expected
    assert ("its deadline does not apply" in fate_of(path).sentence) == ("expired" in expected)


def test_key_may_be_created_anew_without_its_ttl(tmp_path: Path) -> None:
    """The last element may have been removed: then the next write gave no TTL, and the old deadline is none."""
    text = "0 RPUSH chat:1 a b\n0 PEXPIREAT chat:1 +60\n1 LREM chat:1 0 a\n2 RPUSH chat:1 c\n{} SET other v"
    path = tmp_path / "appendonly.aof"
    assert causes(log_of(path, text.format(100))) == ("exists", "expired")
    fate = fate_of(log_of(path, text.format(30)))
    assert (fate.cause, fate.confidence) == ("exists", "likely")
    assert "deadline is not known" in fate.sentence


@pytest.mark.parametrize(
    ("text", "redis", "valkey"),
    [
        ("1 DEL chat:1", EVICTED, ("deleted", "likely")),
        ("1 UNLINK chat:1", EVICTED, EVICTED),
        ("1 DEL chat:1 chat:2", ("deleted", "proven"), ("deleted", "proven")),
        ("1 UNLINK chat:1 chat:2", ("deleted", "proven"), ("deleted", "proven")),
        ("1 GETDEL chat:1", ("deleted", "proven"), ("deleted", "proven")),
        ("1 MULTI\n1 UNLINK chat:1\n1 EXEC", ("deleted", "proven"), ("deleted", "proven")),
        ("1 MULTI\n1 SET other v\n1 EXEC\n1 UNLINK chat:1", EVICTED, EVICTED),
    ],
)
def test_deletion_is_told_from_eviction(
    text: str, redis: tuple[str, str], valkey: tuple[str, str], tmp_path: Path
) -> None:
    text = f"0 SET chat:1 v PXAT +600\n{text}"
    for path, expected in (
        (log_of(tmp_path / "appendonly.aof", text), redis),
        (valkey_log(tmp_path / "valkey", text), valkey),
    ):
        fate = fate_of(path)
        assert (fate.either or (fate.cause, fate.confidence)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 SET chat:1 v PXAT +5\n5 DEL chat:1", ["expired"]),
        ("0 SET chat:1 v PXAT +5.5\n5 DEL chat:1", ["deleted", "expired", "evicted"]),
        (
            "0 HSETEX chat:1 PXAT +5 FIELDS 1 f v\n5 MULTI\n5 HDEL chat:1 f g\n5 DEL chat:1\n5 EXEC",
            ["expired", "deleted"],
        ),
        ("0 SET chat:1 v PXAT +5\n1 DEL chat:1", ["deleted"]),
    ],
)
def test_valkey_may_log_an_expiry_as_del(text: str, expected: list[str], tmp_path: Path) -> None:
    """It does with lazyfree-lazy-expire off, as the redis.conf of many servers has it."""
    assert list(causes(valkey_log(tmp_path / "valkey", text))) == expected


def test_expiry_may_be_logged_before_its_second(tmp_path: Path) -> None:
    """A server's clock is behind by its last turn: the key's deadline is 50 ms after the stated second."""
    text = "0 SET chat:1 v PXAT +60.05\n59 DEL chat:1"
    assert "expired" in causes(log_of(tmp_path / "appendonly.aof", text))


@pytest.mark.parametrize("command", ["RENAME temp:1 chat:1", "COPY temp:1 chat:1"])
def test_key_has_the_ttl_of_the_one_it_was_made_from(command: str, tmp_path: Path) -> None:
    text = f"0 SET temp:0 v PXAT +300\n5 RENAME temp:0 temp:1\n10 {command}\n400 DEL chat:1"
    fate = fate_of(log_of(tmp_path / "appendonly.aof", text))
    assert (fate.cause, fate.confidence, fate.ttl_s) == ("expired", "proven", 300)
    assert fate.ttl_set_at is not None
    assert fate.ttl_set_at.timestamp() == BEGAN_S


def test_rename_changes_no_ttl_of_a_prefix(tmp_path: Path) -> None:
    text = "0 SET chat:1 v PXAT +3600\n1 SET temp:1 v PXAT +60\n2 RENAME temp:1 chat:2\n3 SET chat:3 v PXAT +3603"
    assert history(log_of(tmp_path / "appendonly.aof", text)).changes == ()


def written(names: str, *ttls_s: int) -> str:
    """Return the lines of writes, a second apart: the nth gives the nth TTL; ``#`` in a name is the number."""
    lines = [f"{n} SET {names.replace('#', str(n))} v PXAT +{n + ttl_s}" for n, ttl_s in enumerate(ttls_s)]
    return "\n".join(lines)


ONE, OTHER = 604_800, 300
SEVERAL = {
    "jitter": written("chat:#", *(ONE + 1_000 * (n * 37 % 101) for n in range(40))),
    "two at once": written("chat:#", *[ONE, OTHER, OTHER] * 2, ONE),
    "a lock for each session": written("chat:#", *[ONE] * 9) + "\n9 SET chat:8:lock v PXAT +39",
    "drafts": written("chat:#", *[ONE] * 9) + "\n9 SET chat:draft:8 v PXAT +39",
    "locks and limits": written("chat:lock:#", *[60] * 3) + "\n" + written("chat:rate:#", *[30] * 3),
    "copies with what is left": written("chat:#", *[ONE] * 20) + "\n20 RESTORE chat:1 9000000 x",
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_ttls_at_once_are_no_change(name: str, tmp_path: Path) -> None:
    assert history(log_of(tmp_path / "appendonly.aof", SEVERAL[name])).changes == ()


@pytest.mark.parametrize(
    ("ttls_s", "to_s"),
    [
        ([ONE] * 3 + [OTHER], [OTHER]),
        ([ONE] * 20 + [OTHER] * 20 + [ONE] * 20, [OTHER, ONE]),
        ([*[ONE] * 20, *[OTHER] * 20] * 2, [OTHER, ONE, OTHER]),
        ([ONE] * 20 + [OTHER + 100 * n for n in range(40)], [OTHER]),
    ],
)
def test_each_release_is_a_change(ttls_s: list[int], to_s: list[int], tmp_path: Path) -> None:
    found = history(log_of(tmp_path / "appendonly.aof", written("chat:#", *ttls_s))).changes
    assert [(change.to_ttl_ms or 0) // 1000 for change in found] == to_s


def test_change_of_several_parts_is_one(tmp_path: Path) -> None:
    text = "\n".join(written(name, *[ONE] * 5, *[OTHER] * 5) for name in ("chat:#", "chat:#:meta"))
    (change,) = history(log_of(tmp_path / "appendonly.aof", text)).changes
    assert (change.to_ttl_ms, change.at.earliest_ms) == (OTHER * 1000, (BEGAN_S + 5) * 1000)


def test_swap_renames_the_keys_of_two_databases(tmp_path: Path) -> None:
    text = "0 SELECT 0\n0 SET chat:1 v PXAT +300\n1 SET chat:2 v\n2 SWAPDB 0 1\n400 SELECT 1\n400 DEL chat:1"
    found = history(log_of(tmp_path / "appendonly.aof", text), session="1")
    events = [(event.db, event.name) for event in found.events]
    assert events == [(0, "written"), (0, "renamed"), (1, "written"), (1, "expired")]
    assert found.fate is not None
    assert (found.fate.cause, found.fate.ttl_s) == ("expired", 300)


def test_moved_key_is_not_renamed_to_itself(tmp_path: Path) -> None:
    path = log_of(tmp_path / "appendonly.aof", "0 SELECT 0\n0 SET chat:1 v\n1 MOVE chat:1 5")
    assert "chat:1 was moved to another database by MOVE" in fate_of(path).sentence
    assert "chat:1  written by MOVE in database 5" in history(path, session="1").to_text()


def test_expiry_states_when_its_ttl_was_given(tmp_path: Path) -> None:
    text = "0 SET chat:1 v PXAT +60\n9 SET chat:1 v PXAT +309\n400 DEL chat:1"
    fate = fate_of(log_of(tmp_path / "appendonly.aof", text))
    assert fate.ttl_s == 300
    assert fate.ttl_set_at is not None
    assert fate.ttl_set_at.timestamp() == BEGAN_S + 9


def test_ttl_of_a_key_that_ended_before_is_left_out(tmp_path: Path) -> None:
    text = "0 SET chat:1 v PXAT +60\n70 DEL chat:1\n80 SET chat:1 v\n90 DEL chat:1 chat:2"
    fate = fate_of(log_of(tmp_path / "appendonly.aof", text))
    assert (fate.cause, fate.ttl_s, fate.ttl_set_at) == ("deleted", None, None)


@pytest.mark.parametrize("command", ["FLUSHALL", "SINTERSTORE chat:1 a b", "SWAPDB 0 1"])
def test_key_past_its_deadline_expired_before(command: str, tmp_path: Path) -> None:
    """A server does not log a DEL before these."""
    path = log_of(tmp_path / "appendonly.aof", f"0 SET chat:1 v PXAT +60\n70 {command}")
    events = history(path, session="1").events
    assert [event.name for event in events][:2] == ["written", "expired"]
    assert "overwritten" not in causes(path)


def test_overwritten_key_that_got_a_ttl_and_lost_it(tmp_path: Path) -> None:
    text = "0 SET chat:1 v PXAT +60\n1 SET chat:1 v\n2 SET chat:1 v PXAT +60\n3 PERSIST chat:1"
    path = log_of(tmp_path / "appendonly.aof", text)
    assert causes(path) == ("exists",)
    assert history(path).fates["chat:"] == {"exists": 1}


def test_fates_count_each_key_once(tmp_path: Path) -> None:
    text = """
    0 SET chat:1 v PXAT +60
    70 DEL chat:1
    80 SET chat:1 v PXAT +100
    200 DEL chat:1
    210 SET chat:2 v PXAT +220
    230 DEL chat:2
    240 SET chat:2 v
    250 SET chat:3 v PXAT +600
    260 SET chat:3 v
    """
    assert history(log_of(tmp_path / "appendonly.aof", text)).fates["chat:"] == {
        "expired": 1,
        "exists": 1,
        "overwritten": 1,
    }


def test_base_of_commands_is_no_write(tmp_path: Path) -> None:
    """Without aof-use-rdb-preamble the base has a SET and a PEXPIREAT for each key, at the time of the rewrite."""
    log_of(tmp_path / "base.aof", "500 SET chat:1 v\n500 PEXPIREAT chat:1 +600\n500 SET chat:2 v")
    log_of(tmp_path / "incr.aof", "700 DEL chat:1\n710 DEL chat:2 chat:3")
    manifest = "file base.aof seq 1 type b\nfile incr.aof seq 1 type i\n"
    (tmp_path / "appendonly.aof.manifest").write_text(manifest)
    found = history(tmp_path, session="1")
    assert found.fate is not None
    assert (found.fate.cause, found.fate.confidence, found.fate.ttl_s) == ("expired", "proven", None)
    assert [event.name for event in found.events] == ["expired"]
    assert causes(tmp_path, "2") == ("deleted",)
    assert found.to_dict()["sources"][0]["from"] == "2027-01-15T08:08:20Z"


def sparse_log(path: Path, expect: dict[str, str]) -> History:
    """A log without timestamps: a TTL of 3 h 33 min is given 2 h after one of 7 d; it ends 1 min later."""
    week = 7 * 86_400
    text = f"0 SET chat:1 v PXAT +{week}\n7200 SET chat:2 v PXAT +20000\n7260 SET other v"
    return history(log_of(path, text, timestamps=False), session="2", expect=expect)


def test_time_that_no_log_shows_is_a_bound(tmp_path: Path) -> None:
    (event,) = sparse_log(tmp_path / "appendonly.aof", {"*": "7d"}).events
    assert event.moment.earliest_ms == BEGAN_S * 1_000
    assert event.moment.latest_ms == (BEGAN_S + 7_260) * 1_000
    assert event.ttl_ms is None


def test_text_of_a_bound_has_both_ends(tmp_path: Path) -> None:
    text = sparse_log(tmp_path / "appendonly.aof", {"*": "7d"}).to_text()
    assert "2027-01-15T08:00:00Z to 2027-01-15T10:01:00Z  chat:2  written by SET" in text
    exact = history(log_of(tmp_path / "exact.aof", "0 SET chat:2 v PXAT +60"), session="2").to_text()
    assert "2027-01-15T08:00:00Z  chat:2  written by SET" in exact


def test_longer_ttl_than_expected_dates_nothing(tmp_path: Path) -> None:
    """The deadline minus the expected TTL would be after the end of the log."""
    found = sparse_log(tmp_path / "appendonly.aof", {"*": "1m"})
    (event,) = found.events
    assert event.moment.latest_ms == (BEGAN_S + 7_260) * 1_000
    assert found.fate is not None
    assert (found.fate.cause, found.fate.ttl_s) == ("exists", None)


def test_deadline_before_the_end_leaves_expiry_open(tmp_path: Path) -> None:
    text = "0 SET chat:1 v PXAT +60\n100 SET other v"
    assert causes(log_of(tmp_path / "appendonly.aof", text, timestamps=False)) == ("exists", "expired")


def test_deadline_in_the_last_second_is_open(tmp_path: Path) -> None:
    """A log states whole seconds: its last command may have come before the deadline or after it."""
    text = "0 SET chat:1 v PXAT +60.5\n60 SET other v"
    assert causes(log_of(tmp_path / "appendonly.aof", text)) == ("exists", "expired")


def test_base_with_keys_past_their_deadline(tmp_path: Path) -> None:
    (tmp_path / "base.rdb").write_bytes(file_of_strings(("chat:1", -5), ("chat:2", 5_000)))
    log_of(tmp_path / "incr.aof", "1 SET other v")
    manifest = "file base.rdb seq 1 type b\nfile incr.aof seq 1 type i\n"
    (tmp_path / "appendonly.aof.manifest").write_text(manifest)
    assert causes(tmp_path) == ("expired",)


@pytest.mark.parametrize("server", ["redis", "valkey"])
def test_deadline_of_a_client_whose_clock_is_behind(server: str, tmp_path: Path) -> None:
    """Redis 7.0 and 8.2 log SET with a deadline that is already past, and a DEL; the key existed for no reader."""
    text = "0 SET chat:1 v PXAT +86400\n10 SET chat:1 w PXAT -590\n20 SET chat:2 v"
    text = re.sub("PXAT -590", f"PXAT {(BEGAN_S - 590) * 1000}", text)
    path = valkey_log(tmp_path / "aof", text) if server == "valkey" else log_of(tmp_path / "appendonly.aof", text)
    fate = fate_of(path)
    assert (fate.cause, fate.at_is, fate.ttl_s) == ("expired", "exact", None)
    assert fate.at is not None
    assert fate.at.timestamp() == BEGAN_S + 10
    assert "that was already past" in fate.sentence
    assert history(path, session="1").changes == ()


def test_ttl_below_a_second_is_not_zero(tmp_path: Path) -> None:
    fate = fate_of(log_of(tmp_path / "appendonly.aof", "0 SET chat:1 v PXAT +0.4\n5 DEL chat:1"))
    assert (fate.cause, fate.ttl_s) == ("expired", 0.4)


@pytest.mark.parametrize("timestamps", [True, False])
def test_clock_that_was_set_back_after_the_base(timestamps: bool, tmp_path: Path) -> None:
    directory = valkey_log(tmp_path / "aof", "0 SET chat:1 v PXAT +50")
    text = "-7200 SET chat:1 v PXAT +-3600\n-7100 SET chat:2 v"
    text = text.replace("+-3600", str((BEGAN_S - 3600) * 1000))
    log_of(directory / "incr.aof", text, timestamps=timestamps)
    found = history(directory, session="1")
    assert found.fate is not None
    assert found.fate.cause in ("exists", "unknown")
    assert found.fate.at_is != "exact"
    assert all(span.begins is None or span.begins <= span.ends for span in found.sources)


@pytest.mark.parametrize(
    ("ended", "expected"),
    [("chat:7-old", "exists"), ("chat:7_smith", "exists"), ("chat:7:meta", "deleted"), ("chat:7_messages", "deleted")],
)
def test_key_of_another_session_is_left_out(ended: str, expected: str, tmp_path: Path) -> None:
    path = log_of(tmp_path / "appendonly.aof", f"0 SET chat:7 v\n1 SET {ended} v\n2 DEL {ended} lock")
    assert fate_of(path, "7").cause == expected


def test_session_is_found_by_a_part_of_its_id(tmp_path: Path) -> None:
    path = log_of(tmp_path / "appendonly.aof", "0 SET chat:7-2026 v\n2 DEL chat:7-2026 lock")
    assert fate_of(path, "7").cause == "deleted"


@pytest.mark.parametrize("lock", ["chat:7:lock", "lock:chat:7"])
def test_released_lock_does_not_end_the_session(lock: str, tmp_path: Path) -> None:
    text = f"0 SET {lock} a PXAT +30\n0 RPUSH chat:7 m\n1 DEL {lock}"
    path = log_of(tmp_path / "appendonly.aof", text)
    assert fate_of(path, "7").cause == "exists"
    assert "the session's other keys: 1 unknown" in fate_of(path, "7").sentence
    alone = log_of(tmp_path / "alone.aof", f"{text}\n2 DEL chat:7 chat:8\n3 SET {lock} a\n4 DEL {lock} x")
    assert fate_of(alone, "7").sentence.startswith("deleted: chat:7 was deleted")


def test_named_key_has_its_own_fate(tmp_path: Path) -> None:
    text = "0 SET chat:7 v\n0 SET chat:7:meta v\n1 DEL chat:7:meta x"
    path = log_of(tmp_path / "appendonly.aof", text)
    assert [fate_of(path, name).cause for name in ("7", "chat:7", "chat:7:meta")] == ["deleted", "exists", "deleted"]


@pytest.mark.parametrize("session", [None, "1"])
def test_text_has_the_width_of_the_terminal(
    session: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(written(f"{name}:#", *[ONE] * 9, *[OTHER] * 9) for name in ("chat", "agent:memory"))
    found = history(log_of(tmp_path / "appendonly.aof", text), session=session and f"chat:{session}")
    monkeypatch.setattr("memkit.render.terminal_columns", lambda: 40)
    lines = found.to_text().splitlines()
    assert len(lines) > 6
    assert [line for line in lines if len(line) > 40 and " " in line.strip()] == []
