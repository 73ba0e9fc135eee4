"""Recordings of a live server: what became of each key is right or left open; the server is only read."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis
from servers import every_server, start
from test_history import CANARY
from test_replication import in_step, pair
from waiting import wait_for

from memkit.errors import ServerError, SourceError
from memkit.history.record import GAP_S, RecordingSummary, Replication, _Recorder, _ttl, acl_rule, record
from memkit.history.recording import Recording
from memkit.history.run import history
from memkit.history.states import KeyEvent, KeyState, Moment
from memkit.history.tracking import Tracker
from memkit.server import RedisServer

WEEK_S = 604_800
READS = {"hello", "client|tracking", "time", "info", "scan", "pexpiretime", "ping", "client|setinfo", "subscribe"}


@pytest.fixture(params=["redis-7.0", "redis-8.2", "valkey-9"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with start(request.param) as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


@contextmanager
def recording(server: RedisServer, path: Path, *prefixes: bytes) -> Iterator[list[RecordingSummary]]:
    """Record in a thread while the block runs."""
    stop, begun = threading.Event(), threading.Event()
    summaries: list[RecordingSummary] = []

    def run() -> None:
        summaries.append(record(server.url, path, prefixes=prefixes, stop=stop, began=lambda _: begun.set()))

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    try:
        yield summaries
    finally:
        stop.set()
        thread.join()


def recorded(path: Path, done: Callable[[dict[tuple[bytes, str], int]], object]) -> None:
    """Wait until the recording has what is expected: (key, event) -> how often."""

    def events() -> dict[tuple[bytes, str], int]:
        counts: dict[tuple[bytes, str], int] = {}
        with Recording(path, reading=True) as ledger:
            for event in ledger.events():
                counts[event.key, event.name] = counts.get((event.key, event.name), 0) + 1
        return counts

    wait_for("the events in the recording", events, done)


def cause(path: Path, session: str) -> str:
    fate = history(path, session=session).fate
    assert fate is not None
    return fate.cause


def has(key: bytes, *names: str) -> Callable[[dict[tuple[bytes, str], int]], bool]:
    return lambda seen: any((key, name) in seen for name in names)


@pytest.mark.parametrize(("prefix", "only"), [(b"chat:", "; only keys chat:* were recorded"), (b"", "")])
def test_a_key_that_was_not_seen_names_the_recorded(
    prefix: bytes, only: str, server: RedisServer, tmp_path: Path
) -> None:
    with recording(server, tmp_path / "r.db", prefix):
        pass
    fate = history(tmp_path / "r.db", session="user-42").fate
    assert fate is not None
    seen = "never seen: the sources do not contain user-42"
    assert fate.sentence == f"{seen}{only}; what exists for milliseconds only is not seen"


def test_several_keys_that_exist_are_counted(server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    client.mset({"chat:1": CANARY, "chat:2": CANARY})
    with recording(server, tmp_path / "r.db", b"chat:"):
        pass
    assert history(tmp_path / "r.db").to_text().startswith("chat:*  2 keys: 2 exist\n")


def test_each_end_is_named(server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    client.set("chat:before", CANARY, ex=WEEK_S)
    with recording(server, path, b"chat:") as summaries:
        for name in ("expired", "deleted", "overwritten", "persisted", "renamed", "kept", "flushed"):
            client.set(f"chat:{name}", CANARY, ex=300 if name == "expired" else WEEK_S)
        client.set("other:1", CANARY)
        recorded(path, has(b"chat:flushed", "written"))
        # First: soon after a command that deletes, an expiry is not certain.
        server.clock.shift("10m")
        client.exists("chat:expired")
        recorded(path, has(b"chat:expired", "expired"))
        client.delete("chat:deleted")
        recorded(path, has(b"chat:deleted", "deleted"))
        client.set("chat:overwritten", CANARY)
        recorded(path, has(b"chat:overwritten", "overwritten"))
        client.persist("chat:persisted")
        recorded(path, has(b"chat:persisted", "ttl_removed"))
        client.rename("chat:renamed", "chat:other")
        recorded(path, has(b"chat:renamed", "renamed"))
        client.expire("chat:kept", WEEK_S * 2)
        recorded(path, has(b"chat:kept", "renewed"))
    assert summaries[0].events >= 13
    names = ("expired", "deleted", "overwritten", "persisted", "renamed", "kept", "before", "other:1")
    assert [cause(path, name) for name in names] == [
        *("expired", "deleted", "overwritten", "exists", "renamed", "exists", "exists", "never_seen"),
    ]
    fate = history(path, session="expired").fate
    assert fate is not None
    assert (fate.ttl_s, fate.confidence, fate.at_is) == (300, "proven", "exact")


@pytest.mark.parametrize(
    ("made", "ended"),
    [
        ("SET chat:1 v", "DELIFEQ chat:1 v"),
        ("SET chat:1 v", "BITOP AND chat:1 none none2"),
        ("GEOADD chat:1 1 1 m", "GEOSEARCHSTORE chat:1 none FROMLONLAT 1 1 BYRADIUS 1 km"),
        ("GEOADD chat:1 1 1 m", "GEORADIUS none 1 1 1 km STORE chat:1"),
    ],
)
def test_command_that_left_nothing_deleted_the_key(made: str, ended: str, tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with start("valkey-9") as server, server.client() as client:
        client.execute_command(*made.split())
        with recording(server, path, b"chat:"):
            client.execute_command(*ended.split())
            recorded(path, has(b"chat:1", "deleted"))
    assert cause(path, "1") == "deleted"


def test_flush_of_this_database_and_of_another(server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    client.set("chat:1", CANARY, ex=WEEK_S)
    with recording(server, path, b"chat:"):
        client.select(3)
        client.set("chat:1", CANARY)
        client.flushdb()
        client.select(0)
        client.set("chat:2", CANARY)
        recorded(path, has(b"chat:2", "written"))
        client.flushdb()
        recorded(path, has(b"chat:1", "flushed"))
        client.set("chat:3", CANARY)
        recorded(path, has(b"chat:3", "written"))
    assert [cause(path, name) for name in ("chat:1", "chat:2", "chat:3")] == ["flushed", "flushed", "exists"]


@pytest.mark.parametrize("name", ["redis-8.2", "valkey-9"])
def test_hash_expires_with_its_last_field(name: str, tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with start(name) as server, server.client() as client, recording(server, path, b"chat:"):
        client.hset("chat:hash", "messages", CANARY)
        client.hpexpire("chat:hash", 300, "messages")
        recorded(path, has(b"chat:hash", "expired", "deleted"))
    fate = history(path, session="hash").fate
    assert fate is not None
    assert "expired" in (fate.cause, *(fate.either or ()))


def test_evicted_keys_are_named_if_nothing_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with start("redis-8.2") as server, server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-random")
        for number in range(200):
            client.set(f"chat:{number}", "x" * 10_000, ex=WEEK_S)
        with recording(server, path, b"chat:"):
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 500_000)
            client.ping()
            recorded(path, lambda seen: sum(name == "evicted" for _, name in seen) >= 20)
        fates = history(path).fates["chat:"]
    assert fates["evicted"] >= 20
    assert set(fates) == {"evicted", "exists"}


def test_published_evictions_are_told_from_deletions(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with start("redis-8.2") as server, server.client() as client:
        client.config_set("notify-keyspace-events", "Ee")
        client.config_set("maxmemory-policy", "allkeys-random")
        for number in range(200):
            client.set(f"chat:{number}", "x" * 10_000, ex=WEEK_S)
        with recording(server, path, b"chat:"):
            client.delete("chat:0")
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 500_000)
            client.delete("chat:1", "chat:2", "chat:3")
            recorded(path, lambda seen: sum(name == "evicted" for _, name in seen) >= 20)
        evicted = client.info("stats")["evicted_keys"]
    fates = history(path).fates["chat:"]
    assert fates["evicted"] == evicted
    assert set(fates) <= {"evicted", "exists", "deleted", "unknown"}


def test_only_commands_that_read_are_sent(server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    client.set("chat:1", CANARY)
    client.config_resetstat()
    with recording(server, tmp_path / "incident.db"):
        pass
    calls = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    assert calls <= READS | {"config|resetstat"}


def test_no_value_is_recorded(server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with recording(server, path):
        client.set("chat:1", CANARY, ex=300)
        recorded(path, has(b"chat:1", "written"))
    data = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"chat:1" in data
    assert CANARY.encode() not in data
    assert CANARY not in history(path, session="chat:1").to_json()


def test_lost_connection_is_a_gap(server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    client.set("chat:1", CANARY, ex=WEEK_S)
    client.set("chat:2", CANARY, ex=WEEK_S)
    with recording(server, path):
        with client.pipeline(transaction=True) as pipe:
            for connection in client.client_list():
                if connection["id"] != str(client.client_id()):
                    pipe.client_kill_filter(_id=connection["id"])
            pipe.delete("chat:1").execute()
        wait_for("the gap in the recording", lambda: gaps(path))
        client.set("chat:3", CANARY)
        recorded(path, has(b"chat:3", "written"))
    fate = history(path, session="chat:1").fate
    assert fate is not None
    assert fate.cause == "unknown"
    assert "deleted" in (fate.either or ())
    assert cause(path, "chat:2") == "exists"
    assert history(path).to_dict()["gaps"]


def test_swapped_databases_are_a_gap(tmp_path: Path) -> None:
    """The server sends no names then."""
    path = tmp_path / "incident.db"
    with start("redis-8.2") as server, server.client() as client:
        client.set("chat:1", CANARY, ex=WEEK_S)
        with recording(server, path):
            client.swapdb(0, 1)
            wait_for("the gap in the recording", lambda: gaps(path))
            client.set("chat:2", CANARY)
            recorded(path, has(b"chat:2", "written"))
    fate = history(path, session="1").fate
    assert fate is not None
    assert fate.either == ("deleted", "evicted", "renamed", "flushed", "expired")


def test_command_is_counted_before_its_name_arrives(tmp_path: Path) -> None:
    """The server pushes a name between its turns: the counters may have been read since the command."""
    with start("redis-8.2") as server, server.client() as client, Recording(tmp_path / "incident.db") as ledger:
        client.set("chat:1", CANARY, ex=WEEK_S)
        recorder = _Recorder(client, ledger, url=server.url, prefixes=[b""], replication=None)
        recorder.begin()
        client.delete("chat:1")
        recorder._explain()
        assert isinstance(recorder._server.pushed, Tracker)
        names, _, _ = recorder._server.pushed.take(60)
        recorder._look(names, flushed=False)
        recorder._explain()
        (ended,) = ledger.events()
        recorder.close()
    assert ended.possible == ("deleted",)


@contextmanager
def by_hand(server: RedisServer, path: Path) -> Iterator[tuple[_Recorder, Recording]]:
    """Yield a recorder that has begun, and looks only when it is told to."""
    with server.client() as client, Recording(path) as ledger:
        recorder = _Recorder(client, ledger, url=server.url, prefixes=[b""], replication=None)
        recorder.begin()
        yield recorder, ledger
        recorder.close()


def look(recorder: _Recorder) -> None:
    assert isinstance(recorder._server.pushed, Tracker)
    names, evicted, _ = recorder._server.pushed.take(60)
    recorder._evicted |= evicted
    recorder._look(names, flushed=False)


@pytest.mark.parametrize(("moved", "possible"), [(True, {"expired", "deleted"}), (False, {"deleted"})])
def test_ttl_may_pass_before_it_is_seen(moved: bool, possible: set[str], tmp_path: Path) -> None:
    """It was given since the last look, and the server's clock was moved past it; other keys were deleted."""
    with start("redis-8.2") as server, server.client() as client:
        client.mset({"chat:1": CANARY, "chat:2": CANARY})
        client.set("chat:3", CANARY, ex=60)
        with by_hand(server, tmp_path / "incident.db") as (recorder, ledger):
            if moved:
                client.expire("chat:1", 300)
                server.clock.shift("1h")
                wait_for("the expiry", lambda: client.exists("chat:1"), (0).__eq__)
            else:
                client.delete("chat:1")
            client.delete("chat:2")
            look(recorder)
            recorder._explain()
            found = [event for event in ledger.events() if event.key == b"chat:1"]
    assert set(found[-1].possible) == possible


@pytest.mark.parametrize(("late_ms", "ttl_ms"), [(20, 300_000), (1_150, 300_000), (20, 299_000), (3_600_000, None)])
def test_ttl_of_a_late_look(late_ms: int, ttl_ms: int | None) -> None:
    """A look comes up to 1.2 s after the last one; it is later only if the server's clock was moved."""
    given = ttl_ms or 300_000
    assert _ttl(1_000_000 + given, Moment(999_990, 1_000_000 + late_ms)) == ttl_ms


def test_names_are_there_after_catching_up(tmp_path: Path) -> None:
    with start("redis-8.2") as server, server.client() as client:
        client.mset(dict.fromkeys(map(str, range(50)), CANARY))
        with by_hand(server, tmp_path / "incident.db") as (recorder, _):
            pushed = recorder._server.pushed
            assert isinstance(pushed, Tracker)
            for number in range(50):
                client.delete(str(number))
                pushed.catch_up(60)
                assert pushed.take(0)[0] == [b"%d" % number]


def test_key_that_was_created_after_its_eviction(tmp_path: Path) -> None:
    with start("redis-8.2") as server, server.client() as client:
        for name, value in {"notify-keyspace-events": "Ee", "maxmemory-policy": "allkeys-random"}.items():
            client.config_set(name, value)
        client.set("chat:1", "x" * 100_000)
        with by_hand(server, tmp_path / "incident.db") as (recorder, ledger):
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 50_000)
            wait_for("the eviction", lambda: client.exists("chat:1"), (0).__eq__)
            client.config_set("maxmemory", 0)
            client.set("chat:1", CANARY)
            look(recorder)
            client.delete("chat:1")
            look(recorder)
            recorder._explain()
            *_, ended = ledger.events()
    assert "deleted" in ended.possible


def test_recording_is_read_as_of_one_moment(tmp_path: Path) -> None:
    """A recorder may write between the reading of the events and of the keys."""
    path = tmp_path / "incident.db"
    with Recording(path) as ledger:
        ledger.begin_source(kind="tracking", name="redis://localhost", server="redis", version="8.2", began_ms=1)
        keys = ledger.keys(0)
        keys[b"chat:1"] = KeyState()
        ledger.add(KeyEvent(0, b"chat:1", "written", Moment.at(2), ""))
        ledger.commit()
        with Recording(path, reading=True) as reader:
            assert len(list(reader.events())) == 1
            del keys[b"chat:1"]
            ledger.add(KeyEvent(0, b"chat:1", "deleted", Moment.at(3), "", possible=("deleted",)))
            ledger.commit()
            assert list(reader.databases()[0]) == [b"chat:1"]
            assert len(list(reader.events())) == 1


@pytest.mark.parametrize("replication", [None, "primary"])
def test_server_without_pexpiretime_is_refused(replication: Replication | None, tmp_path: Path) -> None:
    with start("redis-6.2") as server, pytest.raises(ServerError, match="needs PEXPIRETIME .Redis 7.0 or newer"):
        record(server.url, tmp_path / "incident.db", replication=replication)
    assert not (tmp_path / "incident.db").exists()


def test_renamed_key_states_no_ttl(tmp_path: Path) -> None:
    """The time that is left is not the TTL that was given, and no change of the prefix's TTL."""
    path = tmp_path / "incident.db"
    with start("redis-8.2") as server, server.client() as client:
        for number in range(10):  # at any moment, what is left of one of them is close to a whole number of seconds
            deadline_ms = (client.time()[0] + WEEK_S) * 1_000 - 500_500 - 100 * number
            client.set(f"temp:{number}", CANARY, pxat=deadline_ms)
        with recording(server, path, b"chat:"):
            client.set("chat:0", CANARY, ex=WEEK_S)
            recorded(path, has(b"chat:0", "written"))
            for number in range(10):
                client.rename(f"temp:{number}", f"chat:renamed:{number}")
            recorded(path, has(b"chat:renamed:9", "written"))
            client.delete("chat:0")
            recorded(path, lambda seen: (b"chat:0", "deleted") in seen)
            client.set("chat:short", CANARY, ex=3_630)  # beside a RENAME, half minutes would not count
            recorded(path, has(b"chat:short", "written"))
    for number in range(10):
        (renamed,) = history(path, session=f"renamed:{number}").events
        assert (renamed.deadline_ms is not None, renamed.ttl_ms) == (True, None)
    assert history(path, session="short").events[0].ttl_ms == pytest.approx(3_630_000, abs=60_000)
    assert history(path).changes[0].to_ttl_ms == pytest.approx(3_630_000, abs=60_000)


def test_key_deleted_before_the_cut_is_left_open(tmp_path: Path) -> None:
    """Why it ended is read from the counters up to 0.2 s later, and the connection is cut before that."""
    path = tmp_path / "incident.db"
    with start("redis-8.2") as server, server.client() as client:
        names = [f"chat:{number}" for number in range(8)]
        client.mset(dict.fromkeys(names, CANARY))
        with recording(server, path):
            for number, name in enumerate(names):
                client.delete(name)
                client.client_kill_filter(_type="normal", skipme=True)
                wait_for("the gap in the recording", lambda number=number: len(gaps(path)) > number)
        fates = [history(path, session=name).fate for name in names[:-1]]
    assert all(fate and fate.at for fate in fates)
    assert {fate.cause for fate in fates if fate} <= {"unknown", "deleted"}
    assert all("deleted" in (fate.either or (fate.cause,)) for fate in fates if fate)


def test_flush_after_the_deadline_is_an_expiry(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    binary = every_server()["redis-8.2"]
    if not binary:
        pytest.skip("no redis-8.2 on this machine")
    server = RedisServer(binary=binary.path, config={"enable-debug-command": "yes"})
    with server, server.client() as client:
        client.set("chat:1", CANARY, ex=60)
        client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
        with recording(server, path):
            server.clock.shift("1h")
            client.set("chat:2", CANARY)
            recorded(path, has(b"chat:2", "written"))
            client.flushdb()
            recorded(path, has(b"chat:2", "flushed"))
    assert cause(path, "1") == "expired"


def test_file_of_a_failed_start_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "incident.db"
    # As on a full disk: the file exists, and nothing can be written to it.
    monkeypatch.setattr("memkit.history.recording._NEW_FILE", "PRAGMA max_page_count = 1; CREATE TABLE a (b)")
    with pytest.raises(SourceError, match="the recording cannot be made: database or disk is full"):
        Recording(path)
    assert not path.exists()


def test_end_before_a_gap_is_not_proven(tmp_path: Path) -> None:
    """In the gap the key may have been created anew, and may have ended again."""
    path = tmp_path / "incident.db"
    with Recording(path) as ledger:
        ledger.begin_source(kind="tracking", name="redis://", server="redis", version="8", began_ms=1_000)
        for name in (b"chat:1", b"chat:2"):
            ledger.keys(0)[name] = KeyState()
            del ledger.keys(0)[name]
        ledger.add(KeyEvent(0, b"chat:1", "deleted", Moment.at(2_000), "", possible=("deleted",)))
        ledger.add_gap(3_000, 4_000, "the connection broke")
        ledger.add(KeyEvent(0, b"chat:2", "deleted", Moment.at(5_000), "", possible=("deleted",)))
        ledger.observed_until(6_000)
    fates = [history(path, session=name).fate for name in ("1", "2")]
    assert [(fate.cause, fate.confidence) for fate in fates if fate] == [("deleted", "likely"), ("deleted", "proven")]


def test_gap_at_the_end_leaves_keys_unproven(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with start("redis-8.2") as server, server.client() as client:
        client.set("chat:1", CANARY, ex=WEEK_S)
        with recording(server, path):
            server.kill()
            wait_for("a span that counts as a gap", lambda: time.monotonic(), (time.monotonic() + GAP_S).__lt__)
    fate = history(path, session="1").fate
    assert fate is not None
    assert (fate.cause, fate.confidence) == ("exists", "likely")
    assert "ends with a gap" in fate.sentence


def test_key_lost_in_a_restart_was_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with start("redis-8.2") as server, server.client() as client:
        client.set("chat:1", CANARY, ex=WEEK_S)
        with recording(server, path):
            server.restart()
            client.set("chat:2", CANARY)
            recorded(path, has(b"chat:1", "deleted"))
    found = history(path, session="1")
    assert found.fate is not None
    assert (found.fate.cause, found.fate.either) == ("unknown", None)
    assert "or it was lost: the server was restarted" in found.fate.sentence
    assert "the server was restarted" in found.to_text().partition("gap: ")[2]


@pytest.mark.parametrize("name", ["redis-7.0", "valkey-9"])
def test_expired_key_created_again_is_a_new_one(name: str, tmp_path: Path) -> None:
    """A server may not have removed the expired key yet when a command creates it again, without a TTL."""
    path = tmp_path / "incident.db"
    binary = every_server()[name]
    assert binary is not None
    server = RedisServer(binary=binary.path, config={"enable-debug-command": "yes"})
    with server, server.client() as client, recording(server, path):
        client.execute_command("DEBUG SET-ACTIVE-EXPIRE 0")
        client.set("chat:1", 1, ex=100)
        recorded(path, has(b"chat:1", "written"))
        server.clock.shift("200s")
        client.set("chat:2", CANARY)
        recorded(path, has(b"chat:2", "written"))
        client.incr("chat:1")
        recorded(path, has(b"chat:1", "expired", "overwritten"))
    found = history(path, session="1")
    assert found.fate is not None
    assert (found.fate.cause, found.fate.ttl_s) == ("exists", None)
    assert [event.name for event in found.events] == ["written", "expired", "written"]


def gaps(path: Path) -> list[tuple[int, int, str]]:
    with Recording(path, reading=True) as ledger:
        return ledger.gaps()


@pytest.mark.parametrize("replication", [(), ("primary",)])
def test_what_changed_in_a_pause_is_not_dated(replication: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with pair("redis-8.2") as (server, _), server.client() as client:
        client.mset({f"chat:{number}": CANARY for number in range(3)})
        with subprocess_recording(server, path, *replication) as process:
            client.expire("chat:2", 604_800)
            recorded(path, has(b"chat:2", "renewed"))
            process.send_signal(signal.SIGSTOP)
            client.delete("chat:1")
            client.expire("chat:2", 300)
            threading.Event().wait(2 * GAP_S)  # the pause itself
            process.send_signal(signal.SIGCONT)
            wait_for("the gap in the recording", lambda: gaps(path))
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
    deleted, renewed = (history(path, session=name).fate for name in ("1", "2"))
    assert deleted is not None
    assert (deleted.cause, deleted.at_is) == ("unknown", "between")
    assert "deleted" in (deleted.either or ())
    assert renewed is not None
    assert (renewed.cause, renewed.ttl_s) == ("exists", None)


def test_prefixes_that_overlap_are_recorded_once(tmp_path: Path) -> None:
    path, prefixes = tmp_path / "incident.db", [b"chat:vip:", b"chat:", b"user:", b"chat:"]
    with start("redis-8.2") as server, server.client() as client:
        client.set("chat:vip:1", CANARY)
        with recording(server, path, *prefixes):
            client.mset({"chat:vip:2": CANARY, "user:3": CANARY, "other:4": CANARY})
            recorded(path, has(b"chat:vip:2", "written"))
            recorded(path, has(b"user:3", "written"))
    assert history(path).fates == {"chat:": {"exists": 2}, "user:": {"exists": 1}}


@pytest.mark.parametrize("replication", [None, "replica"])
def test_ends_on_a_replica_are_those_of_its_primary(replication: Replication | None, tmp_path: Path) -> None:
    """A primary sends DEL for each end; a replica counts no eviction, and its clock may be behind."""
    path, stop, begun = tmp_path / "incident.db", threading.Event(), threading.Event()
    with pair("redis-8.2", **{"maxmemory-policy": "volatile-ttl"}) as (primary, replica), primary.client() as client:
        client.set("chat:1", CANARY, ex=5)
        client.set("chat:2", CANARY, ex=600)
        client.set("chat:3", CANARY, ex=WEEK_S)
        in_step(client, replica.client())
        replica.clock.shift("-3s")
        options = {"replication": replication, "stop": stop, "began": lambda _: begun.set()}
        recorder = threading.Thread(target=record, args=(replica.url, path), kwargs=options)
        recorder.start()
        assert begun.wait(60)
        primary.clock.shift("6s")
        client.exists("chat:1")
        recorded(path, has(b"chat:1", "expired", "deleted"))
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            client.set("other", CANARY)
        recorded(path, has(b"chat:3", "evicted", "deleted"))
        stop.set()
        recorder.join()
    fates = [history(path, session=name).fate for name in ("1", "3")]
    assert [fate.either or (fate.cause,) for fate in fates if fate] == [
        ("expired", "deleted", "evicted"), ("deleted", "evicted"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["redis-8.2", "valkey-9"])
def test_last_field_expires_on_a_replica(name: str, tmp_path: Path) -> None:
    """The primary sends HDEL or UNLINK; a replica counts no expired field."""
    path = tmp_path / "incident.db"
    with pair(name) as (primary, replica), primary.client() as client, recording(replica, path):
        client.hset("chat:1", "f", CANARY)
        client.hexpire("chat:1", 300, "f")
        recorded(path, has(b"chat:1", "written"))
        replica.clock.shift("10m")
        primary.clock.shift("10m")
        recorded(path, has(b"chat:1", "expired", "deleted"))
    fate = history(path, session="1").fate
    assert fate is not None
    assert "expired" in (fate.cause, *(fate.either or ()))


def test_moved_clock_is_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with start("redis-8.2") as server, server.client() as client, recording(server, path):
        server.clock.shift("1h")
        client.set("chat:1", CANARY)
        recorded(path, has(b"chat:1", "written"))
    assert gaps(path) == []


def test_killed_it_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with start("redis-8.2") as server, server.client() as client, subprocess_recording(server, path) as process:
        client.set("chat:1", CANARY, ex=300)
        recorded(path, has(b"chat:1", "written"))
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    assert cause(path, "chat:1") == "exists"
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@contextmanager
def subprocess_recording(server: RedisServer, path: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A recorder in a process of its own, which ends with status 0 on Ctrl-C."""
    code = (
        "import signal, sys, threading\nfrom memkit.history.record import record\n"
        "stop = threading.Event()\nsignal.signal(signal.SIGINT, lambda *_: stop.set())\n"
        "began = lambda text: print(text, flush=True)\n"
        "record(*sys.argv[1:3], replication=(*sys.argv, None)[3], stop=stop, began=began)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, server.url, str(path), *more], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("recording ")
        try:
            yield process
        finally:
            process.kill()


def test_full_disk_ends_the_recording_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    script = (
        "import resource, sys; from memkit.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); sys.exit(main(sys.argv[1:]))"
    )
    with RedisServer() as server, server.client() as client:
        command = [sys.executable, "-c", script, "record", server.url, "-o", str(path)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as recorder:
            assert recorder.stderr is not None
            assert recorder.stderr.readline().startswith("memkit: recording")
            client.set("chat:first", CANARY, ex=WEEK_S)
            recorded(path, has(b"chat:first", "written"))
            for number in range(100_000):
                client.set(f"chat:{number:0100}", CANARY, ex=WEEK_S)
                if recorder.poll() is not None:
                    break
            assert recorder.wait(60) == 2
            error = recorder.stderr.read()
        assert error.startswith(f"memkit: {path}: the recording ended, and keeps ")
        assert error.count("\n") == 1
        assert len(client.client_list()) == 1
    with Recording(path, reading=True) as ledger:
        assert ledger.source()
    assert cause(path, "first") == "exists"


def test_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    path.write_text("mine")
    with start("redis-8.2") as server, pytest.raises(SourceError, match="the file exists"):
        record(server.url, path, for_s=0.1)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("-client|tracking", "client|tracking"),
        ("-scan", "scan"),
        ("-time", "time"),
        ("-info", "info"),
        ("resetkeys", "access a key"),
    ],
)
def test_missing_right_is_named(missing: str, message: str, tmp_path: Path) -> None:
    with start("redis-8.2") as server, server.client() as admin:
        admin.execute_command(*acl_rule().replace("PASSWORD", "pw").split(), missing)
        url = server.url.replace("unix://", "unix://memkit-record:pw@")
        with pytest.raises(ServerError, match=rf"cannot begin: .*{re.escape(message)}.*memkit record URL --acl"):
            record(url, tmp_path / "incident.db", for_s=0.1)
        assert not list(tmp_path.iterdir())  # the next try with the right user needs no other name


def test_stopped_server_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="the recording cannot begin") as refused:
        record("redis://127.0.0.1:1/0", tmp_path / "incident.db", for_s=0.1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [b"SQLite format 3\0", b"", b"text"])
def test_file_that_is_no_recording_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "incident.db"
    path.write_bytes(data)
    with pytest.raises(SourceError):
        history(path)


def test_damaged_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with Recording(path) as ledger:
        ledger.begin_source(kind="tracking", name="redis://", server="redis", version="8", began_ms=1)
        for number in range(2_000):
            ledger.keys(0)[b"chat:%d" % number] = KeyState()
            ledger.add(KeyEvent(0, b"chat:%d" % number, "written", Moment.at(number), ""))
    data = bytearray(path.read_bytes())
    data[20_000:60_000] = b"\xff" * 40_000
    path.write_bytes(data)
    with pytest.raises(SourceError, match="damaged"):
        history(path)


def test_other_sqlite_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.db"
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE t (a)")
    with pytest.raises(SourceError, match="not a memkit recording"):
        history(path)


def test_an_event_takes_under_60_bytes(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with Recording(path) as ledger:
        ledger.begin_source(kind="tracking", name="x", server="redis", version="8", began_ms=0)
        for number in range(20_000):
            key, deadline_ms = b"chat:user-%d" % (number % 2_000), 1_800_000_000_000
            ledger.keys(0)[key] = KeyState(deadline_ms)
            moment = Moment(1_795_000_000_000 + number, 1_795_000_000_100 + number)
            ledger.add(KeyEvent(0, key, "renewed", moment, "", deadline_ms, 300_000))
    assert path.stat().st_size < 20_000 * 60


def test_keys_are_read_in_linear_time(tmp_path: Path) -> None:
    """After a gap every key is looked up: with 150,000 keys that took 37 s when each batch sorted all of them."""

    def steps(count: int) -> int:
        done: list[None] = []
        with Recording(tmp_path / f"{count}.db") as ledger:
            keys = ledger.keys(0)
            for number in range(count):
                keys[b"chat:%d" % number] = KeyState(number)
            ledger._db.set_progress_handler(lambda: done.append(None), 100)
            assert sum(map(len, keys.batches())) == count
        return len(done)

    assert steps(16_000) < 5 * steps(4_000)


def test_late_answer_is_not_that_of_the_next_question(server: RedisServer, client: redis.Redis) -> None:
    tracker = Tracker(client, [b""])
    answered_too_early = []

    class LateAnswerArrives(threading.Event):
        def clear(self) -> None:
            super().clear()
            os.kill(server.pid, signal.SIGCONT)
            client.set("chat:1", CANARY)
            wait_for("the name of the changed key", lambda: list(tracker._names), bool)
            answered_too_early.append(self.is_set())

    os.kill(server.pid, signal.SIGSTOP)
    tracker.catch_up(0.01)
    tracker.subscription.answered = LateAnswerArrives()
    tracker.catch_up(60)
    assert answered_too_early == [False]
    assert tracker.subscription.answered.is_set()
    tracker.subscription.close()
