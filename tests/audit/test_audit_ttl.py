"""Short TTLs against sessions that were read: cases in which deadlines and idle times are alike."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from incidents import DAY, HOUR, MINUTE, Write
from servers import NO_FSYNC
from test_audit_causes import audited, spread, the_finding

from memkit.audit import audit
from memkit.audit.checks.persistent_keys import persistent_finding
from memkit.audit.checks.ttl_inference import LifetimeAnalysis, ServerHistory, rounded
from memkit.audit.checks.ttl_peaks import start_of
from memkit.audit.context import AuditContext
from memkit.audit.key_shapes import groups_of
from memkit.audit.sampling import KeyFacts
from memkit.audit.server_info import ServerFacts
from memkit.config import Expectation, parse_expectation
from memkit.policy import ExpiryPolicy
from memkit.server import RedisServer

SEEDS = range(3)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(persist=True, config=NO_FSYNC) as one:
        yield one


def read(write: Write, read_s: float) -> Write:
    return Write(write.key, write.age_s, write.ttl_s, read_s)


# -- healthy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [10 * MINUTE, HOUR])
@pytest.mark.parametrize("seed", SEEDS)
def test_writes_and_reads_on_a_grid_are_healthy(seed: int, step_s: float, server: RedisServer) -> None:
    dice = random.Random(seed)
    writes: list[Write] = []
    for tick in reversed(range(int(DAY / step_s))):
        writes += [Write(f"chat:{tick}-{n}", tick * step_s + 1, DAY) for n in range(4)]
        for at in dice.sample(range(len(writes)), min(4, len(writes))):
            writes[at] = read(writes[at], tick * step_s + 0.5)
    assert audited(server, writes, {"chat:*": "1d"}).findings == ()


@pytest.mark.parametrize("seed", SEEDS)
def test_returns_at_the_same_hour_are_no_short_ttl(seed: int, server: RedisServer) -> None:
    dice = random.Random(seed)
    writes = []
    for n in range(600):
        age_s = dice.randrange(7) * DAY + dice.gauss(12 * HOUR, 1.5 * HOUR)
        backs = [age_s - (day + 1) * DAY + dice.gauss(0, HOUR) for day in range(7) if dice.random() < 0.5]
        writes.append(Write(f"chat:{n}", age_s, 7 * DAY, min((one for one in backs if one > 0), default=None)))
    assert audited(server, writes, {"chat:*": "7d"}).findings == ()


def test_batch_mostly_read_later_is_no_short_ttl(server: RedisServer) -> None:
    batch = spread("chat:", 50, 3 * DAY, 3 * DAY + 1, 7 * DAY)
    writes = [read(one, DAY) for one in batch[:48]] + batch[48:]
    assert audited(server, writes, {"chat:*": "7d"}).findings == ()


def test_batches_read_at_one_moment_are_no_short_ttl(server: RedisServer) -> None:
    batches = [spread(f"chat:{n}-", 20, n * HOUR + 6 * HOUR, n * HOUR + 6 * HOUR + 0.2, DAY) for n in range(12)]
    writes = [read(one, HOUR) for batch in batches for one in batch]
    assert audited(server, writes, {"chat:*": "1d"}).findings == ()


@pytest.mark.parametrize(("jitter", "ttl_s"), [(0.0, 900), (0.1, 855)])
def test_short_ttl_of_sessions_that_were_read_soon(jitter: float, ttl_s: int) -> None:
    """A TTL of 15 minutes lowered by reads, and one between 12 and 15 minutes, differ at the upper end only."""
    now, keys = 1_795_000_000_000, []
    for n in range(13):
        given_ms = round(ttl_s * 1000 * (1 + jitter * (1 - n / 6)) if jitter else 900_000 - 13_000 * n)
        keys.append(KeyFacts(b"chat:%d" % n, "list", now + given_ms - 50_000 * n % 600_000, None, now, None))
        keys[-1] = keys[-1]._replace(touched_ms=(keys[-1].deadline_ms or 0) - given_ms)
    history = ServerHistory(now, now - 3_600_000, empty_start_ms=now - 3_600_000, reads=13, touches=13)
    (found,) = LifetimeAnalysis(keys, Expectation("chat:*", ExpiryPolicy.sliding("6h")), history).anomalies()
    assert (found.ttl_ms, found.jitter > 0) == (pytest.approx(ttl_s * 1000, rel=0.01), jitter > 0)


@pytest.mark.parametrize("seed", range(6))
def test_batch_read_at_once_among_many_reads(seed: int) -> None:
    dice, now = random.Random(seed), 1_795_000_000_000
    sessions = [(dice.uniform(0, 0.99) * 7 * DAY, dice.random()) for _ in range(900)] + [(6.5 * DAY, 0.1)] * 40
    keys = [
        KeyFacts(
            b"chat:%d" % n, "list", now - int(1000 * (age_s - 7 * DAY)), now - int(share * age_s) * 1000, now, None
        )
        for n, (age_s, share) in enumerate(sessions)
    ]
    history = ServerHistory(now, now - 300 * int(HOUR) * 1000, reads=900)
    found = LifetimeAnalysis(keys, Expectation("chat:*", ExpiryPolicy.sliding("7d")), history).anomalies()
    assert found == []


def test_onset_is_not_a_late_clump_of_accesses() -> None:
    steady = [n * 1_000_000 for n in range(55)]
    clump = [55_000_000 + n * 1_000 for n in range(4)]
    assert start_of(steady + clump) <= steady[27]


@pytest.mark.parametrize("seed", range(20))
def test_reads_at_one_age_before_a_pause_prove_nothing(seed: int) -> None:
    # A job reads each session a day after its write; for half of the TTL, nothing has been written or read.
    dice, keys, now = random.Random(seed), [], 1_000_000_000_000
    for n in range(80):
        age_s = dice.uniform(0.5, 0.99) * 7 * DAY
        read_s = age_s - DAY if age_s - DAY > 3.5 * DAY else age_s
        touched, deadline = (now - int(one * 1000) for one in (read_s, age_s - 7 * DAY))
        keys.append(KeyFacts(f"chat:{n}".encode(), "list", deadline, touched // 1000 * 1000, now, None))
    history = ServerHistory(now, now - 300 * int(HOUR) * 1000)
    found = LifetimeAnalysis(keys, Expectation("chat:*", ExpiryPolicy.sliding("7d")), history).anomalies()
    assert {one.confidence for one in found} <= {"possible"}
    assert all(one.reasons[0].endswith("reads cannot do that, unless a job reads sessions at one age") for one in found)


def test_keys_written_during_the_audit_date_no_end() -> None:
    # The server's time is read first: what is written while the keys are read was accessed later than that.
    now, minute = 1_795_000_000_000, 60_000
    ages = [*((age, None) for age in (*range(1, 20), -1)), *((-1, 3_600_000) for _ in range(4))]
    keys = [
        KeyFacts(f"chat:{n}".encode(), "list", ttl and at + ttl, at, now + 2 * minute, None)
        for n, (age, ttl) in enumerate(ages)
        for at in [now - age * minute]
    ]
    history = ServerHistory(now, now - 9 * 3_600_000)
    context = AuditContext(keys, history, ServerFacts({}, {}, now_ms=now), siblings=lambda _: ())
    found = persistent_finding(parse_expectation("chat:*=1h"), groups_of(keys, "chat:"), context)
    assert found
    assert (found.keys, found.since_is) == (20, "upper bound")


# -- too long ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("goes_on", "bound"), [(False, "lower bound"), (True, "upper bound")])
def test_longer_ttl_is_dated_by_the_last_former_write(goes_on: bool, bound: str) -> None:
    now, hour = 1_795_000_000_000, 3_600_000
    # An hour ago some writes began to set 30 days; the others stopped, or go on with 7 days.
    former = [(age * hour, 7 * 24 * hour) for age in range(0 if goes_on else 1, 100)]
    former += [(minute * 60_000, 7 * 24 * hour) for minute in range(60) if goes_on]
    longer = [(minute * 60_000, 30 * 24 * hour) for minute in range(60)]
    keys = [
        KeyFacts(b"chat:%d" % number, "list", now - age + ttl, now - age, now, None)
        for number, (age, ttl) in enumerate([*former, *longer])
    ]
    history = ServerHistory(now, now - 1_000 * hour)
    (found,) = LifetimeAnalysis(keys, Expectation("chat:*", ExpiryPolicy.sliding("7d")), history).anomalies()
    assert (found.kind, found.since and found.since.bound) == ("long", bound)


# -- too short ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("short_s", "changed_s"), [(18 * HOUR, 3 * HOUR), (12 * HOUR, 2 * HOUR), (5 * MINUTE, 250)])
@pytest.mark.parametrize("seed", SEEDS)
def test_shorter_ttl_with_jitter_is_found_among_reads(
    seed: int, short_s: float, changed_s: float, server: RedisServer
) -> None:
    dice = random.Random(seed)
    ages = [dice.uniform(changed_s, 0.99 * DAY) for _ in range(200)] + [dice.uniform(0, changed_s) for _ in range(100)]
    writes = []
    for n, age_s in enumerate(ages):
        ttl_s = (short_s if age_s < changed_s else DAY) * dice.uniform(0.9, 1.1)
        writes.append(Write(f"chat:{n}", age_s, ttl_s, dice.uniform(0, age_s) if dice.random() < 0.3 else None))
    report = audited(server, writes, {"chat:*": "1d"})
    found = the_finding(report)
    assert found.cause == "ttl_too_short"
    assert found.observed_ttl_s == pytest.approx(short_s, rel=0.05)
    assert found.since
    ago_s = (report.at - found.since).total_seconds()
    assert ago_s >= changed_s - 60 if found.since_is == "lower bound" else ago_s <= changed_s + 60


@pytest.mark.parametrize("seed", SEEDS)
def test_short_ttl_is_measured_by_unread_sessions(seed: int, server: RedisServer) -> None:
    dice = random.Random(seed)
    writes = []
    for n in range(90):
        age_s = dice.uniform(0, 0.98 * HOUR)
        writes.append(Write(f"chat:{n}", age_s, HOUR, dice.uniform(0, age_s) if dice.random() < 0.8 else None))
    found = the_finding(audited(server, writes, {"chat:*": "3d"}))
    assert (found.cause, found.observed_ttl_s) == ("ttl_too_short", HOUR)


@pytest.mark.parametrize("changed_s", [5 * HOUR, 9 * DAY])
def test_accesses_that_a_save_hid_date_no_change(changed_s: float) -> None:
    """Every third session was renewed while the server saved, so its idle time began at an earlier access."""
    dice, keys, now = random.Random(7), [], 1_700_000_000_000
    for n in range(600):
        age_s = dice.uniform(0, 6.9 * DAY) if n % 2 else dice.uniform(0, 0.9 * HOUR)
        ttl_s = HOUR if age_s < changed_s else 7 * DAY
        if age_s < ttl_s:
            hidden_s = 0.0 if n % 3 else dice.uniform(0, 12 * HOUR)
            deadline, touched = now + int(1000 * (ttl_s - age_s)), now - int(1000 * (age_s + hidden_s))
            keys.append(KeyFacts(b"chat:%d" % n, "list", deadline, touched, now, None))
    history = ServerHistory(now, now - 30 * int(DAY) * 1000)
    (found,) = LifetimeAnalysis(keys, Expectation("chat:*", ExpiryPolicy.sliding("7d")), history).anomalies()
    assert rounded(found.ttl_ms) == HOUR * 1000
    assert found.since
    ago_s = (now - found.since.at_ms) / 1000
    if changed_s > 7 * DAY:
        assert (found.since.bound, ago_s < HOUR) == ("upper bound", True)
    else:
        assert (found.since.bound, ago_s) == ("lower bound", pytest.approx(changed_s, abs=HOUR))


@pytest.mark.parametrize("short_s", [12 * HOUR, 6 * HOUR])
def test_two_ttls_set_at_the_same_time(short_s: float, server: RedisServer) -> None:
    writes = spread("chat:old-", 200, 10 * MINUTE, 0.98 * DAY, DAY)
    writes += spread("chat:a-", 60, 1, 10 * MINUTE, short_s) + spread("chat:b-", 60, 1, 10 * MINUTE, DAY)
    report = audited(server, writes, {"chat:*": "1d"})
    found = the_finding(report)
    assert (found.cause, found.observed_ttl_s, found.since_is) == ("two_ttls", short_s, "upper bound")
    assert found.since
    assert (report.at - found.since).total_seconds() == pytest.approx(10 * MINUTE, abs=60)


def test_few_look_ups_for_many_shapes_of_names(server: RedisServer) -> None:
    """The sessions of each shape are looked up in the others only if shapes are few: 50,000 keys with 32 shapes."""
    words = [
        f"{team}:{{}}:{part}"
        for team in ("ab", "cd", "ef", "gh")
        for part in ["head", "body", "tail", "meta", "plan", "note", "file", "log"]
    ]
    with server.client() as client:
        for n in range(1_600):
            client.rpush(f"chat:{words[n % 32].format(n)}", "{}")
            client.expire(f"chat:{words[n % 32].format(n)}", 604_800)
    report = audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
    assert sum(report.proof.commands.values()) < 30_000


@pytest.mark.parametrize(("expected", "found"), [("1m", False), ("10m", False), ("7d", True)])
def test_second_that_is_left_is_judged_by_its_chance(expected: str, found: bool) -> None:
    """A session of a minute has 1.4 s left with a chance of 2 %, one of seven days with one of 0.0002 %."""
    now = 1_700_000_000_000
    keys = [KeyFacts(b"chat:1", "list", now + 1_000, now - 400, now, None)]
    policy = ExpiryPolicy.sliding(expected)
    analysis = LifetimeAnalysis(keys, Expectation("chat:*", policy), ServerHistory(now, now - 300 * int(HOUR) * 1000))
    assert bool(analysis.anomalies()) == found


def anomalies_of(sessions: Sequence[tuple[float, float, float]], touches: int | None) -> list[tuple[str, str]]:
    """Return the kind and the confidence of what is wrong with sessions that should have 7 days.

    Args:
        sessions: How long ago each was written, its TTL, and how long ago it was accessed last; seconds.
        touches: How many commands that leave the TTL the server has counted.
    """
    now = 1_795_000_000_000
    keys = [
        KeyFacts(b"chat:%d" % n, "list", now + int(1000 * (ttl_s - age_s)), now - int(accessed_s) * 1000, now, None)
        for n, (age_s, ttl_s, accessed_s) in enumerate(sessions)
    ]
    history = ServerHistory(now, now - 300 * int(DAY) * 1000, reads=touches, touches=touches, expired=1_000)
    found = LifetimeAnalysis(keys, Expectation("chat:*", ExpiryPolicy.sliding("7d")), history).anomalies()
    return [(one.kind, one.confidence) for one in found]


def unread(count: int, newest_s: float, oldest_s: float, ttl_s: float) -> list[tuple[float, float, float]]:
    return [(age_s, ttl_s, age_s) for age_s in (newest_s + n * (oldest_s - newest_s) / count for n in range(count))]


@pytest.mark.parametrize(
    ("sessions", "if_read"),
    [
        # A job reads each session two days after its write, and all are older.
        ([(age_s, ttl_s, age_s - 2 * DAY) for age_s, ttl_s, _ in unread(60, 2 * DAY, 6.9 * DAY, 7 * DAY)], "possible"),
        # Every fourth session is given two days, or was read when it had two days left.
        (unread(140, 0, 6.9 * DAY, 7 * DAY) + unread(40, 0, 1.9 * DAY, 2 * DAY), "possible"),
        # All were given four days until yesterday, or a job has read all that are older than that.
        (unread(60, 0, 1.4 * DAY, 7 * DAY) + unread(60, 1.4 * DAY, 3.9 * DAY, 4 * DAY), None),
    ],
)
def test_reads_that_the_server_did_not_count(sessions: list[tuple[float, float, float]], if_read: str | None) -> None:
    assert anomalies_of(sessions, touches=len(sessions)) == ([("short", if_read)] if if_read else [])
    assert anomalies_of(sessions, touches=0) == [("short", "proven")]


@pytest.mark.parametrize(("jitter", "confidence"), [(0.0, "proven"), (0.1, "likely")])
def test_no_job_reads_sessions_near_their_end(jitter: float, confidence: str) -> None:
    dice = random.Random(3)
    usual = unread(1_500 if jitter == 0 else 300, 0, 6.9 * DAY, 7 * DAY)
    short = [
        (age_s, ttl_s * dice.uniform(1 - jitter, 1 + jitter), age_s)
        for age_s, ttl_s, _ in unread(60, 0, 13 * HOUR, 15 * HOUR)
    ]
    assert anomalies_of([*usual, *short], touches=None) == [("short", confidence)]
    assert anomalies_of(usual, touches=None) == []


def test_jittered_ttl_of_all_sessions_is_found() -> None:
    dice = random.Random(3)
    sessions = [(age_s, ttl_s * dice.uniform(0.9, 1.1), age_s) for age_s, ttl_s, _ in unread(60, 0, 2.5 * DAY, 3 * DAY)]
    assert anomalies_of(sessions, touches=None) == [("short", "likely")]


def test_copied_ttls_differ_from_a_unit_mistake() -> None:
    """A script wrote 30 sessions in two seconds: 7 days in the wrong unit, or what was left of them elsewhere."""
    dice, usual = random.Random(3), unread(100, 0, 6.9 * DAY, 7 * DAY)
    mistake = [*usual, *unread(30, 200, 202, 604.8)]
    copied = [(age_s, dice.uniform(HOUR, 3 * HOUR), age_s) for age_s, _, _ in unread(30, 200, 202, HOUR)]
    assert anomalies_of(mistake, touches=None) == [("short", "likely")]
    assert anomalies_of([*usual, *copied], touches=None) in ([], [("short", "possible")])
