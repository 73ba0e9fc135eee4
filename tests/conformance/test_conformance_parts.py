"""Parts of the conformance suite that no store of the other tests needs: damage, shared keys, hangs, errors."""

from __future__ import annotations

import base64
import gzip
import pickle
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from libraries import Library
from right_stores import ListScript
from run_libraries import ask_library, environment
from run_libraries import main as matrix_command
from servers import every_server, needs, start

from memkit.conformance import AdapterError, run
from memkit.conformance.case import Case
from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.environment import Bench
from memkit.conformance.keyspace import GARBAGE, Belongings, damage, elements, holds, places, values
from memkit.conformance.outcomes import Forgot
from memkit.conformance.runner import ask, ask_all, first_contact
from memkit.formats.parsing.encodings import encoding_of, is_packed, pickle_opcodes
from memkit.server import RedisServer

NAMES = {case.name: case for case in CASES}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench(ListScript()) as bench:
        bench.begin()
        yield bench


# -- damage ------------------------------------------------------------------------------------------------------------

FILLED = {
    "string": ("SET", "k", "a secret"),
    "list": ("RPUSH", "k", "other", "a secret"),
    "hash": ("HSET", "k", "one", "other", "two", "a secret"),
    "set": ("SADD", "k", "other", "a secret"),
    "zset": ("ZADD", "k", "1", "other", "2", "a secret"),
    "stream": ("XADD", "k", "1-1", "text", "a secret"),
}


@pytest.mark.parametrize("kind", FILLED)
def test_damage_takes_the_place_of_one_element_and_keeps_the_deadline(kind: str, any_server: RedisServer) -> None:
    with any_server.client() as client:
        client.execute_command(*FILLED[kind])
        client.pexpire("k", 500_000)
        assert holds(client, b"a secret")
        found = list(places(client, b"k"))
        assert {name for name, _ in found} == {kind}
        assert len(found) == {"string": 1, "stream": 1}.get(kind, 2)
        assert not holds(client, GARBAGE)
        for _, where in found:
            damage(client, b"k", kind, where)
        assert holds(client, GARBAGE)
        assert not holds(client, b"a secret")
        assert client.type("k").decode() == kind
        assert 400_000 < client.pttl("k") <= 500_000


@pytest.mark.parametrize("kind", FILLED)
def test_what_was_put_in_the_place_of_an_element_is_found_in_the_key(kind: str, any_server: RedisServer) -> None:
    with any_server.client() as client:
        client.execute_command(*FILLED[kind])
        _, where = [place for place in places(client, b"k") if b"a secret" in elements(client, b"k", *place)][-1]
        damage(client, b"k", kind, where, b"{}", instead_of=b"a secret")
        assert b"{}" in values(client, b"k")
        assert not holds(client, b"a secret")


def test_damage_to_one_entry_of_a_stream_leaves_the_others() -> None:
    with start(list(every_server())[-1]) as server, server.client() as client:
        client.xadd("k", {"text": "first"}, id="1-1")
        client.xadd("k", {"text": "second"}, id="2-1")
        damage(client, b"k", "stream", b"2-1")
        assert client.xrange("k") == [(b"1-1", {b"text": b"first"}), (b"2-1", {b"text": GARBAGE})]


# -- whose keys --------------------------------------------------------------------------------------------------------


class SharedIndex(ListScript):
    """Lists the sessions in eight sets, in turn, which live for ever: they belong to none of them."""

    known: ClassVar[list[str]] = []

    def append(self, role: str, text: str) -> None:
        super().append(role, text)
        if self.session_id not in self.known:
            self.known.append(self.session_id)
        self.r.sadd(f"index-{self.known.index(self.session_id) % 8}", self.key)


def test_immortal_keys_that_all_sessions_share_are_nobodys() -> None:
    SharedIndex.known.clear()
    with Bench(SharedIndex()) as bench:
        bench.begin()
        belongings = Belongings(bench, at_rest=True)
        # Three were written by the sessions before; only others to come show that the rest is shared, too.
        for number in range(8):
            bench.control.sadd(f"index-{number}", "one more")
        belongings.expect_mortal("at rest")
        bench.control.set(f"left-by-{bench.token}", "x")
        with pytest.raises(Forgot, match=f"left-by-{bench.token}.* without a TTL"):
            belongings.expect_mortal("at rest")
        with pytest.raises(Forgot, match=f"left-by-{bench.token}"):
            belongings.expect_none("after clear()")


def test_a_key_that_no_other_session_writes_is_the_sessions_own(bench: Bench) -> None:
    belongings = Belongings(bench, at_rest=True)
    bench.control.set("no-name-in-it", "x")
    with pytest.raises(Forgot, match="no-name-in-it"):
        belongings.expect_mortal("at rest")


def test_a_hash_whose_fields_all_expire_is_not_immortal(
    any_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(any_server, "deadlines of hash fields", redis="7.4", valkey="9.0")
    monkeypatch.setenv("MEMKIT_REDIS_SERVER", str(any_server._binary.path))
    with Bench(ListScript()) as bench:
        bench.begin()
        belongings = Belongings(bench, at_rest=True)
        key = f"fields-of-{bench.token}"
        bench.control.hset(key, mapping={"one": "1", "two": "2"})
        bench.control.execute_command("HPEXPIRE", key, "500000", "FIELDS", "1", "one")
        with pytest.raises(Forgot, match=key):
            belongings.expect_mortal("at rest")
        bench.control.execute_command("HPEXPIRE", key, "500000", "FIELDS", "1", "two")
        belongings.expect_mortal("at rest")


# -- first contact, and hanging ----------------------------------------------------------------------------------------


class OpenHangs(ListScript):
    def open(self, *_: Any) -> Any:
        time.sleep(3)


class OpenFails(ListScript):
    def open(self, *_: Any) -> Any:
        raise ValueError("no such table")


class OpenGivesNothing(ListScript):
    def open(self, *_: Any) -> Any:
        return object()


@pytest.mark.parametrize(
    ("store", "says"),
    [
        (OpenHangs, r"label: open\(\) hangs"),
        (OpenFails, "label: .*ValueError.*no such table"),
        (OpenGivesNothing, "label"),
    ],
)
def test_a_store_that_cannot_be_opened_is_an_error_of_one_line(store: type[Any], says: str) -> None:
    with Bench(store()) as bench, pytest.raises(AdapterError, match=says) as raised:
        first_contact(bench, "label", limit_s=0.2)
    assert "\n" not in str(raised.value)


def a_case(name: str, body: Any) -> Case:
    return Case(name, "It does.", "Why.", "Fix.", False, body)


def test_a_run_in_this_process_ends_at_the_first_case_that_hangs() -> None:
    cases = [a_case("quick", lambda _: ""), a_case("hangs", lambda _: time.sleep(3)), a_case("never", lambda _: "")]
    told: list[str] = []
    result = ask_all(ListScript(), label="x", cases=cases, limit_s=0.3, on_case=lambda case: told.append(case.name))
    assert [(case.name, case.outcome, case.hung) for case in result.cases] == [
        ("quick", "passed", False),
        ("hangs", "failed", True),
    ]
    assert told == ["quick", "hangs"]
    assert "no answer within 0.3 s" in result.cases[1].says


def test_after_a_hang_the_bench_goes_on_with_another_server(bench: Bench) -> None:
    old = bench.server
    bench.control.set("of-the-old", "x")
    bench.replace_server()
    assert not old.running
    assert bench.server.running
    assert bench.control.get("of-the-old") is None
    assert ask(NAMES["roles"], bench).outcome == "passed"


def test_an_error_with_nothing_wrong_fails_the_case(bench: Bench) -> None:
    def breaks(_: Bench) -> None:
        raise KeyError("lost")

    answer = ask(a_case("breaks", breaks), bench)
    assert answer.outcome == "failed"
    assert "KeyError" in answer.says


# -- the matrix --------------------------------------------------------------------------------------------------------


def test_an_environment_is_made_once_and_memkit_copied_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installs: list[list[str]] = []

    def install(command: list[str], **_: Any) -> None:
        installs.append(command)

    # No network here: what pip would install is not.
    monkeypatch.setattr("run_libraries.venv.create", lambda folder, **_: make_venv(folder))
    monkeypatch.setattr("run_libraries.subprocess.run", install)
    library = Library("a-store", "a-store", "x:Y", ("a-store==1",))
    python = environment(library, tmp_path)
    packages = tmp_path / "a-store/lib/python3/site-packages"
    assert python == tmp_path / "a-store/bin/python"
    assert installs[0][0] == str(python)
    assert installs[0][-1] == "a-store==1"
    assert (packages / "memkit/__init__.py").exists()
    (packages / "memkit/__init__.py").unlink()
    environment(library, tmp_path)
    assert len(installs) == 1
    assert (packages / "memkit/__init__.py").exists()
    environment(Library("a-store", "a-store", "x:Y", ("a-store==2",)), tmp_path)
    assert [command[-1] for command in installs] == ["a-store==1", "a-store==2"]


def make_venv(folder: Path) -> None:
    (folder / "lib/python3/site-packages").mkdir(parents=True, exist_ok=True)


def test_a_library_that_cannot_be_asked_says_why_and_how_to_try_by_hand(tmp_path: Path) -> None:
    answer = ask_library(Library("memkit", "redis-memkit", "no.such:Thing", ()), tmp_path)
    assert "cases" not in answer
    assert f"{sys.executable} -m memkit conformance no.such:Thing" in answer["error"]
    assert answer["reproduce"] == "python tests/matrix/run_libraries.py memkit"


def test_a_library_that_pip_cannot_install_is_an_answer_not_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr("run_libraries.venv.create", lambda folder, **_: make_venv(folder))
    monkeypatch.setattr("run_libraries.subprocess.run", fails)
    assert "exit status 1" in ask_library(Library("a-store", "a-store", "x:Y", ("a-store==1",)), tmp_path)["error"]
    # Not remembered as made.
    assert not (tmp_path / "a-store/memkit-requirements.txt").exists()


def test_one_case_of_one_store_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix_command(["memkit", "--case", "roles", "--cache", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert ", roles: passed" in said
    assert not list(tmp_path.iterdir())


def test_a_run_of_an_adapter_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AdapterError, match="does not import"):
        run("no_such_module:Store", names=["roles"])


# -- what bytes are ----------------------------------------------------------------------------------------------------


FIELDS = b"\x0a\x05hello\x10\x96\x01"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"", "empty"),
        (gzip.compress(b'{"a": 1}', mtime=0), "gzip > json"),
        (gzip.compress(gzip.compress(b'["x"]', mtime=0), mtime=0), "gzip > gzip > json"),
        (gzip.compress(zlib.compress(b"a text"), mtime=0), "gzip > zlib > text"),
        # Begins like gzip or zlib, and is none.
        (b"\x1f\x8b\xff\xff\xff\xff", "binary"),
        (b"xylophone", "text"),
        (base64.b64encode(b'{"role": "user", "content": "hi"}'), "base64 > json"),
        (base64.urlsafe_b64encode(gzip.compress(b'{"a": "??>>"}', mtime=0)).rstrip(b"="), "base64 > gzip > json"),
        # A digest in hex is base64 by its letters; five letters too many are not base64 by their number.
        (b"d41d8cd98f00b204e9800998ecf8427e", "text"),
        (b"abcdefghijklmnopqrstu", "text"),
        ("ä".encode() * 40_000, "text"),
        (b"x" * (64 * 1024 - 1) + "ä".encode(), "text"),
        (b"x" * 70_000 + b"\xff", "text"),
        (b"x" * 100 + b"\xff", "binary"),
        (b"a text\x00with a nul", "binary"),
        (FIELDS, "protobuf?"),
        (b"\x09" + bytes(8) + b"\x15" + bytes(4), "protobuf?"),
        # A length over the end, a number without end, a group, a tag alone.
        (b"\x0a\x7fhello\x00", "binary"),
        (b"\x08" + b"\xff" * 12, "binary"),
        (b"\x0b\x00\x01\xff", "binary"),
        (b"\x0a\xff", "binary"),
        (pickle.dumps({"a": 1}, protocol=4), "pickle"),
    ],
)
def test_what_bytes_of_an_unknown_store_look_like(data: bytes, encoding: str) -> None:
    assert encoding_of(data) == encoding
    assert is_packed(encoding) == (encoding not in ("json", "text", "empty"))


def test_a_damaged_pickle_is_named_as_far_as_it_can_be_read() -> None:
    whole = pickle.dumps({"a": [1, 2, 3]}, protocol=4)
    assert pickle_opcodes(whole)["STOP"] == 1
    cut = pickle_opcodes(whole[:-4])
    assert cut["PROTO"] == 1
    assert cut["STOP"] == 0
    assert pickle_opcodes(b"\x80\x04" + b"N0" * 5_000).total() == 2_000
