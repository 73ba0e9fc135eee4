"""Parts of the test environment: denied commands, the fault proxy, other processes, keys, and damage to them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
import redis
from processes import alive, linux
from right_stores import ListScript
from servers import every_server, needs, start
from waiting import nothing, wait_for

from memkit.conformance.environment import TestEnvironment
from memkit.conformance.fault_proxy import FaultProxy, Loss
from memkit.conformance.keyspace import GARBAGE, Element, SessionKeys, damage, elements, holds, values
from memkit.conformance.outcomes import CaseFailed
from memkit.conformance.processes import LONGEST_S, ForkedProcess, in_thread, in_threads, outcome
from memkit.server import RedisServer


@pytest.fixture
def env() -> Iterator[TestEnvironment]:
    with TestEnvironment(ListScript()) as env:
        env.reset()
        yield env


# Faults


@pytest.mark.parametrize(("loss", "stored"), [("request", 1), ("reply", 2)])
def test_proxy_loses_one_request_or_reply(loss: Loss, stored: int) -> None:
    with RedisServer(port=0) as server, FaultProxy(server) as proxy, redis.Redis.from_url(proxy.url) as client:
        client.incr("n")
        proxy.lose(loss)
        with pytest.raises(redis.ConnectionError):
            client.incr("n")
        assert proxy.lost.is_set()
        proxy.lose(None)
        assert client.get("n") == b"%d" % stored


def test_denied_commands_are_allowed_afterwards(env: TestEnvironment) -> None:
    with env.server.client() as store:
        with env.denied("get", "no-such-command"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                store.get("x")
            env.control.get("x")
        assert store.get("x") is None


# Other threads and processes


def test_threads_raise_the_first_error_in_order() -> None:
    def fails_late() -> None:
        time.sleep(0.05)
        raise ValueError("first")

    def fails_early() -> None:
        raise KeyError("second")

    with pytest.raises(ValueError, match="first"):
        in_threads([lambda: None, fails_late, fails_early])


def test_outcome_of_unfinished_work_is_a_timeout() -> None:
    wake = threading.Event()
    future = in_thread(wake.wait)
    assert isinstance(outcome(future, within_s=0.01), TimeoutError)
    wake.set()
    assert outcome(future, within_s=60) is True


def test_forked_process_returns_its_result_or_error() -> None:
    assert ForkedProcess(lambda: [1, "two"]).result() == [1, "two"]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        ForkedProcess(lambda: 1 / 0).result()
    with pytest.raises(RuntimeError, match="did not answer within"):
        ForkedProcess(lambda: threading.Event().wait()).result(limit_s=0.05)


def test_forked_process_can_be_killed_twice() -> None:
    process = ForkedProcess(lambda: threading.Event().wait())
    assert not process.is_done(within_s=0)
    process.kill()
    process.kill()
    assert process.is_done(within_s=60)


@linux
def test_forked_process_ends_with_its_parent() -> None:
    script = (
        "import os, time; from memkit.conformance.processes import ForkedProcess; "
        "print(ForkedProcess(lambda: time.sleep(600))._process.pid, flush=True); os._exit(0)"
    )
    # Only the first line is read: the forked process holds the pipe open.
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
    wait_for("the end of the forked process", lambda: alive(pid), nothing, within_s=LONGEST_S / 2)


# Damage

FILLED = {
    "string": ("SET", "k", "a secret"),
    "list": ("RPUSH", "k", "other", "a secret"),
    "hash": ("HSET", "k", "one", "other", "two", "a secret"),
    "set": ("SADD", "k", "other", "a secret"),
    "zset": ("ZADD", "k", "1", "other", "2", "a secret"),
    "stream": ("XADD", "k", "1-1", "text", "a secret"),
}


@pytest.fixture(scope="module")
def client() -> Iterator[redis.Redis]:
    with start(next(iter(every_server()))) as server, server.client() as client:
        yield client


@pytest.mark.parametrize("kind", FILLED)
def test_damage_replaces_one_element_and_keeps_the_ttl(kind: str, client: redis.Redis) -> None:
    client.flushdb()
    client.execute_command(*FILLED[kind])
    client.pexpire("k", 500_000)
    assert holds(client, b"a secret")
    found = elements(client, b"k")
    assert {element.kind for element in found} == {kind}
    assert len(found) == {"string": 1, "stream": 1}.get(kind, 2)
    assert not holds(client, GARBAGE)
    for element in found:
        damage(client, b"k", element)
    assert holds(client, GARBAGE)
    assert not holds(client, b"a secret")
    assert client.type("k").decode() == kind
    assert 400_000 < client.pttl("k") <= 500_000


@pytest.mark.parametrize("kind", FILLED)
def test_values_show_what_replaced_an_element(kind: str, client: redis.Redis) -> None:
    client.flushdb()
    client.execute_command(*FILLED[kind])
    element = [one for one in elements(client, b"k") if b"a secret" in one.parts][-1]
    damage(client, b"k", element, b"{}", instead_of=b"a secret")
    assert b"{}" in values(client, b"k")
    assert not holds(client, b"a secret")


def test_damage_to_a_stream_entry_leaves_the_others(client: redis.Redis) -> None:
    client.flushdb()
    client.xadd("k", {"text": "first"}, id="1-1")
    client.xadd("k", {"text": "second"}, id="2-1")
    damage(client, b"k", Element("stream", b"2-1", []))
    assert client.xrange("k") == [(b"1-1", {b"text": b"first"}), (b"2-1", {b"text": GARBAGE})]


# Keys of a session


class SharedIndex(ListScript):
    """Lists the sessions in eight persistent sets, in turn: they belong to no session."""

    known: ClassVar[list[str]] = []

    def append(self, role: str, text: str) -> None:
        super().append(role, text)
        if self.session_id not in self.known:
            self.known.append(self.session_id)
        self.r.sadd(f"index-{self.known.index(self.session_id) % 8}", self.key)


def test_shared_persistent_keys_belong_to_no_session() -> None:
    SharedIndex.known.clear()
    with TestEnvironment(SharedIndex()) as env:
        env.reset()
        keys = SessionKeys(env, report_at_rest=True)
        # Three were written by the sessions before; only others to come show that the rest is shared, too.
        for number in range(8):
            env.control.sadd(f"index-{number}", "one more")
        keys.expect_ttl_on_every_key("at rest")
        env.control.set(f"left-by-{env.token}", "x")
        with pytest.raises(CaseFailed, match=f"left-by-{env.token}.* has no TTL"):
            keys.expect_ttl_on_every_key("at rest")
        with pytest.raises(CaseFailed, match=f"left-by-{env.token}"):
            keys.expect_none("after clear()")


def test_key_of_one_session_only_is_its_own(env: TestEnvironment) -> None:
    keys = SessionKeys(env, report_at_rest=True)
    env.control.set("no-name-in-it", "x")
    with pytest.raises(CaseFailed, match="no-name-in-it"):
        keys.expect_ttl_on_every_key("at rest")


def test_hash_with_ttl_on_all_fields_is_volatile(any_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(any_server, "deadlines of hash fields", redis="7.4", valkey="9.0")
    monkeypatch.setenv("MEMKIT_REDIS_SERVER", str(any_server._binary.path))
    with TestEnvironment(ListScript()) as env:
        env.reset()
        keys = SessionKeys(env, report_at_rest=True)
        key = f"fields-of-{env.token}"
        env.control.hset(key, mapping={"one": "1", "two": "2"})
        env.control.execute_command("HPEXPIRE", key, "500000", "FIELDS", "1", "one")
        with pytest.raises(CaseFailed, match=key):
            keys.expect_ttl_on_every_key("at rest")
        env.control.execute_command("HPEXPIRE", key, "500000", "FIELDS", "1", "two")
        keys.expect_ttl_on_every_key("at rest")
