"""RDB files as streams: what each server writes is read as that server reports it; what is damaged is refused."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from rdb_files import module_file, with_checksum
from servers import every_server, needs, start

from memkit.errors import SourceError
from memkit.history.rdb import CHUNK_BYTES, RdbReader, SnapshotKey, decompress_lzf
from memkit.server import RedisServer

DAY_MS = 86_400_000


def saved(server: RedisServer, client: redis.Redis) -> Path:
    client.save()
    return server.directory / "dump.rdb"


def read(path: Path) -> dict[tuple[int, bytes], SnapshotKey]:
    with RdbReader(path) as reader:
        return {(key.db, key.name): key for key in reader}


def write_every_encoding(client: redis.Redis) -> None:
    client.set("text", "x", ex=100)
    client.mset({"int8": 7, "int16": 700, "int32": 70_000, "negative": -7, "int64": 2**40})
    client.set("compressible", "ab" * 5_000, px=DAY_MS)
    client.set("larger than a chunk", random.Random(1).randbytes(CHUNK_BYTES * 2))
    client.set("n" * 300 + "m" * 300, "a name that is compressed")
    client.set(b"\xff\x00 not text", 1)
    client.set(123456, "a name that is stored as a number")
    client.rpush("small list", "a", 1)
    client.rpush("large list", *range(5_000), "x" * 20_000)
    client.sadd("numbers", 1, 2, 3)
    client.sadd("small set", "a", "b")
    client.sadd("large set", *(f"member {n}" for n in range(1_000)))
    client.zadd("small zset", {"a": 1.5, "b": float("inf"), "c": float("-inf")})
    client.zadd("large zset", {f"member {n}": n / 7 for n in range(500)})
    client.hset("small hash", mapping={"a": 1})
    client.hset("large hash", mapping={f"field {n}": "v" * n for n in range(600)}, items=None)
    for n in range(300):
        client.xadd("stream", {"n": n})
    client.xgroup_create("stream", "group", "0")
    client.xreadgroup("group", "consumer", {"stream": ">"}, count=10)
    client.select(3)
    client.set("in another database", 1, exat=4_000_000_000)
    client.select(0)


def test_every_encoding_is_read(any_server: RedisServer) -> None:
    with any_server.client() as client:
        write_every_encoding(client)
        keys = read(saved(any_server, client))
        assert len(keys) == client.dbsize() + 1
        for (db, name), key in keys.items():
            if db:
                continue
            assert key.kind == client.type(name).decode()
            left = client.pttl(name)
            assert (key.deadline_ms is None) == (left == -1)
            if key.deadline_ms is not None:
                assert abs(key.deadline_ms - any_server.clock.now().timestamp() * 1000 - left) < 1_000
        assert keys[3, b"in another database"].deadline_ms == 4_000_000_000_000


def test_rdb_header_states_version_and_time(any_server: RedisServer) -> None:
    with any_server.client() as client:
        path = saved(any_server, client)
    with RdbReader(path) as reader:
        header = reader.header
        assert list(reader) == []
    assert header.server == any_server.flavour
    assert header.aux[f"{any_server.flavour}-ver"] == any_server.version
    assert header.created_s is not None
    assert abs(header.created_s - any_server.clock.now().timestamp()) < 60
    assert path.read_bytes().startswith(header.format_name.encode())


def test_hashes_with_field_ttls_are_passed_over(any_server: RedisServer) -> None:
    needs(any_server, "TTL of hash fields", redis="7.4", valkey="9.0")
    with any_server.client() as client:
        client.hset("small", mapping={"a": 1, "b": 2, "c": 3})
        client.hpexpireat("small", 4_000_000_000_000, "a")
        client.hpexpireat("small", 3_000_000_000_000, "b")
        client.hset("large", mapping={f"field {n}": "v" * 100 for n in range(600)})
        client.hpexpireat("large", 3_500_000_000_000, "field 17")
        client.hset("none", mapping={"a": 1})
        keys = read(saved(any_server, client))
    assert {name: key.kind for (_, name), key in keys.items()} == dict.fromkeys((b"small", b"large", b"none"), "hash")


@pytest.mark.parametrize(
    ("policy", "has_idle"), [("noeviction", False), ("allkeys-lru", True), ("volatile-lfu", False)]
)
def test_idle_times_are_there_only_under_lru(server: RedisServer, policy: str, has_idle: bool) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)
        client.set("k", 1)
        server.clock.shift("2h")
        key = read(saved(server, client))[0, b"k"]
    assert (key.idle_s is not None) == has_idle
    if has_idle:
        assert 7_190 <= (key.idle_s or 0) <= 7_260


def test_functions_are_passed_over(server: RedisServer) -> None:
    with server.client() as client:
        client.function_load("#!lua name=lib\nredis.register_function('f', function() return 1 end)")
        client.set("k", 1)
        assert list(read(saved(server, client))) == [(0, b"k")]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with start("redis-7.0" if every_server()["redis-7.0"] else "redis-8.2") as server:
        yield server


@pytest.fixture(scope="module")
def rdb() -> bytes:
    """A file with every encoding."""
    with start("redis-8.2") as server, server.client() as client:
        write_every_encoding(client)
        return saved(server, client).read_bytes()


def test_module_data_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.rdb"
    path.write_bytes(module_file(b"\x05\x02{}" + b"\x02\x07" + b"\x04" + b"d" * 8 + b"\x03" + b"f" * 4 + b"\x00"))
    assert read(path)[0, b"k"].kind == "ReJSON-RL"


REFUSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[: len(data) // 2], "is truncated: it ends after"),
    "without its end": (lambda data: data[:-9], "is truncated: it ends after"),
    "a changed byte": (lambda data: data.replace(b"another", b"amother"), "is damaged .*: its checksum is wrong"),
    "gzip": (gzip.compress, "the file is compressed with gzip; decompress it first"),
    "encrypted": (lambda data: b"Salted__" + data[::-1], "the file is encrypted; decrypt it first"),
    "foreign": (lambda _: b"SQLite format 3\0", "the file is not an RDB file: it does not begin with REDIS or VALKEY"),
    "commands": (lambda _: b"*1\r\n$4\r\nPING\r\n", "the file is a single append-only file"),
    "empty": (lambda _: b"", "the file is empty"),
    "version 0": (lambda data: data.replace(b"REDIS0012", b"REDIS0000"), "RDB version 0 does not exist"),
    "a type that does not exist": (
        lambda _: with_checksum(b"REDIS0012\x1a\x01k\x00\xff"), "the value type 26 does not exist in version 12"
    ),
    "a type of the future": (
        lambda _: with_checksum(b"REDIS0014\x1b\x01k\x00\xff"), "the format REDIS0014 is newer than this memkit reads"
    ),
    "an unknown module opcode": (lambda _: module_file(b"\x09\x00"), "the module opcode 9"),
    "database 2^32 - 1": (
        lambda _: with_checksum(b"REDIS0012\xfe\x80\xff\xff\xff\xff\xff"), "the number of a database, 4,294,967,295"
    ),
    "a name of 4 GiB": (lambda _: with_checksum(b"REDIS0012\x00\x80\xff\xff\xff\xff"), "longer than Redis allows"),
    "a value of 2^63 bytes": (
        lambda _: with_checksum(b"REDIS0012\x00\x01k\x81\x7f" + b"\xff" * 7), "is truncated"
    ),
    "2^63 elements": (lambda _: with_checksum(b"REDIS0012\x01\x01k\x81\x7f" + b"\xff" * 7), "is truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(tmp_path: Path, rdb: bytes, name: str) -> None:
    change, message = REFUSED[name]
    path = tmp_path / "dump.rdb"
    path.write_bytes(change(rdb))
    with pytest.raises(SourceError, match=message) as refused:
        read(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_newer_version_is_read_if_nothing_is_unknown(tmp_path: Path, rdb: bytes) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(with_checksum(rdb[:-8].replace(b"REDIS0012", b"REDIS0013", 1)))
    assert len(read(path)) > 20


def test_file_without_checksum_is_read(tmp_path: Path, rdb: bytes) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(rdb[:-8] + bytes(8))
    assert len(read(path)) > 20


def test_file_is_only_read(tmp_path: Path, rdb: bytes) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(rdb)
    before = path.stat()
    read(path)
    assert path.read_bytes() == rdb
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_damaged_bytes_raise_source_errors_only(tmp_path: Path, rdb: bytes) -> None:
    dice = random.Random(20)
    small = rdb[:3_000] + rdb[-3_000:]
    path = tmp_path / "dump.rdb"
    for _ in range(400):
        data = bytearray(small)
        for _ in range(dice.randrange(1, 6)):
            data[dice.randrange(9, len(data))] = dice.randrange(256)
        path.write_bytes(data)
        with pytest.raises(SourceError):
            read(path)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "dump.rdb"
    key = b"\xfc" + (4_000_000_000_000).to_bytes(8, "little") + b"\x00\x04chat\x41\x2c" + b"v" * 300
    path.write_bytes(with_checksum(b"REDIS0012" + key * 40_000 + b"\xff"))
    assert path.stat().st_size > 10 * CHUNK_BYTES
    tracemalloc.start()
    with RdbReader(path) as reader:
        assert sum(1 for _ in reader) == 40_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * CHUNK_BYTES


@pytest.mark.parametrize("data", [b"\x05abc", b"\x20", b"\x20\x05", b"\xe0", b"\x00a\x20\x00"])
def test_damaged_lzf_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="early|before|more|fewer"):
        decompress_lzf(data, 2)
