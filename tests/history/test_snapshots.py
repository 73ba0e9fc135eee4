"""Snapshots as private servers: every key of the file is there, as of the file's moment, and nothing can be written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from rdb_files import module_file, with_checksum
from servers import binary_of
from test_history import CANARY, WEEK_MS, logging

from memkit.errors import ServerNotFound, SourceError
from memkit.history.aof import find_aof
from memkit.history.snapshots import serve_aof, serve_rdb
from memkit.server import RedisServer


@pytest.fixture(params=["redis-6.2", "redis-7.0", "redis-8.2", "valkey-9"])
def snapshot(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file of three days ago with keys that have expired since, and one that had expired when it was saved."""
    binary = binary_of(request.param)
    with RedisServer(binary=binary.path) as server, server.client() as client:
        server.clock.shift("-3d")
        for number in range(20):
            client.set(f"chat:{number}", CANARY, ex=86_400)
            client.rpush(f"cart:{number}", CANARY)
        client.save()
        yield (server.directory / "dump.rdb").rename(tmp_path / "dump.rdb")


def test_expired_keys_are_still_there(snapshot: Path) -> None:
    before = (snapshot.read_bytes(), snapshot.stat().st_mtime_ns)
    with serve_rdb([snapshot]) as (server, _), server.client() as client:
        assert client.dbsize() == 40
        assert client.get("chat:7") == CANARY.encode()
        assert 86_000 < client.ttl("chat:7") <= 86_401  # ctime is rounded down to the second
        assert client.lrange("cart:7", 0, -1) == [CANARY.encode()]
        with pytest.raises(redis.ReadOnlyError):
            client.set("chat:7", "changed")
        server.clock.shift("2d")
        assert client.get("chat:7") is None
        server.clock.shift("-2d")
        assert client.get("chat:7") == CANARY.encode()
    assert (snapshot.read_bytes(), snapshot.stat().st_mtime_ns) == before


@pytest.mark.parametrize(("data", "error", "message"), [
    (module_file(b"\x05\x02{}\x00"), SourceError, "data of a module .ReJSON-RL."),
    (with_checksum(b"REDIS0099\xff"), SourceError, "REDIS0099 is newer than this memkit reads"),
    (with_checksum(b"VALKEY099\xff"), SourceError, "VALKEY099 is newer than this memkit reads"),
    (with_checksum(b"REDIS0011\xff"), SourceError, "does not state when it was saved"),
    (b"REDIS0011", SourceError, "is truncated"),
])  # fmt: skip
def test_refused_in_one_line(tmp_path: Path, data: bytes, error: type[Exception], message: str) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(data)
    with pytest.raises(error, match=message) as refused, serve_rdb([path]):
        pass
    assert "\n" not in str(refused.value)


def test_missing_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkit.history.snapshots.installed_servers", lambda: iter(()))
    path = tmp_path / "dump.rdb"
    aux = b"\xfa\x05ctime\x0a1700000000"
    path.write_bytes(with_checksum(b"REDIS0010" + aux + b"\xff"))
    with pytest.raises(ServerNotFound, match=r"REDIS0010 needs Redis 7\.0 or newer"), serve_rdb([path]):
        pass


@pytest.mark.parametrize("name", ["redis-7.0", "redis-8.2", "valkey-9"])
def test_log_is_read_as_of_a_moment(name: str) -> None:
    with logging(name) as server, server.client() as client:
        client.set("chat:1", CANARY, px=WEEK_MS)
        server.clock.shift("10m")
        client.set("chat:2", CANARY, ex=300)
        moment = server.clock.now() + timedelta(seconds=60)
        server.clock.shift("10m")
        client.delete("chat:1")
        client.exists("chat:2")
        client.set("chat:3", CANARY)
        files = find_aof(server.directory)
        before = [path.read_bytes() for path in files.all]
        with serve_aof(files, until=moment) as (past, _), past.client() as reader:
            assert sorted(reader.keys()) == [b"chat:1", b"chat:2"]
            assert reader.get("chat:2") == CANARY.encode()
            assert 200 < reader.ttl("chat:2") <= 241
        assert [path.read_bytes() for path in files.all] == before


def test_log_that_begins_later_is_refused() -> None:
    with logging("redis-8.2", **{"aof-timestamp-enabled": "no"}) as server, server.client() as client:
        client.set("chat:1", CANARY)
        moment = server.clock.now()
        files = find_aof(server.directory)
        with pytest.raises(SourceError, match="begins at"), serve_aof(files, until=moment - timedelta(days=1)):
            pass
