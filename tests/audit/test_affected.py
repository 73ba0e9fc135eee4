"""``audit --affected``: a private file with the affected keys' names, and a shell line that renews them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from servers import every_server, start

from memkit.audit import audit
from memkit.audit.affected import write_affected
from memkit.cli import main
from memkit.server import RedisServer


@pytest.fixture(params=[next(iter(every_server())), list(every_server())[-1]])
def incident(request: pytest.FixtureRequest) -> RedisServer:
    with start(request.param) as server, server.client() as client:
        with client.pipeline(transaction=False) as pipe:
            for number in range(300):
                pipe.set(f"chat:{number}", "{}", ex=300 if number % 3 == 0 else 604_800)
            pipe.set("chat:a b'$(id)", "{}", ex=300)
            pipe.set("chat:two\nlines", "{}", ex=300)
            pipe.set("other:1", "x", ex=60)
            pipe.execute()
        yield server


def test_the_file_has_the_names_and_the_line_renews(
    incident: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "affected keys"
    assert main(["audit", incident.url, "--expect", "chat:*=7d", "--duty", "1", "--affected", str(path)]) == 1
    out = capsys.readouterr().out
    names = path.read_text().splitlines()
    assert set(names) == {*(f"chat:{number}" for number in range(0, 300, 3)), "chat:a b'$(id)"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    line = out.splitlines()[-1]
    assert ("604800 GT" in line) == (incident.version >= "7")
    words = " ".join(out.split())
    assert "101 keys in" in words
    assert "1 name with a line end were left out" in words
    if not shutil.which("redis-cli"):
        pytest.skip("no redis-cli to run the line with")
    with incident.client() as client:
        assert client.ttl("chat:0") <= 300  # memkit did not run it
        few = tmp_path / "few"
        few.write_text("chat:0\nchat:a b'$(id)\n")
        subprocess.run(["sh", "-c", line.replace(f"'{path}'", f"'{few}'")], check=True, capture_output=True)
        assert client.ttl("chat:0") > 604_000
        assert client.ttl("chat:a b'$(id)") > 604_000
        assert client.ttl("other:1") <= 60


def test_a_key_of_two_findings_is_written_once(tmp_path: Path) -> None:
    with RedisServer() as server, server.client() as client:
        for number in range(60):
            client.set(f"chat:{number}", "{}", ex=300 if number < 30 else 604_800)
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
        short = next(one for one in report.findings if one.cause == "ttl_too_short")
        late = replace(short, cause="not_refreshed", observed_ttl_s=604_800)
        done = write_affected(server.url, replace(report, findings=(short, late)), tmp_path / "affected")
        names = (tmp_path / "affected").read_text().splitlines()
    assert sorted(names) == sorted({f"chat:{number}" for number in range(60)})
    assert (done.keys, done.soon) == (60, 30)


def test_lines_for_two_findings_renew_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefixes = ("it's.b:", "chat[1]:")
    expect = [text for one in ("it's.b:*=7d", r"chat\[1\]:*=7d") for text in ("--expect", one)]
    with RedisServer(persist=True, config={"requirepass": "a:b@c"}) as server, server.client() as client:
        for prefix, ttl_s in zip(prefixes, (300, 600), strict=True):
            for number in range(30):
                client.set(f"{prefix}{number}", "{}", ex=ttl_s)
        main(["audit", server.url, *expect, "--duty", "1", "--affected", str(tmp_path / "affected")])
        out = capsys.readouterr().out
        lines = [line for line in out.splitlines() if line.startswith("while")]
        assert "a:b@c" not in out
        assert "REDISCLI_AUTH" in out
        if not shutil.which("redis-cli"):
            pytest.skip("no redis-cli to run the lines with")
        for line in lines:
            command = ["sh", "-c", line.replace("sleep 0.01", ":")]
            subprocess.run(command, check=True, env={**os.environ, "REDISCLI_AUTH": "a:b@c"})
        assert {client.ttl(f"{prefix}{number}") > 604_000 for prefix in prefixes for number in range(30)} == {True}


def test_sessions_with_long_ttls_are_not_affected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RedisServer(persist=True) as server, server.client() as client:
        for number in range(30):
            client.set(f"chat:{number}", "{}", ex=3_600_000)
        main(["audit", server.url, "--expect", "chat:*=1h", "--duty", "1", "--affected", str(tmp_path / "affected")])
    out = capsys.readouterr().out
    assert "milliseconds taken for seconds" in " ".join(out.split())
    assert "EXPIRE" not in out
    assert (tmp_path / "affected").read_text() == ""


def test_locks_and_other_expectations_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "affected"
    expect = [option for one in ("chat:*=7d", "chat:guest:*=10m") for option in ("--expect", one)]
    with RedisServer(persist=True) as server, server.client() as client:
        for number in range(60):
            client.rpush(f"chat:{number}", "x" * 200)
            client.expire(f"chat:{number}", 7_200)
            client.set(f"chat:{number}:lock", "x", ex=30)
            client.set(f"chat:guest:{number}", "x" * 200, ex=600)
        main(["audit", server.url, *expect, "--duty", "1", "--affected", os.fspath(path)])
    assert set(path.read_text().splitlines()) == {f"chat:{number}" for number in range(60)}


def test_an_existing_file_is_kept(incident: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    assert main(["audit", incident.url, "--expect", "chat:*=7d", "--duty", "1", "--affected", str(path)]) == 2
    assert "give a new file" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_nothing_is_written_to_the_server(incident: RedisServer, tmp_path: Path) -> None:
    with incident.client() as client:
        before = client.info("commandstats").keys()
        main(["audit", incident.url, "--expect", "chat:*=7d", "--duty", "1", "--affected", os.fspath(tmp_path / "a")])
        added = {name.removeprefix("cmdstat_") for name in client.info("commandstats").keys() - before}
    assert isinstance(client, redis.Redis)
    assert not added & {"expire", "set", "del", "persist"}


def test_index_of_the_sessions_shape_hides_none(tmp_path: Path) -> None:
    path = tmp_path / "affected"
    with RedisServer(persist=True) as server, server.client() as client:
        for number in range(40):
            client.rpush(f"chat:user-{number}", "{}")
            client.expire(f"chat:user-{number}", 300)
        client.sadd("chat:sessions", *range(40))
        assert main(["audit", server.url, "--expect", "chat:*=7d", "--duty", "1", "--affected", str(path)]) == 1
    assert len(path.read_text().splitlines()) == 40


@pytest.mark.parametrize("kind", ["hash", "string"])
def test_ttls_of_fields_are_renewed_otherwise(kind: str, tmp_path: Path) -> None:
    """EXPIRE does not renew the TTL of a field; keys that were deleted since the audit need no advice."""
    with start("redis-8.2") as server, server.client() as client:
        for number in range(60):
            if kind == "hash":
                client.hset(f"chat:{number}", "text", "{}")
                client.hexpire(f"chat:{number}", 300, "text")
            else:
                client.set(f"chat:{number}", "{}", ex=300)
        report = audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
        if kind == "string":
            client.delete(*(f"chat:{number}" for number in range(60)))
        affected = write_affected(server.url, report, tmp_path / "affected")
    assert report.verdict.cause == "ttl_too_short"
    assert (affected.keys, affected.commands) == (0, [])
    assert ("HEXPIRE" in affected.to_text()) == (kind == "hash")
