"""A replica's backlog: what it still holds is read, nothing is forked, and what would fork is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from servers import binary_of
from test_history import CANARY
from waiting import wait_for

from memkit.errors import ServerError, SourceError
from memkit.history.replication import _first_command, read_backlog
from memkit.history.run import History, history
from memkit.server import RedisServer

WEEK_MS = 604_800_000


@contextmanager
def pair(name: str, **config: Any) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and its replica."""
    binary = binary_of(name)
    options = {"repl-diskless-sync-delay": 0} | config
    with RedisServer(binary=binary.path, port=0, config=options) as primary:
        replica = RedisServer(binary=binary.path, config={"replicaof": f"127.0.0.1 {primary.port}", **options})
        with replica, replica.client() as client:
            wait_for(
                "a replica in step", lambda: client.info("replication"), lambda seen: seen["master_link_status"] == "up"
            )
            yield primary, replica


@pytest.fixture(params=["redis-7.0", "redis-8.2", "valkey-9"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[RedisServer, RedisServer]]:
    with pair(request.param) as servers:
        yield servers


def in_step(primary: redis.Redis, replica: redis.Redis) -> None:
    goal = primary.info("replication")["master_repl_offset"]
    wait_for(
        "the replica to catch up", lambda: replica.info("replication")["slave_repl_offset"], lambda seen: seen >= goal
    )


def backlog_of(replica: RedisServer, session: str | None = None) -> History:
    return history(replica.url, session=session, expect={"*": "7d"}, replication="replica")


def test_emptied_key_was_perhaps_not_overwritten() -> None:
    """The backlog does not show whether the set had other members before."""
    with pair("redis-7.0") as (primary, replica), primary.client() as writer, replica.client() as reader:
        writer.sadd("chat:1", "a")
        writer.expire("chat:1", 604_800)
        writer.srem("chat:1", "a")
        writer.set("chat:1", CANARY)
        in_step(writer, reader)
        fate = backlog_of(replica, "1").fate
    assert fate is not None
    assert (fate.cause, fate.confidence) == ("overwritten", "likely")


def test_replica_shows_the_recent_past(servers: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = servers
    with primary.client() as writer, replica.client() as reader:
        writer.set("chat:kept", CANARY, px=WEEK_MS)
        writer.set("chat:renamed", CANARY, px=WEEK_MS)
        writer.rename("chat:renamed", "chat:other")
        writer.set("chat:overwritten", CANARY, px=WEEK_MS)
        writer.set("chat:overwritten", CANARY)
        writer.set("chat:deleted", CANARY, px=WEEK_MS)
        writer.delete("chat:deleted")
        in_step(writer, reader)
        forks, before = reader.info("stats")["total_forks"], writer.info("commandstats")
        found = {name: backlog_of(replica, name) for name in ("kept", "renamed", "overwritten", "deleted", "never")}
        assert reader.info("stats")["total_forks"] == forks
        assert reader.info("stats")["sync_full"] == 0
        assert "cmdstat_psync" not in writer.info("commandstats") or (
            writer.info("commandstats")["cmdstat_psync"]["calls"] == before["cmdstat_psync"]["calls"]
        )
    causes = {name: result.fate.cause for name, result in found.items() if result.fate}
    deleted = "deleted" if replica.flavour == "valkey" else "unknown"
    assert causes == {
        "kept": "exists",
        "renamed": "renamed",
        "overwritten": "overwritten",
        "deleted": deleted,
        "never": "never_seen",
    }
    assert found["deleted"].fate
    assert found["deleted"].fate.at_is != "exact"
    assert CANARY not in found["overwritten"].to_json()
    assert [source["kind"] for source in found["kept"].to_dict()["sources"]] == ["replication"]


def test_change_of_the_ttl_shows(servers: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = servers
    with primary.client() as writer, replica.client() as reader:
        for number in range(10):
            writer.set(f"chat:{number}", CANARY, px=WEEK_MS)
        for number in range(10):
            writer.set(f"chat:{number}", CANARY, ex=300)
        in_step(writer, reader)
        (change,) = backlog_of(replica).to_dict()["changes"]
    assert (change["from_ttl_s"], change["to_ttl_s"], change["at_is"]) == (604_800, 300, "between")


def test_primary_is_read_only_if_asked_for(servers: tuple[RedisServer, RedisServer]) -> None:
    primary, _ = servers
    with primary.client() as client:
        client.set("chat:1", CANARY, ex=300)
        with pytest.raises(ServerError, match="is a primary: give the URL of a replica"):
            read_backlog(primary.url)
        forks = client.info("stats")["total_forks"]
        assert (b"SET", b"chat:1") in [arguments[:2] for arguments in read_backlog(primary.url, primary=True).commands]
        assert client.info("stats")["total_forks"] == forks


def test_least_user_reads_the_backlog(servers: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = servers
    with primary.client() as writer, replica.client() as reader:
        writer.set("chat:1", CANARY, ex=300)
        in_step(writer, reader)
        reader.execute_command("ACL", "SETUSER", "least", "on", ">pw", "-@all", "+psync", "+replconf", "+info", "+ping")
        url = replica.url.replace("unix://", "unix://least:pw@")
        now_ms = reader.time()[0] * 1_000
        assert abs(read_backlog(url).read_at_ms - now_ms) < 10_000
        reader.execute_command("ACL", "SETUSER", "least", "-psync")
        with pytest.raises(ServerError, match="psync"):
            read_backlog(url)


def test_server_without_a_backlog_is_refused() -> None:
    with RedisServer() as server, server.client() as client:
        client.config_resetstat()
        with pytest.raises(ServerError, match="has no replication backlog"):
            read_backlog(server.url, primary=True)
        assert "cmdstat_psync" not in client.info("commandstats")


def test_server_without_replication_keeps_no_history() -> None:
    with RedisServer() as server, pytest.raises(SourceError, match="a server keeps no history"):
        history(server.url)


def test_full_backlog_is_read_with_a_margin() -> None:
    with pair("redis-8.2", **{"repl-backlog-size": "1mb"}) as servers:
        primary, replica = servers
        with primary.client() as writer, replica.client() as reader:
            for number in range(300):
                writer.set(f"chat:{number}", "x" * 10_000, ex=300)
            in_step(writer, reader)
            forks = reader.info("stats")["total_forks"]
            commands = read_backlog(replica.url).commands
            assert reader.info("stats")["total_forks"] == forks
    assert commands[-1][:2] == (b"SET", b"chat:299")
    assert 50 < len(commands) < 110


@pytest.mark.parametrize("name", ["redis-6.2", "redis-8.2"])
def test_backlog_smaller_than_the_margin_is_read(name: str) -> None:
    """The least margin, 64 KiB, is more than such a backlog holds; an offset after its end makes the server fork."""
    servers = pair(name, **{"repl-backlog-size": "16kb"})
    with servers as (primary, replica), primary.client() as writer, replica.client() as reader:
        writer.set("chat:1", CANARY, ex=300)
        in_step(writer, reader)
        assert "chat:1" in str(read_backlog(replica.url).commands)
        for number in range(1_000):
            writer.set(f"chat:{number}", CANARY, ex=300)
        in_step(writer, reader)
        commands = read_backlog(replica.url).commands
        assert reader.info("stats")["sync_full"] == 0
    assert commands[-1][:2] == (b"SET", b"chat:999")


def test_key_from_before_the_backlog_is_left_open() -> None:
    """Whether it had a TTL, and under which name it was written, is not in the backlog."""
    servers = pair("redis-8.2", **{"repl-backlog-size": "16kb"})
    with servers as (primary, replica), primary.client() as writer, replica.client() as reader:
        for name in ("appended", "renamed", "replaced"):
            writer.rpush(f"chat:{name}", CANARY)
        writer.expire("chat:appended", 300)
        for number in range(2_000):
            writer.set(f"other:{number}", "x" * 100)
        writer.rpush("chat:appended", CANARY)
        writer.rename("chat:renamed", "chat:new")
        writer.set("chat:replaced", CANARY)
        in_step(writer, reader)
        fates = {name: backlog_of(replica, name).fate for name in ("appended", "renamed", "new", "replaced")}
    found = {name: (fate.cause, fate.confidence) for name, fate in fates.items() if fate}
    assert found == {
        "appended": ("exists", "likely"),
        "renamed": ("renamed", "proven"),
        "new": ("exists", "likely"),
        "replaced": ("exists", "likely"),
    }


def test_relative_deadlines_of_an_old_server_are_open() -> None:
    """Redis 6.2 replicates EX and EXPIRE as they are: the deadline is after the write by the TTL, whenever that was."""
    with pair("redis-6.2") as (primary, replica), primary.client() as writer, replica.client() as reader:
        writer.set("chat:1", CANARY, px=50)
        writer.set("chat:2", CANARY, ex=300)
        wait_for("the expiry", lambda: writer.exists("chat:1"), lambda there: not there)
        in_step(writer, reader)
        fates = {name: backlog_of(replica, name).fate for name in "12"}
    assert fates["1"] is not None
    assert fates["1"].either == ("expired", "deleted", "evicted")
    assert "deadline" not in fates["1"].sentence  # 50 ms after the write, whenever that was
    assert fates["2"] is not None
    assert (fates["2"].cause, fates["2"].confidence, fates["2"].ttl_s) == ("exists", "likely", 300)


@pytest.mark.parametrize(("before", "start"), [
    (b"", 0),
    (b"lue\r\n", 5),
    (b"\r\n", 2),
    (b"*3\r\n$3\r\nSET\r\n$1\r\nk", 16),
    (b"an *1\r\n$4\r\nPING in a value\r\n", 28),
])  # fmt: skip
def test_first_whole_command_is_found(before: bytes, start: int) -> None:
    commands = b"*1\r\n$4\r\nPING\r\n" * 3
    found = _first_command(before + commands)
    assert found == start or (before + commands)[found:].startswith(b"*1\r\n$4\r\nPING\r\n*1")
