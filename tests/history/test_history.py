"""History from append-only directories: a scripted client logs what it did, and the answers are held against that."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from rdb_files import SAVED_S, file_of_strings
from servers import binary_of
from waiting import wait_for

from memkit.errors import SourceError
from memkit.history.run import History, history
from memkit.server import RedisServer

WEEK_MS = 604_800_000
CANARY = "canary-5f1c"


def logging(name: str, **config: str) -> RedisServer:
    binary = binary_of(name)
    return RedisServer(binary=binary.path, config={"appendonly": "yes", "aof-timestamp-enabled": "yes"} | config)


@pytest.fixture(params=["redis-7.0", "redis-8.2", "valkey-9"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with logging(request.param) as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


def history_of(server: RedisServer, session: str | None = None) -> History:
    """The history, with the log's times moved as far as the server's clock is."""
    for path in [server.directory / "appendonlydir", *(server.directory / "appendonlydir").iterdir()]:
        now = server.clock.now().timestamp()
        os.utime(path, (now, now))
    return history(server.directory, session=session, expect={"*": "7d"})


def cause(server: RedisServer, session: str) -> str:
    fate = history_of(server, session).fate
    assert fate is not None
    return fate.cause


def test_every_end_is_named_right_or_left_open(server: RedisServer, client: redis.Redis) -> None:
    valkey = server.flavour == "valkey"
    truth = script_of_a_day(server, client, random.Random(7))
    proven_wrong, named = [], 0
    for session, (happened, decidable) in truth.items():
        fate = history_of(server, session).fate
        assert fate is not None
        if fate.cause != happened:
            assert not decidable(valkey), (session, happened, fate)
            assert fate.cause == "unknown", (session, happened, fate)
            assert happened in (fate.either or ()), (session, happened, fate)
            assert fate.sentence.startswith(" or ".join(fate.either or ()) + ": ")
            proven_wrong += [session] if fate.confidence == "proven" else []
        else:
            named += 1
    assert not proven_wrong
    assert named >= len(truth) * 0.6


def script_of_a_day(server, client, dice):  # type: ignore[no-untyped-def]
    """Do one thing to each of 40 sessions; return what, and whether that server's log can prove it."""

    def always(_valkey: bool) -> bool:
        return True

    def never(_valkey: bool) -> bool:
        return False

    acts = {
        "expired": (lambda key: client.expire(key, 60), always),
        "deleted": (client.delete, lambda valkey: valkey),
        "unlinked": (client.unlink, never),
        "overwritten": (lambda key: client.set(key, CANARY), always),
        "renamed": (lambda key: client.rename(key, f"archive:{key}-old"), always),
        "exists": (lambda key: client.expire(key, 86_400), always),
        "persisted": (client.persist, always),
    }
    truth = {}
    for number in range(42):
        client.set(f"chat:user{number}", CANARY, px=WEEK_MS)
        server.clock.shift(f"{dice.randrange(1, 90)}s")
    for number in range(42):
        name = list(acts)[number % len(acts)]
        act, decidable = acts[name]
        act(f"chat:user{number}")
        happened = {"unlinked": "deleted", "persisted": "exists"}.get(name, name)
        truth[f"user{number}"] = (happened, decidable)
    server.clock.shift("2h")
    for number in range(42):
        client.exists(f"chat:user{number}")
    return truth


def test_expiry_states_its_deadline_and_its_ttl(server: RedisServer, client: redis.Redis) -> None:
    client.rpush("chat:user-42", CANARY)
    client.expire("chat:user-42", 300)
    deadline = client.pexpiretime("chat:user-42")
    server.clock.shift("1h")
    client.exists("chat:user-42")
    fate = history_of(server, "user-42").fate
    assert fate is not None
    assert (fate.cause, fate.confidence, fate.at_is, fate.ttl_s) == ("expired", "proven", "exact", 300)
    assert fate.at is not None
    assert fate.at.timestamp() == pytest.approx(deadline / 1000)
    assert fate.either is None


def test_flushed_sessions(server: RedisServer, client: redis.Redis) -> None:
    client.set("chat:a", 1, ex=100)
    client.set("chat:b", 1, ex=100)
    client.flushdb()
    client.set("chat:b", 1, ex=100)
    assert cause(server, "a") == "flushed"
    assert cause(server, "b") == "exists"


def test_evicted_sessions_are_left_open_or_named() -> None:
    with logging("redis-8.2", **{"maxmemory-policy": "allkeys-lru"}) as server, server.client() as client:
        client.set("chat:old", "x" * 1_000, px=WEEK_MS)
        server.clock.shift("1h")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
        for number in range(2_000):
            client.set(f"other:{number}", "x" * 1_000)
        wait_for("the eviction", lambda: client.exists("chat:old"), lambda seen: not seen)
        fate = history_of(server, "old").fate
    assert fate is not None
    assert fate.cause == "unknown"
    assert fate.either == ("deleted", "evicted")


def test_changes_of_the_ttl_have_their_moment(server: RedisServer, client: redis.Redis) -> None:
    for number in range(10):
        client.set(f"chat:{number}", CANARY, px=WEEK_MS)
        server.clock.shift("1m")
    released = server.clock.now().timestamp()
    for number in range(10, 20):
        client.set(f"chat:{number}", CANARY, ex=300)
        server.clock.shift("1m")
    (change,) = history_of(server).to_dict()["changes"]
    assert (change["prefix"], change["from_ttl_s"], change["to_ttl_s"]) == ("chat:", 604_800, 300)
    assert (change["at_is"], change["not_before"]) == ("exact", None)
    assert abs(history_of(server).changes[0].at.earliest_ms / 1000 - released) < 2  # type: ignore[operator]


@pytest.mark.parametrize("name", ["redis-8.2", "valkey-9"])
def test_without_timestamps_nothing_is_exact(name: str) -> None:
    with logging(name, **{"aof-timestamp-enabled": "no"}) as server, server.client() as client:
        for number in range(5):
            client.set(f"chat:user{number}", CANARY, px=WEEK_MS)
            server.clock.shift("1m")
        client.set("chat:user5", CANARY, ex=300)
        client.delete("chat:user1")
        server.clock.shift("1h")
        client.exists("chat:user5")
        result = history_of(server)
        (change,) = result.to_dict()["changes"]
        fate = history_of(server, "user1").fate
    assert (change["from_ttl_s"], change["to_ttl_s"], change["at_is"]) == (604_800, None, "between")
    assert change["to_ttl_between_s"] == pytest.approx([0, 360], abs=5)  # a minute after the last write with 7 d
    assert change["not_before"] <= change["at"]
    assert fate is not None
    assert fate.at_is != "exact"
    assert any("no timestamps" in note for note in result.notes)


def test_fates_are_counted_by_prefix(server: RedisServer, client: redis.Redis) -> None:
    client.mset({"chat:1": 1, "chat:2": 1, "cart:1": 1, "plain": 1})
    client.expire("chat:1", 60)
    server.clock.shift("1h")
    client.exists("chat:1")
    assert history_of(server).fates == {"chat:": {"expired": 1, "exists": 1}, "cart:": {"exists": 1}, "": {"exists": 1}}


def test_long_names_with_one_beginning_are_two_keys(server: RedisServer, client: redis.Redis) -> None:
    first, second = (f"chat:{'x' * 5_000}:{number}" for number in (1, 2))
    client.set(first, 1, ex=300)
    client.bgrewriteaof()
    wait_for("the rewrite", lambda: client.info("persistence")["aof_rewrite_in_progress"], (0).__eq__)
    client.mset({second: 1, "chat:1": 1})
    client.unlink(second, "chat:1")
    assert history_of(server).fates["chat:"] == {"exists": 1, "deleted": 2}
    client.rename(first, second)
    assert history_of(server).fates["chat:"] == {"renamed": 1, "exists": 1, "deleted": 1}


def test_session_that_was_never_written(server: RedisServer, client: redis.Redis) -> None:
    client.set("chat:user-42", 1)
    assert cause(server, "user-4") == "never_seen"
    assert cause(server, "chat:user-42") == "exists"


def test_values_appear_in_no_output(server: RedisServer, client: redis.Redis) -> None:
    client.set("chat:user-42", CANARY, ex=100)
    client.rpush("chat:user-43", CANARY)
    for session in ("user-42", "user-43", None):
        result = history_of(server, session)
        assert CANARY not in result.to_json() + result.to_text() + repr(result)


def test_json_has_the_documented_form(server: RedisServer, client: redis.Redis) -> None:
    client.set("chat:user-42", CANARY, ex=300)
    found = json.loads(history_of(server, "user-42").to_json())
    assert (found["schema"], found["session"]) == (1, "user-42")
    assert set(found["fate"]) == {
        *("cause", "at", "at_is", "not_before", "either", "ttl_s", "ttl_set_at", "confidence", "sentence"),
    }
    (event,) = found["events"]
    assert event | {"at": ""} == {
        "at": "", "key": "chat:user-42", "event": "written", "ttl_s": 300, "command": "SET", "source": "aof",
    }  # fmt: skip
    assert [source["kind"] for source in found["sources"]] == ["aof"]
    assert json.loads(history_of(server).to_json())["session"] is None


def test_a_write_and_its_deadline_are_one_event(server: RedisServer, client: redis.Redis) -> None:
    for _ in range(2):
        with client.pipeline(transaction=True) as pipe:
            pipe.rpush("chat:user-42", CANARY).expire("chat:user-42", 300).execute()
        server.clock.shift("1m")
    events = history_of(server, "user-42").to_dict()["events"]
    assert [(event["event"], event["ttl_s"]) for event in events] == [("written", 300), ("renewed", 300)]


def test_two_snapshots_leave_open_what_they_must(tmp_path: Path) -> None:
    with RedisServer() as server, server.client() as client:
        client.set("chat:a", 1, ex=60)
        client.set("chat:b", 1, px=WEEK_MS)
        client.set("chat:c", 1, px=WEEK_MS)
        client.save()
        first = (server.directory / "dump.rdb").rename(tmp_path / "first.rdb")
        server.clock.shift("1h")
        client.delete("chat:b")
        client.persist("chat:c")
        client.exists("chat:a")
        client.save()
        second = server.directory / "dump.rdb"
        fates = {name: history(second, first, session=name).fate for name in "abcd"}
    assert [(fate.cause, fate.either) for fate in fates.values() if fate] == [
        ("unknown", ("expired", "deleted", "evicted", "renamed", "flushed")),
        ("unknown", ("deleted", "evicted", "renamed", "flushed", "expired")),
        ("unknown", ("overwritten", "exists")),
        ("never_seen", None),
    ]
    assert fates["b"] is not None
    assert fates["b"].at_is == "between"


def test_key_past_its_deadline_in_a_file_has_expired(tmp_path: Path) -> None:
    first, second = tmp_path / "first.rdb", tmp_path / "second.rdb"
    first.write_bytes(file_of_strings(("chat:1", -5), ("chat:2", 3_000)))
    second.write_bytes(file_of_strings(("chat:2", -600), saved_s=SAVED_S + 3_600))
    for name, at_s in (("1", SAVED_S - 5), ("2", SAVED_S + 3_000)):
        fate = history(first, second, session=name).fate
        assert fate is not None
        assert fate.at is not None
        assert (fate.cause, fate.confidence, fate.at.timestamp()) == ("expired", "proven", at_s)


def test_deadlines_show_what_two_snapshots_exclude(tmp_path: Path) -> None:
    """A rename keeps the deadline, if no write sets another one before or after; and a flush leaves no key."""
    first, second = tmp_path / "first.rdb", tmp_path / "second.rdb"
    first.write_bytes(file_of_strings(("chat:1", 9_000), ("chat:2", 9_001), ("chat:3", 9_002), ("chat:4", None)))
    second.write_bytes(
        file_of_strings(("archive:2", 5_401), ("chat:3", 5_402), ("chat:4", 5_403), saved_s=SAVED_S + 3_600)
    )
    either = {name: history(first, second, session=name).fate.either for name in ("1", "2")}  # type: ignore[union-attr]
    assert either == {
        "1": ("deleted", "evicted", "renamed", "expired"),
        "2": ("renamed", "deleted", "evicted", "expired"),
    }
    assert history(first, second).fates["chat:"] == {"unknown": 2, "exists": 2}
    assert [event.name for event in history(first, second, session="4").events] == ["renewed"]


@pytest.mark.parametrize(("second", "noted"), [("chat:3", True), ("chat:2", False)])
def test_shards_given_one_by_one_are_noted(second: str, noted: bool, tmp_path: Path) -> None:
    paths = tmp_path / "first.rdb", tmp_path / "second.rdb"
    paths[0].write_bytes(file_of_strings(("chat:1", 9_000), ("chat:2", 9_001)))
    paths[1].write_bytes(file_of_strings((second, 9_000), saved_s=SAVED_S + 1))
    notes = history(*paths, session="1").notes
    assert any("if these are shards of one moment" in note for note in notes) == noted


def test_key_past_its_deadline_has_expired(tmp_path: Path) -> None:
    """A server deletes such a key later, and logs that then."""
    path = tmp_path / "appendonly.aof"
    words = [b"SET", b"chat:1", b"x", b"PXAT", b"1700000060000"]
    write = b"*5\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    path.write_bytes(b"#TS:1700000000\r\n" + write + b"#TS:1700000100\r\n" + write.replace(b":1", b":2"))
    fate = history(path, session="1").fate
    assert fate is not None
    assert (fate.cause, fate.confidence, fate.at_is, fate.ttl_s) == ("expired", "proven", "exact", 60)


@pytest.mark.parametrize("name", ["redis-8.2", "valkey-9"])
def test_hash_of_the_base_may_end_with_its_fields(name: str) -> None:
    with logging(name) as server, server.client() as client:
        client.hset("chat:hash", "f", CANARY)
        client.hexpire("chat:hash", 60, "f")
        client.hset("chat:kept", "f", CANARY)
        client.bgrewriteaof()
        wait_for("the rewrite", lambda: client.info("persistence")["aof_rewrite_in_progress"], (0).__eq__)
        server.clock.shift("2m")
        wait_for("the end of the hash", lambda: client.dbsize(), (1).__eq__)
        fate = history_of(server, "hash").fate
        assert fate is not None
        assert "expired" in (fate.cause, *(fate.either or ()))
        assert cause(server, "kept") == "exists"


def test_key_that_was_made_again_is_not_overwritten(server: RedisServer, client: redis.Redis) -> None:
    client.set("chat:user-42", 1, ex=300)
    client.set("chat:user-42", 1)
    client.delete("chat:user-42")
    client.set("chat:user-42", 1)
    fate = history_of(server, "user-42").fate
    assert fate is not None
    assert (fate.cause, fate.ttl_s) == ("exists", None)


def test_databases_of_one_log_are_told_apart(server: RedisServer, client: redis.Redis) -> None:
    client.set("chat:user-42", 1, ex=300)
    client.select(3)
    client.set("chat:user-42", 1)
    client.rename("chat:user-42", "archive:42")
    client.select(0)
    fate = history_of(server, "user-42").fate
    assert fate is not None
    assert fate.cause == "renamed"
    assert fate.sentence.endswith("the session's other keys: 1 exists")


@pytest.mark.parametrize("sources", [[], ["nothing.rdb"], ["redis://127.0.0.1:1/0"]])
def test_sources_that_do_not_go_together_are_refused(sources: list[str]) -> None:
    with pytest.raises(SourceError):
        history(*sources)


@pytest.mark.parametrize(("data", "message"), [(b"", "the file is empty"), (b"\x1f\x8bx", "compressed with gzip")])
def test_single_file_that_is_no_source_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "source.db").write_bytes(data)
    with pytest.raises(SourceError, match=message):
        history(tmp_path / "source.db", session="1")


def test_source_ends_at_its_last_timestamp(server: RedisServer, client: redis.Redis) -> None:
    """A copy of a log was modified later than the log."""
    client.set("chat:user-42", CANARY)
    now = server.clock.now().timestamp()
    for path in (server.directory / "appendonlydir").iterdir():
        os.utime(path, (now + 86_400,) * 2)
    (source,) = history(server.directory).sources
    assert source.ends is not None
    assert abs(source.ends.timestamp() - now) < 60


def test_since_leaves_out_what_came_before(server: RedisServer, client: redis.Redis) -> None:
    client.set("chat:user-42", CANARY, ex=300)
    server.clock.shift("1m")
    moment = server.clock.now()
    server.clock.shift("1h")
    client.set("chat:user-42", CANARY, ex=600)
    events = [history(server.directory, session="user-42", since=since).events for since in (None, moment)]
    assert [len(found) for found in events] == [3, 2]


def test_text_that_begins_with_a_hash_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# memkit\n")
    with pytest.raises(SourceError, match="not an RDB file"):
        history(path, path)


def test_files_are_only_read(server: RedisServer, client: redis.Redis) -> None:
    client.set("chat:user-42", CANARY, ex=300)
    history_of(server)
    files = sorted((server.directory / "appendonlydir").iterdir())
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    history(server.directory)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
