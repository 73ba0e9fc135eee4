"""The audit of drawn incidents: the verdict is right, nothing changes, and what was refused is noted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import redis
from incidents import CAUSES, HEALTHIES, Incident, complaints, draw, restore
from servers import NO_FSYNC, every_server, needs, start
from topology import cluster_ports
from waiting import wait_for

from memkit.audit.key_shapes import alike, by_prefix
from memkit.audit.run import acl_rule, audit
from memkit.audit.sampling import KeyFacts
from memkit.config import expectations, glob_expression, parse_expectation
from memkit.errors import PolicyError, ServerError
from memkit.policy import ExpiryPolicy
from memkit.readonly.pace import Pace
from memkit.server import RedisServer, free_port

LANES = [name for name, binary in every_server().items() if binary]
HARMLESS = {
    "auth", "client", "client|list", "client|no-touch", "client|setinfo", "cluster", "cluster|myid", "config|get",
    "dbsize", "exists",
    "get", "getrange", "hello", "hgetall", "hlen", "hmget", "info", "llen", "lrange", "memory|usage", "object|encoding",
    "object|idletime", "pexpiretime", "ping", "pttl", "randomkey", "scan", "scard", "select", "slowlog|get", "smembers",
    "smismember", "strlen", "time", "type", "zcard", "zmscore", "zrange", "command", "config", "memory", "object",
    "slowlog",
}  # fmt: skip


@contextmanager
def played(name: str, seed: int, lane: str) -> Iterator[tuple[RedisServer, Incident]]:
    incident = draw(name, seed)
    binary = every_server()[lane]
    assert binary
    with RedisServer(binary=binary.path, config=incident.config | NO_FSYNC, persist=incident.persist) as server:
        incident.play(server)
        yield server, incident


@pytest.mark.parametrize("name", [*CAUSES, *HEALTHIES])
def test_the_verdict_is_the_truth(name: str) -> None:
    number = [*CAUSES, *HEALTHIES].index(name)
    with played(name, 100 + number, LANES[number % len(LANES)]) as (server, incident):
        report = audit(server.url, expect=incident.expect, full=incident.full, duty=1, touch=True)
        assert complaints(report, incident.truth) == []
        assert report.exit_code == {"healthy": 0, "no_data": 2, "wrong_prefix": 2}.get(incident.truth.cause, 1)


@pytest.mark.parametrize("lane", LANES)
def test_the_incident_of_the_article_on_every_server(lane: str) -> None:
    with played("ttl_too_short", 5, lane) as (server, incident):
        report = audit(server.url, expect=incident.expect)
        assert complaints(report, incident.truth) == []


def state(client: redis.Redis) -> dict[bytes, bytes | None]:
    return {key: client.dump(key) for key in client.scan_iter(count=1000)}


@pytest.mark.parametrize("lane", LANES)
def test_no_idle_clock_and_no_byte_changes(lane: str) -> None:
    with played("healthy_steady", 7, lane) as (server, incident), server.client() as client:
        before = state(client)  # on 6.2 and 7.0 this resets idle clocks, so time moves on
        server.clock.shift("1m")
        client.config_resetstat()
        idle = {key: client.object("idletime", key) for key in client.scan_iter()}
        stats = calls(client)
        report = audit(server.url, expect=incident.expect, full=True)
        after = calls(client)
        later = {key: client.object("idletime", key) for key in client.scan_iter()}
        assert idle
        assert min(idle.values()) >= 59
        # A neighbour's second may tick; a key that was touched would be back at 0.
        assert all(0 <= later[key] - idle[key] <= 5 for key in later)
        existing = {key: value for key, value in before.items() if client.exists(key)}
        assert {key: client.dump(key) for key in existing} == existing
        used = {name: after[name] - stats.get(name, 0) for name in after if after[name] > stats.get(name, 0)}
        assert set(used) <= HARMLESS | {"config|resetstat", "acl|whoami"}
        assert report.proof.idle_clocks_touched == 0
        assert report.proof.writes == 0
        # The two INFO are this test's own.
        assert words(report.proof.commands) == words({**used, "info": used["info"] - 1})


def words(counted: Mapping[str, int]) -> Counter[str]:
    """Count by the command alone: 6.2 does not count subcommands."""
    total: Counter[str] = Counter()
    for name, count in counted.items():
        total[name.partition("|")[0]] += count
    # What redis-py sends on connecting, and what a server does not know and so does not count.
    del total["hello"], total["select"], total["client"], total["pexpiretime"]
    return total


def calls(client: redis.Redis) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): row["calls"] for name, row in client.info("commandstats").items()}


def test_full_reads_no_value_if_that_would_touch_it() -> None:
    with played("corrupt", 1, LANES[0]) as (server, incident):
        report = audit(server.url, expect=incident.expect, full=True)
        if LANES[0] in ("redis-6.2", "redis-7.0"):
            assert any("--touch allows it" in note for note in report.notes)
            assert "lrange" not in report.proof.commands


def test_idle_times_reset_by_touch_are_counted(any_server: RedisServer) -> None:
    with any_server.client() as client:
        for number in range(20):
            client.rpush(f"chat:{number}", '{"type":"human","data":{"content":"x"}}')
            client.expire(f"chat:{number}", 604_800)
    report = audit(any_server.url, expect={"chat:*": "7d"}, full=True, touch=True)
    touches = any_server.flavour == "redis" and any_server.version < "7.2"
    assert report.proof.idle_clocks_touched == (20 if touches else 0)


def test_it_works_as_the_user_it_asks_for(any_server: RedisServer) -> None:
    with any_server.client() as client:
        for number in range(30):
            client.rpush(f"chat:{number}", '{"type":"human","data":{"content":"x"}}')
            client.expire(f"chat:{number}", 604_800 if number < 20 else 300)
        for line in acl_rule(["chat:"]).replace("CHANGE-THIS-PASSWORD", "secret").splitlines():
            if line.startswith("#"):
                continue
            with suppress(redis.ResponseError):  # what a newer server knows
                client.execute_command(*split_rule(line))
        url = any_server.url.replace("unix://", "unix://memkit-audit:secret@")
        report = audit(url, expect={"chat:*": "7d"}, full=True, duty=1)
        assert report.verdict.cause == "ttl_too_short"
        assert not any("could not see" in note for note in report.notes)
        # Only what this server does not know was tried in vain.
        denied = {entry["object"] for entry in client.acl_log()}
        assert denied <= {"client|no-touch", "client|setinfo", "client"}
        with redis.Redis.from_url(url) as user, pytest.raises(redis.exceptions.NoPermissionError):
            user.set("chat:1", "x")
        assert "secret" not in report.to_json()


def split_rule(words: str) -> list[str]:
    """Split a rule as redis-cli does: a selector in parentheses is one argument."""
    head, *selectors = words.split(" (")
    return [*head.split(), *(f"({selector}" for selector in selectors)]


@pytest.mark.parametrize(
    ("denied", "noted"),
    [
        ("config", "CONFIG"), ("info", "INFO"), ("client", "CLIENT"), ("slowlog", "SLOWLOG"), ("object", "idletime"),
        ("memory", "memory"),
    ],
)  # fmt: skip
def test_denied_command_is_noted_and_the_rest_found(denied: str, noted: str, any_server: RedisServer) -> None:
    with any_server.client() as client:
        for number in range(60):
            client.rpush(f"chat:{number}", "{}")
            client.expire(f"chat:{number}", 604_800 if number < 30 else 300)
        client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "+@all", f"-{denied}")
    url = any_server.url.replace("unix://", "unix://limited:pw@")
    report = audit(url, expect={"chat:*": "7d"}, full=True, duty=1)
    assert any(noted in note for note in report.notes), report.notes
    assert report.findings[0].cause == "ttl_too_short" or denied in ("object", "info")


def test_locks_caches_and_counters_are_no_finding() -> None:
    with RedisServer(persist=True, config=NO_FSYNC) as server, server.client() as client:
        for number in range(40):
            client.rpush(f"chat:{number}", "{}")
            client.expire(f"chat:{number}", 604_800)
            client.set(f"chat:lock:{number}", "1", ex=30)
            client.set(f"chat:typing:{number}", "1", ex=5)
            client.incr(f"chat:counter:{number}")
            client.set(f"cache:{number}", "x", ex=60)
        client.sadd("chat:index", *range(40))
        report = audit(server.url, expect={"chat:*": "7d"}, duty=1)
        assert report.findings == ()
        assert any("lock" in note for note in report.notes)


# -- replica and cluster -----------------------------------------------------------------------------------------------


def test_a_replica_is_read_and_its_primary_judged(any_server: RedisServer) -> None:
    binary = any_server._binary.path
    with (
        RedisServer(binary=binary, port=0, config={"repl-diskless-sync-delay": 0}, persist=True) as primary,
        RedisServer(binary=binary, config={"replicaof": f"127.0.0.1 {primary.port}"}, persist=True) as replica,
        primary.client() as client,
        replica.client() as reader,
    ):
        wait_for("a link to the primary", lambda: reader.info("replication")["master_link_status"], "up".__eq__)
        incident = draw("ttl_too_short", 11)
        restore(primary, client, incident.writes)
        wait_for("as many keys as the primary has", reader.dbsize, lambda keys: keys == client.dbsize())
        for url, given in ((primary.url, {"replica": replica.url}), (replica.url, {}), (primary.url, {})):
            report = audit(url, expect=incident.expect, duty=1, **given)
            assert report.verdict.cause == "ttl_too_short"
            assert report.findings[0].observed_ttl_s == pytest.approx(incident.truth.observed_s, rel=0.02)


def state_of(node: redis.Redis) -> tuple[str, int]:
    """Return what a node reports of its cluster, and how many nodes it knows."""
    return node.cluster("info")["cluster_state"], len(node.cluster("nodes"))


@contextmanager
def a_cluster(lane: str) -> Iterator[tuple[list[RedisServer], redis.RedisCluster]]:
    """Three primaries."""
    binary = every_server()[lane]
    assert binary
    with ExitStack() as stack:
        nodes = []
        for port, _ in cluster_ports(3):
            config = NO_FSYNC | {
                "cluster-enabled": "yes",
                "cluster-node-timeout": "5000",
                "cluster-config-file": "nodes.conf",
            }
            nodes.append(stack.enter_context(RedisServer(binary=binary.path, port=port, config=config, persist=True)))
        clients = [stack.enter_context(node.client()) for node in nodes]
        for index, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTS", *range(index * 5462, min((index + 1) * 5462, 16384)))
        for client in clients[1:]:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        wait_for("three nodes that are ok", lambda: list(map(state_of, clients)), lambda seen: seen == [("ok", 3)] * 3)
        yield nodes, stack.enter_context(redis.RedisCluster(host="127.0.0.1", port=nodes[0].port))


def test_a_cluster_is_one_keyspace() -> None:
    lane = "redis-7.0" if "redis-7.0" in LANES else LANES[0]
    with a_cluster(lane) as (nodes, cluster):
        for number in range(900):
            cluster.set(f"chat:{{tenant-{number % 7}}}:{number}", "{}", ex=604_800 if number < 600 else 300)
        for target in (cluster, f"redis+cluster://127.0.0.1:{nodes[0].port}", nodes[0].url):
            report = audit(target, expect={"chat:*": "7d"}, duty=1)
            assert report.sample["of"] == 900
            assert (report.verdict.cause, report.findings[0].keys) == ("ttl_too_short", 300)
            assert report.findings[0].observed_ttl_s == pytest.approx(300, rel=0.02)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chat:*",
        "chat:*=",
        "=7d",
        "chat:*=7 parsecs",
        "chat:*=0",
        "chat:*=-5m",
        "chat:*=7d,jitter=x",
        "chat:*=7d,soon",
        "chat:=7d",
    ],
)
def test_invalid_expectation_names_what_is_valid(text: str) -> None:
    with pytest.raises(PolicyError):
        parse_expectation(text)


def test_expectations_are_read_as_written() -> None:
    one = parse_expectation("chat:*=7d,absolute,jitter=25%")
    assert (one.prefix, one.policy, one.jitter) == ("chat:", ExpiryPolicy.absolute("7d"), 0.25)
    assert parse_expectation("a=b:*=90").policy == ExpiryPolicy.sliding(90)
    assert parse_expectation(r"a\*b*=1h").prefix == "a*b"
    assert str(parse_expectation("user:*=never")) == "user:*=never expires"


def test_single_key_or_repeated_expectation_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"'chat:' matches one key only; for the prefix write 'chat:\*=7d'"):
        parse_expectation("chat:=7d,absolute")
    assert parse_expectation("the-only-session=7d").pattern == "the-only-session"
    assert [one.policy for one in expectations({"chat:*": "never"})] == [ExpiryPolicy.never()]
    with pytest.raises(PolicyError, match=r"'chat:\*' is given twice"):
        expectations([parse_expectation("chat:*=7d"), parse_expectation("chat:*=5m")])


def test_expectations_can_be_a_mapping_or_texts() -> None:
    with start(LANES[-1]) as server:
        for expect in ({"chat:*": "7d"}, "chat:*=7d", ["chat:*=7d"], (parse_expectation(one) for one in ["chat:*=7d"])):
            assert audit(server.url, expect=expect, duty=1).expected == ("chat:*=sliding 7d",)


@pytest.mark.parametrize(
    "expect", ["chat:*", "", ["chat:*"], [("chat:*", "7d")], b"chat:*=7d", 7, {b"chat:*": "7d"}, {"": "7d"}, [None]]
)
def test_other_types_of_expectations_are_refused(expect: Any) -> None:
    with pytest.raises(PolicyError, match="expected"):
        audit("redis://127.0.0.1:1/0", expect=expect)


def test_reason_for_missing_idle_times_is_noted(any_server: RedisServer) -> None:
    with any_server.client() as client:
        for number in range(30):
            client.set(f"chat:{number}", "x", ex=300)
        client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "+@all", "-object")
        url = any_server.url.replace("unix://", "unix://limited:pw@")
        notes = " ".join(audit(url, expect={"chat:*": "7d"}, duty=1).notes)
        assert "OBJECT IDLETIME is refused to this user" in notes
        assert "LFU" not in notes
        client.config_set("maxmemory-policy", "allkeys-lfu")
        notes = " ".join(audit(any_server.url, expect={"chat:*": "7d"}, duty=1).notes)
        assert "idle times (LFU)" in notes


@pytest.mark.parametrize("full", [True, False])
def test_no_touch_is_sent_and_counted_once(any_server: RedisServer, full: bool) -> None:
    needs(any_server, "CLIENT NO-TOUCH", redis="7.2")
    with any_server.client() as client:
        for number in range(30):
            client.set(f"chat:{number}", "x", ex=604_800)
        client.config_resetstat()
        report = audit(any_server.url, expect={"chat:*": "7d"}, full=full, duty=1)
        assert report.proof.commands["client|no-touch"] == calls(client)["client|no-touch"] == 1


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [("a*c", b"abc", True), ("a?c", b"abc", True), ("a[^b]c", b"abc", False), ("a[a-c]c", b"abc", True),
     (r"a\*c", b"abc", False), ("*", b"\xff\n", True), ("a.c", b"abc", False)],
)  # fmt: skip
def test_patterns_match_as_redis_matches(pattern: str, key: bytes, matches: bool) -> None:
    assert bool(glob_expression(pattern).fullmatch(key)) is matches


def test_empty_database_and_unmatched_pattern_exit_2(any_server: RedisServer) -> None:
    assert (audit(any_server.url).verdict.cause, audit(any_server.url).exit_code) == ("no_data", 2)
    with any_server.client() as client:
        client.set("other:1", "x")
    report = audit(any_server.url, expect={"chat:*": "7d"})
    assert (report.verdict.cause, report.exit_code) == ("no_data", 2)
    assert "other:*" in report.verdict.sentence


def test_unreachable_server_raises_the_redis_error() -> None:
    with pytest.raises(redis.ConnectionError):
        audit(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(ServerError):
        audit("http://localhost")
    with pytest.raises(PolicyError):
        audit(f"redis://127.0.0.1:{free_port()}/0", duty=0)


def test_missing_password_is_an_authentication_error(any_server: RedisServer) -> None:
    with any_server.client() as client:
        client.config_set("requirepass", "right")
    with pytest.raises(redis.AuthenticationError):
        audit(any_server.url)


def test_tls_url_of_a_plain_server_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkit.readonly.target.CONNECT_TIMEOUT_S", 0.3)
    with RedisServer(port=0) as server, pytest.raises((redis.ConnectionError, redis.TimeoutError)):
        audit(f"rediss://127.0.0.1:{server.port}/0")


# -- the report --------------------------------------------------------------------------------------------------------


def test_without_expectations_it_states_what_to_expect() -> None:
    with played("healthy_steady", 3, LANES[-1]) as (server, incident):
        report = audit(server.url, duty=1)
        assert (report.verdict.status, report.exit_code) == ("undetermined", 2)
        prefix = next(iter(incident.expect)).removesuffix("*")
        message = next(one.message for one in report.seen if one.prefix == prefix)
        assert f"--expect '{prefix}*=" in message


def test_the_json_has_the_promised_shape() -> None:
    with played("ttl_too_short", 2, LANES[-1]) as (server, incident):
        shown = json.loads(audit(server.url, expect=incident.expect, duty=1).to_json())
    assert shown["schema"] == 2
    assert set(shown["server"]) == {"flavour", "version", "url", "source"}
    assert shown["server"]["source"] == {"kind": "live", "name": shown["server"]["url"], "taken_at": shown["at"]}
    assert {"status", "cause", "sentence", "prefix", "confidence"} == set(shown["verdict"])
    assert shown["verdict"]["status"] == "findings"
    finding = shown["findings"][0]
    promised = {
        "cause",
        "severity",
        "prefix",
        "keys",
        "sampled",
        "expected_ttl_s",
        "observed_ttl_s",
        "since",
        "since_is",
    }
    assert promised | {"confidence", "message", "evidence", "next"} == set(finding)
    assert finding["since"].endswith("Z")
    assert {"keys", "of", "method", "error_bound"} == set(shown["sample"])
    assert {"commands", "writes", "idle_clocks_touched", "expired_during_audit"} <= set(shown["proof"])


def test_key_names_are_escaped_in_text_and_html() -> None:
    with start(LANES[-1]) as server, server.client() as client:
        for number in range(10):
            client.set(f"\x1b[31m<b>:{number}", "x", ex=300)
        report = audit(server.url, expect={"\x1b[31m<b>:*": "7d"})
        assert report.verdict.cause == "ttl_too_short"
        assert "\x1b" not in report.to_text()
        assert "<b>" not in report._repr_html_()
        assert list(report.to_frame()["cause"]) == [finding.cause for finding in report.findings]


def with_short_sessions(client: redis.Redis) -> None:
    pipe = client.pipeline(transaction=False)
    for number in range(3_000):
        pipe.set(f"chat:{number}", "x", ex=300)
    pipe.execute()


@pytest.mark.parametrize("duty", [0.25, 1])
def test_ctrl_c_gives_the_findings_so_far(duty: float) -> None:
    with start(LANES[-1]) as server, server.client() as client:
        with_short_sessions(client)

        def interrupt(done: int, of: int) -> None:
            if done > of / 2:
                raise KeyboardInterrupt

        report = audit(server.url, expect={"chat:*": "7d"}, progress=interrupt, duty=duty)
        assert report.verdict.cause == "ttl_too_short"
        assert any("Ctrl-C" in note for note in report.notes)
        assert report.sample["keys"] < 3_000
        # What was under way is not taken for the answer to what is asked next.
        assert report.proof.expired_during_audit == 0


@pytest.mark.parametrize("duty", [0.25, 1])
def test_a_server_that_evicts_is_left_alone(duty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memkit.audit.sampling.GUARD_EVERY_S", 0)
    with start(LANES[-1]) as server, server.client() as client:
        with_short_sessions(client)
        client.config_set("maxmemory-policy", "allkeys-random")
        looked_at: list[int] = []

        def fill(done: int, _of: int) -> None:
            looked_at.append(done)
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 50_000)
            client.ping()  # a command has the server evict first

        report = audit(server.url, expect={"chat:*": "7d"}, progress=fill, duty=duty)
        assert any("the server began to evict keys" in note for note in report.notes)
        assert len(looked_at) == 2, "one more batch, and it is noticed"


def test_batches_shrink_and_stop_if_the_server_is_slow() -> None:
    pace = Pace(1, batch=200)
    for _ in range(5):
        pace.after(0.002, 0.002, 200)
    pace.after(0.1, 0.1, 200)
    assert (pace.batch, pace.stopped) == (100, None)
    for _ in range(20):
        pace.after(0.002, 0.002, 200)
    assert (pace.batch, pace.stopped) == (200, None)
    for _ in range(8):
        pace.after(0.5, 0.5, pace.batch)
    assert pace.batch == 10
    assert pace.stopped


def test_sessions_deleted_during_the_audit_are_missed() -> None:
    with start(LANES[-1]) as server, server.client() as client:
        for number in range(300):
            client.set(f"chat:{number}", "x", ex=604_800)

        def delete(_done: int, _of: int) -> None:
            client.unlink(*[f"chat:{number}" for number in range(0, 300, 3)])

        report = audit(server.url, expect={"chat:*": "7d"}, progress=delete)
        assert (report.verdict.cause, report.verdict.confidence) == ("deleted", "proven")


def test_a_key_is_not_its_own_prefix() -> None:
    keys = [KeyFacts(f"chat:{number}:messages".encode(), "list", None, None, 0, None) for number in range(5)]
    assert list(by_prefix(keys)) == ["chat:"]
    assert alike("chat:", "chats:")
    assert alike("chat:", "prod:chat:")
    assert not alike("chat:", "user:")
