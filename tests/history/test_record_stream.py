"""Recordings of a replica's stream: each end has its command, a cut connection is a gap, and nothing forks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from test_history import CANARY, WEEK_MS
from test_record import cause, gaps, has, recorded
from test_replication import in_step, pair
from waiting import wait_for

from memkit.cli import main
from memkit.errors import ServerError
from memkit.history.record import Replication, record
from memkit.history.recording import Recording
from memkit.history.run import history
from memkit.server import RedisServer

WEEK_S = WEEK_MS // 1_000


@contextmanager
def recording(url: str, path: Path, *prefixes: bytes, replication: Replication = "replica") -> Iterator[None]:
    """Record the stream in a thread while the block runs."""
    stop, begun = threading.Event(), threading.Event()

    def run() -> None:
        record(url, path, prefixes=prefixes, replication=replication, stop=stop, began=lambda _: begun.set())

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(params=["redis-7.0", "redis-8.2", "valkey-9"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[RedisServer, RedisServer]]:
    with pair(request.param) as servers:
        yield servers


def test_each_end_has_its_command(servers: tuple[RedisServer, RedisServer], tmp_path: Path) -> None:
    primary, replica = servers
    path = tmp_path / "incident.db"
    with primary.client() as client, replica.client() as reader:
        client.set("chat:before", CANARY, ex=WEEK_S)
        in_step(client, reader)
        forks = reader.info("stats")["total_forks"], client.info("stats")["total_forks"]
        with recording(replica.url, path, b"chat:"):
            for name in ("short", "deleted", "renamed", "lost", "kept", "popped"):
                if name == "popped":
                    client.rpush("chat:popped", CANARY)
                else:
                    client.set(f"chat:{name}", CANARY, ex=WEEK_S)
            client.set("other:1", CANARY)
            client.set("chat:short", CANARY, px=300)
            client.delete("chat:deleted")
            client.rename("chat:renamed", "chat:new")
            client.set("chat:lost", CANARY)
            client.lpop("chat:popped")
            client.unlink("chat:before")
            wait_for("the expiry", lambda: client.get("chat:short"), lambda value: value is None)
            recorded(path, has(b"chat:short", "expired", "deleted"))
            recorded(path, has(b"chat:popped", "deleted"))
        assert (reader.info("stats")["total_forks"], client.info("stats")["total_forks"]) == forks
        assert client.info("stats")["sync_full"] == 1  # the real replica's
    assert cause(path, "short") == "expired"
    short = history(path, session="short").fate
    assert short is not None
    assert short.ttl_s is not None
    assert 0.2 < short.ttl_s <= 0.3
    renamed = history(path, session="renamed").fate
    assert renamed is not None
    assert "chat:renamed was renamed by RENAME" in renamed.sentence
    assert cause(path, "lost") == "overwritten"
    assert cause(path, "kept") == "exists"
    assert cause(path, "popped") == "deleted"
    deleted = history(path, session="deleted")
    assert deleted.fate is not None
    assert "deleted" in (deleted.fate.cause, *(deleted.fate.either or ()))
    shown = deleted.to_dict()["events"]
    assert (shown[0]["event"], shown[0]["command"], shown[0]["source"]) == ("written", "SET", "replication")
    assert shown[0]["ttl_s"] == WEEK_S
    assert history(path, session="before").events[0].command == "UNLINK"
    assert not history(path, session="1").events
    assert CANARY.encode() not in path.read_bytes()


def test_what_commands_do_not_show_is_looked_at(tmp_path: Path) -> None:
    """A new name for a key that was not recorded, and removed elements: its TTL and whether it exists are read."""
    path = tmp_path / "incident.db"
    with pair("redis-7.0") as (primary, replica), primary.client() as client, replica.client() as reader:
        client.set("temp:1", CANARY, ex=WEEK_S)
        client.set("temp:2", CANARY)
        client.set("chat:replaced", CANARY, ex=WEEK_S)
        client.rpush("chat:popped", 1, 2)
        client.sadd("chat:stored", 1)
        client.expire("chat:stored", WEEK_S)
        with redis.Redis(unix_socket_path=primary.socket_path, db=3) as third:
            third.set("chat:moved", CANARY, ex=WEEK_S)
            client.set("chat:0", CANARY)
            in_step(client, reader)
            with recording(replica.url, path, b"chat:"):
                client.set("chat:first", CANARY)
                client.rename("temp:1", "chat:renamed")
                client.rename("temp:2", "chat:replaced")
                third.move("chat:moved", 0)
                client.lpop("chat:popped")
                client.sinterstore("chat:stored", ["chat:stored", "other:1"])
                client.set("chat:last", CANARY)
                recorded(path, has(b"chat:last", "written"))
    for session in ("renamed", "moved"):
        fate = history(path, session=session).fate
        assert fate is not None
        assert "its deadline is" in fate.sentence
    causes = [cause(path, session) for session in ("popped", "stored", "replaced")]
    assert causes == ["exists", "deleted", "overwritten"]


def test_cut_connection_is_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with pair("redis-7.0") as (primary, replica), primary.client() as client, replica.client() as reader:
        client.set("chat:1", CANARY, ex=WEEK_S)
        in_step(client, reader)
        with recording(replica.url, path):
            reader.client_kill_filter(_type="replica")
            client.delete("chat:1")
            recorded(path, has(b"chat:1", "deleted"))
            client.set("chat:2", CANARY)
            recorded(path, has(b"chat:2", "written"))
    with Recording(path, reading=True) as ledger:
        assert len(ledger.gaps()) == 1
    assert cause(path, "1") == "unknown"
    assert cause(path, "2") == "exists"


@pytest.mark.parametrize("name", ["redis-7.0", "valkey-9"])
def test_failover_is_a_gap_and_no_fate_is_wrong(name: str, tmp_path: Path) -> None:
    """The primary is killed and the replica promoted: it is recorded on only if primaries are allowed."""
    allowed, refused = tmp_path / "allowed.db", tmp_path / "refused.db"
    with pair(name) as (primary, replica), primary.client() as client, replica.client() as reader:
        for session in ("deleted", "kept", "ended", "lost", "unlinked"):
            client.set(f"chat:{session}", CANARY, ex=WEEK_S)
        in_step(client, reader)
        with recording(replica.url, allowed, replication="primary"), recording(replica.url, refused):
            client.rename("chat:deleted", "chat:renamed")
            for path in (allowed, refused):
                recorded(path, has(b"chat:deleted", "renamed"))
            primary.kill()
            reader.replicaof("NO", "ONE")
            reader.delete("chat:ended")
            reader.set("chat:lost", CANARY)
            wait_for("the gap in the recording", lambda: gaps(allowed))
            reader.rename("chat:unlinked", "chat:moved")
            reader.set("chat:after", CANARY, ex=WEEK_S)
            recorded(allowed, has(b"chat:after", "written"))
    known = {"deleted": "renamed", "kept": "exists"}
    assert {session: cause(allowed, session) for session in known} == known
    assert {session: cause(refused, session) for session in known} == known
    assert {session: cause(allowed, session) for session in ("unlinked", "after")} == {
        "unlinked": "renamed",
        "after": "exists",
    }
    for session, happened in (("ended", "deleted"), ("lost", "overwritten")):
        fate = history(allowed, session=session).fate
        assert fate is not None
        assert happened in (fate.cause, *(fate.either or ()))
        assert fate.confidence != "proven" or fate.cause == happened
    ((_, ended_ms, reason),) = gaps(refused)
    assert "is a primary" in reason
    assert ended_ms > gaps(allowed)[0][0]
    found = history(refused, session="after")
    assert found.fate is not None
    assert found.fate.cause == "never_seen"
    assert found.sources[0].ends == found.gaps[0].begins


def test_backlog_is_read_while_a_replica_is_promoted() -> None:
    """Each answer is an error or right, whenever the promotion comes."""
    found: list[dict[str, str]] = []
    errors: list[str] = []
    with pair("redis-7.0") as (primary, replica), primary.client() as client, replica.client() as reader:
        client.set("chat:kept", CANARY, ex=WEEK_S)
        client.set("chat:renamed", CANARY, ex=WEEK_S)
        client.rename("chat:renamed", "chat:other")
        in_step(client, reader)
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    answers = {
                        name: history(replica.url, session=name, replication="replica").fate
                        for name in ("kept", "renamed")
                    }
                    found.append({name: fate.cause for name, fate in answers.items() if fate})
                except ServerError as error:
                    errors.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for("an answer", lambda: found)
        primary.kill()
        reader.replicaof("NO", "ONE")
        wait_for("the refusal", lambda: any("is a primary" in error for error in errors))
        stop.set()
        thread.join()
    assert all(one == {"kept": "exists", "renamed": "renamed"} for one in found)


def test_emptied_key_is_not_flushed_too(tmp_path: Path) -> None:
    """Both commands come at once: whether the first one left the key cannot be looked at."""
    path = tmp_path / "incident.db"
    with pair("redis-7.0") as (primary, replica), primary.client() as client, replica.client() as reader:
        in_step(client, reader)
        with recording(replica.url, path):
            pipe = client.pipeline()
            pipe.sadd("chat:1", CANARY).sadd("chat:2", CANARY).sinterstore("chat:1", ["none"]).flushdb().execute()
            recorded(path, has(b"chat:2", "flushed"))
    fate = history(path, session="1").fate
    assert fate is not None
    assert fate.either == ("flushed", "deleted")
    assert cause(path, "2") == "flushed"


def test_writes_before_a_swap_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with pair("redis-7.0") as (primary, replica), primary.client() as client, replica.client() as reader:
        client.set("chat:0", CANARY)
        in_step(client, reader)
        with recording(replica.url, path):
            pipe = client.pipeline()
            pipe.set("chat:1", CANARY)
            pipe.swapdb(0, 1)
            pipe.execute()
            wait_for("the gap in the recording", lambda: gaps(path))
    found = history(path, session="1")
    assert found.events[0].command == "SET"
    assert found.fate is not None
    assert "renamed" in (found.fate.either or ())


@pytest.mark.parametrize("name", ["redis-8.2", "valkey-9"])
def test_last_field_that_expired_is_no_deletion(name: str, tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with pair(name) as (primary, replica), primary.client() as client, replica.client() as reader:
        client.hset("chat:deleted", "f", CANARY)
        in_step(client, reader)
        with recording(replica.url, path, b"chat:"):
            client.hdel("chat:deleted", "f")
            recorded(path, has(b"chat:deleted", "deleted"))
            client.hset("chat:expired", "f", CANARY)
            client.hpexpire("chat:expired", 300, "f")
            recorded(path, has(b"chat:expired", "expired"))
    assert cause(path, "deleted") == "deleted"
    fate = history(path, session="expired").fate
    assert fate is not None
    assert fate.either == ("expired", "deleted")


def test_other_databases_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "incident.db"
    with pair("redis-7.0") as (primary, replica), primary.client() as client, replica.client() as reader:
        third = redis.Redis(unix_socket_path=primary.socket_path, db=3)
        third.set("chat:1", CANARY, ex=WEEK_S)
        client.set("chat:1", CANARY)
        in_step(client, reader)
        with third, recording(replica.url.replace("db=0", "db=3"), path):
            client.delete("chat:1")
            third.set("chat:2", CANARY)
            recorded(path, has(b"chat:2", "written"))
    assert cause(path, "1") == "exists"


def test_primary_is_refused(tmp_path: Path) -> None:
    with pair("redis-7.0") as (primary, _):
        with pytest.raises(ServerError, match="is a primary"):
            record(primary.url, tmp_path / "incident.db", replication="replica", for_s=0.1)
        began: list[str] = []
        record(primary.url, tmp_path / "other.db", replication="primary", for_s=0.1, began=began.append)
        assert "lists this connection as a replica" in began[0]


def test_server_without_a_backlog_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RedisServer() as server, server.client() as client:
        assert main(["record", server.url, "-o", str(tmp_path / "a.db"), "--replication", "--for", "1s"]) == 2
        assert "cmdstat_psync" not in client.info("commandstats")
    assert "no replication backlog" in capsys.readouterr().err


def test_least_user_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", "--acl", "--replication", "--expect", "chat:*=7d"]) == 0
    rule = capsys.readouterr().out.replace(">PASSWORD", ">secret").split()[2:]
    with pair("redis-7.0") as (primary, replica), replica.client() as admin, primary.client() as client:
        admin.execute_command("ACL", "SETUSER", *rule)
        url = replica.url.replace("unix://", "unix://memkit-record:secret@")
        with recording(url, tmp_path / "incident.db", b"chat:"):
            client.set("chat:1", CANARY)
            recorded(tmp_path / "incident.db", has(b"chat:1", "written"))


def test_command_shows_in_redis_errors(tmp_path: Path) -> None:
    with pytest.raises((ServerError, redis.RedisError)):
        record("unix:///nowhere/redis.sock", tmp_path / "incident.db", replication="replica")
