"""Files as sources of audit, inspect and triage: the verdict of the live server, and one line for each error."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from rdb_files import file_of_strings, module_file, with_checksum
from servers import binary_of, start
from test_history import CANARY, logging
from waiting import wait_for

from memkit.audit import audit
from memkit.audit.stored_keys import STRING_OVERHEAD_BYTES, StoredKeys
from memkit.cli import main
from memkit.errors import PolicyError, SessionNotFound, SourceError
from memkit.history.aof import read_commands
from memkit.history.snapshots import read_rdb
from memkit.inspect import inspect_session
from memkit.server import RedisServer

WEEK_S = 604_800
EXPECTED = ["--expect", "chat:*=7d"]
SERVER_CAUSES = {"persistence_risk", "restarted", "flushed", "clock_skew", "eviction_risk", "evicted", "replica_stale"}


def incident(server: RedisServer, client: redis.Redis, *, began: str = "-8d") -> None:
    """Write 40 sessions with 7 days over 5 days, one day later 20 with 5 minutes, and one that expires at once."""
    server.clock.shift(began)
    for number in range(60):
        client.rpush(f"chat:{number}", CANARY)
        client.expire(f"chat:{number}", WEEK_S if number < 40 else 300)
        server.clock.shift("1d" if number == 39 else "3h" if number < 39 else "13s")
    client.set("chat:ended", CANARY, px=1)


@pytest.fixture(params=["redis-6.2", "redis-7.0", "redis-8.2", "valkey-9"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    binary = binary_of(request.param)
    with RedisServer(binary=binary.path, config={"maxmemory-policy": "allkeys-lru"}) as server:
        yield server


def saved(server: RedisServer, client: redis.Redis, path: Path) -> Path:
    client.save()
    return Path(shutil.copy2(server.directory / "dump.rdb", path))


def verdict(source: str | Path, **options: Any) -> dict[str, Any]:
    report = audit(source, expect={"chat:*": "7d"}, **options).to_dict()
    assert CANARY not in json.dumps(report)
    return report


def test_file_gets_the_verdict_of_the_live_server(server: RedisServer, tmp_path: Path) -> None:
    with server.client() as client:
        incident(server, client)
        path = saved(server, client, tmp_path / "any name")
        live, created = verdict(server.url), server.clock.now()
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    found = verdict(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert found["server"]["source"]["kind"] == "rdb"
    assert found["server"]["source"]["name"] == found["server"]["url"] == str(path)
    assert abs(datetime.fromisoformat(found["server"]["source"]["taken_at"]) - created) < timedelta(seconds=5)
    assert (found["server"]["flavour"], found["server"]["version"]) == (server.flavour, server.version)
    assert found["verdict"]["sentence"].partition(" (")[0] == live["verdict"]["sentence"].partition(" (")[0]
    same = ("cause", "confidence", "keys", "observed_ttl_s", "since")
    first, second = ([one[name] for name in same] for one in (found["findings"][0], live["findings"][0]))
    assert first == second
    assert found["sample"]["of"] == 60
    assert not {one["cause"] for one in found["findings"]} & SERVER_CAUSES


def test_without_idle_times_what_is_left_decides(tmp_path: Path) -> None:
    with RedisServer() as server, server.client() as client:
        incident(server, client)
        path = saved(server, client, tmp_path / "dump.rdb")
    found = verdict(path)
    assert any("no idle times" in note for note in found["notes"])
    assert [(one["cause"], one["keys"], one["confidence"]) for one in found["findings"]] == [
        ("ttl_too_short", 20, "likely")
    ]
    assert 280 <= found["findings"][0]["observed_ttl_s"] <= 300


def test_sessions_of_two_moments_are_not_healthy(tmp_path: Path) -> None:
    """Half were given 5 minutes, or 7 days almost 7 days ago: a file without idle times cannot tell."""
    with RedisServer() as server, server.client() as client:
        for number in range(40):
            client.set(f"chat:{number}", CANARY, ex=300 if number % 2 else WEEK_S)
        path = saved(server, client, tmp_path / "dump.rdb")
    assert verdict(path)["verdict"]["status"] == "undetermined"


def test_old_sessions_are_no_finding(tmp_path: Path) -> None:
    with RedisServer() as server, server.client() as client:
        server.clock.shift("-8d")
        for number in range(40):
            client.set(f"chat:{number}", CANARY, ex=WEEK_S)
            server.clock.shift("4h")
        path = saved(server, client, tmp_path / "dump.rdb")
    found = verdict(path)
    assert not found["findings"]
    assert not any("were read" in note for note in found["notes"])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[Path, datetime, datetime]]:
    """An append-only directory, the moment before its release, and its end."""
    with logging("redis-7.0") as server, server.client() as client:
        server.clock.shift("-8d")
        client.execute_command("BGREWRITEAOF")
        # A child process writes the base with the time of its own clock, which moves with the server's.
        wait_for("the rewrite", lambda: client.info("persistence")["aof_rewrite_in_progress"], (0).__eq__)
        for number in range(40):
            client.set(f"chat:{number}", CANARY, ex=WEEK_S)
            server.clock.shift("3h")
        before = server.clock.now()
        server.clock.shift("1h")
        for number in range(40, 60):
            client.set(f"chat:{number}", CANARY, ex=300)
            server.clock.shift("13s")
        client.set("chat:last", CANARY, ex=300)
        now = server.clock.now()
        yield Path(shutil.copytree(server.directory / "appendonlydir", tmp_path / "appendonlydir")), before, now


def test_log_is_audited_as_of_a_moment(log: tuple[Path, datetime, datetime]) -> None:
    path, before, now = log
    found = verdict(path)
    assert found["server"]["source"]["kind"] == "aof"
    assert abs(datetime.fromisoformat(found["server"]["source"]["taken_at"]) - now) < timedelta(seconds=20)
    assert [one["cause"] for one in found["findings"]] == ["ttl_too_short"]
    earlier = verdict(path, at=before)
    assert datetime.fromisoformat(earlier["server"]["source"]["taken_at"]) == before.replace(microsecond=0)
    assert earlier["sample"]["of"] == 40
    assert not earlier["findings"]
    (single,) = path.glob("*.incr.aof")
    assert verdict(single, at=before)["sample"]["of"] == 40


def test_cut_log_is_read_up_to_its_last_command(log: tuple[Path, datetime, datetime]) -> None:
    """A crash leaves such a log, and a server starts with it (aof-load-truncated)."""
    path, _, _ = log
    (file,) = path.glob("*.incr.aof")
    file.write_bytes(file.read_bytes()[:-3])
    found = verdict(path)
    assert [one["cause"] for one in found["findings"]] == ["ttl_too_short"]
    assert any(re.search(r"its last \d+ bytes were not read", note) for note in found["notes"])
    assert not any("bytes were not read" in note for note in verdict(path, at=log[1])["notes"])
    assert inspect_session(path, "chat:59").keys
    with pytest.raises(SessionNotFound):
        inspect_session(path, "chat:last")


def test_log_is_inspected_as_of_a_moment(
    log: tuple[Path, datetime, datetime], capsys: pytest.CaptureFixture[str]
) -> None:
    path, before, _ = log
    assert main(["inspect", str(path), "chat:59", "--at", f"{before:%Y-%m-%dT%H:%M:%SZ}"]) == 2
    assert "no session" in capsys.readouterr().err
    main(["inspect", str(path), "chat:59", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert [key["key"] for key in shown["keys"]] == ["chat:59"]
    assert any("as of" in note for note in shown["notes"])
    assert shown["keys"][0]["idle_s"] is None


def test_moment_not_in_the_source_is_refused(
    log: tuple[Path, datetime, datetime], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, before, now = log
    assert main(["audit", str(path), *EXPECTED, "--at", f"{before - timedelta(days=30):%Y-%m-%d}"]) == 2
    assert "begins at" in capsys.readouterr().err
    assert main(["audit", str(path), *EXPECTED, "--at", "yesterday"]) == 2
    assert "not a time" in capsys.readouterr().err
    for file in path.glob("*.incr.aof"):
        lines = file.read_bytes().split(b"\r\n")
        file.write_bytes(b"\r\n".join(line for line in lines if not line.startswith(b"#TS:")))
    assert main(["audit", str(path), *EXPECTED, "--at", f"{before:%Y-%m-%dT%H:%M:%SZ}"]) == 2
    assert "has no timestamps" in capsys.readouterr().err
    os.utime(next(path.glob("*.incr.aof")), (now.timestamp(), now.timestamp()))
    assert [one["cause"] for one in verdict(path)["findings"]] == ["ttl_too_short"]
    rdb = tmp_path / "dump.rdb"
    rdb.write_bytes(with_checksum(b"REDIS0009\xfa\x05ctime\x0a1700000000\xff"))
    assert main(["audit", str(rdb), *EXPECTED, "--at", f"{before:%Y-%m-%d}"]) == 2
    assert "append-only directory" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "data", "message"), [
    ("dump.rdb", b"", "is empty"),
    ("dump.rdb", b"REDIS0010", "is truncated"),
    ("dump.rdb", b"REDIS0010\xff12345678", "checksum is wrong"),
    ("dump.rdb.gz", gzip.compress(b"REDIS0010"), "compressed with gzip"),
    ("dump.rdb", b"Salted__12345678", "is encrypted"),
    ("dump.rdb", b"\x7fELF" + bytes(60), "is not an RDB file"),
    ("dump.rdb", with_checksum(b"REDIS0099\xff"), "REDIS0099"),
    ("dump.rdb", with_checksum(b"REDIS0000\xff"), "version 0"),
    ("dump.rdb", with_checksum(b"REDIS0011\xfa\x05ctime\x0c999999999999\xff"), "does not state when it was saved"),
    ("incident.db", b"SQLite format 3\x00" + bytes(84), "memkit history"),
    ("appendonly.aof", b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$9\r\n12", "truncated"),
    ("appendonly.aof", b"*1\r\n?\r\n", "damaged"),
    (None, None, "no such file"),
])  # fmt: skip
def test_file_that_cannot_be_read_is_named(
    name: str | None, data: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / (name or "missing.rdb")
    if data is not None:
        path.write_bytes(data)
    for command in (["audit", str(path), *EXPECTED], ["inspect", str(path), "user-42"]):
        assert main(command) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert message.replace(".", "") in printed.err.replace(".", "").replace("(", "").replace(")", "")
        assert str(path) in printed.err
    with pytest.raises(SourceError):
        audit(path)


def test_shards_are_one_source(tmp_path: Path) -> None:
    for shard, hours in (("a", 0), ("b", 5)):
        with RedisServer(config={"maxmemory-policy": "allkeys-lru"}) as server, server.client() as client:
            server.clock.shift(f"{-80 + hours}h")
            for number in range(30):
                client.set(f"chat:{shard}{number}", CANARY, ex=WEEK_S)
                server.clock.shift("1m")
            saved(server, client, tmp_path / f"{shard}.rdb")
    report = audit(str(tmp_path), expect={"chat:*": "7d"})
    assert report.sample["of"] == 60
    assert report.verdict.status == "healthy"
    assert all(abs((one.ttl_at_last_access_ms or 0) - WEEK_S * 1_000) < 3_000 for one in report.keys)


def test_module_data_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(module_file(b"\x05\x02{}\x00", b"chat:1"))
    found = verdict(path)
    assert [(one["cause"], one["keys"]) for one in found["findings"]] == [("no_ttl", 1)]
    assert sum(found["proof"]["commands"].values()) == 0
    for command in (["audit", str(path), *EXPECTED, "--full"], ["inspect", str(path), "chat:1"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "data of a module (ReJSON-RL)" in error


def test_module_data_beside_keys_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RediSearch writes its version before the keys; a server without the module ends itself at it."""
    path = tmp_path / "dump.rdb"
    path.write_bytes(module_file(b"\x02\x01\x00", beside_keys=True))
    with RedisServer(persist=True) as server, server.client() as client:
        client.set("chat:1", "x", ex=WEEK_S)
        log = shutil.copytree(server.directory / "appendonlydir", tmp_path / "log")
    (commands,) = log.glob("*.incr.aof")
    commands.write_bytes(commands.read_bytes() + b"*4\r\n$8\r\nJSON.SET\r\n$1\r\nk\r\n$1\r\n$\r\n$1\r\n1\r\n")
    for source, module in ((path, "ReJSON-RL"), (log, "JSON.SET")):
        for command in (["audit", str(source), *EXPECTED, "--full"], ["inspect", str(source), "chat:1"]):
            assert main(command) == 2
            error = capsys.readouterr().err
            assert (error.count("\n"), f"data of a module ({module})" in error, len(error) < 400) == (1, True, True)


def test_large_file_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(
        file_of_strings(*((f"cart:{n}", None) for n in range(40_000)), *((f"chat:{n}", 200) for n in range(300)))
    )
    monkeypatch.setattr("memkit.history.snapshots.installed_servers", lambda: iter(()))  # no server is needed
    found = verdict(path)
    assert found["sample"]["of"] == 40_300
    assert 0 < found["sample"]["error_bound"] < 0.01
    assert [(one["cause"], one["keys"]) for one in found["findings"]] == [("ttl_too_short", 300)]


def test_keys_of_a_file_are_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(file_of_strings(("chat:1", 200), ("chat:expired", -5), ("chat:3", None), idle_s=50))
    contents = read_rdb([path])
    keys = StoredKeys(contents, contents.snapshot("dump.rdb", None), None)
    (found,) = keys.look_up([b"chat:1", b"chat:expired", b"chat:none"])
    assert (found.key, found.left_ms, found.ttl_at_last_access_ms) == (b"chat:1", 199_000, 249_500)
    assert keys.value_bytes([b"chat:1", b"chat:none"]) == {b"chat:1": 100 + STRING_OVERHEAD_BYTES}


def test_hash_with_field_ttls_is_read_by_a_server(tmp_path: Path) -> None:
    with start("redis-8.2") as server, server.client() as client:
        for number in range(20):
            client.hset(f"chat:{number}", "messages", CANARY)
            client.hexpire(f"chat:{number}", WEEK_S, "messages")
        path = saved(server, client, tmp_path / "dump.rdb")
        live = verdict(server.url)
    found = verdict(path)
    assert "no_ttl" not in [one["cause"] for one in (*live["findings"], *found["findings"])]


def test_database_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RedisServer() as server, redis.Redis(unix_socket_path=server.socket_path, db=3) as client:
        client.set("chat:1", CANARY, ex=WEEK_S)
        client.set("chat:2", CANARY)
        client.select(0)
        client.set("lock", 1)
        path = saved(server, client, tmp_path / "dump.rdb")
    found = verdict(path)
    assert found["sample"]["of"] == 1
    assert "database 0 of the file was read; --db N reads another one" in found["notes"]
    for options in ([], ["--full"]):
        assert main(["audit", str(path), *EXPECTED, "--db", "3", "--json", *options]) == 1
        shown = json.loads(capsys.readouterr().out)
        assert (shown["sample"]["of"], shown["findings"][0]["cause"]) == (2, "no_ttl")
    assert main(["inspect", str(path), "chat:1", "--db", "3"]) == 0
    capsys.readouterr()
    for command in (["audit", str(path), *EXPECTED, "--db", "7"], ["inspect", str(path), "chat:1", "--db", "7"]):
        assert main(command) == 2
        assert "database 7 has no keys; databases that have keys: 0 (1), 3 (2)" in capsys.readouterr().err
    for option in (["--db", "3"], ["--at", "2026-11-28"]):
        assert main(["audit", "redis://user:secret-5f1c@127.0.0.1:1/0", *EXPECTED, *option]) == 2
        error = capsys.readouterr().err
        assert "can only be chosen" in error or "is chosen in its URL" in error
        assert "secret-5f1c" not in error


def test_only_database_with_keys_is_read(tmp_path: Path) -> None:
    with RedisServer() as server, redis.Redis(unix_socket_path=server.socket_path, db=4) as client:
        client.set("chat:1", CANARY, ex=WEEK_S)
        assert client.info("keyspace").keys() == {"db4"}
        path = saved(server, client, tmp_path / "dump.rdb")
    assert verdict(path)["sample"]["of"] == 1
    assert inspect_session(path, "chat:1").keys[0].key == "chat:1"


def test_options_for_live_servers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump.rdb"
    path.write_bytes(with_checksum(b"REDIS0009\xfa\x05ctime\x0a1700000000\xff"))
    with pytest.raises(PolicyError, match="is a file"):
        audit(path, watch_s=1)


def test_full_audit_of_a_file_reads_values(tmp_path: Path) -> None:
    with RedisServer() as server, server.client() as client:
        client.set("chat:1", "[object Object]", ex=WEEK_S)
        path = saved(server, client, tmp_path / "dump.rdb")
    found = verdict(path, full=True)
    assert "corrupt" in [one["cause"] for one in found["findings"]]
    assert found["proof"]["idle_clocks_touched"] == 0


def test_triage_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RedisServer() as server, server.client() as client:
        incident(server, client)
        path = saved(server, client, tmp_path / "dump.rdb")
    report = tmp_path / "report.html"
    assert main(["triage", str(path), *EXPECTED, "-o", str(report)]) == 1
    assert "chat:" in capsys.readouterr().out
    page = report.read_text()
    assert "dump.rdb" in page
    assert CANARY not in page


def test_growing_log_is_read_to_its_first_size(tmp_path: Path) -> None:
    path = tmp_path / "appendonly.aof"
    command = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n"
    path.write_bytes(command * 1_000)
    commands = read_commands(path)
    next(commands)
    with path.open("ab") as file:
        file.write(command * 100_000 + command[:-3])
    assert sum(1 for _ in commands) == 999
