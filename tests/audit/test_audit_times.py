"""Times that payloads state, in many layouts under their own prefixes: renewed, throttled, never renewed, trimmed."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from servers import NO_FSYNC, every_server

from memkit import formats
from memkit.audit import Finding
from memkit.audit.checks.payload_times import DatedSession, StatedTime, dated_session, not_refreshed, times_in
from memkit.audit.run import AuditReport, audit
from memkit.audit.sampling import KeyFacts
from memkit.config import parse_expectation
from memkit.readonly.values import RedisValue
from memkit.server import RedisServer

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
STEPS = 60

Stamp = Callable[[float], object]
"""A time in seconds since 1970 as a payload states it."""
Layout = Callable[[Sequence[float], random.Random], object]
"""A session's document, from the times of its messages."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    binary = every_server()["redis-8.2"] or every_server()["valkey-9"]
    if not binary:
        pytest.skip("no server with CLIENT NO-TOUCH on this machine")
    with RedisServer(binary=binary.path, persist=True, config=NO_FSYNC) as server:
        yield server


@dataclass(frozen=True)
class World:
    """How sessions are written: their documents, and whether a write renews the TTL if so much of it is left.

    ``renew_below`` 1: each write renews; 0: none does. ``most`` messages are kept, the oldest or the newest.
    """

    layout: Layout
    renew_below: float = 1.0
    ttl_s: float = WEEK_S
    gap_s: float = DAY_S
    most: int = 0
    keep_newest: bool = True
    as_list: bool = False
    as_zset: bool = False
    due: bool = False
    sessions: int = 40
    pack: Callable[[bytes], bytes] = bytes


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def in_zone(hours: float) -> Stamp:
    return lambda at: datetime.fromtimestamp(at, timezone(timedelta(hours=hours))).replace(tzinfo=None).isoformat()


def messages(name: str, stamp: Stamp) -> Layout:
    return lambda times, _dice: [{"role": "user", "content": "hi", name: stamp(at)} for at in times]


def document(name: str, stamp: Stamp) -> Layout:
    return lambda times, _dice: {"messages": [{"role": "user", "content": "hi"}], name: stamp(times[-1])}


def spoken(extra: Callable[[float, random.Random], Mapping[str, Any]]) -> Layout:
    """Return documents with the time of the last write and with times that something else speaks of."""
    return lambda times, dice: {"updated_at": times[-1], **extra(times[-1], dice)}


def ahead(dice: random.Random) -> float:
    return dice.uniform(0.5, 3) * DAY_S


STAMPS: Mapping[str, Stamp] = {
    "seconds": lambda at: at,
    "ms": lambda at: int(at * 1000),
    "text": lambda at: str(int(at)),
    "iso": iso,
    "z": lambda at: iso(at).replace("+00:00", "Z"),
    "http": lambda at: format_datetime(datetime.fromtimestamp(at, UTC), usegmt=True),
    "java": lambda at: [*datetime.fromtimestamp(at, UTC).timetuple()[:6], 5_000_000],
    "java minute": lambda at: list(datetime.fromtimestamp(at, UTC).timetuple()[:5]),
    "mongo": lambda at: {"$date": iso(at)},
    "dotnet": lambda at: f"/Date({round(at * 1000)}+0000)/",
}
FIELDS = (
    "updatedAt",
    "updated_at",
    "lastInteractionAt",
    "date_updated",
    "lastMessageAt",
    "lastActive",
    "last_active_at",
    "lastModified",
    "timestamp",
    "ts",
    "lastMessageTimestamp",
    "last_message_ts",
    "updated_time",
    "updateDate",
    "modifiedTime",
    "last_interaction_time",
    "mtime",
    "gmtModified",
    "lastChatTime",
    "last_msg_at",
)

SPOKEN: Mapping[str, Layout] = {
    "expires": spoken(lambda at, dice: {"expires_at": at + ahead(dice), "token": {"timestamp": at + ahead(dice)}}),
    "next": spoken(lambda at, dice: {"next_check_at": at + ahead(dice), "reminder": {"updated_at": at + ahead(dice)}}),
    "tool arguments": spoken(
        lambda at, dice: {
            "messages": [
                {"role": "assistant", "content": "", "tool_calls": [{"args": {"date": iso(at + ahead(dice))}}]},
                {"role": "tool", "content": json.dumps({"created_at": iso(at + ahead(dice))})},
                {"role": "tool", "content": [{"type": "json", "timestamp": at + ahead(dice)}]},
            ]
        }
    ),
    "calendar": spoken(lambda at, dice: {"events": [{"title": "dentist", "time": iso(at + ahead(dice))}]}),
    "date": spoken(lambda at, dice: {"date": iso(at + ahead(dice)), "time": iso(at + ahead(dice))}),
    "order": spoken(lambda at, dice: {"order": {"created_at": at + ahead(dice), "updatedAt": at + ahead(dice)}}),
}
HEALTHY: dict[str, World] = {
    **{f"renewed-{name}": World(messages("timestamp", stamp)) for name, stamp in STAMPS.items()},
    **{f"renewed-{field}": World(document(field, iso)) for field in FIELDS},
    "renewed-gzip": World(document("updatedAt", iso), pack=gzip.compress),
    **{f"spoken-{name}": World(layout, renew_below=1) for name, layout in SPOKEN.items()},
    **{f"zone-{hours}": World(document("updatedAt", in_zone(hours)), ttl_s=DAY_S, gap_s=DAY_S / 8)
       for hours in (-11, -8, 0, 5.5, 9, 14)},
    "zone-as-utc": World(document("updatedAt", lambda at: iso(at + 9 * 3600)), ttl_s=DAY_S, gap_s=DAY_S / 8),
    "fast-clock": World(document("updatedAt", lambda at: iso(at + 4 * 3600 + 137)), ttl_s=DAY_S, gap_s=DAY_S / 8),
    "throttled-60": World(messages("timestamp", iso), renew_below=0.6, gap_s=DAY_S / 2),
    "throttled-50": World(messages("ts", lambda at: at), renew_below=0.55, gap_s=DAY_S / 2),
    "throttled-day": World(messages("ts", lambda at: at), renew_below=6 / 7, gap_s=DAY_S / 4),
    "window": World(messages("ts", lambda at: at), most=4, gap_s=DAY_S / 4, as_list=True),
    "zset": World(messages("text", iso), as_zset=True),
    "zset-plan": World(messages("text", iso), as_zset=True, due=True, gap_s=WEEK_S, sessions=80),
    "zset-index": World(lambda times, _dice: [f"id-{at}" for at in times], as_zset=True, renew_below=0),
    "no-times": World(lambda _times, _dice: {"messages": [{"role": "user", "content": "hi"}]}),
}  # fmt: skip
FAULTS: dict[str, tuple[World, str]] = {
    **{f"fixed-{field}": (World(document(field, iso), renew_below=0), "not_refreshed") for field in FIELDS},
    **{f"fixed-{name}": (World(messages("timestamp", stamp), renew_below=0), "not_refreshed")
       for name, stamp in STAMPS.items()},
    "fixed-gzip": (World(document("updatedAt", iso), renew_below=0, pack=gzip.compress), "not_refreshed"),
    "fixed-zset": (World(messages("text", iso), renew_below=0, as_zset=True), "not_refreshed"),
    "fixed-list": (World(messages("timestamp", iso), renew_below=0, as_list=True), "not_refreshed"),
    "fixed-zone": (World(document("updatedAt", in_zone(9)), renew_below=0), "not_refreshed"),
    "fixed-short": (World(messages("ts", iso), renew_below=0, gap_s=DAY_S, sessions=80), "not_refreshed"),
    "trimmed": (World(messages("ts", iso), most=4, keep_newest=False, gap_s=DAY_S / 4, as_list=True, sessions=80),
                "trimmed"),
    "trimmed-json": (World(messages("ts", iso), most=4, keep_newest=False, gap_s=DAY_S / 4, sessions=80), "trimmed"),
}  # fmt: skip


def play(server: RedisServer, worlds: Mapping[str, World], seed: int) -> AuditReport:
    """Write what the sessions of all worlds are today, with the deadlines that their writes left, and audit them."""
    now = server.clock.now().timestamp()
    with server.client() as client:
        client.flushdb()
        pipe = client.pipeline(transaction=False)
        written: dict[str, tuple[float, float]] = {}
        for name, world in worlds.items():
            dice = random.Random(f"{seed} {name}")
            for n in range(world.sessions):
                times, deadline = lifetime(world, now, dice)
                shown = times if not world.most else times[-world.most :] if world.keep_newest else times[: world.most]
                found = world.layout(shown, dice)
                if world.as_list and isinstance(found, list):
                    pipe.rpush(f"{name}:{n}", *map(json.dumps, found))
                elif world.as_zset and isinstance(found, list):
                    members = (one if isinstance(one, str) else json.dumps(one) for one in found)
                    scores = [at + (2 * ahead(dice) if world.due else 0) for at in shown]
                    pipe.zadd(
                        f"{name}:{n}",
                        dict(zip(members, scores, strict=True)) | ({"next time": now + DAY_S} if world.due else {}),
                    )
                else:
                    pipe.set(f"{name}:{n}", world.pack(json.dumps(found).encode()))
                pipe.dump(f"{name}:{n}")
                written[f"{name}:{n}"] = times[-1], deadline
        dumps = pipe.execute()[1::2]
        for (key, (at, deadline)), dump in zip(written.items(), dumps, strict=True):
            pipe.restore(key, round(deadline * 1000), dump, replace=True, absttl=True, idletime=round(now - at))
        pipe.execute()
    expect = {f"{name}:*": f"{world.ttl_s:.0f}s" for name, world in worlds.items()}
    return audit(server.url, expect=expect, full=True, duty=1)


def lifetime(world: World, now: float, dice: random.Random) -> tuple[list[float], float]:
    """Return the times of a session's writes and the deadline that they left."""
    at, deadline = now - dice.uniform(0.02, 0.97) * world.ttl_s, 0.0
    times: list[float] = []
    while at < now and (not times or dice.random() > 0.15):
        times.append(at)
        if not deadline or deadline - at <= world.renew_below * world.ttl_s:
            deadline = at + world.ttl_s
        at += dice.expovariate(1 / world.gap_s)
    return times, deadline


SHOWN = ("not_refreshed", "trimmed", "corrupt", "encoding_changed")


def by_prefix(report: AuditReport) -> dict[str, list[Finding]]:
    """Return the findings that payloads show; the keys' idle times are those of the test and not of the world."""
    found: dict[str, list[Finding]] = {}
    for one in report.findings:
        if one.cause in ("not_refreshed", "trimmed", "corrupt", "encoding_changed") or one.evidence[0].startswith(
            "in "
        ):
            found.setdefault((one.prefix or "").removesuffix(":"), []).append(one)
    return found


@pytest.mark.parametrize("seed", range(2))
def test_renewed_sessions_are_no_finding(server: RedisServer, seed: int) -> None:
    found = by_prefix(play(server, HEALTHY, seed))
    assert {name: [(one.cause, one.message) for one in each] for name, each in found.items()} == {}


@pytest.mark.parametrize("seed", range(2))
def test_writes_that_do_not_renew_are_found(server: RedisServer, seed: int) -> None:
    found = by_prefix(play(server, {name: world for name, (world, _) in FAULTS.items()}, seed))
    causes = {name: [one.cause for one in each] for name, each in found.items()}
    assert causes == {name: [cause] for name, (_, cause) in FAULTS.items()}
    for name, each in found.items():
        assert each[0].confidence == ("possible" if each[0].cause == "trimmed" else "proven"), name
        assert "after LPUSH LTRIM key 0 n-1" in each[0].next or each[0].cause != "trimmed"


@pytest.mark.parametrize(
    ("late", "status"), [(0, "healthy"), (1, "undetermined"), (2, "undetermined"), (3, "findings")]
)
def test_few_sessions_with_late_writes(server: RedisServer, late: int, status: str) -> None:
    now = server.clock.now().timestamp()
    with server.client() as client:
        client.flushdb()
        for n in range(3):
            value = json.dumps({"updatedAt": iso(now if n < late else now - 5 * DAY_S)})
            client.set(f"chat:{n}", value, pxat=round((now + 2 * DAY_S + n) * 1000))
            client.restore(f"chat:{n}", round((now + 2 * DAY_S + n) * 1000), client.dump(f"chat:{n}"), replace=True,
                           absttl=True, idletime=round((0.0 if n < late else 5) * DAY_S))  # fmt: skip
        client.set("chat:new", json.dumps({"text": "hi"}), ex=round(WEEK_S))
    report = audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
    assert report.verdict.status == status
    if status == "undetermined":
        assert report.verdict.sentence.startswith(f"{late} of 3 sessions matching chat:*, too few to judge, state")


def test_one_distance_of_all_deadlines_is_their_ttl() -> None:
    dice, now = random.Random(1), 1_800_000_000_000
    sessions = []
    for n in range(30):
        at = now - dice.uniform(0, 1.9) * DAY_S * 1000
        stated = StatedTime(at, at)
        facts = KeyFacts(b"chat:%d" % n, "string", round(at + 2 * DAY_S * 1000), None, now, 100)
        sessions.append(DatedSession(facts, stated, stated, 0))
    found = not_refreshed(parse_expectation("chat:*=7d"), sessions, [], [])
    assert found
    assert (found.cause, found.confidence, found.observed_ttl_s) == ("ttl_too_short", "likely", 2 * DAY_S)


@pytest.mark.parametrize("age_ms", [10**400, -(10**400), 0, None, "7d", 1.5], ids=lambda age: str(age)[:6])
def test_cookie_without_a_valid_age_states_no_write(age_ms: object) -> None:
    data = json.dumps({"cookie": {"originalMaxAge": age_ms, "expires": "2026-11-29T12:00:00.000Z"}}).encode()
    assert stated_by(data) is None


def stated_by(data: bytes) -> StatedTime | None:
    value = RedisValue("sess:abc", "string", data=data)
    owner = formats.recognise(value)
    assert owner
    return dated_session(value, KeyFacts(b"sess:abc", "string", None, None, 2_000_000_000_000, 100), owner).newest


def test_only_a_web_sessions_cookie_states_a_write() -> None:
    cookie = {"originalMaxAge": 86_400_000, "expires": "2026-11-29T12:00:00.000Z"}
    day_before = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp() * 1000
    assert stated_by(json.dumps({"cookie": cookie}).encode()) == StatedTime(day_before, day_before)
    assert list(times_in({"messages": [{"role": "user", "content": "hi", "cookie": cookie}]})) == []
    assert list(times_in({"session": {"cookie": cookie}})) == []
