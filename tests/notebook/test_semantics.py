"""The cases of notebook 01 on every server: the rules that it states hold on each."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import fakeredis
import pytest
import redis
from servers import needs

from memkit.errors import ProductionGuardError, ServerNotFound
from memkit.notebook import ttl_semantics as semantics
from memkit.server import RedisServer


@pytest.fixture
def client(any_server: RedisServer) -> Iterator[redis.Redis]:
    with any_server.client() as client:
        yield client


def test_the_ttl_rules_hold_on_every_server(client: redis.Redis) -> None:
    rules = semantics.ttl_rules(client)
    lost = [rule for rule, left in rules.rows if left == "none"]
    kept = [rule for rule, left in rules.rows if left == "100 s"]
    assert len(lost) == 10
    assert len(kept) == 13
    assert lost[0] == "SET k 1 EX 100; SET k 2"
    assert kept[-1] == "SET k 1 EX 100; COPY k j"
    assert sorted(client.keys()) == [b"j", b"k"]


def test_cases_that_do_not_vary_agree(client: redis.Redis) -> None:
    answers = {case.does: semantics._result(case, client) for case in semantics.CASES if not case.varies}
    assert answers["the event when an expired key is read"] == "expired"
    assert answers["WATCH k, k expires, EXEC"] == "EXEC refused"
    assert answers["SET k new EX 0"] == "error; value kept, TTL 100 s"
    assert answers["EXPIRE k 2^63-1"] == "error; value kept, TTL 100 s"
    assert answers["a write at maxmemory, noeviction"] == "refused"
    assert answers["the event of writes over maxmemory, allkeys-lru"] == "evicted"
    assert answers["SET by an ACL user without +set"] == "refused"
    assert answers["EVAL"] == "runs, TTL 100 s"
    assert client.config_get("maxmemory") == {"maxmemory": "0"}
    assert client.config_get("notify-keyspace-events") == {"notify-keyspace-events": ""}
    assert client.acl_users() == ["default"]
    assert client.dbsize() <= 2


# The real server's answer, and the wrong ones of fakeredis from the oldest version that is allowed to 2.41.
FAKE_DIFFERS = {
    "the event when an expired key is read": ("expired", "no event"),
    "WATCH k, k expires, EXEC": ("EXEC refused", "committed"),
    "EXPIRE k 2^63-1": ("error; value kept, TTL 100 s", "accepted"),
    "a write at maxmemory, noeviction": ("refused", "accepted"),
    "the event of writes over maxmemory, allkeys-lru": ("evicted", "no such command"),
    "EVAL": ("runs, TTL 100 s", "no such command"),
    "OBJECT IDLETIME": ("some seconds", "no such command"),
    "MEMORY USAGE": ("some bytes", "no such command"),
}


def test_the_fake_has_known_differences_only(client: redis.Redis) -> None:
    compared = semantics.beside(client, fakeredis.FakeRedis(), "fakeredis")
    for case, real, fake in compared.rows:
        known, wrong = FAKE_DIFFERS.get(case, (real, real))
        assert real == known, case
        assert fake in {real, wrong}, case
    assert set(FAKE_DIFFERS) <= {case for case, *_ in compared.rows}
    assert all(real != fake for _, real, fake in semantics.differing(compared).rows)


def test_expire_options(any_server: RedisServer, client: redis.Redis) -> None:
    needs(any_server, "EXPIRE with NX, XX, GT, LT", redis="7.0")
    options = semantics.expire_rules(client)
    assert options["SET k 1; EXPIRE k 200 GT"] == ("0", "-1")
    assert options["SET k 1; EXPIRE k 200 LT"] == ("1", "200")


def test_options_that_a_server_lacks_are_named(any_server: RedisServer, client: redis.Redis) -> None:
    options = semantics.expire_rules(client)
    lacking = semantics.lacks_expire_options(any_server)
    assert lacking == (any_server.version < "7")
    assert (options["SET k 1; EXPIRE k 200 GT"] == ("not on this server", "-1")) == lacking
    assert (options["SET k 1 EX 100; EXPIRE k 200 NX"] == ("not on this server", "100")) == lacking
    assert options["SET k 1 EX 100; EXPIRE k -1"] == ("1", "-2")


def test_the_event_of_a_past_deadline(any_server: RedisServer, client: redis.Redis) -> None:
    (case,) = (case for case in semantics.CASES if case.does == "the event of EXPIRE k -1")
    assert semantics._result(case, client) == ("expired" if any_server.flavour == "valkey" else "del")


def test_a_write_in_full_memory_evicts(client: redis.Redis) -> None:
    client.set("chat:1", "x", ex=3600)
    client.set("ever", "x")
    assert semantics.evict_with_one_write(client) == {"expired": 0, "evicted": 1}
    assert client.exists("chat:1", "ever") == 1
    assert client.set("k", "there is room again")


def test_hash_fields_with_ttls(any_server: RedisServer, client: redis.Redis) -> None:
    needs(any_server, "TTL of hash fields", redis="7.4", valkey="9.0")
    answers = {case.does: semantics._result(case, client) for case in semantics.CASES[-3:]}
    assert answers["HSET on a field with a TTL of 100 s"] == "none"
    assert answers["EXPIRE on the key of that field"] == "100 s"
    assert answers["an expired field beside another"].startswith("HGETALL 1, HLEN ")


def test_cases_pass_the_production_guard(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("memkit.server.guard"), "started_by_memkit", lambda _: False)
    client.set("k", "somebody's")
    for run in (semantics.ttl_rules, semantics.expire_rules, semantics.evict_with_one_write):
        with pytest.raises(ProductionGuardError):
            run(client)
    assert client.get("k") == b"somebody's"


def test_no_server_with_field_ttls_is_result(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {name: one for name, one in semantics.installed_versions().items() if one.release < (7, 4)}
    monkeypatch.setattr(semantics, "installed_versions", lambda: old)
    with pytest.raises(ServerNotFound, match=r"install Redis 7\.4, Valkey 9"):
        semantics.server_with_hash_ttls()
