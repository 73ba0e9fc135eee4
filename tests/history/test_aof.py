"""Append-only directories: what the server writes is read in order; what is damaged is refused."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from servers import binary_of
from waiting import wait_for

from memkit.errors import SessionNotFound, SourceError
from memkit.history.aof import KEPT_BYTES, AofFiles, find_aof, read_commands
from memkit.history.rdb import RdbReader
from memkit.history.run import history
from memkit.history.sources import find_source
from memkit.inspect import inspect_session
from memkit.server import RedisServer


@pytest.fixture(params=["redis-7.0", "redis-8.2", "valkey-9"])
def logging_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server of each kind that keeps an append-only directory with timestamps."""
    with logging(request.param, **{"aof-timestamp-enabled": "yes"}) as server:
        yield server


def logging(name: str, **config: str) -> RedisServer:
    """A server of a lane that keeps an append-only file; skip if it is not here."""
    binary = binary_of(name)
    return RedisServer(binary=binary.path, config={"appendonly": "yes"} | config)


def commands_of(files: AofFiles) -> list[tuple[bytes, ...]]:
    return [command.arguments for path in files.logs for command in read_commands(path)]


def test_commands_are_read_in_order(logging_server: RedisServer) -> None:
    with logging_server.client() as client:
        client.set("chat:1", "x" * 10_000, ex=100)
        client.rpush("chat:2", "a", "b")
        client.expire("chat:2", 100)
        deadline = client.pexpiretime("chat:2")
        client.delete("chat:1")
        files = find_aof(logging_server.directory)
        commands = commands_of(files)
    assert [name for name, *_ in commands] == [b"SELECT", b"SET", b"RPUSH", b"PEXPIREAT", b"DEL"]
    assert commands[1][:2] == (b"SET", b"chat:1")
    assert commands[1][2][:KEPT_BYTES] == b"x" * KEPT_BYTES
    assert commands[3] == (b"PEXPIREAT", b"chat:2", b"%d" % deadline)


def test_timestamps_follow_the_servers_clock(logging_server: RedisServer) -> None:
    with logging_server.client() as client:
        client.set("a", 1)
        logging_server.clock.shift("1h")
        client.set("b", 1)
        now = logging_server.clock.now().timestamp()
        (increment,) = find_aof(logging_server.directory).logs
        seconds = {command.arguments[1]: command.second for command in read_commands(increment)}
    assert seconds[b"b"] is not None
    assert abs(seconds[b"b"] - now) < 60
    assert seconds[b"a"] is None or now - seconds[b"a"] > 3_500


def test_base_is_an_rdb_file(logging_server: RedisServer) -> None:
    with logging_server.client() as client:
        client.set("before", 1)
        client.bgrewriteaof()
        wait_for("the rewrite", lambda: client.info("persistence"), lambda seen: rewritten(seen))
        client.set("after", 1)
        files = find_aof(logging_server.directory)
        commands = commands_of(files)
    assert files.base is not None
    with RdbReader(files.base) as reader:
        assert [key.name for key in reader] == [b"before"]
    assert [arguments[1] for arguments in commands if arguments[0] == b"SET"] == [b"after"]


def rewritten(info: dict[str, object]) -> bool:
    return not (info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])


def directory_with(folder: Path, manifest: str, **files: bytes) -> Path:
    (folder / "appendonly.aof.manifest").write_text(manifest)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


SET = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n"


def test_increments_are_read_in_order_of_their_numbers(tmp_path: Path) -> None:
    lines = "file ten seq 10 type i\nfile nine seq 9 type i\nfile old seq 1 type h\n"
    files = find_aof(directory_with(tmp_path, lines, nine=SET, ten=SET))
    assert [path.name for path in files.logs] == ["nine", "ten"]
    assert files.base is None


@pytest.mark.parametrize(("manifest", "message"), [
    ("file a seq 1 type i\n", "names this file, but it does not exist"),
    ("", "names no file"),
    ("file ../../etc/passwd seq 1 type i\n", "line 1 is not understood"),
    ("file k seq 1 type x\n", "line 1 is not understood"),
    ("hello\n", "line 1 is not understood"),
    ("file k seq 1 type b\nfile k seq 2 type b\n", "names 2 base files"),
])  # fmt: skip
def test_manifest_is_refused_in_one_line(tmp_path: Path, manifest: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        find_aof(directory_with(tmp_path, manifest, k=SET))


def test_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no append-only file in it"):
        find_aof(tmp_path)
    with pytest.raises(SourceError, match="no such file or directory"):
        find_aof(tmp_path / "nothing")


@pytest.mark.parametrize(("data", "message"), [
    (SET + SET[:-3], "is truncated"),
    (SET + b"*3\r\n$3\r\nSET\r\n", "is truncated"),
    (SET + b"hello\r\n", "neither a command nor an annotation"),
    (b"*-1\r\n", "a length that is not a number, or too large"),
    (b"*99999999999\r\n", "a length that is not a number, or too large"),
    (b"*1\r\n$99999999999\r\n", "a length that is not a number, or too large"),
    (b"*0\r\n", "a command without a name"),
    (b"*1\r\n+OK\r\n", "an argument without its length"),
    (b"x" * 5_000, "a line without an end"),
])  # fmt: skip
def test_damaged_commands_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "k"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message):
        list(read_commands(path))


@pytest.mark.parametrize(("cut", "fates"), [
    (b"*5", ["deleted", "exists", "never_seen"]),
    (b"*1\r\n$4\r\nEXEC", ["exists", "never_seen", "never_seen"]),
    (b"*2\r\n$3\r\nDEL", ["exists", "never_seen", "never_seen"]),
    (b"#TS:", ["deleted", "exists", "never_seen"]),
])  # fmt: skip
def test_log_is_read_as_a_server_does_after_a_crash(cut: bytes, fates: list[str], tmp_path: Path) -> None:
    """A server leaves out a last command that is incomplete, and a transaction without its EXEC."""
    with logging("redis-7.0", **{"aof-timestamp-enabled": "yes"}) as server, server.client() as client:
        client.set("chat:1", "v", ex=300)
        with client.pipeline(transaction=True) as pipe:
            pipe.set("chat:2", "v", ex=300).delete("chat:1").execute()
        server.clock.shift("10s")
        client.set("chat:3", "v", ex=300)
        shutil.copytree(server.directory / "appendonlydir", tmp_path / "log")
    (log,) = find_aof(tmp_path / "log").logs
    data = log.read_bytes()
    for inside in (0, 3):  # at the beginning of what is cut, and within it
        log.write_bytes(data[: data.rindex(cut) + inside])
        server = RedisServer(binary=binary_of("redis-7.0").path, persist=True)
        with server, server.client() as client:
            server.kill()
            shutil.rmtree(server.directory / "appendonlydir")
            shutil.copytree(tmp_path / "log", server.directory / "appendonlydir")
            server.start()
            kept = [client.exists(f"chat:{number}") == 1 for number in (1, 2, 3)]
        found = [history(tmp_path / "log", session=f"chat:{number}") for number in (1, 2, 3)]
        assert [one.fate.cause for one in found if one.fate] == fates
        assert kept == [cause == "exists" for cause in fates]
        is_cut = inside > 0 or b"EXEC" in cut or b"DEL" in cut
        assert [bool(re.search(r"its last \d+ bytes were not read", "".join(one.notes))) for one in found] == [
            is_cut
        ] * 3


def test_cut_command_before_another_log_is_refused(tmp_path: Path) -> None:
    """A server does not start with it."""
    path = directory_with(tmp_path, "file one seq 1 type i\nfile two seq 2 type i\n", one=SET + SET[:-3], two=SET)
    with pytest.raises(SourceError, match="is truncated"):
        history(path)


def test_log_that_grows_is_read_up_to_its_first_end(tmp_path: Path) -> None:
    """A running server writes between the first reading, which dates the commands, and the second one."""
    write = b"*5\r\n$3\r\nSET\r\n$6\r\nchat:1\r\n$1\r\nv\r\n$4\r\nPXAT\r\n$13\r\n4102444800000\r\n"
    path = directory_with(tmp_path, "file one seq 1 type i\nfile two seq 2 type i\n", one=write, two=write)

    def grow(_done: int, _total: int) -> None:
        (path / "two").write_bytes(write * 3)

    found = history(path, session="chat:1", progress=grow)
    assert len(found.events) == 2


def test_log_that_was_rewritten_meanwhile_is_named(tmp_path: Path) -> None:
    path = directory_with(tmp_path, "file one seq 1 type i\nfile two seq 2 type i\n", one=SET, two=SET)
    with pytest.raises(SourceError, match="two: the server rewrote its log while it was read; try again"):
        history(path, progress=lambda _done, _total: (path / "two").unlink(missing_ok=True))


def test_other_annotations_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(b"#TS:1700000000\r\n" + SET + b"#something else\r\n" + SET)
    assert [command.second for command in read_commands(path)] == [1_700_000_000] * 2


def test_random_bytes_raise_source_errors_only(tmp_path: Path) -> None:
    dice = random.Random(20)
    path = tmp_path / "k"
    for _ in range(300):
        data = bytearray(SET * 20)
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        with suppress(SourceError):
            for command in read_commands(path):
                assert sum(map(len, command.arguments)) <= len(data)


def test_argument_over_a_chunk_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "k"
    value = b"v" * (5 << 20)
    path.write_bytes(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%b\r\n" % (len(value), value) + SET)
    first, second = read_commands(path)
    assert len(first.arguments[2]) == KEPT_BYTES + 32  # with the digest of its rest
    assert second.arguments == (b"SET", b"k", b"v")


def test_old_server_writes_one_file() -> None:
    with logging("redis-6.2") as server, server.client() as client:
        client.set("k", "v", ex=100)
        commands = commands_of(find_aof(server.directory / "appendonly.aof"))
        client.save()
        assert find_source(server.directory).kind == "aof"  # beside dump.rdb; not rewritten, it begins with a command
        assert history(server.directory, session="k").events
    assert [arguments[0] for arguments in commands] == [b"SELECT", b"SET"]
    assert b"PXAT" in commands[1]


def test_old_log_that_was_rewritten_is_no_snapshot(tmp_path: Path) -> None:
    """Redis 6.2 rewrites its one file as an RDB file; what was written after that stands behind it."""
    with logging("redis-6.2") as server, server.client() as client:
        client.mset({"chat:1": "v", "chat:2": "v"})
        client.bgrewriteaof()
        wait_for("a rewritten log", lambda: client.info("persistence")["aof_rewrite_in_progress"], (0).__eq__)
        client.set("chat:1", "v", ex=300)
        client.delete("chat:2", "chat:3")
        client.save()
        for name in ("appendonly.aof", "dump.rdb"):
            shutil.copy(server.directory / name, tmp_path)
    assert find_source(tmp_path / "dump.rdb").kind == "rdb"
    for source in (tmp_path / "appendonly.aof", tmp_path):
        assert find_source(source).kind == "aof"
        fate = history(source, session="2").fate
        assert fate is not None
        assert fate.cause == "deleted"
        assert inspect_session(source, "chat:1").keys[0].ttl_s is not None
        with pytest.raises(SessionNotFound):
            inspect_session(source, "chat:2")
